"""cdpruner: the patches that are relevant to the question and least alike, by a determinantal point process.

Paper: Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity (...)", NeurIPS 2025.
Code: Theia-4869/CDPruner @ 9541616, llava/model/llava_arch.py.
Parity: golden vectors of the authors' code: indices exactly, relevance and kernel to 6e-7; the default form one by one.
Differs: relevance is scaled per image, not over the batch; without CLIP's text tower it is cosine in the LLM's space.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops.score import RESOLUTION, likeness, question_relevance
from ..ops.select import determinantal
from ..tensors import Captures, Compressed
from .base import Method, Questions


@dataclass(frozen=True, kw_only=True)
class CDPruner(Method):
    """Send `budget` patches (64 unless said otherwise).

    CLIP's patches turn away from the words that name them, so in CLIP space the relevance is the NEGATIVE cosine; in
    LLM space, into which the projector was trained to carry patches, it is the cosine itself. An image without a
    question gets the most diverse patches. Where those picked span all others, these are chosen from as if nothing had
    been picked. With `paper` CLIP space is the only one, and the relevance is scaled over the whole batch.
    """

    name: ClassVar[str] = "cdpruner"

    @property
    def needs(self) -> frozenset[str]:
        """The patches as the LLM sees them and the question; with `paper` the patches in CLIP space too."""
        return frozenset({"projected", "question"} | ({"image_embeds"} if self.paper else set()))

    @property
    def uses(self) -> frozenset[str]:
        """CLIP space, where there is one."""
        return frozenset({"image_embeds"})

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Greedy choice of the largest determinant: a patch counts by its relevance times what it adds to the others.

        Raises SettingError for a question without vectors to compare with.
        """
        picks = determinantal(self.kernel(captures, self.relevance(captures, questions)), self.tokens(captures.patches))
        return Compressed.selection(captures, list(picks.sort(-1).values))

    def relevance(self, captures: Captures, questions: Questions) -> Float[Tensor, "image patch"]:
        """Scaled from just above 0 to 1; 1 for all where they are alike."""
        raw = question_relevance(captures, questions, clip_only=self.paper)
        low, high = raw.amin(-1, keepdim=True), raw.amax(-1, keepdim=True)
        if self.paper:
            low, high = low.min(), high.max()
        return torch.where(high - low <= RESOLUTION, 1, (raw - low + 1e-6) / (high - low))

    def kernel(self, captures: Captures, relevance: Float[Tensor, "image patch"]) -> Float[Tensor, "image patch patch"]:
        """Cosine of every two patches, times the relevance of both."""
        return likeness(captures.signal("projected")).mul_(relevance[:, :, None]).mul_(relevance[:, None])
