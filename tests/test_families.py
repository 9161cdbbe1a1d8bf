"""What is particular to families, against modules of unmodified transformers put together here.

Run as a program, `python tests/test_families.py --write`, it stores what each family serves under the transformers that
is installed in docs/models_results.json, of which docs/models.md is made.
"""

import inspect
import json
import subprocess
import sys
from dataclasses import replace
from datetime import date
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from tiny_families import QWEN3, SIZES, TINY, picture, qwen_model, small_picture
from tiny_vlm import heard
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

import sparsezip
from sparsezip import methods
from sparsezip.errors import BudgetError, UnsupportedCallError, UnsupportedModelError
from sparsezip.methods.base import LayerMethod
from sparsezip.models.clip import ClipText
from sparsezip.models.load import adapter_for
from sparsezip.tensors import Kept
from sparsezip.vlm import VLM

FAMILIES = sparsezip.list_models()
RESULTS = Path(__file__).parents[1] / "docs" / "models_results.json"
ROW = ("What color is the star?", [1, 2])  # of a batch of one, two images of different sizes
ONE = ("What color is the star?", [1])  # LLaVA-OneVision cuts no image that has others beside it
ANYRES = ("llava_next", "llava_onevision")
TILED = ("idefics3", "smolvlm", "internvl", "llama4")
MARKED = ("idefics3", "smolvlm", "llama4", "mistral3", "llava_pixtral")  # text stands between an image's tokens
INSIDE = [name for name in FAMILIES if name not in ("gemma3", "llama4")]
CLS = {"llava": 0, "llava_next": 0, "vipllava": 0, "internvl": 0, "llama4": -1}  # the row of the tower


@cache
def model_of(family):
    return TINY[family].make_model()


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=3e-6)


def method_for(adapter, name, **settings):
    lacks = not methods.registry.get(name)().needs <= adapter.offers
    return methods.method(name, **({"saliency": "received"} if lacks else {}), **settings)


# -- prompts by hand -----------------------------------------------------------------------------------------------


def image_features(model, inputs):
    """The model without its head, and what that makes of the images."""
    outer = getattr(model, "model", model)
    names = inspect.signature(outer.get_image_features).parameters.keys() & inputs.keys() - {"input_ids"}
    return outer, outer.get_image_features(**{name: inputs[name] for name in names}, return_dict=True)


class ByHand:
    """A prompt of one row on its way through unmodified modules, all its placeholders filled with native tokens."""

    def __init__(self, model, inputs):
        outer, made = image_features(model, inputs)
        self.model, self.ids = model, inputs["input_ids"][0]
        tokens = getattr(made, "pooler_output", None)
        if type(model).__name__.startswith("Llama4"):
            tokens = outer.multi_modal_projector(made.last_hidden_state)
        tokens = tokens.flatten(0, -2) if isinstance(tokens, torch.Tensor) else torch.cat([*tokens])
        self.visual = self.ids == adapter_for(model).placeholder
        self.embeds = model.get_input_embeddings()(self.ids.where(~self.visual, 0)).clone()
        self.embeds[self.visual] = tokens.to(self.embeds)
        self.line_end = torch.zeros_like(self.visual)
        if getattr(outer, "image_newline", None) is not None:
            self.line_end = self.visual & (self.embeds == outer.image_newline).all(1)
        self.deepstack = getattr(made, "deepstack_features", None)
        self.positions = torch.arange(len(self.ids))[None]
        if "image_grid_thw" in inputs:
            self.positions = outer.get_rope_index(
                self.ids[None],
                mm_token_type_ids=self.visual[None].int(),
                image_grid_thw=inputs["image_grid_thw"],
                attention_mask=torch.ones_like(self.ids)[None],
            )[0][:, 0]
        decoder = outer.text_model if hasattr(outer, "text_model") else outer.language_model
        self.decoder = getattr(decoder, "model", decoder)

    def columns(self, images):
        """The columns that stay when of each image the patches of its trace are kept: those and the text."""
        stays, patches = ~self.visual, (self.visual & ~self.line_end).nonzero()[:, 0]
        for image, its in zip(images, patches.split([image.patches for image in images]), strict=True):
            stays[its[image.kept]] = True
        return stays.nonzero()[:, 0]

    def mask(self, columns, new, hidden=None):
        """Which columns see which, and `new` ones behind them: in a sliding window (None: everywhere)."""
        count = len(columns) + new
        order = torch.ones(count, count).bool().tril()
        visual = torch.cat([self.visual[columns], torch.zeros(new).bool()])
        if type(self.model).__name__.startswith("PaliGemma"):
            order[:, : len(columns)] = True
            order[: len(columns), len(columns) :] = False
        if hidden is not None:
            order &= ~torch.cat([hidden, torch.zeros(new).bool()]) | torch.eye(count).bool()
        if not type(self.model).__name__.startswith("Gemma3"):
            return self.added(order)
        starts = visual & ~torch.cat([torch.zeros(1).bool(), visual[:-1]])
        group = torch.where(visual, starts.cumsum(0), 0)
        together = (group[:, None] == group) & visual
        near = order & (torch.arange(count)[:, None] - torch.arange(count) < self.decoder.config.sliding_window)
        return {"full_attention": self.added(order | together), "sliding_attention": self.added(near | together)}

    def added(self, allowed):
        return torch.zeros(1, 1, *allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)

    def logits(self, columns, positions=None, new=(), hidden=None, cut=()):
        """Logits of those columns and of `new` ids behind them.

        `positions` of the columns: their own unless told, or "counted". `hidden`: columns that nothing sees. `cut`: a
        number of layers in front of which nothing is hidden yet.
        """
        embeds = torch.cat([self.embeds[columns], self.model.get_input_embeddings()(torch.tensor([*new]).long())])
        places = self.positions[:, columns]
        if positions == "counted":
            places = torch.arange(len(columns))[None]
        later = places.max() + 1 + torch.arange(len(new))
        places = torch.cat([places, later.expand(len(places), -1)], 1)
        more = {}
        if self.deepstack is not None:
            visual = torch.cat([self.visual[columns], torch.zeros(len(new)).bool()])
            rows = (self.visual.cumsum(0) - 1)[columns[self.visual[columns]]]
            features = [torch.cat([*its]) if isinstance(its, list | tuple) else its for its in self.deepstack]
            more = {"visual_pos_masks": visual[None], "deepstack_visual_embeds": [its[rows] for its in features]}
        mask = self.mask(columns, len(new), None if cut else hidden)
        later_mask, hooks = self.mask(columns, len(new), hidden), []
        for layer in self.decoder.layers[cut:] if cut else ():
            hooks.append(
                layer.register_forward_pre_hook(
                    lambda _, args, kwargs: (args, kwargs | {"attention_mask": later_mask}), with_kwargs=True
                )
            )
        hidden_states = self.decoder(
            inputs_embeds=embeds[None],
            position_ids=places[0][None] if len(places) == 1 else places[:, None],
            attention_mask=mask,
            use_cache=False,
            **more,
        ).last_hidden_state
        for hook in hooks:
            hook.remove()
        return self.model.get_output_embeddings()(hidden_states)


@torch.no_grad()
@pytest.mark.parametrize("row", [ROW, ONE], ids=["two images", "one"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_that_is_sent(family, row):
    """Kept patches stand where they stood, at the positions that the family gives them, and decoding goes on there."""
    model, inputs = model_of(family), TINY[family].inputs(row)
    by_hand = ByHand(model, inputs)
    close(model(**inputs).logits, by_hand.logits(torch.arange(len(by_hand.ids))))
    with sparsezip.compress(model, methods.Random(keep_ratio=0.4)) as trace:
        logits = model(**inputs).logits
        columns = by_hand.columns(trace.images)
        output = model.generate(
            **inputs, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    counted = None if len(by_hand.positions) > 1 else "counted"
    close(logits, by_hand.logits(columns, counted))
    new = output.sequences[0, len(by_hand.ids) :].tolist()
    expected = by_hand.logits(columns, counted, new[:2])[0, -3:]
    close(torch.cat(output.logits), expected)
    assert int((~by_hand.visual).sum()) < len(columns) < len(by_hand.ids)


@torch.no_grad()
@pytest.mark.parametrize("row", [ROW, ONE], ids=["two images", "one"])
@pytest.mark.parametrize("family", INSIDE)
def test_original_positions_are_those_of_a_prompt_with_hidden_columns(family, row):
    model, inputs = model_of(family), TINY[family].inputs(row)
    by_hand = ByHand(model, inputs)
    method = methods.Random(keep_ratio=0.4, positions="original")
    with sparsezip.compress(model, method) as trace:
        logits = model(**inputs).logits
        if "image_grid_thw" not in inputs:
            with pytest.raises(UnsupportedCallError, match="use_cache=False"):
                model.generate(**inputs, use_cache=False, max_new_tokens=2)
            assert (model(**inputs, use_cache=False).logits - model(**inputs).logits).abs().max() < 3e-6
    columns = by_hand.columns(trace.images)
    hidden = torch.ones(len(by_hand.ids)).bool()
    hidden[columns] = False
    close(logits, by_hand.logits(torch.arange(len(hidden)), hidden=hidden)[:, columns])
    with sparsezip.compress(model, replace(method, positions="compact")):
        compact = model(**inputs).logits
    assert torch.allclose(compact, logits, atol=3e-6) == ("image_grid_thw" in inputs)  # which always keeps them


@torch.no_grad()
@pytest.mark.parametrize("row", [ROW, ONE], ids=["two images", "one"])
@pytest.mark.parametrize("family", INSIDE)
def test_what_is_dropped_inside_is_not_seen_behind_that(family, row):
    """And nothing but visual tokens goes: not the ends of lines that are text, nor the marks of tiles."""
    model, inputs = model_of(family), TINY[family].inputs(row)
    by_hand = ByHand(model, inputs)
    first = 3 if family == "qwen3_vl" else 1
    ways = [(methods.FastV(k=first, r=0.6), [first])]
    if family != "qwen3_vl":
        ways.append((methods.PyramidDrop(layers=(1, 2), ratios=(0.5, 0.2)), None))
    for method, cut in ways:
        with sparsezip.compress(model, method) as trace:
            logits = model(**inputs).logits
        gone = (logits[0] == 0).all(1)
        assert logits.shape[1] == len(by_hand.ids)
        assert not gone[~by_hand.visual].any()
        entering = sum(image.tokens_per_layer[-1] for image in trace.images)
        assert int((by_hand.visual & ~gone).sum()) == entering < int(by_hand.visual.sum()) * 0.6
        assert set(by_hand.columns(trace.images).tolist()) <= set((~gone).nonzero()[:, 0].tolist())
        if cut:
            expected = by_hand.logits(torch.arange(len(gone)), hidden=gone, cut=cut[0])
            close(logits[:, ~gone], expected[:, ~gone])


@torch.no_grad()
@pytest.mark.parametrize("family", ["mistral3", "idefics3"])
def test_the_text_behind_an_image_is_the_same_at_every_drop(family):
    """When the last line of an image is gone, the ends of lines in front of it still belong to the image."""
    model, asked = model_of(family), []

    class Shown(methods.PyramidDrop):
        def drop(self, view):
            asked.append(view.text_embeds[0])
            kept = super().drop(view)
            return Kept.selection([torch.arange(len(kept.indices[0]))], [len(view.visual[0])])  # the first lines

    with sparsezip.compress(model, Shown(layers=(1, 2), ratios=(0.5, 0.2))):
        model(**TINY[family].inputs(("What?", [2])))
    assert len(asked) == 2
    assert torch.equal(*asked)


@torch.no_grad()
@pytest.mark.parametrize("family", MARKED)
def test_tokens_stand_behind_the_text_that_speaks_of_them(family):
    """Merged ones and CLS too: of every tile as many as it sends, of a line no more than it has patches."""
    model, inputs, given = model_of(family), TINY[family].inputs(("What?", [2])), []
    adapter = adapter_for(model)
    scope = "tile" if family in TILED else "image"
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: given.append(kwargs["input_ids"]), with_kwargs=True)
    try:
        for name in ("visionzip", "tome", "vispruner"):
            with sparsezip.compress(model, method_for(adapter, name, budget=6, budget_scope=scope)):
                model.generate(**inputs, max_new_tokens=1, do_sample=False)
    finally:
        hook.remove()
    whole = runs(inputs["input_ids"][0], adapter.placeholder)
    for ids in given:
        sent = runs(ids[0], adapter.placeholder)
        text = ids[0] != adapter.placeholder
        assert torch.equal(ids[0][text], inputs["input_ids"][0][inputs["input_ids"][0] != adapter.placeholder])
        if family in TILED:
            assert sent == [6] * len(whole)
        else:
            assert sum(sent) == 6
            assert max(sent) <= max(whole)
            assert len(sent) > 1


def runs(ids, placeholder):
    """How many placeholders stand next to each other, run by run."""
    found, before = [], False
    for is_visual in (ids == placeholder).tolist():
        if is_visual and before:
            found[-1] += 1
        elif is_visual:
            found.append(1)
        before = is_visual
    return found


# -- what is heard of the tower ------------------------------------------------------------------------------------


def squares(values, grid, side):
    """[..., row of a raster of patches] averaged over squares, which become the tokens of `grid`."""
    rows, cols = grid
    return values.unflatten(-1, (rows, side, cols, side)).mean((-3, -1)).flatten(-2)


def mosaics(config, tiles, sizes, scaled):
    """[..., patch] of all tiles as the views of images: the whole, and the tiles side by side without padding.

    `scaled`: as LLaVA-OneVision does it, where there are more than three tiles' patches.
    """
    views, side = [], config.vision_config.image_size // config.vision_config.patch_size
    for size in sizes:
        rows, cols = get_anyres_image_grid_shape(
            size.tolist(), config.image_grid_pinpoints, config.vision_config.image_size
        )
        whole, own, tiles = tiles[0], tiles[1 : 1 + rows * cols], tiles[1 + rows * cols :]
        lines = [
            torch.cat([its.unflatten(-1, (side, side)) for its in own[i : i + cols]], -1)
            for i in range(0, len(own), cols)
        ]
        picture = unpad_image(torch.cat(lines, -2), size)
        ratio = (picture.shape[-2] * picture.shape[-1] / (3 * side**2)) ** 0.5
        if scaled and ratio > 1.1:
            new = [int(length // ratio) for length in picture.shape[-2:]]
            picture = torch.nn.functional.interpolate(picture[None], new, mode="bilinear")[0]
        views += [whole, picture.flatten(-2)]
    assert not tiles
    return views


class Eager:
    """Keys [image, dim, row] and attention probabilities [image, head, query, key] of every layer of a tower."""

    def __init__(self, family, inputs, monkeypatch):
        model, listened, self.orders = TINY[family].make_model(), {}, []
        model.set_attn_implementation("eager")
        tower = adapter_for(model).tower
        code = sys.modules[type(tower).__module__]
        name = "vision_eager_attention_forward" if family == "llama4" else "eager_attention_forward"
        own = getattr(code, name)

        def listening(module, query, key, *args, **kwargs):
            output, probabilities = own(module, query, key, *args, **kwargs)
            listened.setdefault(module, []).append((key.mean(1).mT, probabilities))
            return output, probabilities

        monkeypatch.setattr(code, name, listening)
        if family == "qwen2_5_vl":
            permute = tower.permute_input_for_window_attn

            def permuting(states, order, seq_len):
                self.orders.append(order)
                return permute(states, order, seq_len)

            tower.permute_input_for_window_attn = permuting
        image_features(model, inputs)
        self.layers = [*listened.values()]


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "received"), [(family, True) for family in FAMILIES] + [(family, False) for family in CLS]
)
def test_captures_are_what_the_tower_computes(family, received, monkeypatch):
    inputs = TINY[family].inputs(ROW)
    if family == "llava_onevision":  # of several images in one prompt none is cut
        inputs = TINY[family].inputs(("What?", [0]), ("What?", [1]), ("What?", [2]))
    adapter = adapter_for(model_of(family))
    seen = adapter.seen({**inputs})
    cls = CLS.get(family)
    eager = Eager(family, inputs, monkeypatch)
    found = heard(adapter, {**inputs}, seen, frozenset({"cls_attention", "keys"}), received=received)

    sides = {"llava": 1, "vipllava": 1, "paligemma": 1, "llava_pixtral": 1}
    side, views = sides.get(family, 2), []  # of every view attention [head, row] and keys [dim, row]
    for keys, probabilities in eager.layers[-2 if cls == 0 and family != "internvl" else -1]:
        lengths = [keys.shape[2]]
        if family in ("mistral3", "llava_pixtral"):  # all images in one sequence
            lengths = [one.patches * side**2 for one in seen]
        ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
        for start, end in pairwise(ends):
            own = probabilities[:, :, start:end, start:end]
            asked = own.mean(2) if received else own[:, :, cls]
            rows = slice(1, None) if cls == 0 else slice(None, cls)
            views += zip(asked[..., rows], keys[:, :, start:end][..., rows], strict=True)
    parts = [list(its) for its in zip(*views, strict=True)]
    grids = [grid for one in seen for grid in one.views]
    if family in ANYRES:
        config, scaled = model_of(family).config, family == "llava_onevision"
        parts = [mosaics(config, its, inputs["image_sizes"], scaled) for its in parts]
    elif family.startswith("qwen"):
        parts = [[its.unflatten(-1, (-1, 4)).mean(-1) for its in part] for part in parts]
        if eager.orders:
            back = eager.orders[0].argsort()
            sizes = [one.patches for one in seen]
            parts = [torch.cat(part, -1)[:, back].split(sizes, -1) for part in parts]
    else:
        parts = [[squares(its, grid, side) for grid, its in zip(grids, part, strict=True)] for part in parts]

    names = [(image, view) for image, one in enumerate(seen) for view in range(len(one.views))]
    expected = dict(zip(names, zip(*parts, strict=True), strict=True))
    for batch in found.batches:
        for row, name in enumerate(batch.views):
            attention, keys = expected.pop(name)
            torch.testing.assert_close(batch.captures.cls_attention[row], attention, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(batch.captures.patch_keys[row].T, keys, rtol=1e-4, atol=1e-5)
    assert not expected


@pytest.mark.parametrize("family", TILED)
def test_tokens_of_tiles_are_squares_of_patches(family):
    """As the captures are averaged: the family's own shuffle says which patches become which token."""
    model, numbers = model_of(family), torch.arange(64.0)
    if family == "internvl":
        shuffled = model.model.pixel_shuffle(numbers.view(1, 8, 8, 1))
    elif family == "llama4":
        code = sys.modules[type(model).__module__]
        shuffled = code.pixel_shuffle(numbers.view(1, 64, 1), model.config.vision_config.pixel_shuffle_ratio)
    else:
        shuffled = model.model.connector.pixel_shuffle(numbers.view(1, 64, 1), model.config.scale_factor)
    own = [set(token.tolist()) for token in shuffled.view(16, 4)]
    assert own == [
        {8.0 * (2 * row + down) + 2 * col + right for down in (0, 1) for right in (0, 1)}
        for row in range(4)
        for col in range(4)
    ]


# -- budgets -------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_budget_is_for(family):
    model, inputs = model_of(family), TINY[family].inputs(("What?", [2]), ("hello", []), ROW)
    adapter = adapter_for(model)
    # LLaVA-NeXT's tiles are seen one by one where each has a budget.
    tiles = [len(one.views) for one in adapter.seen({**inputs}, tiled=True)]
    for name in ("random", "visionzip", "divprune"):
        for scope, sent in (("image", [9, 9, 9]), ("tile", [6 * one for one in tiles]), ("prompt", None)):
            budget = {"image": 9, "tile": 6, "prompt": 13}[scope]
            with sparsezip.compress(model, method_for(adapter, name, budget=budget, budget_scope=scope)) as trace:
                model.generate(**inputs, max_new_tokens=1, do_sample=False)
            tokens = [image.tokens for image in trace.images]
            if sent is None:
                assert [tokens[0], sum(tokens[1:])] == [13, 13]
                assert min(tokens) >= 1
            else:
                assert tokens == sent
            assert trace.tokens_per_layer[0] == sum(tokens) / 3


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_budget_of_fewer_tokens_than_views_is_refused(family):
    model, inputs = model_of(family), TINY[family].inputs(("What?", [2]))
    views = len(adapter_for(model).seen({**inputs})[0].views)
    method = methods.Random(budget=max(1, views - 1))
    if views == 1:
        inputs, method = TINY[family].inputs(ROW), methods.Random(budget=1, budget_scope="prompt")
    before = model(**inputs).logits
    with sparsezip.compress(model, method), pytest.raises(BudgetError, match="needs at least one"):
        model.generate(**inputs, max_new_tokens=1)
    assert torch.equal(model(**inputs).logits, before)


@torch.no_grad()
@pytest.mark.parametrize("seeds", [[2], [4], [1, 5]])
def test_hired_deals_out_the_tiles_of_llava_next(seeds):
    """Pictures 2 and 4 are padded: tiles then have patches without a place in the prompt."""
    model, inputs = model_of("llava_next"), TINY["llava_next"].inputs(("What?", seeds))
    with sparsezip.compress(model, methods.HiRED(keep_ratio=0.3)) as trace:
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
        for image in trace.images:
            assert image.tokens == round(0.3 * image.patches)


def test_more_tokens_than_have_a_place_are_refused():
    inputs = TINY["llava_next"].inputs(("What?", [4]))  # 5 tiles of 16 patches, of which 28 show padding
    with (
        sparsezip.compress(model_of("llava_next"), methods.Random(budget=14, budget_scope="tile")),
        pytest.raises(UnsupportedCallError, match="sends 70 tokens for image 0, whose prompt has a place for 1 to 52"),
    ):
        model_of("llava_next").generate(**inputs, max_new_tokens=1, do_sample=False)


# -- what is refused, and why --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "name", "settings", "message"),
    [
        ("gemma3", "fastv", {}, "Most layers of Gemma 3 see the last tokens only"),
        ("llama4", "pyramiddrop", {}, r"Layers of Llama 4 do not all see the same tokens \(chunked attention\)"),
        ("qwen3_vl", "fastv", {"k": 2}, "behind layer 1 .* add visual features behind the first 2 layers"),
        ("gemma3", "visionzip", {}, r'Its vision tower has no CLS token; saliency="received".*Methods that work here'),
        ("internvl", "trim", {"paper": True}, "trim needs image_embeds, which internvl models do not offer"),
    ],
)
def test_refused_with_a_reason(family, name, settings, message):
    with (
        pytest.raises(UnsupportedModelError, match=message),
        sparsezip.compress(model_of(family), methods.method(name, **settings)),
    ):
        pass


def test_a_pair_is_refused_for_its_inner_part():
    with (
        pytest.raises(UnsupportedModelError, match="Most layers of Gemma 3"),
        sparsezip.compress(model_of("gemma3"), methods.DivPrune() | methods.FastV(k=1)),
    ):
        pass


# -- checkpoints with a processor of their own ---------------------------------------------------------------------

PROCESSORS = [name for name in FAMILIES if TINY[name].processor is not None]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma's processor and numpy
@pytest.mark.parametrize("family", PROCESSORS)
def test_questions_with_the_familys_own_processor(family, tmp_path):
    """The text of keep_all is that of transformers' own processor and generate; what is asked is read by methods."""
    model, processor, pictures = model_of(family), TINY[family].processor(), pictures_of(family)
    if family in ("llava_onevision", "internvl"):  # their processors cannot be opened without torchvision
        vlm = VLM(family, tmp_path, model, processor, adapter_for(model))
    else:
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        vlm = sparsezip.load(tmp_path)
        assert type(vlm.adapter).__name__ == type(adapter_for(model)).__name__
    questions = ["What color is the star?", "Is there a red circle?"]
    prompts = [vlm.prompt(question) for question in questions]
    inputs = processor(images=[[each] for each in pictures], text=prompts, padding=True, return_tensors="pt")
    if "token_type_ids" not in inspect.signature(model.forward).parameters:
        inputs.pop("token_type_ids", None)
    tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    texts = [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]
    answers = vlm.answer(pictures, questions, max_new_tokens=6)
    assert [answer.text for answer in answers] == texts
    assert all(texts)
    fewer = vlm.answer(pictures, questions, method_for(vlm.adapter, "sparsezip", keep_ratio=0.4), max_new_tokens=6)
    for answer, whole in zip(fewer, answers, strict=True):
        assert 1 <= answer.tokens < 0.6 * answer.tokens_before <= 0.6 * whole.tokens
        assert answer.prefill_flops < whole.prefill_flops


def pictures_of(family):
    if family == "idefics3":
        return [small_picture(1), small_picture(2)]
    return [picture(seed, SIZES) for seed in (1, 2)]


# -- docs/models.md ------------------------------------------------------------------------------------------------


@torch.no_grad()
def findings(family):
    """What the family serves: of every method "ok", "received" (so only with that saliency), or why it is refused."""
    model, inputs = model_of(family), TINY[family].inputs(("What?", [2]))
    if family == "qwen3_vl":  # as deep as released ones are, in which deepstack leaves room behind its layers
        tower, text = QWEN3 | {"deepstack_visual_indexes": [0, 1, 2]}, {"num_hidden_layers": 32, "head_dim": 12}
        model = qwen_model("Qwen3VL", tower, text, {"mrope_interleaved": True})
    adapter = adapter_for(model)

    def outcome(name, **settings):
        kind = methods.registry.get(name)
        if kind.takes_budget and not issubclass(kind, LayerMethod):
            settings["keep_ratio"] = 0.4
        try:
            with sparsezip.compress(model, kind(**settings)):
                model.generate(**inputs, max_new_tokens=1, do_sample=False)
        except UnsupportedModelError as error:
            if "saliency" not in settings and 'saliency="received"' in str(error):
                return "received" if outcome(name, saliency="received") == "ok" else str(error)
            known = {"drops tokens inside": "inside", "add visual features": "deepstack", "scales images": "one size"}
            return next((short for part, short in known.items() if part in str(error)), str(error))
        return "ok"

    return {
        "class": type(model).__name__,
        "tower": type(adapter.tower).__name__,
        "cls": adapter.cls is not None,
        "clip": takes_clip(adapter),
        "videos": bool(adapter.video_arguments),
        "inside": adapter.refuses_inside,
        "methods": {name: outcome(name) for name in sparsezip.list_methods()},
    }


def takes_clip(adapter):
    """Whether the CLIP of the tower can be lent."""
    vision = SimpleNamespace(hidden_size=getattr(adapter.tower.config, "hidden_size", 0))
    try:
        adapter.lend(ClipText(SimpleNamespace(config=SimpleNamespace(vision_config=vision)), None))
    except UnsupportedModelError:
        return False
    return True


@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_says_what_is_found(family):
    """docs/models.md is made of these results; docs/generate.py is held to them by test_docs."""
    stored = json.loads(RESULTS.read_text("utf-8"))
    latest = stored[max(stored)]  # for a transformers of which nothing is stored
    found = stored.get(transformers.__version__, latest)["families"][family]
    assert found == findings(family), "run `python tests/test_families.py --write`"


def write():
    stored = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent)
    stored[transformers.__version__] = {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "families": {family: findings(family) for family in FAMILIES},
    }
    RESULTS.write_text(json.dumps(dict(sorted(stored.items())), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("python tests/test_families.py --write stores what is found in docs/models_results.json")
    write()
