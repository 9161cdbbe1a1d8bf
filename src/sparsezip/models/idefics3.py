"""Idefics3: images cut into tiles, each with a token in front. `Idefics3ForConditionalGeneration` in transformers."""

from typing import Any, ClassVar

from .towers import Tiled


class Idefics3(Tiled):
    """Squares of a tile's patches are shuffled into one token each."""

    name: ClassVar[str] = "idefics3"
    architectures: ClassVar[frozenset[str]] = frozenset({"Idefics3ForConditionalGeneration"})
    tower_weights: ClassVar[tuple[str, ...]] = ("vision_model.", "connector.")
    prompt: ClassVar[str] = "<|im_start|>User:<image>{question}<end_of_utterance>\nAssistant:"
    image_arguments: ClassVar[frozenset[str]] = frozenset({"pixel_values", "pixel_attention_mask"})

    @property
    def decoder(self) -> Any:
        """Under another name."""
        return self.model.base_model.text_model

    @property
    def tower(self) -> Any:
        """Under another name."""
        return self.model.base_model.vision_model

    @property
    def merge(self) -> int:
        """Of the pixel shuffle."""
        return self.model.config.scale_factor
