"""lowest_attention: the patches that CLS attends to least. A control, not for use.

Paper: none.
Code: none.
Parity: none.
Differs: nothing. A benchmark on which this does no worse than a method says nothing about that method.
"""

from dataclasses import dataclass
from typing import ClassVar

from ..ops.score import salience
from ..ops.select import top
from ..tensors import Captures, Compressed
from .base import Method, Questions


@dataclass(frozen=True, kw_only=True)
class LowestAttention(Method):
    """Send the `budget` patches (64 unless said otherwise) with the lowest CLS attention, the mean over heads."""

    name: ClassVar[str] = "lowest_attention"

    @property
    def needs(self) -> frozenset[str]:
        """CLS attention to rank by."""
        return frozenset({"cls_attention"})

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Rank from the other end and cut."""
        least = -salience(captures.signal("cls_attention"))
        return Compressed.selection(captures, top(least, [self.tokens(captures.patches)] * captures.images))
