"""Qwen2.5-VL: as Qwen2-VL, most layers of the tower look into windows. `Qwen2_5_VLForConditionalGeneration`.

Patches go through the tower window by window, and are put back into their order behind the merger.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .base import Grid
from .towers import Qwen


class Qwen2_5VL(Qwen):  # noqa: N801  # the family's name
    """What a patch receives is heard where every patch sees its whole image."""

    name: ClassVar[str] = "qwen2_5_vl"
    architectures: ClassVar[frozenset[str]] = frozenset({"Qwen2_5_VLForConditionalGeneration"})

    @property
    def layers(self) -> Any:
        """Those without windows."""
        return [self.tower.blocks[index] for index in self.tower.fullatt_block_indexes]

    def pooled(self, rows: Float[Tensor, "row *rest"], grid: Grid) -> Float[Tensor, "patch *rest"]:
        """Back from the order of windows."""
        tower = self.tower
        order = by_windows(grid, tower.window_size // tower.patch_size // self.merge).to(rows.device)
        merged = super().pooled(rows, grid)
        return torch.empty_like(merged).index_copy_(0, order, merged)


def by_windows(grid: Grid, side: int) -> Int[Tensor, "patch"]:
    """The patches of a grid window by window, each of `side` x `side`, in raster order within and between them."""
    rows, cols = (torch.arange(count) for count in grid)
    windows = -(-grid[1] // side)
    window = (rows[:, None] // side) * windows + cols // side
    return window.flatten().argsort(stable=True)
