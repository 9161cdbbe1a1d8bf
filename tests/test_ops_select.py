import numpy as np
import pytest
import torch

from sparsezip.errors import BudgetError, FailureError
from sparsezip.ops import budget, select


@pytest.mark.parametrize(
    ("tokens", "shares"),
    [
        (1, (1, 0)),
        (2, (2, 0)),
        (3, (3, 0)),
        (4, (3, 1)),
        (16, (14, 2)),
        (64, (54, 10)),
        (128, (108, 20)),
        (192, (162, 30)),
    ],
)
def test_a_budget_is_shared_as_visionzip_shares_it(tokens, shares):
    assert budget.split(tokens) == shares


def test_the_contextual_share_can_be_fixed():
    assert budget.split(64, 32) == (32, 32)
    assert budget.split(64, 0) == (64, 0)


def test_what_cannot_be_afforded_is_explained():
    budget.afford("X", 54, 10, 64)
    with pytest.raises(BudgetError, match=r"^X asks for 54 \+ 10 = 64 tokens, but this image has 49 patches\. Use dom"):
        budget.afford("X", 54, 10, 49)
    with pytest.raises(BudgetError, match=r"8 contextual tokens within a budget of 8, which leaves .* at most 7"):
        budget.afford("X", 0, 8, 49)


def test_dynamic_k_follows_the_spread_of_each_image():
    scores = torch.tensor([[0.0, 2.0], [0.0, 20.0], [0.0, 0.0]])  # population variances 1, 100, 0
    assert budget.dynamic_k(scores, 12.0, 1e-3, 1, 64) == [12, 17, 5]  # log: 0, 4.6, -6.9
    assert budget.dynamic_k(scores, 12.0, 1e-3, 10, 14) == [12, 14, 10]


def test_ties_go_to_the_lower_index():
    torch.manual_seed(0)
    scores = torch.randint(0, 3, (4, 500)).float()
    for row, kept in zip(scores, select.top(scores, [1, 50, 250, 499]), strict=True):
        ranked = sorted(range(500), key=lambda i: (-row[i].item(), i))
        assert kept.tolist() == sorted(ranked[: len(kept)])


def test_scores_that_are_not_numbers_are_a_failure():
    scores = torch.rand(3, 8)
    scores[1, 4] = torch.nan
    with pytest.raises(FailureError, match=r"patch scores of image 1 .* NaN or infinite"):
        select.top(scores, [2, 2, 2])


def test_spread_is_exact_on_every_grid():
    for rows in range(1, 8):
        for cols in range(1, 8):
            for count in range(1, rows * cols + 1):
                kept = select.spread((rows, cols), count).tolist()
                assert len(kept) == count
                assert kept == sorted(set(kept))
                assert set(kept) <= set(range(rows * cols))


def test_spread_leaves_no_corner_out():
    for grid, count in (((24, 24), 64), ((24, 24), 50), ((12, 30), 40), ((16, 16), 17)):
        kept = select.spread(grid, count)
        row, col = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
        away = torch.stack([(row - k // grid[1]) ** 2 + (col - k % grid[1]) ** 2 for k in kept.tolist()]).amin(0)
        spacing = (grid[0] * grid[1] / count) ** 0.5
        assert away.max().sqrt() < 1.3 * spacing
    assert select.spread((24, 24), 64).view(8, 8).tolist()[:1] == [[25, 28, 31, 34, 37, 40, 43, 46]]
    assert select.spread((4, 4), 4).tolist() == [5, 7, 13, 15]


def test_outliers_are_counted_as_numpy_counts_them():
    torch.manual_seed(0)
    values = torch.randn(6, 97).exp()
    for count, row in zip(budget.outliers(values), values.numpy(), strict=True):
        low, high = np.percentile(row, [25, 75])
        assert count == (row > high + 1.5 * (high - low)).sum() > 0
    assert budget.outliers(torch.full((2, 5), 0.3)) == [0, 0]


def test_shares_are_dealt_out_to_the_last_token():
    assert budget.apportion(10, [3, 1, 1], 10) == [6, 2, 2]
    assert budget.apportion(10, [3, 1, 1], 4) == [4, 3, 3]
    assert budget.apportion(2, [1, 1, 1], 5) == [1, 1, 0]
    assert budget.apportion(4, [0, 1], 3) == [1, 3]
    assert budget.apportion(0, [1], 3) == [0]


def test_blocks_cut_a_grid_as_evenly_as_it_goes():
    assert select.blocks((2, 4), (1, 2)).tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert select.blocks((3, 3), (3, 1)).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert select.blocks((13, 24), (2, 4)).bincount().tolist() == [42] * 4 + [36] * 4


def test_every_block_gets_its_turn_before_any_gets_another():
    scores, block = torch.tensor([[9.0, 8, 7, 1, 2, 2], [0.0, 0, 0, 0, 0, 0]]), torch.tensor([0, 0, 0, 0, 1, 1])
    assert select.per_block(scores, block, 5).tolist() == [[0, 4, 1, 5, 2], [0, 4, 1, 5, 2]]


@pytest.mark.parametrize(("length", "count"), [(40, 9), (41, 10), (17, 1), (2, 1), (5, 5), (3, 0), (1, 0)])
def test_thinning_equals_the_steps_one_by_one(length, count):
    torch.manual_seed(length)
    likeness = torch.rand(3, 50, 50)
    likeness = likeness + likeness.mT
    order = torch.stack([torch.randperm(50)[:length] for _ in range(3)])
    for matrix, row, thin in zip(likeness, order, select.thinned(likeness, order, count), strict=True):
        left = row.tolist()
        while count and len(left) > count:
            one, two = left[::2], left[1::2]
            one.sort(key=lambda a, two=two, matrix=matrix: -max(matrix[a, b] for b in two))
            left = one[min(8, len(left) - count) :] + two
        assert thin.tolist() == left[:count]
