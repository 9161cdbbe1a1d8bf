"""Qwen2-VL: images of any size, 2 x 2 patches a token. `Qwen2VLForConditionalGeneration` in transformers."""

from typing import ClassVar

from .towers import Qwen


class Qwen2VL(Qwen):
    """Every patch sees its whole image in every layer."""

    name: ClassVar[str] = "qwen2_vl"
    architectures: ClassVar[frozenset[str]] = frozenset({"Qwen2VLForConditionalGeneration"})
