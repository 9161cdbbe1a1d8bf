"""longest: the patches with the longest feature vectors, in somebody else's package.

Paper: none.
Code: none.
Parity: none.
Differs: nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

from sparsezip.methods.base import Method, Questions
from sparsezip.ops.select import top
from sparsezip.tensors import Captures, Compressed


@dataclass(frozen=True, kw_only=True)
class Longest(Method):
    """Send `budget` patches (64 unless said otherwise)."""

    name: ClassVar[str] = "longest"

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Rank by the Euclidean norm."""
        lengths = captures.patch_features.float().norm(dim=-1)
        return Compressed.selection(captures, top(lengths, [self.tokens(captures.patches)] * captures.images))
