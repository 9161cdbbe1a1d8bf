"""downsample: the whole image, scaled down so far that the tower makes few patches of it; the cheapest way there is.

Paper: none.
Code: none.
Parity: none.
Differs: nothing; given the patches of the unscaled image it is pool, as it is for what the scaled one has too many.
"""

from dataclasses import dataclass
from typing import ClassVar

from ..ops.merge import pooled
from ..tensors import Captures, Compressed
from .base import Method, Questions


@dataclass(frozen=True, kw_only=True)
class Downsample(Method):
    """Send `budget` tokens (64 unless said otherwise) of an image that is scaled down before the tower sees it."""

    name: ClassVar[str] = "downsample"
    blends: ClassVar[bool] = True

    def resized(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The smallest grid of the same proportions with as many patches as tokens are wanted, or `grid` itself."""
        rows, cols = grid
        wanted = min(self.tokens(rows * cols), rows * cols)
        r = c = 1
        while r * c < wanted:  # each side is rounded; it grows where a common scale takes it to the next half
            by_row, by_col = (2 * r + 1) * cols, (2 * c + 1) * rows
            r, c = r + (by_row <= by_col), c + (by_col <= by_row)
        return r, c

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Pool what the smaller grid has more than is wanted."""
        return pooled(captures, self.tokens(captures.patches))
