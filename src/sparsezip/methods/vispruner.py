"""vispruner: half of the patches by CLS attention, the other half what is left when look-alikes go round by round.

Paper: Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning ...", ICCV 2025.
Code: Theia-4869/VisPruner @ aefa01a, llava/model/llava_arch.py.
Parity: both forms meet the golden vectors of the authors' code that are stable (a near-tie changes all) exactly.
Differs: nothing; an odd number of patches to thin out, which fails in the code, has one more in the first half.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from ..ops.score import likeness, salience
from ..ops.select import ranked, thinned
from ..tensors import Captures, Compressed
from .base import Method, Questions


@dataclass(frozen=True, kw_only=True)
class VisPruner(Method):
    """Send `budget` patches (64 unless said otherwise), `important_ratio` of them for their attention."""

    name: ClassVar[str] = "vispruner"

    important_ratio: Annotated[float, Field(ge=0, le=1)] = 0.5

    @property
    def needs(self) -> frozenset[str]:
        """CLS attention to rank by."""
        return frozenset({"cls_attention"})

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Rank, and thin out what is behind the important ones by cosine of the features."""
        count = self.tokens(captures.patches)
        important = int(count * self.important_ratio)
        order = ranked(salience(captures.signal("cls_attention")))
        alike = likeness(captures.patch_features)
        diverse = thinned(alike, order[:, important:], count - important)
        kept = torch.cat([order[:, :important], diverse], 1).sort(-1).values
        return Compressed.selection(captures, list(kept))
