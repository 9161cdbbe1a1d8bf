"""SmolVLM: images cut into tiles, each with a token in front. `SmolVLMForConditionalGeneration` in transformers."""

from typing import ClassVar

from .towers import Shuffled


class SmolVLM(Shuffled):
    """Squares of a tile's patches are shuffled into one token each."""

    name: ClassVar[str] = "smolvlm"
    architectures: ClassVar[frozenset[str]] = frozenset({"SmolVLMForConditionalGeneration"})
