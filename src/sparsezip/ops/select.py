"""Which patches stay."""

from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import FailureError
from .score import RESOLUTION


def top(scores: Float[Tensor, "image patch"], counts: list[int]) -> list[Int[Tensor, "_"]]:
    """The `counts[i]` best patches of image i, as ascending indices; among equals the lower index wins.

    Raises FailureError when a score is not finite: nothing can be ranked then.
    """
    return [order[:count].sort().values for order, count in zip(ranked(scores), counts, strict=True)]


def ranked(scores: Float[Tensor, "image patch"]) -> Int[Tensor, "image patch"]:
    """The patches from the best score to the worst; among equals the lower index comes first.

    Raises FailureError when a score is not finite.
    """
    _finite(scores)
    return scores.argsort(dim=-1, descending=True, stable=True)  # topk would break ties at will


def blocks(grid: tuple[int, int], parts: tuple[int, int]) -> Int[Tensor, "patch"]:
    """Which block each patch lies in, in raster order, where the grid is cut into (rows, cols) of blocks."""
    row, col = (torch.arange(size) * count // size for size, count in zip(grid, parts, strict=True))
    return (row[:, None] * parts[1] + col).flatten()


def per_block(
    scores: Float[Tensor, "image patch"], block: Int[Tensor, "patch"], count: int
) -> Int[Tensor, "image count"]:
    """The `count` patches that are best in their blocks, best first: those of rank 1 there, then of rank 2, and so on.

    Among patches of one rank the better score wins, then the lower index. Raises FailureError when a score is not
    finite. Source: VScan (TMLR 2026).
    """
    order = ranked(scores)
    member = block[order][..., None] == torch.arange(int(block.max()) + 1, device=block.device)
    rank = member.cumsum(1)[member].view_as(order)
    return order.gather(1, rank.argsort(dim=-1, stable=True))[:, :count]


def thinned(
    likeness: Float[Tensor, "image patch patch"], order: Int[Tensor, "image rest"], count: int
) -> Int[Tensor, "image count"]:
    """`count` of the patches in `order`, left over when those that are like others are dropped round by round.

    A round deals the list out to two halves in turns. Up to 8 patches of the first half go, those most like any of the
    second; its others, sorted by that likeness from high to low, stand before the second half in the next round.
    Raises FailureError when a likeness is not finite. Source: VisPruner (ICCV 2025).
    """
    _finite(likeness)
    while count and order.shape[1] > count:
        first, second = order[:, ::2], order[:, 1::2]
        halves = zip(likeness, first, second, strict=True)
        most = torch.stack([of.index_select(0, left).index_select(1, right).amax(-1) for of, left, right in halves])
        gone = min(8, order.shape[1] - count, first.shape[1])
        stay = most.argsort(dim=-1, descending=True, stable=True)[:, gone:]
        order = torch.cat([first.gather(1, stay), second], 1)
    return order[:, :count]


def spread(grid: tuple[int, int], count: int) -> Int[Tensor, "count"]:
    """`count` positions spread evenly over a grid of (rows, cols) patches, as ascending indices."""
    rows, cols = grid
    ends = line_ends(grid, count)
    lines = len(ends) - 1
    return torch.tensor(
        [
            (2 * line + 1) * rows // (2 * lines) * cols + (2 * i + 1) * cols // (2 * (end - start))
            for line, (start, end) in enumerate(pairwise(ends))
            for i in range(end - start)
        ]
    )


def line_ends(grid: tuple[int, int], count: int) -> list[int]:
    """Share `count` places between lines over a grid of (rows, cols): line i has the places ends[i] to ends[i + 1]."""
    rows, cols = grid
    lines = round((count * rows / cols) ** 0.5)  # as many lines as make the spacing square
    lines = min(max(lines, -(-count // cols), 1), rows, count)
    return [line * count // lines for line in range(lines + 1)]


def dispersed(likeness: Float[Tensor, "image patch patch"], count: int) -> Int[Tensor, "image count"]:
    """`count` patches far from each other, in the order they are picked; among equals the lower index wins.

    The first is the one whose nearest neighbour is farthest; each further one is the least like the picked ones, by its
    likeness to the nearest of them. Raises FailureError when a likeness is not finite. Source: DivPrune (CVPR 2025).
    """
    _finite(likeness)
    picks = torch.empty(likeness.shape[0], count, dtype=torch.int64, device=likeness.device)
    image = torch.arange(len(likeness), device=likeness.device)
    itself = torch.eye(likeness.shape[1], dtype=torch.bool, device=likeness.device)
    nearest = likeness.masked_fill(itself, -torch.inf).amax(-1)
    picks[:, 0] = nearest.argmin(-1)
    nearest = torch.full_like(nearest, -torch.inf)
    for step in range(1, count):
        nearest = torch.maximum(nearest, likeness[image, picks[:, step - 1]])
        nearest[image, picks[:, step - 1]] = torch.inf
        picks[:, step] = nearest.argmin(-1)
    return picks


def determinantal(kernel: Float[Tensor, "image patch patch"], count: int) -> Int[Tensor, "image count"]:
    """`count` patches whose part of `kernel` has a large determinant, in the order they are picked.

    Greedy: each pick is the patch with the most that the picked ones do not span, the lower index among equals. Where
    the rank of the kernel is used up, and what is left over is rounding, the patches not picked yet start anew, as if
    none had been. Raises FailureError when the kernel is not finite.
    Source: Chen et al., "Fast Greedy MAP Inference for Determinantal Point Process" (NeurIPS 2018).
    """
    _finite(kernel)
    images, patches, _ = kernel.shape
    picks = torch.empty(images, count, dtype=torch.int64, device=kernel.device)
    basis = kernel.new_zeros(images, count, patches, dtype=torch.float64)  # so that copies of a patch stay equals
    image, steps = torch.arange(images, device=kernel.device), torch.arange(count, device=kernel.device)
    taken = torch.zeros(images, patches, dtype=torch.bool, device=kernel.device)
    began = torch.zeros_like(image)
    whole = kernel.diagonal(dim1=1, dim2=2).double()
    gain = whole
    for step in range(count):
        gain = torch.where(gain > 10 * RESOLUTION * whole, gain, 0).masked_fill(taken, -torch.inf)
        spent = gain.amax(-1) <= 0
        began = torch.where(spent, step, began)
        gain = torch.where(spent[:, None], whole.masked_fill(taken, -torch.inf), gain)
        picks[:, step] = pick = gain.float().argmax(-1)
        taken[image, pick] = True
        along = basis[image, :step, pick] * (steps[:step] >= began[:, None])
        spanned = (along[..., None] * basis[:, :step]).sum(1)
        length = gain[image, pick].sqrt().clamp(min=torch.finfo(gain.dtype).tiny)  # 0 for a patch worth nothing
        basis[:, step] = (kernel[image, pick].double() - spanned) / length[:, None]
        gain = gain - basis[:, step].square()
    return picks


def covering(
    shares: Float[Tensor, "image patch row"],
    count: int,
    *,
    weights: Float[Tensor, "image patch"] | None = None,
    barred: Bool[Tensor, "image patch"] | None = None,
) -> Int[Tensor, "image count"]:
    """`count` patches that cover the most, in the order they are picked; among equals the lower index wins.

    `shares[i, p, r]` says how well patch p covers row r; a row is covered as well as by the best picked patch, and
    negative shares cover nothing. Each pick is the one that adds the most coverage, times its weight. `barred` patches
    are picked only when no others are left. Raises FailureError when a share or a weight is not finite.
    Sources: SCOPE (NeurIPS 2025), MMTok (ICLR 2026).
    """
    _finite(shares if weights is None else torch.cat([shares, weights[..., None]], -1))
    picks = torch.empty(shares.shape[0], count, dtype=torch.int64, device=shares.device)
    image = torch.arange(len(shares), device=shares.device)
    taken = torch.zeros(shares.shape[:2], dtype=torch.bool, device=shares.device)
    uncovered = shares.clamp(min=0)
    for step in range(count):
        gain = uncovered.sum(-1)
        if weights is not None:
            gain = gain * weights
        if barred is not None:
            gain = gain.masked_fill(barred, -1)
        picks[:, step] = pick = gain.masked_fill(taken, -torch.inf).argmax(-1)
        taken[image, pick] = True
        uncovered.sub_(uncovered[image, pick][:, None]).clamp_(min=0)
    return picks


def _finite(values: Float[Tensor, "image *more"]) -> None:
    broken = (~values.isfinite()).flatten(1).any(-1).nonzero().flatten().tolist()
    if broken:
        raise FailureError(
            f"The patch scores of image {broken[0]} of the batch are not finite, so its patches cannot be ranked: the "
            "model computed NaN or infinite values. If it runs in float16, use bfloat16 or float32."
        )
