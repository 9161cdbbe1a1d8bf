"""LLaVA-1.5: a CLIP tower, two linear layers, any decoder. `LlavaForConditionalGeneration` in transformers.

The projector reads the output of one tower layer (`vision_feature_layer`, usually -2) without its CLS row, so every
image takes one placeholder per patch: 24 x 24 = 576 at 336 px.
"""

from typing import Any, ClassVar

from ..errors import UnsupportedCallError
from .base import Seen
from .pointwise import Pointwise


class Llava(Pointwise):
    """LLaVA-1.5 in transformers' format."""

    name: ClassVar[str] = "llava"
    architectures: ClassVar[frozenset[str]] = frozenset({"LlavaForConditionalGeneration"})
    resizes: ClassVar[bool] = True
    prompt: ClassVar[str] = "USER: <image>\n{question} ASSISTANT:"
    shares: ClassVar[bool] = True

    @classmethod
    def patches(cls, config: dict[str, Any]) -> int | None:
        """Every image is scaled to the tower's square."""
        vision = config.get("vision_config", {})
        if "image_size" not in vision or "patch_size" not in vision:
            return None
        return (vision["image_size"] // vision["patch_size"]) ** 2

    def seen(self, call: dict[str, Any], *, tiled: bool = False) -> list[Seen]:
        """All images have one size."""
        return [Seen.plainly(self.own_grid(call))] * len(call["pixel_values"])

    def check_call(self, call: dict[str, Any]) -> None:
        """Images have the tower's size."""
        super().check_call(call)
        if call.pop("image_sizes", None) is not None:
            raise UnsupportedCallError("image_sizes belongs to towers with images of any size. Leave it out.")
