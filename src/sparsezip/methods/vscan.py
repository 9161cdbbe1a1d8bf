"""vscan: half of the patches from every window of an early layer, half from anywhere; the others join the nearest.

Paper: Zhang et al., "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models", TMLR 2026.
Code: Tencent/SelfEvolvingAgent @ a82450e, VScan/llava/model/llava_arch.py; not its second stage, inside the LLM.
Parity: an independent implementation from the same formulas, in the tests.
Differs: tower features are merged, not projected ones; what no equal share per window makes of the half is not lost.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..ops.merge import nearest
from ..ops.score import salience
from ..ops.select import blocks, per_block, top
from ..tensors import Captures, Compressed
from .base import Method, Questions

WINDOW = 6  # patches


@dataclass(frozen=True, kw_only=True)
class VScan(Method):
    """Send `budget` tokens (64 unless said otherwise), each the mean of a kept patch and of those most like it.

    Windows are 6 x 6 patches, or as near to that as divides the grid evenly. Where they cannot get equally many, those
    with the most attention in their next patch get one more. `paper` changes nothing.
    """

    name: ClassVar[str] = "vscan"
    blends: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:
        """CLS attention of an early layer and of the one that the projector reads."""
        return frozenset({"cls_attention", "low_attention"})

    @property
    def low_layer(self) -> float:
        """Layer 5 of CLIP-L's 24."""
        return 5 / 24

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Pick per window, fill up from anywhere, and merge by cosine of the features."""
        count, (rows, cols) = self.tokens(captures.patches), captures.grid
        scores, early = (salience(captures.signal(name)) for name in ("cls_attention", "low_attention"))
        windows = blocks(captures.grid, (max(1, round(rows / WINDOW)), max(1, round(cols / WINDOW))))
        local = per_block(early, windows.to(early.device), count // 2)
        first = torch.zeros_like(scores, dtype=torch.bool).scatter(1, local, True)
        kept = top(torch.where(first, scores.amax(-1, keepdim=True) + 1, scores), [count] * captures.images)
        labels, tokens = nearest(captures.patch_features, torch.stack(kept))
        return Compressed(features=list(tokens), kept=kept, source=list(labels))
