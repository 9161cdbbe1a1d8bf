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

    def tokens(self, patches: int) -> int:
        """The budget, or 64."""
        return self.asked(patches) or 64

    def resized(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The smallest grid of the same proportions that has as many patches as tokens are wanted, or `grid` itself."""
        rows, cols = grid
        by_rows = [(row, max(1, round(row * cols / rows))) for row in range(1, rows + 1)]
        by_cols = [(max(1, round(col * rows / cols)), col) for col in range(1, cols + 1)]
        wanted = min(self.tokens(rows * cols), rows * cols)
        return min(
            (size for size in by_rows + by_cols if size[0] * size[1] >= wanted), key=lambda size: size[0] * size[1]
        )

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Pool what the smaller grid has more than is wanted."""
        return pooled(captures, self.tokens(captures.patches))
