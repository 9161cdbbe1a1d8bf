"""What every method inside the LLM must keep to. A new method file is tested without a line here.

What such a method has in common with all others (settings, its five lines) is in test_method_laws.py.
"""

from dataclasses import fields, replace

import pytest
import torch
from made_views import view

from sparsezip import methods
from sparsezip.errors import BudgetError, FailureError, SettingError
from sparsezip.methods.base import LayerMethod, Pair
from sparsezip.ops.budget import flops, per_layer
from sparsezip.tensors import Decoder

NAMES = [name for name in methods.registry.names() if issubclass(methods.registry.get(name), LayerMethod)]
SIGNALS = ("q", "k", "hidden", "embeds", "position_ids")
each = pytest.mark.parametrize("name", NAMES)
FORMS = pytest.mark.parametrize("paper", [False, True], ids=["default", "paper"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
LLMS = [Decoder(layers=layers, per_token=2e8, per_pair=8e3, text=60) for layers in (2, 6, 32)]


def counts(visual):
    return sorted({1, 2, 3, 7, 16, visual // 2, visual - 1} & set(range(1, visual)))


def alone(made, **more):
    """The first row by itself, told where its image began."""
    return replace(made.row(0), began=[made.visual[0]], **more)


def same(left, right, rows=slice(None)):
    for field in fields(left):
        mine, theirs = getattr(left, field.name), getattr(right, field.name)
        assert (mine is None) == (theirs is None), field.name
        if mine is not None:
            pairs = zip(mine, theirs[rows], strict=True)
            assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs), field.name


def whole(kept, made, blends=True):
    """Every token is kept, merged or dropped, and the fields tell one story."""
    for row, (indices, source, tokens) in enumerate(zip(kept.indices, kept.source, kept.tokens, strict=True)):
        visual = len(made.visual[row])
        assert indices.dtype == source.dtype == torch.int64
        assert 1 <= len(indices) <= tokens <= visual
        assert indices.tolist() == sorted(set(indices.tolist()) & set(range(visual)))
        assert source.shape == (visual,)
        assert source[indices].tolist() == list(range(len(indices))), "a kept token is not at its own place"
        assert set(source.tolist()) - {-1} == set(range(tokens)), "a place holds no token"
        if not blends:
            assert kept.hidden is None
            assert ((source >= 0) & (source < len(indices))).sum() == len(indices)
        for made_of in (kept.hidden and kept.hidden[row], kept.merged and kept.merged[row]):
            if made_of is not None:
                assert made_of.dtype == made.hidden.dtype
                assert made_of.isfinite().all()
        if kept.hidden is not None:
            assert kept.hidden[row].shape == (len(indices), made.hidden.shape[-1])
        if kept.merged is not None:
            assert kept.merged[row].shape == (tokens - len(indices), made.hidden.shape[-1])
        if kept.sizes is not None:
            assert kept.sizes[row].tolist() == [(source == place).sum() for place in range(tokens)]


# -- any view --------------------------------------------------------------------------------------------------------


@each
@FORMS
@DTYPES
@pytest.mark.parametrize(("rows", "visual", "text"), [(1, 30, 5), (3, 30, 5), (2, 2, 5), (2, 30, 1)])
def test_the_count_is_met_and_every_token_accounted_for(name, paper, dtype, rows, visual, text):
    method, made = methods.method(name, paper=paper), view(rows=rows, visual=visual, text=text, dtype=dtype)
    for count in counts(visual):
        kept = method.keep(replace(made, count=count))
        assert kept.tokens == [count] * rows
        whole(kept, made, method.blends)


@each
@FORMS
@DTYPES
def test_the_settings_alone_give_a_whole_result_again_and_again(name, paper, dtype):
    method, made = methods.method(name, paper=paper), view(visual=60, dtype=dtype)
    kept = method.keep(made)
    whole(kept, made, method.blends)
    same(kept, methods.method(name, paper=paper).keep(made))


@each
@FORMS
@pytest.mark.parametrize("visual", [1, 30])
def test_a_count_of_all_tokens_leaves_them_as_they_are(name, paper, visual):
    made = view(visual=visual, count=visual)
    kept = methods.method(name, paper=paper).keep(made)
    for row, indices in enumerate(kept.indices):
        assert indices.tolist() == list(range(visual))
        assert kept.source[row].tolist() == list(range(visual))
        assert kept.hidden is None or torch.equal(kept.hidden[row], made.hidden[row, made.visual[row]])
        assert kept.sizes is None or kept.sizes[row].tolist() == [1] * visual


@each
@FORMS
@pytest.mark.parametrize("visual", [30, 576])
def test_a_row_does_not_see_its_batch(name, paper, visual):
    made, method = view(rows=3, visual=visual, text=9), methods.method(name, paper=paper)
    for count in (None, 17):
        together = method.keep(replace(made, count=count))
        for row in range(3):
            same(method.keep(replace(made.row(row), count=count)), together, slice(row, row + 1))


def draws(name):
    """Whether the paper's form of a method draws at random: its file has to say so."""
    return "torch.rand" in methods.registry.header(name).partition("Differs:")[2]


@each
@FORMS
@DTYPES
def test_nothing_is_drawn_at_random_and_nothing_written_to_the_view(name, paper, dtype):
    method, made, untouched = methods.method(name, paper=paper), view(dtype=dtype, count=9), view(dtype=dtype)
    torch.manual_seed(1)
    first = method.keep(made)
    if not (paper and draws(name)):
        state = torch.get_rng_state()
        torch.manual_seed(2)
        same(first, method.keep(made))
        torch.manual_seed(1)
        assert torch.equal(state, torch.get_rng_state())
    for signal in SIGNALS:
        assert torch.equal(getattr(made, signal), getattr(untouched, signal)), signal
    for field in ("visual", "text", "rope"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(made, field), getattr(untouched, field), strict=True))


@each
@FORMS
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_signals_that_say_nothing_still_give_a_whole_result(name, paper, value):
    made = view()
    made = replace(made, **{signal: torch.full_like(getattr(made, signal), value) for signal in SIGNALS[:4]})
    method = methods.method(name, paper=paper)
    for count in (None, *counts(30)):
        kept = method.keep(replace(made, count=count))
        whole(kept, made, method.blends)
        assert count is None or kept.tokens == [count] * 2
        for parts in (kept.hidden or [], kept.merged or []):
            assert all(torch.allclose(part, torch.tensor(value)) for part in parts)
        assert torch.equal(kept.indices[0], kept.indices[1])


@each
@FORMS
def test_without_a_norm_a_rotary_table_or_text_there_is_a_result(name, paper):
    made, method = view(), methods.method(name, paper=paper)
    bare = replace(made, norm=None, rope=None, count=7)
    whole(method.keep(bare), bare, method.blends)
    silent = alone(view(text=0), count=7)
    kept = method.keep(silent)
    assert kept.tokens == [7]
    whole(kept, silent, method.blends)


@each
@FORMS
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_is_not_finite_cannot_be_ranked(name, paper, broken):
    made = view(count=9)
    values = {signal: getattr(made, signal).clone() for signal in ("q", "k", "hidden", "embeds")}
    for value in values.values():
        value[..., 7:, :] = broken
    with pytest.raises(FailureError, match="finite"):
        methods.method(name, paper=paper).keep(replace(made, **values))


# -- the plan --------------------------------------------------------------------------------------------------------


@each
def test_drops_come_one_after_the_other_with_layers_behind_them(name):
    for layers in range(2, 81):
        after = methods.method(name).after(layers)
        assert after == sorted(set(after) & set(range(layers - 1)))
        assert after
    assert methods.method(name, paper=True).after(32) == methods.method(name).after(32)


def measured(entering, match, llm):
    """What `match` measures of the tokens that enter each layer."""
    return flops(entering, llm) if match == "flops" else sum(entering) / llm.layers


@each
@FORMS
@pytest.mark.parametrize("match", ["mean_tokens_per_layer", "tokens", "flops"])
@pytest.mark.parametrize("visual", [1, 49, 576])
def test_the_plan_costs_the_budget(name, paper, match, visual):
    for llm in LLMS[2:] if paper else LLMS:
        before = None
        for budget in sorted({1, 33, 64, 65, 192, visual - 1, visual, visual + 1} - {0}):
            method = methods.method(name, budget=budget, match=match, paper=paper)
            stages = method.after(llm.layers)

            def cost(plan, stages=stages, llm=llm):
                return (
                    plan[-1] if match == "tokens" else measured(per_layer(visual, stages, plan, llm.layers), match, llm)
                )

            def allowed(tokens, llm=llm):
                return tokens if match == "tokens" else measured([tokens] * llm.layers, match, llm)

            if budget < visual and cost([1] * len(stages)) > allowed(budget):
                with pytest.raises(BudgetError, match=rf"too much for a budget of {budget}\."):
                    method.plan(visual, llm)
                continue
            plan = method.plan(visual, llm)
            assert len(plan) == len(stages)
            assert plan == sorted(plan, reverse=True)
            assert visual >= plan[0] >= plan[-1] >= 1
            if budget >= visual:
                assert plan == [visual] * len(stages)
            else:
                assert allowed(budget - 1) < cost(plan) <= allowed(budget)
            assert before is None or all(more >= fewer for more, fewer in zip(plan, before, strict=True))
            before = plan


@each
@pytest.mark.parametrize("visual", [1, 49, 576, 2880])
def test_without_a_budget_there_is_a_plan_for_every_llm_or_the_settings_say(name, visual):
    for llm in LLMS:
        method = methods.method(name)
        plan = method.plan(visual, llm)
        if plan is not None:
            assert len(plan) == len(method.after(llm.layers))
            assert visual >= plan[0] >= plan[-1] >= 1
            assert plan == sorted(plan, reverse=True)


@each
def test_a_ratio_is_a_share_of_the_tokens(name):
    for ratio in (0.3, 0.5, 0.9, 1.0):
        by_ratio = methods.method(name, keep_ratio=ratio).plan(576, LLMS[2])
        assert by_ratio == methods.method(name, budget=round(ratio * 576)).plan(576, LLMS[2])


@each
@FORMS
def test_the_first_view_may_shift_the_budget_but_not_change_it(name, paper):
    made = view(visual=200, text=20)
    for budget in (64, 128):
        method = methods.method(name, budget=budget, paper=paper)
        settled = method.settled(alone(made))
        if not method.adapts:
            assert settled is method
            continue
        entering = per_layer(200, method.after(32), settled.plan(200, LLMS[2]), 32)
        assert budget - 1 < sum(entering) / 32 <= budget
        assert settled == method.settled(alone(made))
        assert settled.settled(alone(view(visual=200, seed=3))) == settled  # once and for all


# -- pairs -----------------------------------------------------------------------------------------------------------


@each
def test_a_pair_has_one_budget_and_is_built_again_from_its_settings(name):
    inner = methods.method(name)
    for settings in ({}, {"budget": 48}, {"keep_ratio": 0.2}, {"paper": True}, {"budget": 9, "match": "tokens"}):
        shared = {"budget", "keep_ratio"} & set(settings)
        pair = Pair(outer=methods.VisionZip(budget=None if shared else 100), inner=inner, **settings)
        assert pair.parts == (pair.outer, pair.inner)
        assert pair.name == f"visionzip|{name}"
        assert pair.needs == methods.VisionZip().needs
        again = methods.method(pair.name, **methods.settings(pair))
        assert again == pair
        assert hash(again) == hash(pair)
        if "budget" in settings:
            assert (pair.outer.budget, pair.inner.budget) == (2 * pair.budget, pair.budget)
            assert pair.inner.match == pair.match
            sent = pair.tokens(576)
            assert pair.inner.plan(sent, LLMS[2]) == replace(inner, **settings).plan(sent, LLMS[2])
        if "keep_ratio" in settings:
            assert pair.outer.asked(500) == 200
            assert pair.inner.asked(200) == 100
        if "paper" in settings:
            assert pair.outer.paper
            assert pair.inner.paper
    assert methods.VisionZip(budget=100) | inner == Pair(outer=methods.VisionZip(budget=100), inner=inner)


@each
def test_inside_the_llm_there_is_room_for_one(name):
    inner = methods.method(name)
    for wrong in (lambda: inner | inner, lambda: inner | methods.Grid(), lambda: methods.Grid() | inner | inner):
        with pytest.raises(SettingError):
            wrong()
    with pytest.raises(SettingError, match="is no pair"):
        Pair(outer=inner, inner=methods.Grid())
    with pytest.raises(SettingError, match="is no pair"):
        methods.Grid() | methods.Grid()


@each
def test_a_budget_at_the_tensor_level_is_what_a_single_drop_leaves(name):
    method, made = methods.method(name, budget=9), view()
    if len(method.after(32)) == 1:
        assert method.keep(made).tokens == [9, 9]
        assert methods.method(name, keep_ratio=0.3).keep(made).tokens == [9, 9]
    else:
        with pytest.raises(SettingError, match=r"Give view\.count"):
            method.keep(made)
    assert method.keep(replace(made, count=7)).tokens == [7, 7]
