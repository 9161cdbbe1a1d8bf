import math
from dataclasses import replace

import pytest
import torch
from made_captures import captures

from sparsezip.errors import SettingError
from sparsezip.ops import score
from sparsezip.tensors import Question

SETTINGS = {"tau_feat": 0.15, "tau_sim": 0.08}


def signals(images=2, patches=30, key=6, seed=0):
    torch.manual_seed(seed)
    attention = torch.softmax(torch.randn(images, 3, patches), -1)
    return attention, torch.randn(images, patches, key), torch.softmax(torch.randn(images, patches), -1)


def by_hand(attention, keys, relevance, alphas, beta, tau_feat, tau_sim):
    """The hybrid score of one image, patch by patch in Python's own arithmetic."""

    def softmax(values):
        powers = [math.exp(v - max(values)) for v in values]
        return [p / sum(powers) for p in powers]

    def entropy(values):
        return -sum(p * math.log(p) for p in values if p > 0)

    def z(values):
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        return [(v - mean) / spread for v in values]

    attention, keys = attention.tolist(), keys.tolist()
    count = len(keys)
    salience = [sum(head[i] for head in attention) / len(attention) for i in range(count)]
    detail = [entropy(softmax([v / tau_feat for v in key])) / math.log(len(key)) for key in keys]
    norm = [math.sqrt(sum(v * v for v in key)) for key in keys]
    mutual = []
    for i in range(count):
        cosines = [
            sum(a * b for a, b in zip(keys[i], keys[j], strict=True)) / norm[i] / norm[j] / tau_sim
            for j in range(count)
            if j != i
        ]
        mutual.append(1 - entropy(softmax(cosines)) / math.log(count))
    terms = zip(z(salience), z(detail), z(mutual), z(relevance.tolist()), strict=True)
    return [alphas["attn"] * a + alphas["entropy"] * h + alphas["mutual"] * m + beta * r for a, h, m, r in terms]


@pytest.mark.parametrize(
    "alphas", [{"attn": 1.0, "entropy": 0.8, "mutual": 1.0}, {"attn": 0.5, "entropy": 0, "mutual": -2}]
)
def test_hybrid_equals_the_formulas(alphas):
    attention, keys, relevance = signals()
    actual = score.hybrid(attention, keys, alphas=alphas, relevance=relevance, cross_beta=0.3, **SETTINGS)
    for i in range(2):
        expected = by_hand(attention[i], keys[i], relevance[i], alphas, 0.3, 0.15, 0.08)
        torch.testing.assert_close(actual[i], torch.tensor(expected), rtol=0, atol=2e-5)


def test_the_cls_row_of_the_keys_plays_no_part():
    attention, keys, _ = signals()
    with_cls = torch.cat([torch.full((2, 1, 6), 9.0), keys], 1)
    alphas = score.Alphas()
    plain = score.hybrid(attention, keys, alphas=alphas, **SETTINGS)
    assert torch.equal(plain, score.hybrid(attention, with_cls, alphas=alphas, **SETTINGS))


def test_relevance_counts_only_with_a_weight():
    attention, keys, relevance = signals()
    alphas = {"entropy": 0.0, "mutual": 0.0}
    plain = score.hybrid(attention, keys, alphas=alphas, **SETTINGS)
    assert torch.equal(plain, score.zscore(attention.mean(1)))
    assert torch.equal(plain, score.hybrid(attention, keys, alphas=alphas, relevance=relevance, **SETTINGS))
    assert torch.equal(plain, score.hybrid(attention, keys, alphas=alphas, cross_beta=0.3, **SETTINGS))
    told = score.hybrid(attention, keys, alphas=alphas, relevance=relevance, cross_beta=0.3, **SETTINGS)
    torch.testing.assert_close(told - plain, 0.3 * score.zscore(relevance))


def test_a_z_score_of_nothing_but_rounding_is_zero():
    rough = 0.7 + 1e-8 * torch.randn(2, 50, dtype=torch.float64)
    assert not score.zscore(rough.float()).any()
    assert not score.zscore(torch.full((1, 1), 3.0)).any()
    spread = score.zscore(torch.tensor([[1.0, 2.0, 3.0, 6.0]]))
    torch.testing.assert_close(spread.mean(), torch.tensor(0.0))
    torch.testing.assert_close(spread.std(), torch.tensor(1.0))


def test_a_z_score_does_not_hide_what_is_not_a_number():
    values = torch.rand(3, 5)
    values[1, 2], values[2, 0] = torch.nan, torch.inf
    assert score.zscore(values).isfinite().all(-1).tolist() == [True, False, False]


def test_detail_runs_from_one_channel_to_all():
    keys = torch.tensor([[[9.0, 0, 0, 0], [2, 2, 2, 2], [9, 9, 0, 0]]])
    torch.testing.assert_close(score.detail(keys, 0.15), torch.tensor([[0.0, 1.0, 0.5]]))


def test_mutual_tells_a_twin_from_a_crowd():
    alone = torch.eye(8)[None]
    torch.testing.assert_close(score.mutual(alone, 0.08)[0], torch.full((8,), 1 - math.log(7) / math.log(8)))
    twins = alone.clone()
    twins[0, 5] = twins[0, 2]
    assert score.mutual(twins, 0.08)[0].topk(2).indices.sort().values.tolist() == [2, 5]
    assert score.mutual(torch.ones(1, 1, 4), 0.08).tolist() == [[0.0]]


def test_relevance_is_a_distribution_that_follows_the_query():
    torch.manual_seed(0)
    features, query = torch.randn(2, 9, 16), torch.randn(2, 16)
    relevance = score.relevance(features, query)
    torch.testing.assert_close(relevance.sum(-1), torch.ones(2))
    expected = torch.softmax(torch.einsum("ipd,id->ip", features, query) / 4, -1)
    torch.testing.assert_close(relevance, expected)


def test_similarities_are_taken_in_float32():
    torch.manual_seed(0)
    keys = torch.randn(1, 20, 64)
    coarse = keys.bfloat16()
    assert score.cosine(coarse, coarse).dtype == torch.float32
    assert torch.equal(score.cosine(coarse, coarse), score.cosine(coarse.float(), coarse.float()))
    assert score.cosine(torch.zeros(1, 2, 4), torch.ones(1, 3, 4)).tolist() == [[[0.0] * 3] * 2]


def test_a_question_is_compared_in_clip_space_where_both_sides_are_there_and_among_words_otherwise():
    made = captures(images=4)
    words, clip = torch.randn(5, 16), torch.randn(2, 12)
    asked = [Question(words=words, clip=clip), Question(words=words), None, Question(words=words[:0])]
    found = score.question_relevance(made, asked)
    expected = torch.cosine_similarity(made.image_embeds[0, :, None], clip, dim=-1).mean(-1)
    torch.testing.assert_close(found[0], -expected)  # CLIP's patches turn away from what they show
    expected = torch.cosine_similarity(made.projected[1, :, None], words, dim=-1).mean(-1)
    torch.testing.assert_close(found[1], expected)
    assert not found[2:].any()
    without = replace(made, image_embeds=None)
    expected = torch.cosine_similarity(made.projected[0, :, None], words, dim=-1).mean(-1)
    torch.testing.assert_close(score.question_relevance(without, asked)[0], expected)


def test_a_question_without_vectors_to_compare_is_refused():
    for asked, clip_only in ((Question(words=torch.randn(5, 16)), True), (Question(tower=torch.randn(24)), False)):
        with pytest.raises(SettingError, match="question of image 1"):
            score.question_relevance(captures(images=2), [None, asked], clip_only=clip_only)
