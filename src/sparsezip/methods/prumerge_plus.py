"""prumerge_plus: PruMerge with patches at regular steps added to those that stand out.

Paper: Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV 2025.
Code: 42Shawn/LLaVA-PruMerge @ 097c041, llava/model/multimodal_encoder/clip_encoder.py.
Parity: paper=True meets golden vectors of the authors' code: indices exactly, tokens to 1e-6.
Differs: as PruMerge; and steps are even over the other patches, 3 per outlier (1 with a ratio), none twice, none lost.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from ..ops.budget import outliers
from ..ops.merge import absorbed
from ..ops.score import single_head
from ..ops.select import ranked
from ..tensors import Captures, Compressed
from .base import Method, Questions


@dataclass(frozen=True, kw_only=True)
class PruMergePlus(Method):
    """Keep outliers and thrice as many others, or `ratio` of the patches and as many others, and send one token more.

    The budget counts that one too, and a quarter of what it leaves are outliers. `paper` keeps the authors' steps: a
    ratio above 1/6 leaves next to nothing out. Without any outlier, where their code fails, it counts one.
    """

    name: ClassVar[str] = "prumerge_plus"
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
        return 1 + (4 if self.ratio is None else 2 * max(int(patches * self.ratio), 1))

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Rank by the attention of the last layer; take in neighbours by cosine of its keys."""
        keys = captures.signal("last_keys")
        attention = single_head(captures.signal("last_query"), keys, captures.patches)
        order = ranked(attention)
        if self.paper and self.asked(captures.patches) is None:
            kept = self._stepped(order, attention)
        else:
            kept = [self._sampled(*row) for row in zip(order, *self._counts(attention), strict=True)]
        patch_keys = keys[:, -captures.patches :]
        return absorbed(captures.patch_features, patch_keys, attention, kept, add=self.paper)

    def _counts(self, attention: Float[Tensor, "image patch"]) -> tuple[list[int], list[int]]:
        """How many patches each image keeps for their attention, and how many in all."""
        images, patches = attention.shape
        every = self.tokens(patches) - 1
        if self.asked(patches) is not None:
            return [-(-every // 4)] * images, [every] * images
        if self.ratio is not None:
            return [every // 2] * images, [every] * images
        tops = [max(count, 1) for count in outliers(attention)]
        return tops, [min(4 * count, patches) for count in tops]

    def _sampled(self, order: Int[Tensor, "patch"], top: int, every: int) -> Int[Tensor, "_"]:
        """The `top` best, and of the others those at even steps that make `every`."""
        others, more = order[top:].sort().values, every - top
        steps = torch.arange(more, device=order.device) * len(others) // max(more, 1)
        kept = torch.cat([order[:top], others[steps]])
        return kept if self.paper else kept.sort().values

    def _stepped(self, order: Int[Tensor, "image patch"], attention: Float[Tensor, "image patch"]) -> list[Tensor]:
        """The authors' steps over all patches but the last: with a ratio they may meet a patch that is kept already."""
        patches = order.shape[1]
        ratio = self.ratio or max(outliers(attention.flatten()[None])[0], 1) / attention.numel()
        step = int(1 / ratio)
        start, stride = (0, max(int(step / 3), 1)) if self.ratio is None else (int(step / 2), step)
        samples = torch.arange(start, max(patches - 1, start), stride, device=order.device)
        kept = []
        for best in order[:, : int(patches * ratio)]:
            fresh = samples if self.ratio is not None else samples[~torch.isin(samples, best)]
            kept.append(torch.cat([best, fresh]))
        return kept
