"""autoprune: a few tokens go behind nearly every layer, the later the less text and image have to do with each other.

Paper: Wang et al., "AutoPrune: Each Complexity Deserves a Pruning Policy", NeurIPS 2025.
Code: AutoLab-SAI-SJTU/AutoPrune @ e4a9918, llava/model/language_model/modelling_sparse_llama.py.
Parity: no golden vectors; the information and the curve are tested against their formulas, written out once more.
Differs: no cut by CLS attention, no recycling; by default no epsilon, positions stay, the first layer fits the depth.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ..ops.attention import asking, information, rows
from ..ops.select import top
from ..tensors import Decoder, Kept, LayerView
from .base import LayerMethod


@dataclass(frozen=True, kw_only=True)
class AutoPrune(LayerMethod):
    """Spend the budget along 0.75 / (1 + exp(k (layer - x0 - k))), scaled to cost just that.

    k = max(0, k0 - gamma x the mutual information of text and image), in bits, summed over heads, in an image's first
    view: where the two share much the curve is flat, so most tokens go at once, and otherwise it falls late and far.
    Layers are those of an LLM of 32; the curve is stretched over the drops of any other.
    """

    name: ClassVar[str] = "autoprune"
    adapts: ClassVar[bool] = True

    k0: Annotated[float, Field(ge=0)] = 0.4
    gamma: Annotated[float, Field(ge=0)] = 0.2
    x0: float = 14.9

    def after(self, layers: int) -> list[int]:
        """From layer 1 (of 32) on behind every layer but the last."""
        (first,) = self._placed(None, (2,), layers)
        return list(range(first, layers - 1))

    def plan(self, visual: int, llm: Decoder) -> list[int] | None:
        """Along the curve. Without a budget it is for 64, or half more than the layers in front of the first drop cost.

        Raises BudgetError for a budget that cannot be met.
        """
        if self.asked(visual) is not None:
            return super().plan(visual, llm)
        front = visual * (self.after(llm.layers)[0] + 1) / llm.layers
        return replace(self, budget=max(64, math.ceil(1.5 * front))).plan(visual, llm)

    def settled(self, view: LayerView) -> LayerMethod:
        """With the k of this image for k0."""
        if not self.gamma:
            return self
        bits = information(self._attention(view), eps=1e-6 if self.paper else 0.0)
        return replace(self, k0=max(0.0, self.k0 - self.gamma * bits), gamma=0.0)

    def left(self, share: float, visual: int, stages: int) -> list[float]:
        """The curve times a scale that runs from 0 to where even its end keeps all."""
        curve = self._curve(torch.linspace(1, 30, stages, dtype=torch.float64))
        scaled: list[float] = (visual * share * curve * curve[-1] ** -share).clamp(max=visual).tolist()
        return scaled

    def drop(self, view: LayerView) -> Kept:
        """Keep what the text attends to most, in the mean over heads and words; without a count, the curve unscaled."""
        (visual,) = view.visual
        count = view.count
        if count is None:
            share = self._curve(torch.tensor([view.depth], dtype=torch.float64)).item()
            count = max(1, int(share * len(view.first_embeds[0])))
        kept = top(self._attention(view).mean((0, 1))[None], [count])
        return Kept.selection(kept, [len(visual)])

    @property
    def compact(self) -> bool:
        """As the authors' code does."""
        return self.paper

    def _attention(self, view: LayerView) -> Float[Tensor, "head text patch"]:
        return rows(view.q, view.k, asking(view))[0, :, :, view.visual[0]]

    def _curve(self, layers: Float[Tensor, "stage"]) -> Float[Tensor, "stage"]:
        return 0.75 * torch.sigmoid(-self.k0 * (layers - self.x0 - self.k0)).clamp(min=1e-60)
