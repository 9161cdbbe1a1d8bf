"""AutoPrune's curve and mutual information against their formulas, and its budget against the tokens it leaves."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_views import view

from sparsezip.methods import AutoPrune
from sparsezip.ops import attention
from sparsezip.ops.budget import per_layer
from sparsezip.tensors import Decoder

LLM = Decoder(layers=32)


def bits(rows, eps):
    """Sum over heads, words and patches, term by term."""
    total = 0.0
    for head in rows.tolist():
        word = 1 / len(head)
        patch = [sum(row[i] * word for row in head) for i in range(len(head[0]))]
        for row in head:
            for value, alone in zip(row, patch, strict=True):
                if value:
                    total += value * word * math.log2(max(value * word / (word * alone + eps), 1e-9))
    return total


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_information(eps):
    torch.manual_seed(0)
    rows = torch.softmax(3 * torch.randn(3, 5, 14), -1)[..., :9]
    rows[0, 0, 3] = 0
    assert attention.information(rows, eps=eps) == pytest.approx(bits(rows, eps), rel=1e-6)
    alike = rows[:, :1].expand(-1, 5, -1)
    assert attention.information(alike) == pytest.approx(0, abs=1e-6)
    assert attention.information(torch.eye(8)[None]) == pytest.approx(3)  # each of 8 words has a patch of its own


def test_the_first_view_sets_how_steep_the_curve_is():
    seen = view(rows=1, visual=40, text=6)
    rows = attention.rows(seen.q, seen.k, seen.text[0])[0, :, :, seen.visual[0]]
    for paper in (False, True):
        method = AutoPrune(paper=paper, gamma=0.05).settled(seen)
        assert method.k0 == pytest.approx(0.4 - 0.05 * bits(rows, 1e-6 if paper else 0.0), rel=1e-5)
        assert method.k0 < 0.39
        assert method.settled(view(rows=1, seed=5)) is method
    assert AutoPrune(gamma=100.0).settled(seen).k0 == 0


@pytest.mark.parametrize("k", [0.4, 0.15, 0.0])
@pytest.mark.parametrize("budget", [64, 128, 192])
def test_the_curve_is_scaled_to_the_budget(k, budget):
    method = AutoPrune(k0=k, gamma=0.0, budget=budget)
    counts = np.array(method.plan(576, LLM))
    entering = per_layer(576, method.after(32), counts.tolist(), 32)
    assert entering[:2] == [576, 576]
    assert budget - 1 < np.mean(entering) <= budget
    layers = np.arange(1, 31)
    curve = 0.75 / (1 + np.exp(k * (layers - (14.9 + k))))
    free = (counts < 576) & (counts > 1)
    scale = counts[free] / curve[free]
    assert scale.max() * 0.999 <= ((counts[free] + 1) / curve[free]).min()  # one scale fits all, up to rounding down


def test_steeper_curves_spend_the_same_budget_earlier():
    flat, steep = (AutoPrune(k0=k, gamma=0.0, budget=96).plan(576, LLM) for k in (0.0, 0.4))
    assert len(set(flat)) == 1
    assert steep[0] > flat[0]
    assert steep[-1] < flat[-1]
    assert abs(sum(steep) - sum(flat)) < 32


def test_what_the_text_attends_to_stays():
    seen = view(rows=1, visual=40, text=6)
    score = attention.rows(seen.q, seen.k, seen.text[0])[0].mean((0, 1))[seen.visual[0]]
    for depth, count in ((1, 7), (9, 25)):
        kept = AutoPrune().keep(replace(seen, depth=depth, count=count)).indices[0]
        assert set(kept.tolist()) == set(score.argsort(descending=True)[:count].tolist())
    # without a count: the curve as it is, of the tokens that entered the LLM
    kept = AutoPrune().keep(replace(seen, depth=20)).indices[0]
    assert len(kept) == int(40 * 0.75 / (1 + math.exp(0.4 * (20 - 15.3))))


def test_without_a_budget_it_is_the_authors_64_wherever_that_can_be_met():
    assert AutoPrune().plan(576, LLM) == AutoPrune(budget=64).plan(576, LLM)
    assert AutoPrune().plan(576, Decoder(layers=6)) == AutoPrune(budget=144).plan(576, Decoder(layers=6))
    assert AutoPrune().plan(2880, LLM) == AutoPrune(budget=270).plan(2880, LLM)
    assert AutoPrune().plan(49, LLM) == [49] * 30
