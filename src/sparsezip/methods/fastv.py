"""fastv: behind the second layer the visual tokens that the prompt's last token attends to least go.

Paper: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2: ... Acceleration for Large VLMs", ECCV 2024.
Code: pkunlp-icler/FastV @ d165972, src/transformers/src/transformers/models/llama/modeling_llama.py.
Parity: golden vectors of the authors' code: scores to 6e-9, kept tokens and positions exactly, in both forms.
Differs: k=None follows the LLM's depth, with paper=True it is 2 in every LLM.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ..ops.attention import asking, rows
from ..ops.select import top
from ..tensors import Kept, LayerView
from .base import LayerMethod


@dataclass(frozen=True, kw_only=True)
class FastV(LayerMethod):
    """Drop the share `r` of the visual tokens in front of layer `k`, by the attention of the layer before it.

    `k=None` is layer 2 of 32, so that at the same depth of any LLM.
    """

    name: ClassVar[str] = "fastv"
    sizing: ClassVar[frozenset[str]] = frozenset({"r"})

    k: Annotated[int, Field(ge=1)] | None = None
    r: Annotated[float, Field(ge=0, lt=1)] = 0.5

    def after(self, layers: int) -> list[int]:
        """The layer in front of layer k."""
        return list(self._placed(None if self.k is None else (self.k,), (2,), layers))

    def drop(self, view: LayerView) -> Kept:
        """Rank by the last token's attention, mean over heads."""
        attention = rows(view.q, view.k, asking(view)[-1:])[:, :, 0, view.visual[0]].mean(1)
        visual = attention.shape[1]
        count = max(1, round(visual * (1 - self.r))) if view.count is None else view.count
        return Kept.selection(top(attention, [count]), [visual])
