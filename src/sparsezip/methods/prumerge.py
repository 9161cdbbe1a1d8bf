"""prumerge: the patches that stand out in CLS attention, each with its neighbours mixed in, and one token of the rest.

Paper: Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV 2025.
Code: 42Shawn/LLaVA-PruMerge @ 097c041, llava/model/multimodal_encoder/clip_encoder.py.
Parity: paper=True meets golden vectors of the authors' code: indices exactly, tokens to 1e-6.
Differs: raster order, not by attention; tokens are means, not sums; one count per image, at least 1, not per batch.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ..ops.budget import outliers
from ..ops.merge import absorbed
from ..ops.score import single_head
from ..ops.select import ranked
from ..tensors import Captures, Compressed
from .base import Method, Questions


@dataclass(frozen=True, kw_only=True)
class PruMerge(Method):
    """Keep `ratio` of the patches, or with None those whose attention is an outlier, and send one token more.

    The budget counts that one too.
    """

    name: ClassVar[str] = "prumerge"
    blends: ClassVar[bool] = True
    sizing: ClassVar[frozenset[str]] = frozenset({"ratio"})

    ratio: Annotated[float, Field(gt=0, le=1)] | None = None

    @property
    def needs(self) -> frozenset[str]:
        """The CLS query and the keys of the tower's last layer."""
        return frozenset({"last_query", "last_keys"})

    def tokens(self, patches: int) -> int:
        """The budget, what the ratio says, or the least that outliers make."""
        asked = self.asked(patches)
        if asked is not None:
            return asked
        return 1 + max(int(patches * (self.ratio or 0)), int(not self.paper))

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Rank by the attention of the last layer; take in neighbours by cosine of its keys."""
        keys = captures.signal("last_keys")
        attention = single_head(captures.signal("last_query"), keys, captures.patches)
        counts = self._counts(attention)
        kept = [order[:count] for order, count in zip(ranked(attention), counts, strict=True)]
        if not self.paper:
            kept = [indices.sort().values for indices in kept]
        patch_keys = keys[:, -captures.patches :]
        return absorbed(captures.patch_features, patch_keys, attention, kept, add=self.paper)

    def _counts(self, attention: Float[Tensor, "image patch"]) -> list[int]:
        images, patches = attention.shape
        if self.asked(patches) is not None or self.ratio is not None:
            return [self.tokens(patches) - 1] * images
        if self.paper:
            share = outliers(attention.flatten()[None])[0] / attention.numel()
            return [int(patches * share)] * images
        return [max(count, 1) for count in outliers(attention)]
