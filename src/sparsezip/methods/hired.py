"""hired: the patches that CLS attends to most; of a tiled image, more from tiles that an early layer attends to.

Paper: Arif et al., "HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution ...", AAAI 2025.
Code: hasanar1f/HiRED @ 502d6dd, transformers/src/transformers/models/llava_next/modeling_llava_next.py.
Parity: golden vectors of the authors' code are met exactly: single images by both forms, tiled ones by paper=True.
Differs: the counts meet the total, none is cut; a tile's share is that of its own area, not of a run of patches.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ..errors import SettingError
from ..ops.budget import apportion
from ..ops.select import blocks, top
from ..tensors import Captures, Compressed
from .base import Method, Questions


@dataclass(frozen=True, kw_only=True)
class HiRED(Method):
    """Send `keep_ratio` (0.2 unless said otherwise) of the patches.

    Where `captures.tiles` says that the images are an image and its tiles in raster order (or several such groups),
    the budget is their mean: `alpha` of the sum goes to the whole image, and the rest to the tiles by their share of
    the patches that the whole image's early layer attends to most. A tile may get none.

    Raises SettingError when the images do not make whole groups.
    """

    name: ClassVar[str] = "hired"

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5

    @property
    def needs(self) -> frozenset[str]:
        """CLS attention to rank by."""
        return frozenset({"cls_attention"})

    @property
    def uses(self) -> frozenset[str]:
        """The tiling, and an early layer's attention to share the budget between the tiles."""
        return frozenset({"tiles", "low_attention"})

    def asked(self, patches: int) -> int | None:
        """As for every method, but that `paper` cuts what a ratio grants."""
        if self.paper and self.keep_ratio is not None:
            return max(1, int(self.keep_ratio * patches))
        return super().asked(patches)

    def tokens(self, patches: int) -> int:
        """The budget, or a fifth of the patches."""
        return self.asked(patches) or max(1, int(0.2 * patches) if self.paper else round(0.2 * patches))

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Rank by the attention summed over heads."""
        counts = [self.tokens(captures.patches)] * captures.images
        if captures.tiles is not None:
            group = 1 + captures.tiles[0] * captures.tiles[1]
            if captures.images % group:
                raise SettingError(
                    f"HiRED got {captures.images} images with tiles={captures.tiles}. Give each image and behind it "
                    f"its tiles, {group} in all."
                )
            early = captures.signal("low_attention").float().sum(1)
            total = captures.total
            counts = [
                count for image in early[::group] for count in self._shared(image, captures.grid, captures.tiles, total)
            ]
        return Compressed.selection(captures, top(captures.signal("cls_attention").float().sum(1), counts))

    def _shared(
        self, early: Float[Tensor, "patch"], grid: tuple[int, int], tiling: tuple[int, int], total: int | None
    ) -> list[int]:
        """How many patches an image and each of its tiles send, of `total` or as its settings say."""
        patches, tiles = len(early), tiling[0] * tiling[1]
        total = total or (1 + tiles) * self.tokens(patches)
        if self.paper and self.budget is None:
            total = int((1 + tiles) * patches * (self.keep_ratio or 0.2))
        whole = min(int(total * self.alpha), patches)
        if not self.paper:  # what the tiles cannot take is not lost
            whole = max(whole, total - tiles * patches)
        best = top(early[None], [int(patches * (1 - self.alpha))])[0].cpu()
        place = torch.arange(patches) * tiles // patches if self.paper else blocks(grid, tiling)
        found = torch.bincount(place[best], minlength=tiles)
        shares = found if found.any() else found + 1
        if self.paper:
            rest = min(total - whole, tiles * patches)
            return [whole, *(shares / shares.sum() * rest).int().clamp(max=patches).tolist()]
        return [whole, *apportion(total - whole, shares.tolist(), patches)]
