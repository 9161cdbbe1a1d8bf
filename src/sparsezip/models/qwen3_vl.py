"""Qwen3-VL: early layers of the LLM get features of the tower's early layers. `Qwen3VLForConditionalGeneration`."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Adapter, Encoded
from .towers import Qwen


class Qwen3VL(Qwen):
    """What is added in the LLM's first layers (deepstack) is chosen and merged like the tokens themselves."""

    name: ClassVar[str] = "qwen3_vl"
    architectures: ClassVar[frozenset[str]] = frozenset({"Qwen3VLForConditionalGeneration"})

    def __init__(self, model: Any) -> None:
        """As many layers of the LLM as there are layers of the tower whose features are added."""
        super().__init__(model)
        self.deepstack = len(self.tower.deepstack_visual_indexes)

    def of_videos(self) -> Adapter:
        """Frames of a video stand behind their times."""
        made = super().of_videos()
        made.interrupts = True
        return made

    def outputs(self, encoded: Encoded, tokens: list[Tensor], held: list[tuple[Tensor, Tensor] | None]) -> Any:
        """A kept token gets what its patch has, one made of several the mean of theirs."""
        made = super().outputs(encoded, tokens, held)
        made.deepstack_features = []
        for features in encoded.output.deepstack_features:
            images = [own if its is None else _same(own, *its) for own, its in zip(features, held, strict=True)]
            made.deepstack_features.append(list(torch.cat(images).split([len(its) for its in tokens])))
        return made


def _same(features: Tensor, kept: Tensor, source: Tensor) -> Tensor:
    """[patch, width] to [token, width] as a method did it to the patches."""
    tokens, is_held = int(source.max()) + 1, source >= 0
    total = features.new_zeros(tokens, features.shape[1]).index_add_(0, source[is_held], features[is_held])
    made = total / torch.bincount(source[is_held], minlength=tokens).clamp(min=1)[:, None].to(total)
    made[source[kept]] = features[kept]
    return made
