"""Idefics3: images cut into tiles, each with a token in front. `Idefics3ForConditionalGeneration` in transformers."""

from typing import ClassVar

from .towers import Shuffled


class Idefics3(Shuffled):
    """Squares of a tile's patches are shuffled into one token each."""

    name: ClassVar[str] = "idefics3"
    architectures: ClassVar[frozenset[str]] = frozenset({"Idefics3ForConditionalGeneration"})
