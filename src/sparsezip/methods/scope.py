"""scope: the patches that stand for most of the image, counted by how much CLS attends to them.

Paper: Deng et al., "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodel LLMs", NeurIPS 2025.
Code: kinredon/SCOPE @ 6bf7306, scope/clip_encoder.py (no licence: the rule alone is used).
Parity: both forms meet golden vectors of the authors' code: indices and the order of the picks exactly.
Differs: nothing; but the authors' tower divides its budget by the batch size, and here every image has its own.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ..ops.score import likeness
from ..ops.select import covering
from ..tensors import Captures, Compressed
from .base import Method, Questions


@dataclass(frozen=True, kw_only=True)
class SCOPE(Method):
    """Send `budget` patches (64 unless said otherwise); `alpha` is the weight of attention, 0 for coverage alone."""

    name: ClassVar[str] = "scope"

    alpha: Annotated[float, Field(ge=0)] = 1.0

    @property
    def needs(self) -> frozenset[str]:
        """CLS attention."""
        return frozenset({"cls_attention"})

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Greedy coverage by cosine of the features, each gain times attention to the power of `alpha`."""
        attention = captures.signal("cls_attention").float().sum(1)
        shares = likeness(captures.patch_features)
        picks = covering(shares, self.tokens(captures.patches), weights=attention**self.alpha)
        return Compressed.selection(captures, list(picks.sort(-1).values))
