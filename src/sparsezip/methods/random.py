"""random: a seeded random choice of patches; the floor that a selection has to beat.

Paper: none.
Code: none.
Parity: none.
Differs: nothing.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from ..tensors import Captures, Compressed
from .base import Method, Questions


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """Send `budget` patches (64 unless said otherwise) drawn without replacement, the same ones for every image."""

    name: ClassVar[str] = "random"

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Draw on the CPU, so that every device sees the same patches."""
        shuffled = torch.randperm(captures.patches, generator=torch.Generator().manual_seed(self.seed))
        kept = shuffled[: self.tokens(captures.patches)].sort().values.to(captures.features.device)
        return Compressed.selection(captures, [kept] * captures.images)
