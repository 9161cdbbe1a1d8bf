"""What every method must keep to. The cases come from the folder: a new method file is tested without a line here."""

import dataclasses
import importlib

import pytest
import torch
from made_captures import captures, constant, image, only, questions

from sparsezip import methods
from sparsezip.errors import BudgetError, SettingError, UnknownNameError, UnsupportedModelError
from sparsezip.methods.base import LayerMethod

ALL = methods.registry.names()  # of all of them, those that work in front of the LLM have NAMES
NAMES = [name for name in ALL if not issubclass(methods.registry.get(name), LayerMethod)]
BUDGETED = [name for name in NAMES if methods.registry.get(name).takes_budget]
every_method = pytest.mark.parametrize("name", ALL)
FORMS = pytest.mark.parametrize("paper", [False, True], ids=["default", "paper"])
PASSES = pytest.mark.parametrize(
    "made",
    [captures(), captures(cls=False), captures(grid=(1, 9)), captures(images=1, grid=(11, 4))],
    ids=["6x7", "no CLS", "1x9", "11x4"],
)
each = pytest.mark.parametrize("name", NAMES)
each_budgeted = pytest.mark.parametrize("name", BUDGETED)


def run(method, made, asked=True):
    return method.compress(only(made, method.needs), questions(made.images) if asked else None)


def couples(name):
    """Whether the paper's form of a method lets images of a batch see each other: its file has to say so."""
    return "over the batch" in methods.registry.header(name).partition("Differs:")[2]


def budgets(made):
    return sorted({1, 2, 3, 4, 7, 16, made.patches // 2, made.patches - 1} & set(range(1, made.patches)))


def same(left, right, images=slice(None)):
    for field in dataclasses.fields(left):
        pairs = zip(getattr(left, field.name), getattr(right, field.name)[images], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), field.name


@each
@PASSES
@pytest.mark.parametrize(
    "full", [lambda n: {"budget": n}, lambda n: {"budget": n + 100}, lambda n: {"keep_ratio": 1.0}]
)
def test_a_budget_of_all_patches_is_the_unmodified_model(name, made, full):
    compressed = run(methods.method(name, **full(made.patches)), made)
    every = torch.arange(made.patches)
    for i in range(made.images):
        assert torch.equal(compressed.features[i], made.features[i, -made.patches :])
        assert torch.equal(compressed.kept[i], every)
        assert torch.equal(compressed.source[i], every)


@each_budgeted
@PASSES
@FORMS
def test_the_budget_is_met_exactly(name, made, paper):
    for budget in budgets(made):
        compressed = run(methods.method(name, budget=budget, paper=paper), made)
        assert [len(features) for features in compressed.features] == [budget] * made.images
        assert compressed.tokens == [budget] * made.images


@each_budgeted
@PASSES
def test_a_ratio_is_a_share_of_the_patches(name, made):
    for ratio in (0.001, 0.1, 0.5, 0.9):
        compressed = run(methods.method(name, keep_ratio=ratio), made)
        assert compressed.tokens == [max(1, round(ratio * made.patches))] * made.images


@each_budgeted
@PASSES
@FORMS
def test_every_patch_is_accounted_for(name, made, paper):
    for budget in budgets(made):
        compressed = run(methods.method(name, budget=budget, paper=paper), made)
        for i in range(made.images):
            kept, source, features = compressed.kept[i], compressed.source[i], compressed.features[i]
            assert kept.dtype == source.dtype == torch.int64
            assert kept.tolist() == sorted(set(kept.tolist()))
            assert set(kept.tolist()) <= set(range(made.patches))
            assert source.shape == (made.patches,)
            assert set(source.tolist()) <= set(range(-1, budget))
            if not paper:
                assert (source[kept].diff() == 1).all()  # raster order, one token each
            if not methods.registry.get(name).blends:
                assert torch.equal(features[source[kept]], made.features[i, -made.patches :][kept])
            with_cls = int(paper and torch.equal(features[0], made.features[i, 0]) and made.has_cls)
            held = set(source.tolist()) - {-1}
            assert held == set(range(with_cls, budget)), "a token holds no patch"
            if budget - with_cls > len(kept):
                assert -1 not in source, "a method that merges loses no patch"
            assert features.isfinite().all()
            assert features.any(-1).all(), "a token is all zero"


@each
@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_is_kept_and_nothing_is_written_to_the_captures(name, paper, dtype):
    made, untouched = captures(dtype=dtype), captures(dtype=dtype)
    budget = {"budget": 12} if name in BUDGETED else {}
    compressed = run(methods.method(name, paper=paper, **budget), made)
    assert {features.dtype for features in compressed.features} == {dtype}
    for signal in made.delivered | {"features"}:
        assert torch.equal(getattr(made, signal), getattr(untouched, signal)), signal


@each_budgeted
@FORMS
def test_the_same_call_gives_the_same_result_and_leaves_the_random_state(name, paper):
    method, made = methods.method(name, budget=12, paper=paper), captures()
    asked = questions(made.images)
    torch.manual_seed(1)
    first = method.compress(made, asked)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    same(first, method.compress(made, asked))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "paper"), [(name, paper) for name in BUDGETED for paper in (False, True) if not (paper and couples(name))]
)
@pytest.mark.parametrize("asked", [False, True], ids=["silent", "asked"])
@pytest.mark.parametrize("grid", [(6, 7), (24, 24)], ids=["6x7", "24x24"])
def test_an_image_does_not_see_its_batch(name, paper, asked, grid):
    made = captures(images=4, grid=grid)
    method, words = methods.method(name, budget=16, paper=paper), questions(4) if asked else [None] * 4
    together = method.compress(made, words)
    for i in range(4):
        same(method.compress(image(made, i), [words[i]]), together, slice(i, i + 1))
    same(method.compress(image(made, 2, 0), [words[2], words[0]]), together, slice(2, None, -2))


@each
def test_the_settings_without_a_budget_do_not_see_the_batch_either(name):
    made, words = captures(images=3, grid=(12, 12)), questions(3)
    method = methods.method(name)
    together = method.compress(made, words)
    for i in range(3):
        same(method.compress(image(made, i), [words[i]]), together, slice(i, i + 1))


@each_budgeted
@FORMS
def test_signals_that_say_nothing_still_give_a_whole_result(name, paper):
    for value in (0.5, 0.0):
        made = constant(captures(), value)
        for budget in (1, 2, 8, 41):
            compressed = run(methods.method(name, budget=budget, paper=paper), made, asked=False)
            assert compressed.tokens == [budget] * 3
            for features in compressed.features:
                assert features.isfinite().all()
                assert paper or torch.allclose(features, made.features[0, : len(features)])
            assert all(torch.equal(row, compressed.source[0]) for row in compressed.source)


@each
def test_a_single_patch_is_sent_as_it_is(name):
    made = captures(grid=(1, 1))
    for settings in ({"budget": 1}, {"budget": 64}, {"keep_ratio": 0.1}):
        if name in BUDGETED or settings != {"keep_ratio": 0.1}:
            compressed = run(methods.method(name, **settings), made)
            assert all(torch.equal(row, made.features[i, 1:]) for i, row in enumerate(compressed.features))


@each_budgeted
def test_two_patches_share_one_token(name):
    made = captures(grid=(1, 2))
    assert run(methods.method(name, budget=1), made).tokens == [1, 1, 1]


@each
def test_what_it_needs_is_all_it_needs(name):
    method = methods.method(name, **({"budget": 12} if name in BUDGETED else {}))
    made = captures()
    assert method.needs <= made.delivered | {"question", "tiles"}
    run(method, made)  # hands over the declared signals and no other
    for signal in method.needs - {"question"}:
        with pytest.raises(UnsupportedModelError, match=signal):
            run(method, dataclasses.replace(made, **{signal: None}))


@every_method
def test_settings_survive_a_round_trip(name):
    for settings in ({}, {"paper": True}, {"budget": 100}, {"keep_ratio": 0.5}):
        method = methods.method(name, **settings)
        again = methods.method(name, **dataclasses.asdict(method))
        assert again == method
        assert hash(again) == hash(method)
        assert dataclasses.asdict(again) == dataclasses.asdict(method)


@every_method
def test_a_method_is_frozen_and_refuses_what_it_does_not_know(name):
    method = methods.method(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.budget = 3
    with pytest.raises(UnknownNameError, match=r'no setting "bugdet"\. Did you mean "budget"'):
        methods.method(name, bugdet=3)


@every_method
@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"budget": 0}, BudgetError),
        ({"budget": -3}, BudgetError),
        ({"budget": 6.0}, SettingError),
        ({"budget": True}, SettingError),
        ({"budget": "6"}, SettingError),
        ({"keep_ratio": 0.0}, SettingError),
        ({"keep_ratio": 1.01}, SettingError),
        ({"keep_ratio": float("nan")}, SettingError),
        ({"budget": 6, "keep_ratio": 0.5}, SettingError),
        ({"match": "layers"}, SettingError),
        ({"paper": 1}, SettingError),
    ],
)
def test_a_budget_makes_sense_or_is_refused(name, settings, error):
    with pytest.raises(error):
        methods.method(name, **settings)


@each
def test_questions_match_the_images(name):
    with pytest.raises(SettingError, match="2 questions for 3 images"):
        methods.method(name).compress(captures(grid=(9, 9)), questions(2))


@every_method
def test_the_file_opens_with_its_five_lines(name):
    lines = importlib.import_module(methods.registry.get(name).__module__).__doc__.strip().splitlines()
    assert lines[0].startswith(f"{name}: ")
    assert [line.partition(":")[0] for line in lines[2:]] == ["Paper", "Code", "Parity", "Differs"]
    assert all(line.partition(":")[2].strip() for line in lines[2:])
