"""visionzip: the patches that CLS attends to most; the others are merged around evenly spaced ones.

Paper: Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025.
Code: dvlab-research/VisionZip @ 3151f6d, visionzip/clip_encoder.py.
Parity: paper=True meets golden vectors of the authors' code: indices exactly, tokens to 1.5e-6.
Differs: no CLS is sent, a patch takes its place; a contextual token is the mean of its group, not target plus mean.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ..ops.budget import afford, split
from ..ops.merge import append, remaining, strided
from ..ops.select import top
from ..tensors import Captures, Compressed
from .base import Method, Questions


@dataclass(frozen=True, kw_only=True)
class VisionZip(Method):
    """Send `dominant` + `contextual` tokens. With `paper`, CLS is the first of the dominant ones where there is one.

    `contextual=None` is 10, or with a budget its share of 10 in 64.
    """

    name: ClassVar[str] = "visionzip"
    sizing: ClassVar[frozenset[str]] = frozenset({"dominant", "contextual"})

    dominant: Annotated[int, Field(ge=1)] = 54
    contextual: Annotated[int, Field(ge=0)] | None = None

    @property
    def needs(self) -> frozenset[str]:
        """CLS attention to rank by, keys to compare by."""
        return frozenset({"cls_attention", "keys"})

    def tokens(self, patches: int) -> int:
        """Dominant and contextual ones together."""
        return sum(self._shares(patches))

    def check(self, patches: int) -> None:
        """Raise BudgetError when an image of `patches` patches has too few, or no dominant token is left."""
        if not self.sends_everything(patches) or self.asked(patches) is None:
            afford("VisionZip", *self._shares(patches), patches)

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Rank by the attention summed over heads; group what is left by cosine of the keys."""
        dominant, contextual = self._shares(captures.patches)
        with_cls = self.paper and captures.has_cls
        attention = captures.signal("cls_attention").float().sum(1)
        kept = top(attention, [dominant - int(with_cls)] * captures.images)
        selection = Compressed.selection(captures, kept, with_cls=with_cls)
        if not contextual:
            return selection
        rest = remaining(kept, captures.patches)
        groups = strided(captures.patch_features, captures.patch_keys, rest, contextual, add=self.paper)
        return append(selection, *groups)

    def _shares(self, patches: int) -> tuple[int, int]:
        asked = self.asked(patches)
        if asked is not None:
            return split(asked, self.contextual)
        return self.dominant, 10 if self.contextual is None else self.contextual
