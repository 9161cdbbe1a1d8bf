"""How many tokens an image may send, and how many may go on inside the LLM."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BudgetError
from ..tensors import Decoder


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


def outliers(values: Float[Tensor, "image patch"]) -> list[int]:
    """How many patches of each image stand out: above the third quartile by more than 1.5 interquartile ranges.

    Source: LLaVA-PruMerge (ICCV 2025); Tukey's fences.
    """
    wide = values.double()
    low, high = wide.quantile(torch.tensor([0.25, 0.75], dtype=wide.dtype, device=wide.device), dim=-1)
    counts: list[int] = (wide > (high + 1.5 * (high - low))[:, None]).sum(-1).tolist()
    return counts


def apportion(total: int, shares: list[float], most: int) -> list[int]:
    """`total` tokens dealt out in proportion to `shares`, at most `most` each; the lower index wins among equals.

    One at a time, to whoever is furthest below its share (Sainte-Laguë's rule).
    """
    counts = [0] * len(shares)
    for _ in range(total):
        room = [i for i, count in enumerate(counts) if count < most]
        counts[max(room, key=lambda i: shares[i] / (counts[i] + 0.5))] += 1
    return counts


def divided(total: int, sizes: list[int]) -> list[int]:
    """`total` tokens dealt out in proportion to `sizes`, at least one each and never more than a size.

    What is left by rounding down goes to the largest remainders, the lower index among equals. Raises BudgetError for
    fewer tokens than sizes.
    """
    if total < len(sizes):
        raise BudgetError(
            f"A budget of {total} tokens is shared by {len(sizes)} views of images, of which each needs at least one. "
            'Raise it, or give each view its own with budget_scope="tile".'
        )
    if total >= sum(sizes):
        return list(sizes)
    counts = [max(1, total * size // sum(sizes)) for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (-(total * sizes[i] % sum(sizes)), i))
    room = [i for i in by_remainder if counts[i] < sizes[i]]
    while sum(counts) < total:
        for i in room[: total - sum(counts)]:
            counts[i] += counts[i] < sizes[i]
    while sum(counts) > total:  # where one token was more than a share
        most = max(range(len(counts)), key=lambda i: (counts[i], -i))
        counts[most] -= 1
    return counts


def per_layer(visual: int, stages: list[int], counts: list[int], layers: int) -> list[int]:
    """The visual tokens that enter each LLM layer when drops behind the layers `stages` leave `counts` of `visual`."""
    entering = [visual] * layers
    for layer, count in zip(stages, counts, strict=True):
        entering[layer + 1 :] = [count] * (layers - layer - 1)
    return entering


def flops(entering: list[int], llm: Decoder, looked: Sequence[int] = ()) -> float:
    """FLOPs of a prefill in which those numbers of visual tokens enter the layers, beside the prompt's other tokens.

    `looked`: layers behind which the queries, keys and values of the next one are made once more, of all tokens.
    """
    lengths = [visual + llm.text for visual in entering]
    layers = sum(llm.per_token * length + llm.per_pair * length**2 for length in lengths)
    return layers + llm.per_look * sum(lengths[layer] for layer in looked)


def schedule(
    method: str,
    left: Callable[[float], list[float]],
    stages: list[int],
    budget: int,
    match: str,
    visual: int,
    llm: Decoder,
    looks_ahead: bool = False,
) -> list[int]:
    """What each drop may leave of `visual` tokens so that the layers, as `match` measures them, get `budget` at most.

    `left(share)` is the method's own shape of the counts, from nearly none at share 0 to all at 1. The result is the
    largest that meets the budget, found by bisection: at least one token everywhere, and never more than before. With
    `looks_ahead` each drop costs the queries, keys and values that the next layer makes once more.

    Raises BudgetError when even one token behind each drop is too much.
    """

    def counts(share: float) -> list[int]:
        made, most = [], visual
        for wanted in left(share):
            most = min(most, max(1, int(wanted + 1e-9)))
            made.append(most)
        return made

    def cost(counts: list[int]) -> float:
        if match == "tokens":
            return counts[-1]
        entering = per_layer(visual, stages, counts, llm.layers)
        if match != "flops":
            return sum(entering) / llm.layers
        asked = [stage for stage, count in zip(stages, counts, strict=True) if count < entering[stage]]
        return flops(entering, llm, asked if looks_ahead else ())

    target = flops([budget] * llm.layers, llm) if match == "flops" else budget
    least = [1] * len(stages)
    if cost(least) > target:
        first = "layer" if stages[0] == 0 else f"{stages[0] + 1} layers"
        share = f"a mean of {sum(per_layer(visual, stages, least, llm.layers)) / llm.layers:.1f} tokens"
        if match == "flops":
            share = f"{cost(least) / target:.2f} times the FLOPs of {budget} tokens in every layer"
        raise BudgetError(
            f"{method} lets all {visual} visual tokens into the first {first} of {llm.layers}, which makes {share} at "
            f"least: too much for a budget of {budget}. Raise the budget, drop earlier, or have another method send "
            "fewer tokens."
        )
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(counts(middle)) <= target else (low, middle)
    return counts(low) if cost(counts(low)) <= target else least
