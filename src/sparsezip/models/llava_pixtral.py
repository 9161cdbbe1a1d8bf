"""Pixtral: LLaVA's classes with a tower for images of any size. `LlavaForConditionalGeneration` in transformers."""

from typing import ClassVar

from .towers import Pixtral


class LlavaPixtral(Pixtral):
    """A patch is a token; its lines end in [IMG_BREAK], the last one in [IMG_END]."""

    name: ClassVar[str] = "llava_pixtral"
    architectures: ClassVar[frozenset[str]] = frozenset({"LlavaForConditionalGeneration"})
    vision: ClassVar[str | None] = "pixtral"
