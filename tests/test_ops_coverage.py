"""Greedy choices, bipartite matching and pooling against slow formulas written again."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_captures import captures, image

from sparsezip import methods
from sparsezip.errors import FailureError, SettingError
from sparsezip.ops import merge, score, select
from sparsezip.tensors import Question

GRIDS = [(1, 1), (1, 9), (9, 1), (2, 2), (3, 5), (6, 7), (11, 4), (24, 24), (24, 42)]


def vectors(images=3, patches=40, dim=6, seed=0):
    torch.manual_seed(seed)
    return torch.randn(images, patches, dim)


@pytest.mark.parametrize("patches", [1, 2, 5, 64, 65, 130, 300])
def test_likeness_is_the_cosine_of_every_two(patches):
    made = vectors(patches=patches)
    made[0, 0] = 0
    likeness = score.likeness(made)
    torch.testing.assert_close(likeness, torch.cosine_similarity(made[:, :, None], made[:, None], dim=-1))
    assert torch.equal(likeness, likeness.mT)
    assert not likeness[0, 0].any()


@pytest.mark.parametrize("count", [1, 2, 9, 40])
def test_dispersed_picks_by_the_largest_distance_to_the_nearest_pick(count):
    likeness = score.likeness(vectors())
    for row, picks in zip(likeness, select.dispersed(likeness, count).tolist(), strict=True):
        distance = (1 - row.double()).numpy()
        nearest = [min(distance[p][q] for q in range(40) if q != p) for p in range(40)]
        expected = [int(np.argmax(nearest))]
        while len(expected) < count:
            rest = [p for p in range(40) if p not in expected]
            expected.append(max(rest, key=lambda p: min(distance[p][q] for q in expected)))
        assert picks == expected


@pytest.mark.parametrize("count", [1, 2, 9, 20])
def test_determinantal_picks_by_the_largest_determinant(count):
    kernel, quality = score.likeness(vectors(dim=30)), torch.rand(3, 40) + 0.1
    kernel = kernel * quality[:, :, None] * quality[:, None]
    for row, picks in zip(kernel.double().numpy(), select.determinantal(kernel, count).tolist(), strict=True):
        expected = []
        while len(expected) < count:
            rest = [p for p in range(40) if p not in expected]
            expected.append(max(rest, key=lambda p: np.linalg.det(row[np.ix_([*expected, p], [*expected, p])])))
        assert picks == expected


def test_determinantal_starts_anew_where_the_rank_is_used_up():
    """In six dimensions there are six sound picks; then the others are chosen as if there had been none before."""
    kernel = score.likeness(vectors())
    picks = select.determinantal(kernel, 40)
    for row, order in zip(kernel, picks.tolist(), strict=True):
        assert sorted(order) == list(range(40))
        rest = [p for p in range(40) if p not in order[:6]]
        anew = select.determinantal(row[rest][:, rest][None], 6)[0].tolist()
        assert order[6:12] == [rest[p] for p in anew]


def test_determinantal_has_an_answer_for_a_kernel_of_zeros_and_one_of_copies():
    kernel = torch.stack([torch.zeros(9, 9), torch.ones(9, 9), torch.eye(9)])
    assert select.determinantal(kernel, 7).tolist() == [list(range(7))] * 3


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("barred", [False, True])
def test_covering_picks_by_the_coverage_added(weighted, barred):
    torch.manual_seed(0)
    shares, weights, out = torch.randn(3, 40, 25), torch.rand(3, 40), torch.rand(3, 40) < 0.4
    given = shares.clone()
    found = select.covering(shares, 30, weights=weights if weighted else None, barred=out if barred else None).tolist()
    assert torch.equal(shares, given)
    for i, picks in enumerate(found):
        best, expected = np.zeros(25), []
        while len(expected) < 30:
            rest = [p for p in range(40) if p not in expected]
            rest = [p for p in rest if not (barred and out[i, p])] or rest[:1]
            gain = {p: np.maximum(shares[i, p].numpy() - best, 0).sum() for p in rest}
            expected.append(max(rest, key=lambda p: gain[p] * (weights[i, p].item() if weighted else 1)))
            best = np.maximum(best, shares[i, expected[-1]].numpy())
        assert picks == expected


def test_of_equal_patches_the_lower_index_is_picked():
    likeness = score.likeness(vectors(patches=72).repeat(1, 2, 1))
    for pick in (select.dispersed, select.determinantal, select.covering):
        for order in pick(likeness, 30).tolist():
            assert all(p < 72 or p - 72 in order[: order.index(p)] for p in order), pick.__name__


def test_copies_of_one_patch_are_picked_once_each():
    for pick in (select.dispersed, select.determinantal, select.covering):
        assert pick(torch.ones(2, 9, 9), 7).tolist() == [list(range(7))] * 2


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("divprune", "projected"),
        ("cdpruner", "projected"),
        ("scope", "features"),
        ("scope", "cls_attention"),
        ("mmtok", "features"),
        ("tome", "keys"),
    ],
)
def test_patches_that_are_not_numbers_cannot_be_chosen(name, field):
    made = captures()
    broken = getattr(made, field).clone()
    broken[1, -1, -1] = torch.nan
    with pytest.raises(FailureError, match="image 1 of the batch are not finite"):
        methods.method(name, budget=8).compress(replace(made, **{field: broken}))


def matched(keys, count):
    """ToMe in rounds, one image, by the definition: the groups as lists of patches, the root of each first."""
    groups = [[p] for p in range(len(keys))]
    while len(groups) > count:
        means = [keys[group].mean(0) for group in groups]
        means = [mean / np.linalg.norm(mean) for mean in means]
        partner = {}
        for a in range(0, len(groups), 2):
            cosines = {b: means[a] @ means[b] for b in range(1, len(groups), 2)}
            partner[a] = max(cosines.items(), key=lambda item: item[1])
        joins = sorted(partner, key=lambda a: -partner[a][1])[: min(len(groups) - count, len(groups) // 2)]
        for a in joins:
            groups[partner[a][0]] += groups[a]
        groups = [group for a, group in enumerate(groups) if a not in joins]
    return groups


@pytest.mark.parametrize("count", [1, 2, 7, 20, 30, 41])
def test_tome_equals_the_definition(count):
    made = captures()
    compressed = methods.ToMe(budget=count).compress(made)
    for i in range(made.images):
        groups = matched(made.patch_keys[i].double().numpy(), count)
        assert compressed.kept[i].tolist() == [group[0] for group in groups]
        for token, group in enumerate(groups):
            assert (compressed.source[i] == token).nonzero().flatten().tolist() == sorted(group)
            torch.testing.assert_close(compressed.features[i][token], made.patch_features[i, group].mean(0))


@pytest.mark.parametrize("grid", GRIDS)
def test_cells_are_rectangles_that_tile_the_grid_in_raster_order(grid):
    rows, cols = grid
    for count in {1, 2, 3, 7, 16, 37, 64, 192, rows * cols // 2, rows * cols} & set(range(1, rows * cols + 1)):
        table = merge.cells(grid, count).view(rows, cols)
        sizes, corners = [], []
        for cell in range(count):
            row, col = (table == cell).nonzero().T.tolist()
            assert (table[min(row) : max(row) + 1, min(col) : max(col) + 1] == cell).all()
            sizes.append(len(row))
            corners.append((min(row), min(col)))
        assert corners == sorted(corners)
        assert max(sizes) <= 4 * rows * cols / count  # none is out of all proportion
    assert merge.cells(grid, rows * cols).tolist() == list(range(rows * cols))


def test_sixty_four_cells_of_a_square_image_are_squares_of_nine_patches():
    table = merge.cells((24, 24), 64).view(24, 24)
    assert torch.equal(table, torch.arange(64).view(8, 8).repeat_interleave(3, 0).repeat_interleave(3, 1))


@pytest.mark.parametrize("name", ["pool", "downsample"])
def test_pooled_tokens_are_the_means_of_their_cells(name):
    made = captures()
    compressed = methods.method(name, budget=9).compress(made)
    for i in range(made.images):
        assert len(compressed.kept[i]) == 0
        for cell in range(9):
            members = compressed.source[i] == cell
            torch.testing.assert_close(compressed.features[i][cell], made.patch_features[i, members].mean(0))


@pytest.mark.parametrize("grid", GRIDS)
def test_the_scaled_image_has_the_fewest_patches_that_are_enough(grid):
    rows, cols = grid
    scales = [step / 1009 for step in range(1, 1009)]
    sizes = [max(1, round(rows * scale)) * max(1, round(cols * scale)) for scale in scales]
    for budget in (1, 2, 3, 5, 16, 37, 64, 100, 192, rows * cols - 1, rows * cols, rows * cols + 5):
        r, c = methods.Downsample(budget=max(budget, 1)).resized(grid)
        assert min(budget, rows * cols) <= r * c <= min([n for n in sizes if n >= budget], default=rows * cols)
        low = max((r - 0.5) / rows if r > 1 else 0, (c - 0.5) / cols if c > 1 else 0)
        assert low <= min((r + 0.5) / rows, (c + 0.5) / cols, 1)  # there is a scale that makes it so


def test_a_square_image_is_scaled_to_a_square():
    assert methods.Downsample().resized((24, 24)) == (8, 8)
    assert methods.Downsample(keep_ratio=0.25).resized((24, 24)) == (12, 12)
    assert methods.Downsample(budget=192).resized((24, 24)) == (14, 14)
    assert methods.Downsample(budget=72).resized((24, 48)) == (6, 12)


def relevant(made, question, **settings):
    return methods.CDPruner(budget=12, **settings).relevance(made, [question] * made.images)


def test_cdpruner_reads_clip_where_it_can_and_words_where_not():
    made = captures()
    words, clip = torch.randn(4, 16), torch.randn(2, 12)
    both = relevant(made, Question(words=words, clip=clip))
    assert torch.equal(both, relevant(made, Question(clip=clip)))
    cosines = torch.cosine_similarity(made.image_embeds[:, :, None], clip, dim=-1).mean(-1)
    assert torch.equal(both.argmax(-1), cosines.argmin(-1))  # CLIP's patches turn away from what they show
    cosines = torch.cosine_similarity(made.projected[:, :, None], words, dim=-1).mean(-1)
    low, high = cosines.amin(-1, keepdim=True), cosines.amax(-1, keepdim=True)
    expected = (cosines - low) / (high - low)
    for less in (replace(made, image_embeds=None), made):
        question = Question(words=words, clip=clip if less is not made else None)
        torch.testing.assert_close(relevant(less, question), expected, rtol=0, atol=1e-4)
    with pytest.raises(SettingError, match="CLIP"):
        relevant(made, Question(words=words), paper=True)


@pytest.mark.parametrize("paper", [False, True], ids=["default", "paper"])
def test_cdpruner_without_a_question_picks_by_diversity_alone(paper):
    made = captures()
    picks = select.determinantal(score.likeness(made.projected), 12)
    kept = methods.CDPruner(budget=12, paper=paper).compress(made).kept
    assert torch.equal(torch.stack(kept), picks.sort().values)


def test_mmtok_lets_questions_of_every_length_share_a_batch():
    made, method = captures(images=5), methods.MMTok(budget=12)
    asked = [None if n is None else Question(words=torch.randn(n, 16)) for n in (3, None, 5, 3, 0)]
    together = method.compress(made, asked).kept
    for i in range(5):
        assert torch.equal(method.compress(image(made, i), asked[i]).kept[0], together[i])
    silent = method.compress(made).kept
    assert [torch.equal(a, b) for a, b in zip(together, silent, strict=True)] == [False, True, False, False, True]


def test_mmtok_sends_padding_only_where_nothing_else_is_left():
    made = captures()
    made.valid[:, 10:] = False
    for budget, valid in ((6, 6), (10, 10), (15, 10)):
        for kept in methods.MMTok(budget=budget).compress(made).kept:
            assert (kept < 10).sum() == valid


def test_scope_without_attention_is_coverage_alone():
    made = captures()
    alone = methods.SCOPE(budget=12, alpha=0.0).compress(made).kept
    picks = select.covering(score.likeness(made.patch_features), 12)
    assert torch.equal(torch.stack(alone), picks.sort().values)
    attended = [
        [attention[kept].sum() for kept, attention in zip(kept, made.cls_attention.sum(1), strict=True)]
        for kept in (methods.SCOPE(budget=12, alpha=alpha).compress(made).kept for alpha in (0.0, 1.0, 5.0))
    ]
    assert all(none < some <= much for none, some, much in zip(*attended, strict=True))


def test_every_greedy_choice_is_the_same_in_a_batch():
    made = vectors(images=4, patches=130)
    likeness = score.likeness(made)
    for pick, i in itertools.product((select.dispersed, select.determinantal, select.covering), range(4)):
        assert torch.equal(pick(likeness[i, None], 40)[0], pick(likeness, 40)[i])
        assert torch.equal(score.likeness(made[i, None])[0], likeness[i])


def test_mmtok_weighs_words_and_patches_alike_and_then_by_alpha():
    made, words = captures(), torch.randn(4, 16)
    method = methods.MMTok(alpha=0.3, text_temperature=0.1, image_temperature=0.5)
    shares = method.shares(made, 1, Question(words=words))
    for row in range(4 + made.patches):
        if row < 4:
            cosines = torch.cosine_similarity(words[row], made.projected[1], dim=-1)
            expected = torch.exp(cosines / 0.1) / torch.exp(cosines / 0.1).sum() / 4
        else:
            cosines = torch.cosine_similarity(made.patch_features[1, row - 4], made.patch_features[1], dim=-1)
            expected = 0.3 * torch.exp(cosines / 0.5) / torch.exp(cosines / 0.5).sum() / made.patches
        torch.testing.assert_close(shares[:, row], expected)
