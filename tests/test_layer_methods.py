"""FastV, PyramidDrop and SparseVLM: where they drop, how many, and what odd inputs make of them."""

from dataclasses import replace

import pytest
import torch
from made_views import view

from sparsezip.errors import BudgetError, FailureError, SettingError
from sparsezip.methods import FastV, PyramidDrop, SparseVLM
from sparsezip.ops import attention, merge
from sparsezip.ops.budget import per_layer
from sparsezip.tensors import Decoder

VERSIONS = ("1.0", "1.5", "2.0")
EACH = [
    *[FastV(r=r) for r in (0.1, 0.97)],
    *[PyramidDrop(), PyramidDrop(ratios=(0.9, 0.02, 0.01), paper=True)],
    *[SparseVLM(version=version, paper=paper) for version in VERSIONS for paper in (False, True)],
    SparseVLM(version="1.0", retained_tokens=64),
]
each = pytest.mark.parametrize("method", EACH, ids=[f"{i}-{method.name}" for i, method in enumerate(EACH)])


def alone(made, **more):
    """One row, whose image began where it is."""
    return replace(made.row(0), began=[made.visual[0]], **more)


# -- any view --------------------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize(("visual", "text"), [(1, 5), (2, 5), (3, 1), (30, 1), (30, 0), (30, 5)])
def test_every_token_is_kept_merged_or_dropped(method, visual, text):
    made = alone(view(visual=visual, text=text))
    for count in (None, *range(1, visual + 1)):
        kept = method.keep(replace(made, count=count))
        (indices,), (source,), (tokens,) = kept.indices, kept.source, kept.tokens
        assert tokens == (count or tokens) <= visual
        assert len(indices)
        assert torch.equal(indices, indices.unique())
        assert torch.equal(source[indices], torch.arange(len(indices)))
        assert set(source.tolist()) - {-1} == set(range(tokens))
        for place in range(len(indices), tokens):
            members = made.hidden[0, made.visual[0][source == place]]
            torch.testing.assert_close(kept.merged[0][place - len(indices)], members.mean(0))
        if count == visual:
            assert len(indices) == visual


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_are_computed_in_float32_and_merged_tokens_keep_their_dtype(method, dtype):
    low = view(visual=200, dtype=dtype, count=70)
    wide = replace(
        low,
        **{name: getattr(low, name).float() for name in ("q", "k", "hidden", "embeds")},
        rope=tuple(part.float() for part in low.rope),
    )
    assert torch.equal(attention.rows(low.q, low.k, low.text[0]), attention.rows(wide.q, wide.k, wide.text[0]))
    kept, expected = method.keep(low), method.keep(wide)
    assert all(map(torch.equal, kept.indices, expected.indices))
    assert all(map(torch.equal, kept.source, expected.source))
    for merged, tokens in zip(kept.merged or [], expected.merged or [], strict=True):
        assert torch.equal(merged, tokens.to(dtype))


@each
def test_a_row_of_a_batch_gets_what_it_gets_alone(method):
    made = view(rows=3)
    together = method.keep(made)
    for row in range(3):
        kept = method.keep(made.row(row))
        assert torch.equal(kept.indices[0], together.indices[row])
        assert torch.equal(kept.source[0], together.source[row])
        assert kept.merged is None or torch.equal(kept.merged[0], together.merged[row])


@each
def test_the_lower_of_equals_stays(method):
    made = view(rows=1)
    made = replace(made, q=torch.zeros_like(made.q), position_ids=torch.zeros_like(made.position_ids), rope=None)
    for count in (1, 3, 12, 29):
        (kept,) = method.keep(replace(made, count=count)).indices
        assert torch.equal(kept, torch.arange(len(kept)))


@each
def test_what_is_not_finite_cannot_be_ranked(method):
    for name in ("q", "k"):
        broken = view(rows=1)
        getattr(broken, name)[0, 1, 20] = torch.nan
        getattr(broken, name)[0, 1, -1] = torch.nan
        with pytest.raises(FailureError, match="attention inside the LLM is not finite"):
            method.keep(broken)


def test_hidden_states_that_are_not_finite_cannot_be_merged():
    broken = view(rows=1, count=12)
    broken.hidden[:] = torch.inf
    with pytest.raises(FailureError, match="hidden states inside the LLM"):
        SparseVLM().keep(broken)
    assert SparseVLM(version="2.0").keep(broken).tokens == [12]


def test_a_query_sees_what_is_in_front_of_it_in_its_own_row():
    made = view(visual=4, text=5)
    queries = torch.tensor([9, 5])
    rows = attention.rows(made.q, made.k, queries)
    for i, query in enumerate(queries.tolist()):
        for row, head in ((0, 0), (1, 3)):
            logits = [float(made.q[row, head, query] @ made.k[row, head, key]) / 8**0.5 for key in range(query + 1)]
            weights = torch.tensor(logits).exp()
            torch.testing.assert_close(rows[row, head, i, : query + 1], weights / weights.sum())
            assert not rows[row, head, i, query + 1 :].any()


def test_text_that_rates_alike_rates_whole():
    assert attention.raters(torch.ones(4, 8), torch.randn(5, 8)).tolist() == [0, 1, 2, 3]
    assert attention.raters(torch.ones(1, 8), torch.randn(5, 8)).tolist() == [0]


def test_words_that_do_not_rate_are_not_heard():
    made = view(rows=1, text=2)
    made.embeds[0, :-2] = made.embeds[0, -2]  # the image is about the first of the two words
    (kept,) = SparseVLM(version="2.0", paper=True).keep(replace(made, count=5)).indices
    made.q[0, :, -1] *= -1
    assert torch.equal(SparseVLM(version="2.0", paper=True).keep(replace(made, count=5)).indices[0], kept)
    made.q[0, :, -2] *= -1
    assert not torch.equal(SparseVLM(version="2.0", paper=True).keep(replace(made, count=5)).indices[0], kept)


def test_far_gravity_is_held_above_zero():
    far = view(rows=1, rope=None)
    far.position_ids[0, -5:] += 1707 - 30  # where RoPE(1) meets itself at less than 0
    held, published = (SparseVLM(version="2.0", paper=paper).attention(far) for paper in (False, True))
    assert (held > 0).all()
    assert (published / held).max() == pytest.approx(50)
    rope = attention.rotary(torch.arange(1800)[None])
    query, distance_0 = torch.tensor([1799]), 128**0.5
    pull = attention.gravity(rope, query, floor=0)[0, 0]
    assert pull[1799 - 1707] == 0
    assert attention.gravity(rope, query)[0, 0].min() == pytest.approx(distance_0 / 20)
    assert attention.gravity(rope, query, 0.001)[0, 0].min() == pytest.approx(distance_0 / 1000)


# -- peaks -----------------------------------------------------------------------------------------------------------


def test_clouds_of_tokens_are_found():
    torch.manual_seed(0)
    labels, centres = merge.peaks((20 * torch.randn(4, 8)).repeat(6, 1) + 0.1 * torch.randn(24, 8), 4)
    assert sorted(centres.remainder(4).tolist()) == [0, 1, 2, 3]
    assert all(len(labels[cloud::4].unique()) == 1 for cloud in range(4))


def test_no_density_is_too_small_to_tell():
    """Of tokens so large that exp(-distance) is 0, the densest are still the peaks, wherever they stand."""
    torch.manual_seed(0)
    tokens = 1000 * torch.randn(24, 8)
    shuffled = torch.randperm(24)
    _, centres = merge.peaks(tokens, 4)
    _, moved = merge.peaks(tokens[shuffled], 4)
    assert torch.equal(shuffled[moved], centres)


def test_of_two_nearest_neighbours_the_lower_is_the_peak():
    pairs = torch.tensor([[0.0, 0], [0, 1], [50, 0], [50, 1]])
    labels, centres = merge.peaks(pairs, 2)
    assert sorted(centres.tolist()) == [0, 2]
    assert labels[0] == labels[1] != labels[2] == labels[3]
    labels, centres = merge.peaks(pairs, 2, torch.tensor([0, 1e-6, 0, 1e-6]))
    assert sorted(centres.tolist()) == [1, 3]


def test_copies_are_shared_out():
    labels, centres = merge.peaks(torch.ones(5, 3), 2)
    assert centres.tolist() == [0, 1]
    assert labels.tolist() == [0, 1, 0, 0, 0]


# -- where and how many ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "of_32", "of_6"),
    [
        (FastV(), [1], [0]),
        (PyramidDrop(), [7, 15, 23], [1, 2, 3]),
        (SparseVLM(), [2, 6, 15], [0, 2]),
        (SparseVLM(version="2.0"), [2, 6, 15], [0, 2]),
        (SparseVLM(version="1.0"), [2, 6, 15, 19], [0, 2, 3]),
    ],
)
def test_the_papers_layers_follow_the_depth(method, of_32, of_6):
    assert method.after(32) == of_32
    assert method.after(6) == of_6
    published = replace(method, paper=True)
    assert published.after(32) == of_32
    if of_32[-1] > 4:
        with pytest.raises(SettingError, match=r"this LLM's 6 layers are 0 to 5\. Name layers that it has"):
            published.after(6)
    else:
        assert published.after(6) == of_32


def test_layers_that_are_named_are_meant():
    assert FastV(k=3).after(6) == FastV(k=3).after(32) == [2]
    assert PyramidDrop(layers=[2, 4, 5]).after(6) == [1, 3, 4]
    assert SparseVLM(layers=(0, 2, 4)).after(6) == [0, 2, 4]
    for method in (FastV(k=6), PyramidDrop(layers=(2, 4, 6)), SparseVLM(layers=(0, 1, 5))):
        with pytest.raises(SettingError, match="between the layers 5 and 6, but this LLM's 6 layers are 0 to 5"):
            method.after(6)
    with pytest.raises(SettingError, match="ascending order"):
        PyramidDrop(layers=(8, 8, 16))


@pytest.mark.parametrize(
    ("method", "mean"),
    [
        (FastV(r=0.5), 306),
        (FastV(r=0.75), 171),
        (PyramidDrop(), 270),
        (SparseVLM(retained_tokens=192), 206.5),
        (SparseVLM(retained_tokens=128), 145.4),
        (SparseVLM(retained_tokens=96), 114.1),
        (SparseVLM(retained_tokens=64), 82.2),
        (SparseVLM(version="2.0", retained_tokens=192), 206.8),
        (SparseVLM(version="2.0", retained_tokens=128), 144.1),
        (SparseVLM(version="2.0", retained_tokens=96), 113.9),
        (SparseVLM(version="2.0", retained_tokens=64), 81.8),
    ],
)
def test_the_published_settings_have_their_true_means(method, mean):
    """METHODS.md, computed from the constants of the authors' code, in an LLM of 32 layers."""
    stages, counts, made = method.after(32), [], view(rows=1, visual=576)
    assert method.plan(576, Decoder(layers=32)) is None
    began = list(made.visual)
    for stage in range(len(stages)):
        visual = counts[-1] if counts else 576
        made = view(rows=1, visual=visual)
        embeds = torch.randn(1, 576 + 8, made.embeds.shape[2])
        counts += method.keep(replace(made, embeds=embeds, began=began, stage=stage)).tokens
    assert sum(per_layer(576, stages, counts, 32)) / 32 == pytest.approx(mean, abs=0.06)


def test_fastv_keeps_the_share_that_its_authors_round():
    for visual, r, kept in ((576, 0.9, 58), (10, 0.75, 2), (10, 0.99, 1), (1, 0.5, 1)):
        assert FastV(r=r).keep(view(visual=visual)).tokens == [kept] * 2


@pytest.mark.parametrize(
    ("method", "half"),
    [
        (FastV(), [288]),
        (PyramidDrop(), [288, 144, 72]),
        (SparseVLM(), [309, 204, 113]),
        (SparseVLM(version="2.0"), [300, 200, 118]),
        (SparseVLM(version="1.0"), [309, 204, 113, 113]),
    ],
)
def test_a_budget_is_the_mean_and_keeps_the_shape(method, half):
    assert method.left(0.5, 576, len(half)) == pytest.approx(half)
    assert method.left(0.0, 576, len(half)) == [0] * len(half)
    assert method.left(1.0, 576, len(half)) == [576] * len(half)
    for layers, budgets in ((32, (160, 192, 350, 575)), (6, (300, 500))):
        stages = method.after(layers)
        for budget in budgets:
            counts = replace(method, budget=budget).plan(576, Decoder(layers=layers))
            assert counts == sorted(counts, reverse=True)
            assert budget - 1 < sum(per_layer(576, stages, counts, layers)) / layers <= budget
    with pytest.raises(BudgetError):
        replace(method, budget=1).plan(576, Decoder(layers=32))


def test_stages_that_fall_together_leave_what_the_later_one_does():
    assert SparseVLM().plan(576, Decoder(layers=6)) == [200 + 12, 110 + 4]
    assert SparseVLM(version="2.0").plan(576, Decoder(layers=6)) == [200, 118]
    assert SparseVLM(version="1.0").plan(576, Decoder(layers=6)) is None
    assert PyramidDrop().after(3) == [0, 1]
    assert PyramidDrop().plan(100, Decoder(layers=3)) == [50, 12]


def test_recycling_keeps_the_published_proportion_under_a_budget():
    made = view(rows=1, visual=576)
    for count, kept, before in ((309, 300, 576), (204, 200, 309), (113, 110, 204), (82, 66, 576), (18, 17, 39)):
        made = view(rows=1, visual=before, count=count)
        assert len(SparseVLM().keep(made).indices[0]) == kept
    for count, kept in ((1, 1), (3, 3), (4, 3), (8, 6), (40, 30)):
        assert len(SparseVLM().keep(view(rows=1, visual=576, count=count)).indices[0]) == kept


def test_a_table_for_more_tokens_than_there_are_keeps_them_all_or_as_published_makes_one_anew():
    made = view(rows=1, visual=100)
    assert SparseVLM().keep(made).indices[0].tolist() == list(range(100))
    published = SparseVLM(paper=True).keep(made)
    assert (len(published.indices[0]), published.tokens) == (99, [100])


def test_attention_of_full_rank_keeps_everything():
    method = SparseVLM(version="1.0", scale=0.5, bias=0.0)
    for text, rank, kept in ((40, 4, 4), (1, 1, 1)):
        made = view(rows=1, visual=4, text=text)
        assert torch.linalg.matrix_rank(method.attention(made)) == rank
        assert len(method.keep(made).indices[0]) == kept


def test_positions_are_counted_anew_as_published_only():
    for version in VERSIONS:
        assert not SparseVLM(version=version).compact
        assert SparseVLM(version=version, paper=True).compact == (version != "2.0")
    assert PyramidDrop(paper=True).compact
    assert not any(method.compact for method in (PyramidDrop(), FastV(), FastV(paper=True)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FastV(r=-0.1), "r = -0.1"),
        (lambda: FastV(r=1.0), "r = 1.0"),
        (lambda: FastV(k=0), "k = 0"),
        (lambda: PyramidDrop(ratios=(0.5, 0.25)), "2 ratios for the layers"),
        (lambda: PyramidDrop(ratios=(0.5, 0.25, 0.3)), "never rise"),
        (lambda: PyramidDrop(ratios=(0.5, 0.25, 0.0)), "ratios = "),
        (lambda: SparseVLM(version="1.5", scale=2.0), "no scale and no bias"),
        (lambda: SparseVLM(version="1.0", retained_tokens=96), "no rule for 96"),
        (lambda: SparseVLM(retained_tokens=100), "192, 128, 96 or 64"),
        (lambda: SparseVLM(layers=(2, 6)), "Give 3, or a budget"),
    ],
)
def test_settings_that_make_no_sense_are_refused(build, message):
    with pytest.raises(SettingError, match=message):
        build()
    SparseVLM(layers=(2, 6), budget=100)
    SparseVLM(version="1.0", retained_tokens=96, scale=1.0, bias=0.5)
