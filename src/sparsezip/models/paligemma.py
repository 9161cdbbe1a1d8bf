"""PaliGemma: a SigLIP tower and one linear layer. `PaliGemmaForConditionalGeneration` in transformers."""

from typing import Any, ClassVar

from .base import Adapter, Seen


class PaliGemma(Adapter):
    """Every image has the tower's size; in the prompt all tokens see each other."""

    name: ClassVar[str] = "paligemma"
    architectures: ClassVar[frozenset[str]] = frozenset({"PaliGemmaForConditionalGeneration"})
    tower_weights: ClassVar[tuple[str, ...]] = ("vision_tower.", "multi_modal_projector.")
    question_weights: ClassVar[tuple[str, ...]] = ("embed_tokens.",)
    prompt: ClassVar[str] = "<image>{question}\n"

    def seen(self, call: dict[str, Any], *, tiled: bool = False) -> list[Seen]:
        """All images have one size."""
        config = self.model.config.vision_config
        side = config.image_size // config.patch_size
        return [Seen.plainly((side, side))] * len(call["pixel_values"])
