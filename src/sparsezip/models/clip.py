"""The CLIP that a vision tower was taken from: its text tower, and the way of the patches into the joint space.

A VLM keeps neither, so a method that compares patches with text in CLIP's space asks the user for both: `clip=`.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class ClipText:
    """A `CLIPModel` of transformers and its tokenizer, seen as two functions into the joint space.

    Of the model's vision part only `post_layernorm` and `visual_projection` are used.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Nothing is changed in either."""
        self.model, self.tokenizer = model, tokenizer
        self.width: int = model.config.vision_config.hidden_size  # of the vision tower

    @torch.no_grad()
    def text(self, text: str) -> Float[Tensor, "chunk clip"]:
        """CLIP's embedding of a text; one too long for CLIP (77 tokens) gives several, of pieces in their order."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        room = self.model.config.text_config.max_position_embeddings - 2
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        return torch.cat(
            [self._piece([start, *ids[first : first + room], end]) for first in range(0, max(1, len(ids)), room)]
        )

    def _piece(self, ids: list[int]) -> Float[Tensor, "1 clip"]:
        projection = self.model.text_projection
        pooled = self.model.text_model(torch.tensor([ids], device=projection.weight.device)).pooler_output
        return projection(pooled)

    @torch.no_grad()
    def patches(self, features: Float[Tensor, "image patch dim"]) -> Float[Tensor, "image patch clip"]:
        """Patches of a hidden state of the vision tower in the joint space, where CLIP itself has only CLS."""
        projection = self.model.visual_projection
        normed = self.model.vision_model.post_layernorm(features.to(projection.weight))
        return projection(normed).to(features.device)
