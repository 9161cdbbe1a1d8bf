"""What a call under compression leaves behind: where the patches of every image went, and what each stage took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageTrace:
    """What became of the patches of one image, in the grid that the tower makes of it.

    Where tokens were dropped inside the LLM, `kept` and `source` tell of those that went through its last layer. Of an
    image that a method scaled down no patch is kept; each is held by the token of the larger one at its centre.
    """

    kept: Tensor  # [kept] patch indices of the dominant tokens that are left, raster order, CLS not counted
    tokens: int  # visual tokens that reach the LLM's first layer
    source: Tensor  # [patch] token that holds the patch, counted over those that are left, -1: dropped
    patches: int
    grid: tuple[int, int]  # (rows, cols); of an image that is seen as several views a line of all their patches
    views: int = 1  # as an image and its tiles, or the frames of a video
    before: int = 0  # visual tokens that the unmodified model sends: the patches it has, and the ends of lines
    tokens_per_layer: list[int] = field(default_factory=list)  # that entered each LLM layer

    @classmethod
    def of(
        cls,
        own: tuple[int, int],
        grid: tuple[int, int],
        views: int,
        before: int,
        tokens: int,
        kept: Int[Tensor, "_"],
        source: Int[Tensor, "_"],
    ) -> "ImageTrace":
        """What a method made of an image whose own grid is `own`, seen by the tower in `grid`."""
        if grid != own:
            kept, source = kept[:0], source[covered_by(own, grid).to(source.device)]
        patches = own[0] * own[1]
        return cls(kept=kept, tokens=tokens, source=source, patches=patches, grid=own, views=views, before=before)

    def inside(self, source: Int[Tensor, "token"], own: Int[Tensor, "_"], entering: list[int]) -> "ImageTrace":
        """The same image behind the LLM's drops.

        `source`: for every token that entered the LLM the place that holds it at last, -1: dropped. `own`: for every
        place the token that it is, -1: one made of several. `entering`: tokens that entered each layer.
        """
        tokens = self.source[self.kept]
        place = source[tokens]
        stays = (place >= 0) & (own[place.clamp(min=0)] == tokens)
        held = torch.where(self.source < 0, -1, source[self.source.clamp(min=0)])
        return replace(self, kept=self.kept[stays], source=held, tokens_per_layer=entering)

    @property
    def K(self) -> int:  # noqa: N802  # the paper's name
        """Number of dominant tokens, CLS not counted."""
        return len(self.kept)


@dataclass
class Trace:
    """What happened in the last call under compression."""

    images: list[ImageTrace] = field(default_factory=list)  # in reading order, over all rows of the batch
    # visual tokens entering each LLM layer, mean over images: counted where they enter if tokens are dropped inside the
    # LLM, else by the prompt's placeholders, all of which go through every layer
    tokens_per_layer: list[float] = field(default_factory=list)
    # ms of the whole batch: tower, question, compress, project; clip, where patches are taken into CLIP's space
    stages: dict[str, float] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget the call before."""
        self.images, self.tokens_per_layer, self.stages = [], [], {}

    def moment(self) -> float:
        """The milliseconds that stages are counted in."""
        return now()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time spent inside as that of `stage`."""
        start = self.moment()
        yield
        self.stages[stage] = self.stages.get(stage, 0.0) + self.moment() - start


def covered_by(grid: tuple[int, int], other: tuple[int, int]) -> Int[Tensor, "patch"]:
    """For each patch of `grid` the one of `other`, laid over the same image, that covers its centre."""
    rows, cols = (
        (2 * torch.arange(count) + 1) * across // (2 * count) for count, across in zip(grid, other, strict=True)
    )
    return (rows[:, None] * other[1] + cols).flatten()


def now() -> float:
    """Milliseconds, once the GPU has caught up."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch's own
        torch.cuda.synchronize()
    return time.perf_counter() * 1000
