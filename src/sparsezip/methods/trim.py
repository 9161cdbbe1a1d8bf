"""trim: the patches closest to the question in CLIP's space, and one token that is the mean of the others.

Paper: Song et al., "Less is More: A Simple yet Effective Token Reduction Method for Efficient MLLMs", COLING 2025.
Code: FreedomIntelligence/TRIM @ f5a232d, llava/model/multimodal_encoder/clip_encoder.py (TextSim+).
Parity: an independent implementation from the same formulas, in the tests.
Differs: cosines, not inner products; without CLIP's joint space, the question's words; one count per image, at least 1.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops.budget import outliers
from ..ops.merge import append, remaining, weighted_mean
from ..ops.score import cosine, question_relevance
from ..ops.select import top
from ..tensors import Captures, Compressed
from .base import Method, Questions


@dataclass(frozen=True, kw_only=True)
class TRIM(Method):
    """Send `budget` tokens, or without one the patches whose relevance is an outlier, and the mean of all others.

    The budget counts the mean too. An image without a question sends the patches that are least like the mean of its
    features.
    """

    name: ClassVar[str] = "trim"

    @property
    def needs(self) -> frozenset[str]:
        """The question, and the patches in LLM space or, with `paper`, in CLIP's."""
        return frozenset({"question", "image_embeds" if self.paper else "projected"})

    @property
    def uses(self) -> frozenset[str]:
        """The patches in CLIP's space, which go before those in LLM space."""
        return frozenset({"image_embeds"})

    def tokens(self, patches: int) -> int:
        """The budget, or the least that outliers make."""
        return self.asked(patches) or (1 if self.paper else 2)

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Rank by relevance; a question that says nothing leaves all patches equal, and the features decide."""
        relevance = question_relevance(captures, questions, clip_only=self.paper, cosines=not self.paper)
        scores = torch.where(relevance.any(-1, keepdim=True), relevance, _oddness(captures.patch_features))
        kept = top(scores, self._counts(torch.softmax(scores, -1)))
        rest = remaining(kept, captures.patches)
        selection = Compressed.selection(captures, kept)
        labels = torch.where(rest, 0, -1)
        return append(selection, labels, weighted_mean(captures.patch_features, labels, rest.float(), 1))

    def _counts(self, scores: Float[Tensor, "image patch"]) -> list[int]:
        images, patches = scores.shape
        asked = self.asked(patches)
        if asked is not None:
            return [asked - 1] * images
        if self.paper:
            return [int(patches * (outliers(scores.flatten()[None])[0] / scores.numel()))] * images
        return [max(count, 1) for count in outliers(scores)]


def _oddness(features: Float[Tensor, "image patch dim"]) -> Float[Tensor, "image patch"]:
    """How little each patch is like the mean of its image: minus the cosine."""
    images, patches, _ = features.shape
    labels = torch.zeros(images, patches, dtype=torch.int64, device=features.device)
    middle = weighted_mean(features.float(), labels, torch.ones_like(labels, dtype=torch.float32), 1)
    return -cosine(features, middle)[..., 0]
