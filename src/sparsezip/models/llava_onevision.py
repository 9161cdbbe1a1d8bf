"""LLaVA-OneVision: a SigLIP tower and LLaVA-NeXT's tiles. `LlavaOnevisionForConditionalGeneration` in transformers.

The picture of many tiles is scaled down behind the projector, so methods choose among what comes out of that; what was
heard of the tower is scaled alike. When anything is left out, the ends of lines are not sent.
"""

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from .towers import AnyRes


class LlavaOnevision(AnyRes):
    """Of several images in one prompt each is seen as one tile."""

    name: ClassVar[str] = "llava_onevision"
    architectures: ClassVar[frozenset[str]] = frozenset({"LlavaOnevisionForConditionalGeneration"})
    tower_weights: ClassVar[tuple[str, ...]] = ("vision_tower.", "multi_modal_projector.", "image_newline")
    question_weights: ClassVar[tuple[str, ...]] = ("embed_tokens.",)
    prompt: ClassVar[str] = "<|im_start|>user <image>\n{question}<|im_end|><|im_start|>assistant"

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
