"""LLaVA-OneVision: a SigLIP tower and LLaVA-NeXT's tiles. `LlavaOnevisionForConditionalGeneration` in transformers.

The picture of many tiles is scaled down behind the projector, so methods choose among what comes out of that; what was
heard of the tower is scaled alike. When anything is left out, the ends of lines are not sent.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Seen
from .towers import AnyRes


class LlavaOnevision(AnyRes):
    """Of several images in one prompt each is seen as one tile."""

    name: ClassVar[str] = "llava_onevision"
    architectures: ClassVar[frozenset[str]] = frozenset({"LlavaOnevisionForConditionalGeneration"})
    tower_weights: ClassVar[tuple[str, ...]] = ("vision_tower.", "multi_modal_projector.", "image_newline")
    question_weights: ClassVar[tuple[str, ...]] = ("embed_tokens.",)
    prompt: ClassVar[str] = "<|im_start|>user <image>\n{question}<|im_end|><|im_start|>assistant"

    video_arguments: ClassVar[frozenset[str]] = frozenset({"pixel_values_videos"})

    def seen(self, call: dict[str, Any], *, tiled: bool = False) -> list[Seen]:
        """Frames of a video are scaled down to half their sides; the whole of it has one end of a line."""
        if self.modality == "image":
            return super().seen(call, tiled=tiled)
        (rows, cols), videos = self.tile, call["pixel_values_videos"]
        views = [(-(-rows // 2), -(-cols // 2))] * videos.shape[1]
        patch = torch.arange(len(views) * views[0][0] * views[0][1] + 1)
        patch[-1] = -1
        return [Seen(views, patch)] * len(videos)

    def by_view(
        self, heard: dict[str, list[Tensor]], call: dict[str, Any], seen: list[Seen]
    ) -> dict[str, list[Tensor]]:
        """Of a video scaled down as its frames are."""
        if self.modality == "image":
            return super().by_view(heard, call, seen)
        scaled = self.model.base_model.apply_pooling
        return {
            name: list(rows if name == "last_query" else self.patchwise(name, rows, scaled))
            for name, (rows,) in heard.items()
        }

    def packed(
        self, tiles: Float[Tensor, "tile patch dim"], size: Tensor, line_end: Float[Tensor, "dim"] | None = None
    ) -> Float[Tensor, "place dim"]:
        """As the model does it."""
        ratio = self.model.config.vision_aspect_ratio
        (made,), _ = self.model.base_model.pack_image_features(
            [tiles], [size], image_newline=line_end, vision_aspect_ratio=ratio
        )
        return made

    def tiles(self, call: dict[str, Any]) -> list[int]:
        """`batch_num_images`: how many images stand in each prompt that has any."""
        tiles, together = super().tiles(call), call.get("batch_num_images")
        if together is None:
            return tiles
        alone = [int(count) == 1 for count in together for _ in range(int(count))]
        return [count if cut else 1 for count, cut in zip(tiles, alone, strict=True)]
