"""pact: in front of layer 4 unimportant tokens go and those with like keys become one, by density peaks.

Paper: Dhouib et al., "PACT: Pruning and Clustering-Based Token Reduction for Faster Visual Language Models", CVPR 2025.
Code: orailix/PACT @ cf9a0c9, transformers/PACT/utils.py and transformers/models/qwen2/modeling_qwen2.py.
Parity: no golden vectors; tested against an independent implementation, token by token, of the paper's text.
Differs: only image queries, not the prompt in front; layer=None follows the depth; a budget sets the distance bound.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from ..ops.attention import Rope
from ..ops.merge import remaining
from ..ops.score import pairs, unit
from ..ops.select import top
from ..tensors import Kept, LayerView
from .base import LayerMethod


@dataclass(frozen=True, kw_only=True)
class PACT(LayerMethod):
    """Keep the `important_ratio` best tokens in front of `layer` (None: 4 of 32) and cluster them.

    A token becomes a centre when no centre denser than it lies within `cutoff` (cosine distance of the keys); it then
    holds the mean of all that are nearest to it, pruned ones within `coef_pruned` x cutoff among them, and counts for
    that many in attention. With a budget the cutoff is the largest that leaves enough centres, the densest of which
    stay, and as many tokens are important as the budget needs.
    """

    name: ClassVar[str] = "pact"
    sizing: ClassVar[frozenset[str]] = frozenset({"important_ratio", "cutoff"})
    blends: ClassVar[bool] = True
    looks_ahead: ClassVar[bool] = True

    layer: Annotated[int, Field(ge=1)] | None = None
    important_ratio: Annotated[float, Field(gt=0, le=1)] = 0.55
    cutoff: Annotated[float, Field(ge=0, le=2)] = 0.21
    coef_pruned: Annotated[float, Field(ge=1)] = 1.5

    def after(self, layers: int) -> list[int]:
        """The layer in front of `layer`."""
        return list(self._placed((self.layer,) if self.layer else None, (4,), layers))

    def drop(self, view: LayerView) -> Kept:
        """Prune, find the centres, take pruned tokens back in, merge."""
        (visual,) = view.visual
        number = len(visual)
        count = view.count and min(view.count, number)
        (kept,) = top(self.scores(view)[None], [max(int(self.important_ratio * number), count or 1)])
        keys = unit(view.k[:, :, visual].transpose(1, 2).flatten(2))
        distance = (1 - pairs(keys[:, kept], keys)[0]).clamp(min=0)
        within = distance[:, kept]
        rank = torch.exp(-((within / 2) ** 2)).sum(-1).argsort(descending=True, stable=True).argsort()
        cutoff = self.cutoff if count is None else _widest(within, rank, count)
        centre = _centres(within <= cutoff, rank)
        if count is not None:  # the densest of them
            centre &= rank <= rank[centre].sort().values[count - 1]
        indices = kept[centre]
        nearest, place = distance[centre].min(0)
        place[remaining([kept], number)[0] & (nearest > self.coef_pruned * cutoff)] = -1
        every = torch.arange(len(indices), device=place.device)
        place[indices] = every
        member = (place == every[:, None]).float()
        sizes = member.sum(-1)
        hidden = member @ view.hidden[0, visual].float() / sizes[:, None]
        return Kept(indices=[indices], source=[place], hidden=[hidden.to(view.hidden.dtype)], sizes=[sizes])

    def scores(self, view: LayerView) -> Float[Tensor, "visual"]:
        """Norm of the hidden state x attention of the mean image query, without RoPE, in the mean over heads.

        Of a view without a rotary table the queries and keys are read as they are.
        """
        (visual,) = view.visual
        seen = torch.arange(int(visual[-1]) + 1, device=visual.device) if self.paper else visual
        rope = view.rope and (view.rope[0][:, seen], view.rope[1][:, seen])
        query, keys = (_unrotated(part[:, :, seen], rope) for part in (view.q, view.k))
        logits = query.mean(2, keepdim=True) @ keys.mT / math.sqrt(keys.shape[-1])
        attention = torch.softmax(logits, -1)[0, :, 0].mean(0)
        scores: Tensor = attention[torch.searchsorted(seen, visual)] * view.hidden[0, visual].float().norm(dim=-1)
        return scores


def _unrotated(
    part: Float[Tensor, "row head token head_dim"], rope: Rope | None
) -> Float[Tensor, "row head token head_dim"]:
    part = part.float()
    if rope is None:
        return part
    cos, sin = (table[:, None].float() for table in rope)
    scale, half = cos**2 + sin**2, part.shape[-1] // 2  # the table may be scaled
    cos, sin = cos / scale, sin / scale
    plain = part * cos
    plain[..., :half].addcmul_(part[..., half:], sin[..., :half])
    plain[..., half:].addcmul_(part[..., :half], sin[..., half:], value=-1)
    return plain


def _centres(near: Bool[Tensor, "token token"], rank: Int[Tensor, "token"]) -> Bool[Tensor, "token"]:
    """Those that no centre of lower rank is near. Every round finds all that no open one of lower rank is near."""
    links = near.float()  # sums of ones are exact, and much faster than any()
    before = links * (rank < rank[:, None])
    centre, is_open = torch.zeros_like(near[0]), torch.ones_like(near[0])
    while is_open.any():
        new = is_open & (before @ is_open.float() == 0)
        centre |= new
        is_open &= ~new & (links @ new.float() == 0)
    return centre


def _widest(distance: Float[Tensor, "token token"], rank: Int[Tensor, "token"], count: int) -> float:
    """The largest cutoff found by bisection that leaves at least `count` centres; below 0 every token is one."""
    low, high = -1.0, 2.0
    for _ in range(24):  # to the resolution of float32
        middle = (low + high) / 2
        low, high = (middle, high) if _centres(distance <= middle, rank).sum() >= count else (low, middle)
    return low
