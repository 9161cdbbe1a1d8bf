"""Gemma 3: a SigLIP tower whose patches are pooled to 256 tokens. `Gemma3ForConditionalGeneration` in transformers."""

from typing import Any, ClassVar

from .base import Adapter, Seen


class Gemma3(Adapter):
    """Every image has the tower's size; its tokens see each other."""

    name: ClassVar[str] = "gemma3"
    architectures: ClassVar[frozenset[str]] = frozenset({"Gemma3ForConditionalGeneration"})
    tower_weights: ClassVar[tuple[str, ...]] = ("vision_tower.", "multi_modal_projector.")
    question_weights: ClassVar[tuple[str, ...]] = ("embed_tokens.",)
    prompt: ClassVar[str] = "<start_of_turn>user\n<start_of_image>{question}<end_of_turn>\n<start_of_turn>model\n"
    refuses_inside: ClassVar[str | None] = (
        "Most layers of Gemma 3 see the last tokens only (a sliding window), which dropping tokens would shift."
    )

    def seen(self, call: dict[str, Any], *, tiled: bool = False) -> list[Seen]:
        """All images have one size."""
        side = int(self.model.config.mm_tokens_per_image**0.5)
        return [Seen.plainly((side, side))] * len(call["pixel_values"])

    @property
    def merge(self) -> int:
        """Of the pooling."""
        config = self.model.config
        return (
            config.vision_config.image_size // config.vision_config.patch_size // int(config.mm_tokens_per_image**0.5)
        )
