"""Images seen as several views: how budgets are dealt out, what is put together again; videos; tiles of a prompt."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny_families import TINY
from tiny_videos import VIDEOS
from tiny_vlm import heard

import sparsezip
from sparsezip import methods
from sparsezip.errors import BudgetError
from sparsezip.models.base import Seen
from sparsezip.models.load import adapter_for
from sparsezip.models.towers import tiles_of
from sparsezip.ops.budget import divided
from sparsezip.stages import per_view
from sparsezip.tensors import Captures

NEXT = TINY["llava_next"]


@pytest.mark.parametrize(
    ("total", "sizes", "counts"),
    [
        (10, [16, 16], [5, 5]),
        (11, [16, 16], [6, 5]),
        (10, [16, 48], [3, 7]),  # 2.5 and 7.5: the lower index among equal remainders
        (3, [1, 1000, 1], [1, 1, 1]),  # each gets one at least
        (5, [2, 1000, 2], [1, 3, 1]),
        (100, [16, 48], [16, 48]),
        (63, [16, 48], [16, 47]),
    ],
)
def test_a_total_is_dealt_out_in_proportion(total, sizes, counts):
    assert divided(total, sizes) == counts


def test_every_share_fits_and_nothing_is_lost():
    for total in range(5, 80):
        counts = divided(total, [3, 40, 7, 1, 20])
        assert sum(counts) == min(total, 71)
        assert all(1 <= count <= size for count, size in zip(counts, [3, 40, 7, 1, 20], strict=True))
    with pytest.raises(BudgetError, match="4 tokens is shared by 5 views"):
        divided(4, [3, 40, 7, 1, 20])


IMAGES = [Seen.plainly((4, 4), (8, 6)), Seen.plainly((4, 4))]


@pytest.mark.parametrize(
    ("settings", "per_row", "budgets"),
    [
        ({"budget": 16}, [2], [[4, 12], [16]]),
        ({"budget": 16, "budget_scope": "prompt"}, [2], [[3, 10], [3]]),
        ({"budget": 16, "budget_scope": "prompt"}, [1, 1], [[4, 12], [16]]),
        ({"budget": 16, "budget_scope": "tile"}, [2], [[16, 16], [16]]),
        ({"keep_ratio": 0.5}, [2], [[8, 24], [None]]),
        ({}, [2], [[None, None], [None]]),  # its own settings, for each view
    ],
)
def test_a_budget_is_for_a_view_an_image_or_a_prompt(settings, per_row, budgets):
    made = per_view(methods.VisionZip(**settings), IMAGES, per_row)
    assert [[method.budget for method in its] for its in made] == budgets


@pytest.mark.parametrize(
    ("row", "tiles"),
    [
        ("..", []),
        ("a####b", [2]),  # tiles follow each other directly
        ("a####b.a##b", [2, 1]),
        ("r##s##g##", [3]),  # each behind a token of its own, the last of an image behind g
        ("r##s##g##.g##", [3, 1]),
        ("g##.r##g##", [1, 2]),
    ],
)
def test_tiles_belong_together_by_what_stands_in_front(row, tiles):
    assert tiles_of([ord(token) for token in row], ord("#"), 2) == tiles


# -- LLaVA-NeXT: the picture of the tiles, and the tiles ------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return NEXT.make_model()


@pytest.fixture(scope="module")
def call():
    return {**NEXT.inputs(("What color is the star?", [1]), ("Is there a red circle?", [0, 2]))}


@torch.no_grad()
def test_the_picture_of_the_tiles_has_each_patch_where_the_tower_saw_it(model, call):
    """By hand: the tiles side by side, the padding cut off."""
    adapter = adapter_for(model)
    joint, apart = adapter.seen(call), adapter.seen(call, tiled=True)
    wanted = frozenset({"cls_attention", "keys"})
    pictures, tiles = heard(adapter, call, joint, wanted), heard(adapter, call, apart, wanted)
    found = {view: (batch.captures, row) for batch in tiles.batches for row, view in enumerate(batch.views)}
    seen = 0
    for batch in pictures.batches:
        for row, (image, view) in enumerate(batch.views):
            own = batch.captures
            if view == 0:
                whole, place = found[image, 0]
                assert torch.equal(own.patch_features[row], whole.patch_features[place])
                assert torch.equal(own.cls_attention[row], whole.cls_attention[place])
                continue
            (down, across), (rows, cols) = apart[image].tiling, adapter.tile
            for name in ("patch_features", "patch_keys"):
                parts = [getattr(*(found[image, 1 + n][0], name))[found[image, 1 + n][1]] for n in range(down * across)]
                grid = torch.cat(
                    [
                        torch.cat([parts[r * across + c].view(rows, cols, -1) for c in range(across)], 1)
                        for r in range(down)
                    ]
                )
                top, left = ((full - kept) // 2 for full, kept in zip(grid.shape[:2], own.grid, strict=True))
                cut = grid[top : top + own.grid[0], left : left + own.grid[1]]
                assert torch.equal(getattr(own, name)[row], cut.flatten(0, 1))
            seen += 1
    assert seen == 3
    assert any(one.sizes[1] < 16 * (len(its.views) - 1) for one, its in zip(joint, apart, strict=True))  # padding


@torch.no_grad()
def test_tokens_of_tiles_are_sent_as_visionzips_authors_do(model, call):
    method = methods.VisionZip(dominant=4, contextual=2, budget_scope="tile", paper=True)
    with sparsezip.compress(model, method) as trace:
        model(**call)
    for image, one in zip(trace.images, adapter_for(model).seen(call, tiled=True), strict=True):
        tiles = len(one.views)
        assert image.tokens == 6 * tiles
        assert 3 * tiles == image.K  # and CLS
        order = image.source[image.kept]
        assert order[:3].tolist() == [1, 2, 3]  # the whole image: CLS first, then its patches
        across = one.tiling[1]
        lines = [
            ((tile // across) * 4 + inside // 4, (tile % across) * 4 + inside % 4)
            for tile, inside in ((int(patch) // 16 - 1, int(patch) % 16) for patch in image.kept[3:])
        ]
        in_order = [place for _, place in sorted(zip(order[3:].tolist(), lines, strict=True))]
        assert in_order == sorted(lines)  # line by line over all tiles
        assert order[3:].sort().values.tolist() == list(
            range(6, 6 + 3 * (tiles - 1))
        )  # then CLS of each, then the rest
        assert image.source.max() == image.tokens - 1
        assert (image.source[16:][image.source[16:] >= 6 + 4 * (tiles - 1)]).numel()  # merged ones come last


@torch.no_grad()
def test_hired_deals_out_an_images_budget_over_its_tiles(model, call):
    with sparsezip.compress(model, methods.HiRED(budget=30)) as trace:
        model(**call)
    assert [image.tokens for image in trace.images] == [30, 30, 30]
    by_tile = [
        [int(((image.kept // 16) == tile).sum()) for tile in range(image.patches // 16)] for image in trace.images
    ]
    assert any(len(set(tiles[1:])) > 1 for tiles in by_tile)  # not the same for every tile


@torch.no_grad()
def test_what_covers_all_that_is_shown_is_everything(model):
    """Of five tiles of 16 patches 32 patches show padding; 48 are sent, and four lines end."""
    call = {**NEXT.inputs(("What?", [4]))}
    expected = model(**call).logits
    with sparsezip.compress(model, methods.HiRED(keep_ratio=0.9)) as trace:
        assert torch.equal(model(**call).logits, expected)
    (image,) = trace.images
    assert (image.tokens, image.before, image.patches, image.views) == (52, 52, 80, 5)
    assert image.K == 48
    assert int((image.source < 0).sum()) == 80 - 48


@torch.no_grad()
def test_padding_of_tiles_comes_last(model):
    """What is ranked by attention leaves it; 16 tokens a tile were everything."""
    call = {**NEXT.inputs(("What?", [4]))}
    shown = adapter_for(model).seen(call, tiled=True)[0].patch
    with sparsezip.compress(model, methods.FasterVLM(budget=6, budget_scope="tile")) as trace:
        model(**call)
    of_tile = [int((shown[shown >= 0] // 16 == tile).sum()) for tile in range(5)]
    for tile, count in enumerate(of_tile):
        own = {int(patch) for patch in trace.images[0].kept if int(patch) // 16 == tile}
        assert len(own) == 6
        assert len(own & set(shown.tolist())) == min(6, count)


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
@pytest.mark.parametrize("size", [(20, 400), (400, 20)])
def test_a_line_of_pixels_is_seen(family, size):
    """The picture of the tiles may have nothing but padding."""
    model, processor = TINY[family].make_model(), TINY[family].processor()
    inputs = processor(images=[[Image.new("RGB", size, (200, 30, 30))]], text=["<image> What?"], return_tensors="pt")
    inputs.pop("token_type_ids", None)
    expected = model(**inputs).logits
    for method in (methods.KeepAll(), methods.Random(budget=5), methods.ToMe(budget=5), methods.HiRED(budget=5)):
        if family == "llava_onevision" and method.name == "hired":
            method = replace(method, saliency="received")
        with sparsezip.compress(model, method) as trace:
            logits = model(**inputs).logits
        assert trace.images[0].tokens == (5 if method.name != "keep_all" else trace.images[0].before)
        assert torch.equal(logits, expected) == (method.name == "keep_all")


# -- videos ---------------------------------------------------------------------------------------------------------


def test_evs_keeps_the_first_frame_and_what_changed_most():
    torch.manual_seed(0)
    frames = torch.randn(2, 3, 12, 8)  # two videos of three frames
    frames[:, 1] = frames[:, 0]
    frames[0, 1, [2, 7]] = -frames[0, 0, [2, 7]]
    frames[:, 2] = frames[:, 1]
    frames[1, 2, 5] = -frames[1, 1, 5]
    made = Captures(features=frames.flatten(0, 1), grid=(3, 4), frames=3)
    kept = [its.tolist() for its in methods.EVS(budget=5).compress(made).kept]  # 15 of each video
    assert [len(its) for its in kept] == [12, 3, 0, 12, 2, 1]
    assert {2, 7} <= set(kept[1])
    assert kept[5] == [5]
    assert kept[0] == kept[3] == list(range(12))


def test_evs_spreads_what_is_less_than_a_frame():
    made = Captures(features=torch.randn(4, 16, 8), grid=(4, 4), frames=4)
    kept = methods.EVS(budget=1).compress(made).kept
    assert [len(its) for its in kept] == [4, 0, 0, 0]
    assert torch.equal(kept[0], methods.Grid(budget=4).compress(made).kept[0])


@pytest.mark.parametrize("family", VIDEOS)
@torch.no_grad()
def test_videos_are_compressed_like_images_with_a_view_for_each_frame(family):
    videos = VIDEOS[family]
    model, rows = TINY[family].make_model(), (("What happens?", [1]), ("hello", []), ("Is there a red circle?", [2, 0]))
    call = {**videos(*rows)}
    settings = {"max_new_tokens": 4, "do_sample": False}
    plain = model.generate(**call, **settings)
    with sparsezip.compress(model, "keep_all"):
        assert torch.equal(model.generate(**call, **settings), plain)
    seen = adapter_for(model).of_videos().seen(call)
    for method in (methods.Random(keep_ratio=0.5), methods.EVS(keep_ratio=0.5), methods.ToMe(budget=9)):
        with sparsezip.compress(model, method) as trace:
            logits = model(**call).logits[:, -1]
            answers = model.generate(**call, **settings)
        each = [image.patches // image.views for image in trace.images]
        if method.name == "random":  # as many of every frame
            for image, patches in zip(trace.images, each, strict=True):
                of_frame = [int((image.kept // patches == frame).sum()) for frame in range(image.views)]
                assert max(of_frame) - min(of_frame) <= 1
                assert sum(of_frame) == round(0.5 * image.patches)
        assert [image.views for image in trace.images] == [len(one.views) for one in seen]
        for number, row in enumerate(rows):
            with sparsezip.compress(model, method):
                alone = model(**videos(row)).logits[0, -1]
                answer = model.generate(**videos(row), **settings)
            assert (alone - logits[number]).abs().max() < 3e-6
            assert torch.equal(answer[0, -4:], answers[number, -4:])
