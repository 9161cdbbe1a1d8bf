"""What single methods promise besides the laws that all keep to."""

import logging

import pytest
import torch
from made_captures import DIM, captures, constant, image, only

from sparsezip import methods
from sparsezip.errors import BudgetError, FailureError, SettingError, UnknownNameError
from sparsezip.ops import select
from sparsezip.tensors import Captures, Question

FORMS = pytest.mark.parametrize("paper", [False, True], ids=["default", "paper"])
TOWERS = pytest.mark.parametrize("cls", [True, False], ids=["CLS", "no CLS"])
SKIPS = {"skip_hybrid_attn": True, "skip_dynamic_k": True, "skip_ctx_merge": True}


def equal(left, right):
    for name in ("features", "kept", "source"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(left, name), getattr(right, name), strict=True)), name


# -- by name --------------------------------------------------------------------------------------------------------


def test_a_method_is_found_by_name_and_by_class():
    assert set(methods.registry.names()) >= {"grid", "keep_all", "random", "sparsezip", "visionzip"}
    assert methods.method("visionzip", dominant=20) == methods.VisionZip(dominant=20)
    assert methods.KeepAll is methods.registry.get("keep_all")
    with pytest.raises(UnknownNameError, match=r'no method "visionzp"\. Did you mean "visionzip"'):
        methods.method("visionzp")
    with pytest.raises(AttributeError, match="VisionZap"):
        methods.VisionZap  # noqa: B018  # the access is the test


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"k_min": 65}, SettingError, "k_min=65, above k_max=64"),
        ({"tau_feat": 0}, SettingError, "tau_feat = 0. It should be greater than 0"),
        ({"k_min": 0}, SettingError, "k_min = 0"),
        ({"dominant": 0}, SettingError, "dominant = 0"),
        ({"dynamic_k": "yes"}, SettingError, "dynamic_k = 'yes'"),
        ({"cross_beta": float("nan")}, SettingError, "cross_beta = nan"),
        ({"alphas": {"attn": "1"}}, SettingError, "alphas: attn = '1'"),
        ({"alphas": [1, 0.8, 1]}, SettingError, "alphas"),
        ({"merging": {"kmeans_init_factor": 0.5}}, SettingError, "merging: kmeans_init_factor = 0.5"),
        ({"merging": {"contextual_num": -1}}, SettingError, "merging: contextual_num = -1"),
        (
            {"merging": {"contextual": 3}},
            UnknownNameError,
            'merging has no setting "contextual". Did you mean "contextual_num"',
        ),
    ],
)
def test_a_setting_of_sparsezip_makes_sense_or_is_refused(settings, error, message):
    with pytest.raises(error) as caught:
        methods.method("sparsezip", **settings)
    assert message in str(caught.value)


def test_a_group_given_in_part_keeps_the_rest():
    method = methods.SparseZip(merging={"contextual_num": 7}, alphas={"mutual": 0})
    assert (method.merging.contextual_num, method.merging.kmeans_init_factor) == (7, 2.0)
    assert (method.alphas.attn, method.alphas.entropy, method.alphas.mutual) == (1.0, 0.8, 0)
    assert method == methods.SparseZip(merging=method.merging, alphas=method.alphas)


# -- floors ---------------------------------------------------------------------------------------------------------


def test_random_follows_its_seed_alone():
    one, other = captures(seed=1), captures(images=1, seed=2)
    kept = [methods.Random(budget=20, seed=seed).compress(one).kept[2] for seed in (0, 0, 1)]
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])
    assert torch.equal(kept[0], methods.Random(budget=20).compress(other).kept[0])


def test_random_reaches_every_patch():
    made = captures(images=1)
    reached = {p for seed in range(60) for p in methods.Random(budget=5, seed=seed).compress(made).kept[0].tolist()}
    assert reached == set(range(42))


def test_grid_keeps_the_spread_positions():
    made = captures(grid=(6, 7))
    assert torch.equal(methods.Grid(budget=12).compress(made).kept[1], select.spread((6, 7), 12))


def test_floors_send_64_tokens_unless_told():
    made = captures(images=1, grid=(10, 10))
    assert methods.Random().compress(made).tokens == methods.Grid().compress(made).tokens == [64]


def test_keep_all_does_not_pretend_to_meet_a_budget():
    with pytest.raises(BudgetError, match="sends all 42 patches, more than the budget of 41"):
        methods.KeepAll(budget=41).compress(captures())
    with pytest.raises(BudgetError, match="more than the budget of 21"):
        methods.KeepAll(keep_ratio=0.5).check(42)


# -- budgets --------------------------------------------------------------------------------------------------------


@FORMS
@pytest.mark.parametrize(
    ("method", "demand"),
    [
        (methods.VisionZip, r"VisionZip asks for 54 \+ 10 = 64 tokens, but this image has 42 patches"),
        (methods.SparseZip, r"SparseZip asks for 33 \+ 32 = 65 tokens, but this image has 42 patches"),
    ],
)
def test_more_tokens_than_patches_are_refused(method, demand, paper):
    with pytest.raises(BudgetError, match=demand):
        method(paper=paper).compress(captures())
    with pytest.raises(BudgetError, match=demand):
        method(paper=paper).check(42)
    method(paper=paper).check(65)
    method(paper=paper, budget=64).check(42)  # all patches or more means all patches


def test_settings_that_ask_for_every_patch_are_the_unmodified_model():
    made = captures()
    for method in (
        methods.VisionZip(dominant=30, contextual=12),
        methods.SparseZip(dynamic_k=False, dominant=29, merging={"contextual_num": 12}),
        methods.SparseZip(k_min=29, merging={"contextual_num": 12}),
    ):
        equal(method.compress(made), methods.KeepAll().compress(made))


def test_a_fixed_contextual_share_is_kept_within_a_budget():
    made = captures()
    for method in (
        methods.VisionZip(budget=20, contextual=12),
        methods.SparseZip(budget=20, merging={"contextual_num": 12}),
    ):
        compressed = method.compress(made)
        assert [len(kept) for kept in compressed.kept] == [8, 8, 8]
        assert compressed.tokens == [20] * 3
    for method in (
        methods.VisionZip(budget=12, contextual=12),
        methods.SparseZip(budget=12, merging={"contextual_num": 12}),
    ):
        with pytest.raises(BudgetError, match="12 contextual tokens within a budget of 12"):
            method.compress(made)
        with pytest.raises(BudgetError, match="12 contextual tokens within a budget of 12"):
            method.check(42)


@FORMS
@TOWERS
def test_both_forms_and_all_towers_send_as_many_tokens(paper, cls):
    """CLS is sent by the published form alone; elsewhere one more patch is."""
    made = captures(grid=(9, 9), cls=cls)
    with_cls = int(paper and cls)
    fixed = methods.VisionZip(dominant=20, contextual=6, paper=paper).compress(made)
    own = methods.SparseZip(dominant=19, dynamic_k=False, merging={"contextual_num": 6}, paper=paper).compress(made)
    for compressed in (fixed, own):
        assert compressed.tokens == [26] * 3
        assert [len(kept) for kept in compressed.kept] == [20 - with_cls] * 3
        first = made.features[0, 0] if with_cls else made.patch_features[0, compressed.kept[0][0]]
        assert torch.equal(compressed.features[0][0], first)


# -- VisionZip ------------------------------------------------------------------------------------------------------


@FORMS
def test_visionzip_keeps_what_cls_attends_to(paper):
    made = captures()
    kept = methods.VisionZip(budget=12, paper=paper).compress(made).kept
    for i in range(3):
        best = made.cls_attention[i].sum(0).topk(10 - int(paper)).indices  # 12 = 10 + 2
        assert kept[i].tolist() == sorted(best.tolist())


def test_only_the_published_form_adds_the_target_to_the_mean():
    """Identical patches all join the first target: their mean is the same patch, target plus mean twice that."""
    made = constant(captures())
    for paper, merged in ((False, 0.5), (True, 1.0)):
        features = methods.VisionZip(budget=12, paper=paper).compress(made).features[0]
        expected = torch.full((12, DIM), 0.5)
        expected[10] = merged
        torch.testing.assert_close(features, expected)


@FORMS
@TOWERS
@pytest.mark.parametrize(("k", "contextual"), [(19, 6), (7, 0), (30, 11)])
def test_sparsezip_without_its_parts_is_visionzip(paper, cls, k, contextual):
    for dtype in (torch.float32, torch.float16):
        made = captures(cls=cls, dtype=dtype)
        own = methods.SparseZip(dominant=k, merging={"contextual_num": contextual}, paper=paper, **SKIPS)
        equal(own.compress(made), methods.VisionZip(dominant=k + 1, contextual=contextual, paper=paper).compress(made))
        for tokens in (1, 3, 16, 41):
            own = methods.SparseZip(budget=tokens, paper=paper, **SKIPS)
            equal(own.compress(made), methods.VisionZip(budget=tokens, paper=paper).compress(made))


# -- SparseZip ------------------------------------------------------------------------------------------------------


def towards(made, patch):
    """A question about what that patch of image 0 shows."""
    return Question(tower=8 * made.patch_features[0, patch].float())


def test_a_question_draws_the_patches_it_is_about():
    made = captures()
    method = methods.SparseZip(budget=8, cross_beta=5.0)
    silent = set(method.compress(made).kept[0].tolist())
    patch = next(p for p in range(42) if p not in silent)
    assert patch in method.compress(made, towards(made, patch)).kept[0].tolist()
    assert method.needs == {"cls_attention", "keys", "question"}


@pytest.mark.parametrize("asked", [None, Question(), Question(words=torch.randn(2, 16))])
def test_without_a_question_for_the_tower_the_text_term_is_off(asked):
    made = captures()
    expected = methods.SparseZip(budget=12, cross_beta=0).compress(made)
    equal(methods.SparseZip(budget=12, cross_beta=2.0).compress(made, asked), expected)
    equal(methods.SparseZip(budget=12, cross_beta=2.0).compress(made, [asked, None, asked]), expected)


def test_a_text_weight_of_zero_asks_for_no_question():
    made, silent = captures(), methods.SparseZip(budget=12, cross_beta=0)
    assert "question" not in silent.needs
    equal(silent.compress(made, towards(made, 3)), silent.compress(made))


def test_without_the_hybrid_score_text_counts_in_the_default_form_alone():
    made = captures()
    told = {}
    for paper in (False, True):
        method = methods.SparseZip(budget=8, cross_beta=9.0, skip_hybrid_attn=True, paper=paper)
        told[paper] = [p for p in range(42) if p in method.compress(image(made, 0), towards(made, p)).kept[0].tolist()]
        assert ("question" in method.needs) == (not paper)
    assert told[False] == list(range(42))
    assert told[True] == methods.SparseZip(budget=8, skip_hybrid_attn=True, paper=True).compress(made).kept[0].tolist()


def test_dynamic_k_gives_each_image_its_own_number_within_bounds():
    made = captures(images=6, grid=(12, 12))
    spread = torch.log(methods.SparseZip().scores(made, [None] * 6).var(-1, correction=0) + 1e-3)
    c = 20.5 - spread.mean().item()  # half of the images on either side of a whole number
    expected = [int(k) for k in (spread + c).round().tolist()]
    assert set(expected) == {20, 21}
    for paper in (False, True):
        bounds = {"k_min": 2, "k_max": 60}
        method = methods.SparseZip(dynk={"c": c}, merging={"contextual_num": 5}, paper=paper, **bounds)
        assert method.compress(made).tokens == [1 + k + 5 for k in expected]
        for bounds, tokens in (({"k_min": 2, "k_max": 7}, 13), ({"k_min": 30, "k_max": 40}, 36)):
            method = methods.SparseZip(dynk={"c": c}, merging={"contextual_num": 5}, paper=paper, **bounds)
            assert method.compress(made).tokens == [tokens] * 6


def test_a_batch_with_different_k_clusters_each_image_as_alone():
    """Few patches are left, so the number of centres is bound by them: by what K may be, not by what the batch has."""
    made = captures(images=6)
    spread = torch.log(methods.SparseZip().scores(made, [None] * 6).var(-1, correction=0) + 1e-3)
    dynk, merging = {"c": 20.5 - spread.mean().item()}, {"contextual_num": 11, "agglomerative": True}
    method = methods.SparseZip(dynk=dynk, merging=merging, k_min=20, k_max=21)
    together = method.compress(made)
    assert set(together.tokens) == {32, 33}
    for i in range(6):
        alone = method.compress(image(made, i))
        assert torch.equal(alone.features[0], together.features[i])
        assert torch.equal(alone.source[0], together.source[i])


def test_dynamic_k_never_asks_for_more_than_there_is():
    made = captures()
    method = methods.SparseZip(
        dynk={"c": 1000}, k_min=2, k_max=500, merging={"contextual_num": 10, "agglomerative": True}
    )
    assert method.compress(made).tokens == [42] * 3


@FORMS
@pytest.mark.parametrize("merging", [{}, {"agglomerative": True}, {"agglomerative": True, "kmeans_init_factor": 3.3}])
@pytest.mark.parametrize("contextual", [1, 5, 16])
def test_contextual_tokens_are_means_that_lose_no_patch(merging, contextual, paper):
    made = captures(dtype=torch.float16)
    method = methods.SparseZip(budget=22, merging={"contextual_num": contextual, **merging}, paper=paper)
    compressed = method.compress(only(made, method.needs))
    weights = made.cls_attention.float().mean(1)
    for i in range(3):
        source, features = compressed.source[i], made.patch_features[i].float()
        for token in range(22 - contextual, 22):
            members = source == token
            mean = (weights[i, members, None] * features[members]).sum(0) / weights[i, members].sum()
            torch.testing.assert_close(compressed.features[i][token], mean.half())
        assert source.min() >= 0


def test_patches_without_attention_still_count_in_the_mean():
    made = captures()
    cls_attention = torch.zeros_like(made.cls_attention)
    cls_attention[:, :, :6] = 0.1
    made = Captures(features=made.features, keys=made.keys, cls_attention=cls_attention, grid=made.grid)
    compressed = methods.SparseZip(budget=10, alphas={"entropy": 0, "mutual": 0}).compress(made)
    merged = compressed.features[0][8:]
    members = [made.patch_features[0][compressed.source[0] == token].mean(0) for token in (8, 9)]
    torch.testing.assert_close(merged, torch.stack(members))


def test_the_seed_and_the_merging_settings_reach_the_clusters():
    made = captures(grid=(16, 16))
    settings = {"budget": 40}
    base = methods.SparseZip(**settings).compress(made).source[0]
    for change in (
        {"seed": 1},
        {"merging": {"kmeans_iters": 6}},
        {"merging": {"agglomerative": True}},
        {"merging": {"contextual_num": 3}},
        {"skip_ctx_merge": True},
    ):
        assert not torch.equal(methods.SparseZip(**settings, **change).compress(made).source[0], base), change


def test_an_unused_setting_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, "sparsezip"):
        methods.SparseZip()
    assert [record.getMessage() for record in caplog.records].count(caplog.messages[0]) == 1
    assert "kmeans_init_factor is unused" in caplog.messages[0]
    caplog.clear()
    with caplog.at_level(logging.INFO, "sparsezip"):
        methods.SparseZip(merging={"agglomerative": True})
    assert not caplog.messages


# -- what towers may deliver ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["visionzip", "sparsezip"])
def test_a_tower_that_overflowed_is_a_failure_that_says_so(name):
    made = captures()
    made.cls_attention[1, 0, 5] = torch.nan
    with pytest.raises(FailureError, match=r"image 1 of the batch .* bfloat16"):
        methods.method(name, budget=12).compress(made)
    methods.method(name, budget=42).compress(made)  # nothing is ranked


def test_ties_go_to_the_lower_index():
    made = constant(captures())
    assert methods.VisionZip(budget=12).compress(made).kept[0].tolist() == list(range(10))
    assert methods.SparseZip(budget=12).compress(made, Question(tower=torch.ones(DIM))).kept[0].tolist() == list(
        range(10)
    )


def test_gradients_reach_the_features():
    made = captures()
    made.features.requires_grad_()
    compressed = methods.SparseZip(budget=12).compress(made)
    torch.cat(compressed.features).sum().backward()
    assert made.features.grad[:, 1:].any(-1).all()


@pytest.mark.parametrize("name", ["random", "sparsezip"])
@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_generator_takes_is_refused(name, seed):
    with pytest.raises(SettingError, match="seed"):
        methods.method(name, seed=seed)
