"""Llama 4: a tower with CLS as its last row, tiles of 144 tokens. `Llama4ForConditionalGeneration` in transformers.

With images, beams fail in transformers itself.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..plumbing.weights import weight_of
from .base import Encoded
from .towers import Tiled


class Llama4(Tiled):
    """The model projects what it is given itself, so methods choose in front of the projector."""

    name: ClassVar[str] = "llama4"
    architectures: ClassVar[frozenset[str]] = frozenset({"Llama4ForConditionalGeneration"})
    offers: frozenset[str] = Tiled.offers | Tiled.received
    cls: ClassVar[int | None] = -1
    tower_weights: ClassVar[tuple[str, ...]] = ("vision_model.",)
    question_weights: ClassVar[tuple[str, ...]] = ("multi_modal_projector.", "embed_tokens.")
    prompt: ClassVar[str] = "<|header_start|>user<|header_end|>\n\n<|image|>{question}<|eot|>"
    refuses_inside: ClassVar[str | None] = (
        "Layers of Llama 4 do not all see the same tokens (chunked attention), so nothing can be dropped between them."
    )

    @property
    def decoder(self) -> Any:
        """Behind a model with a head of its own."""
        return self.model.language_model.model

    @property
    def tower(self) -> Any:
        """Under another name."""
        return self.model.vision_model

    @property
    def layers(self) -> Any:
        """Under another name."""
        return self.tower.model.layers

    @property
    def merge(self) -> int:
        """Of the pixel shuffle."""
        return round(1 / self.model.config.vision_config.pixel_shuffle_ratio)

    def made(self, output: Any) -> Any:
        """In front of the projector."""
        return output.last_hidden_state

    def project(self, features: Tensor) -> Tensor:
        """One linear layer."""
        return self.model.multi_modal_projector(features)

    def outputs(self, encoded: Encoded, tokens: list[Tensor], held: list[tuple[Tensor, Tensor] | None]) -> Any:
        """All images in one tensor."""
        return BaseModelOutputWithPooling(last_hidden_state=torch.cat(tokens)[None])

    def carry_back(self, words: Float[Tensor, "word width"]) -> Float[Tensor, "dim"]:
        """Back through the projector: W' mean."""
        with weight_of(self.model.multi_modal_projector.linear_1, like=words) as weight:
            return (words.float().mean(0).to(weight.device, weight.dtype) @ weight).float()
