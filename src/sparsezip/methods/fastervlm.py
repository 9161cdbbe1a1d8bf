"""fastervlm: the patches that CLS attends to most.

Paper: Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual Token Pruning", 2024 (arXiv:2412.01818).
Code: Theia-4869/FasterVLM @ f5d5f12, llava/model/llava_arch.py.
Parity: both forms meet golden vectors of the authors' code exactly.
Differs: nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

from ..ops.score import salience
from ..ops.select import top
from ..tensors import Captures, Compressed
from .base import Method, Questions


@dataclass(frozen=True, kw_only=True)
class FasterVLM(Method):
    """Send the `budget` patches (64 unless said otherwise) with the highest CLS attention, the mean over heads."""

    name: ClassVar[str] = "fastervlm"

    @property
    def needs(self) -> frozenset[str]:
        """CLS attention to rank by."""
        return frozenset({"cls_attention"})

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Rank and cut."""
        attention = salience(captures.signal("cls_attention"))
        return Compressed.selection(captures, top(attention, [self.tokens(captures.patches)] * captures.images))
