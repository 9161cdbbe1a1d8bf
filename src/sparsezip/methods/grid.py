"""grid: patches at evenly spread positions; what a lower resolution would see, without looking at the image.

Paper: none.
Code: none.
Parity: none.
Differs: nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

from ..ops.select import spread
from ..tensors import Captures, Compressed
from .base import Method, Questions


@dataclass(frozen=True, kw_only=True)
class Grid(Method):
    """Send `budget` patches (64 unless said otherwise) that lie evenly over the image."""

    name: ClassVar[str] = "grid"

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """The same positions for every image."""
        kept = spread(captures.grid, self.tokens(captures.patches)).to(captures.features.device)
        return Compressed.selection(captures, [kept] * captures.images)
