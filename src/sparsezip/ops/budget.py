"""How many tokens an image may send."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BudgetError


def split(budget: int, contextual: int | None = None) -> tuple[int, int]:
    """Share a budget between dominant and contextual tokens: VisionZip's 54 to 10, unless `contextual` is given."""
    contextual = round(budget * 10 / 64) if contextual is None else contextual
    return budget - contextual, contextual


def afford(method: str, dominant: int, contextual: int, patches: int) -> None:
    """Raise BudgetError if `method` cannot send that many tokens of an image with `patches` patches."""
    if dominant < 1:
        raise BudgetError(
            f"{method} asks for {contextual} contextual tokens within a budget of {dominant + contextual}, which "
            f"leaves no dominant one. Use at most {dominant + contextual - 1} contextual tokens."
        )
    if dominant + contextual > patches:
        raise BudgetError(
            f"{method} asks for {dominant} + {contextual} = {dominant + contextual} tokens, but this image has "
            f"{patches} patches. Use dominant + contextual <= {patches}, or set a budget."
        )


def dynamic_k(scores: Float[Tensor, "image patch"], c: float, eps: float, k_min: int, k_max: int) -> list[int]:
    """SparseZip's number of dominant patches: round(log(variance of the scores + eps) + c), within k_min and k_max.

    Population variance, per image.
    """
    variance = scores.double().var(-1, correction=0)
    return [int(k) for k in (torch.log(variance + eps) + c).round().clamp(k_min, k_max).tolist()]
