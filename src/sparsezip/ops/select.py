"""Which patches stay."""

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import FailureError


def top(scores: Float[Tensor, "image patch"], counts: list[int]) -> list[Int[Tensor, "_"]]:
    """The `counts[i]` best patches of image i, as ascending indices; among equals the lower index wins.

    Raises FailureError when a score is not finite: nothing can be ranked then.
    """
    broken = (~scores.isfinite()).any(-1).nonzero().flatten().tolist()
    if broken:
        raise FailureError(
            f"The patch scores of image {broken[0]} of the batch are not finite, so its patches cannot be ranked: the "
            "vision tower returned NaN or infinite values. If it runs in float16, use bfloat16 or float32."
        )
    order = scores.argsort(dim=-1, descending=True, stable=True)  # topk would break ties at will
    return [ranked[:count].sort().values for ranked, count in zip(order, counts, strict=True)]


def spread(grid: tuple[int, int], count: int) -> Int[Tensor, "count"]:
    """`count` positions spread evenly over a grid of (rows, cols) patches, as ascending indices."""
    rows, cols = grid
    lines = round((count * rows / cols) ** 0.5)  # as many lines as make the spacing square
    lines = min(max(lines, -(-count // cols), 1), rows, count)
    ends = [line * count // lines for line in range(lines + 1)]
    return torch.tensor(
        [
            (2 * line + 1) * rows // (2 * lines) * cols + (2 * i + 1) * cols // (2 * (end - start))
            for line, (start, end) in enumerate(pairwise(ends))
            for i in range(end - start)
        ]
    )
