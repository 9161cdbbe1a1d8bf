"""dart: around tokens with large keys, the pivots, those that resemble them least stay; duplicates go.

Paper: Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More", 2025.
Code: Chenfei-Liao/VTC-Bench @ 983e443, external/DART/llava/model/language_model/modeling_llama_self.py.
Parity: paper=True meets golden vectors of the authors' code: pivots in their order and kept tokens exactly.
Differs: pivots choose by falling norm, not as a Python set iterates; k=None follows the LLM's depth.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from ..ops.score import cosine
from ..ops.select import top
from ..tensors import Kept, LayerView
from .base import LayerMethod

TAKEN = -2.0  # below minus the cosine of any two tokens


@dataclass(frozen=True, kw_only=True)
class DART(LayerMethod):
    """Drop tokens in front of layer `k` (None: of layer 2 of 32, so at the same depth of any LLM).

    `pivot_image` visual tokens and `pivot_text` words, those whose keys have the largest L1 norm, take turns: each
    keeps its share of `max_tokens` (None: of 1 - `reduction_ratio` of the tokens), rounded down, and the visual pivots
    stay as well. With a budget they are part of it, and the first pivots take one more where it does not divide.
    """

    name: ClassVar[str] = "dart"
    sizing: ClassVar[frozenset[str]] = frozenset({"max_tokens", "reduction_ratio"})

    k: Annotated[int, Field(ge=1)] | None = None
    pivot_image: Annotated[int, Field(ge=1)] = 4
    pivot_text: Annotated[int, Field(ge=0)] = 4
    max_tokens: Annotated[int, Field(ge=1)] | None = 128
    reduction_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.778

    def after(self, layers: int) -> list[int]:
        """The layer in front of layer k."""
        return list(self._placed((self.k,) if self.k else None, (2,), layers))

    def drop(self, view: LayerView) -> Kept:
        """Compare the hidden states behind the final norm, and keep what is least like each pivot in turn."""
        (visual,) = view.visual
        most = len(visual) if view.count is None else min(view.count, len(visual))
        pivots = self.pivots(view)
        own = (pivots[:, None] == visual).nonzero()[:, 1]
        chosen = torch.zeros(len(visual), dtype=torch.bool, device=visual.device)
        chosen[own] = True
        rest = most - len(own)
        if view.count is None:
            rest = min(rest, self.per_pivot(len(visual)) * len(pivots))
        hidden = view.hidden[:, torch.cat([pivots, visual])]
        hidden = hidden if view.norm is None else view.norm(hidden)
        unlike = -cosine(hidden[:, : len(pivots)], hidden[:, len(pivots) :])[0]
        for turn, row in enumerate(unlike):
            share = rest // len(pivots) + int(turn < rest % len(pivots))
            chosen[top(row.masked_fill(chosen, TAKEN)[None], [share])[0]] = True
        return Kept.selection([chosen.nonzero()[:, 0]], [len(visual)])

    def pivots(self, view: LayerView) -> Int[Tensor, "_"]:
        """Positions of the pivots in the sequence, in the order in which they choose, of a view of one row.

        The authors put the positions, by falling norm and the visual ones first, into a Python set of integers and let
        them choose as that iterates. CPython's order follows from the integers alone, so the same set is built here.
        """
        norms = view.k[0].float().abs().sum((0, 2))
        first = self.pivot_image if view.count is None else min(self.pivot_image, view.count)
        pivots = torch.cat([_largest(norms, view.visual[0], first), _largest(norms, view.text[0], self.pivot_text)])
        return pivots.new_tensor(list(set(pivots.tolist()))) if self.paper else pivots

    def per_pivot(self, visual: int) -> int:
        """How many of `visual` tokens each pivot keeps where no budget is set."""
        wanted = visual * (1 - self.reduction_ratio) if self.max_tokens is None else self.max_tokens
        return int(wanted // (self.pivot_image + self.pivot_text))


def _largest(norms: Float[Tensor, "token"], among: Int[Tensor, "_"], count: int) -> Int[Tensor, "_"]:
    """The `count` of these positions (all where there are fewer) with the largest norms, by falling norm."""
    (best,) = top(norms[among][None], [count])
    return among[best[norms[among[best]].argsort(descending=True, stable=True)]]
