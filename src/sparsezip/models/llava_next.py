"""LLaVA-NeXT (1.6): an image and its tiles through LLaVA's tower. `LlavaNextForConditionalGeneration` in transformers.

Tokens of the whole image come first, then those of the picture that the tiles make, line by line, its padding cut off.
When anything is left out, the ends of lines are not sent: there are no lines any more.
"""

from dataclasses import replace
from itertools import accumulate
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..tensors import Captures
from .base import Batch, Encoded, Seen, TowerPass, batched
from .pointwise import Pointwise
from .towers import AnyRes


class LlavaNext(AnyRes, Pointwise):
    """LLaVA-NeXT in transformers' format."""

    name: ClassVar[str] = "llava_next"
    architectures: ClassVar[frozenset[str]] = frozenset({"LlavaNextForConditionalGeneration"})
    image_arguments: ClassVar[frozenset[str]] = frozenset({"pixel_values", "image_sizes"})
    tiles_apart: ClassVar[bool] = True
    prompt: ClassVar[str] = "USER: <image>\n{question} ASSISTANT:"

    def packed(
        self, tiles: Float[Tensor, "tile patch dim"], size: Tensor, line_end: Float[Tensor, "dim"] | None = None
    ) -> Float[Tensor, "place dim"]:
        """As the model does it."""
        strategy = self.model.config.vision_feature_select_strategy
        (made,), _ = self.model.base_model.pack_image_features([tiles], [size], strategy, line_end)
        return made

    def pixels(self, call: dict[str, Any]) -> Float[Tensor, "tile channel height width"]:
        """All tiles of all images, without what stands between them."""
        pixels = call["pixel_values"]
        if pixels.ndim == 4:
            return pixels
        return torch.cat([its[:tiles] for its, tiles in zip(pixels, self.tiles(call), strict=True)])

    def encode(self, call: dict[str, Any], seen: list[Seen], asked: TowerPass) -> Encoded:
        """The tower's own patches, laid out; of images that are sent whole all are projected before that."""
        captures = self.tower_pass(call, seen, asked)
        tiles, tokens = self.tiles(call), None
        if any(asked.whole):
            projected = self.project(captures.patch_features).split(tiles)
            images = zip(projected, call["image_sizes"], asked.whole, strict=True)
            line_end = self.model.base_model.image_newline
            tokens = [self.packed(its, size, line_end) if all_ else None for its, size, all_ in images]
        if any(one.tiling for one in seen):
            return Encoded(_apart(captures, seen, tiles), tokens)
        heard = {name: [its] for name, its in vars(captures).items() if isinstance(its, Tensor)}
        return Encoded(batched(self.by_view(heard, call, seen), seen), tokens)


def _apart(captures: Captures, seen: list[Seen], tiles: list[int]) -> list[Batch]:
    """All tiles of the images that are cut alike, each image and behind it its tiles. Padding gets no attention."""
    shown = torch.zeros(captures.images * captures.patches, dtype=torch.bool)
    for start, one in zip(accumulate(tiles, initial=0), seen, strict=False):
        shown[one.patch[one.patch >= 0] + start * captures.patches] = True
    valid = shown.view(captures.images, -1).to(captures.features.device)
    barred: dict[str, Any] = {
        name: its.masked_fill(~valid[:, None], 0)
        for name, its in (("cls_attention", captures.cls_attention), ("low_attention", captures.low_attention))
        if its is not None
    }
    captures = replace(captures, valid=valid, **barred)
    places = [(image, view) for image, count in enumerate(tiles) for view in range(count)]
    return [
        Batch(replace(captures.of(rows), tiles=tiling), [places[row] for row in rows])
        for tiling in dict.fromkeys(one.tiling for one in seen)
        for rows in [[row for row, (image, _) in enumerate(places) if seen[image].tiling == tiling]]
    ]
