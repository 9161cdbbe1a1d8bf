"""pool: the mean of each of `budget` cells that tile the image; the floor that merging has to beat.

Paper: none.
Code: none.
Parity: none.
Differs: nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

from ..ops.merge import pooled
from ..tensors import Captures, Compressed
from .base import Method, Questions


@dataclass(frozen=True, kw_only=True)
class Pool(Method):
    """Send `budget` means (64 unless said otherwise) in raster order; no single patch is kept."""

    name: ClassVar[str] = "pool"
    blends: ClassVar[bool] = True

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """The same cells for every image."""
        return pooled(captures, self.tokens(captures.patches))
