"""Mistral Small 3.1: Pixtral's tower, patches merged. `Mistral3ForConditionalGeneration` in transformers."""

from typing import ClassVar

from .towers import Pixtral


class Mistral3(Pixtral):
    """Squares of patches are a token; its lines end in [IMG_BREAK], the last one in [IMG_END]."""

    name: ClassVar[str] = "mistral3"
    architectures: ClassVar[frozenset[str]] = frozenset({"Mistral3ForConditionalGeneration"})

    @property
    def merge(self) -> int:
        """Of the patch merger."""
        return self.model.config.spatial_merge_size
