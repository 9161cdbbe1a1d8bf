"""ViP-LLaVA: LLaVA whose projector reads several layers of the tower. `VipLlavaForConditionalGeneration`."""

from typing import Any, ClassVar

from .base import Adapter, Seen


class VipLlava(Adapter):
    """CLS attention and keys are those of the layer before the last."""

    name: ClassVar[str] = "vipllava"
    architectures: ClassVar[frozenset[str]] = frozenset({"VipLlavaForConditionalGeneration"})
    offers: frozenset[str] = Adapter.offers | Adapter.received
    cls: ClassVar[int | None] = 0
    tower_weights: ClassVar[tuple[str, ...]] = ("vision_tower.", "multi_modal_projector.")
    question_weights: ClassVar[tuple[str, ...]] = ("embed_tokens.",)
    prompt: ClassVar[str] = "USER: <image>\n{question} ASSISTANT:"

    def seen(self, call: dict[str, Any], *, tiled: bool = False) -> list[Seen]:
        """All images have one size."""
        patch, (height, width) = self.model.config.vision_config.patch_size, call["pixel_values"].shape[-2:]
        return [Seen.plainly((height // patch, width // patch))] * len(call["pixel_values"])

    @property
    def layer(self) -> Any:
        """As in LLaVA."""
        return self.layers[-2]
