"""divprune: the patches that are least alike; each pick is the one farthest from all before it.

Paper: Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025.
Code: vbdi/divprune @ 799e2d9, LLaVA/llava/model/llava_arch.py (non-commercial licence: the rule alone is used).
Parity: both forms meet golden vectors of the authors' code: indices and the order of the picks exactly.
Differs: nothing; but a patch is never picked twice, where the authors' code repeats one if all others are copies of it.
"""

from dataclasses import dataclass
from typing import ClassVar

from ..ops.score import likeness
from ..ops.select import dispersed
from ..tensors import Captures, Compressed
from .base import Method, Questions


@dataclass(frozen=True, kw_only=True)
class DivPrune(Method):
    """Send `budget` patches, or 9.8 % of them as the paper does."""

    name: ClassVar[str] = "divprune"

    @property
    def needs(self) -> frozenset[str]:
        """The patches as the LLM sees them."""
        return frozenset({"projected"})

    def tokens(self, patches: int) -> int:
        """The budget, or 9.8 % of the patches."""
        return self.asked(patches) or max(1, round(0.098 * patches))

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Max-min distance by cosine."""
        picks = dispersed(likeness(captures.signal("projected")), self.tokens(captures.patches))
        return Compressed.selection(captures, list(picks.sort(-1).values))
