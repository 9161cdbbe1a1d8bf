"""mmtok: the patches that together cover both the question's words and the image itself.

Paper: Dong et al., "MMTok: Multimodal Coverage Maximization for Efficient Inference of VLMs", ICLR 2026.
Code: Ironieser/MMTok @ d1522cd, mmtok/core/semantic_selector.py.
Parity: both forms meet golden vectors of the authors' code: indices exactly.
Differs: nothing, for the authors' one image at a time; an image without a question is covered by itself alone.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ..ops.score import cosine, likeness
from ..ops.select import covering
from ..tensors import Captures, Compressed, Question
from .base import Method, Questions

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class MMTok(Method):
    """Send `budget` patches (64 unless said otherwise); patches that show padding only where nothing else is left.

    `alpha` weighs the image against the question. A lower temperature lets a word, or a patch, be covered by fewer
    patches; the paper has a `text_temperature` of 0.02 for LLaVA and 0.01 for Qwen.
    """

    name: ClassVar[str] = "mmtok"

    alpha: Annotated[float, Field(ge=0)] = 0.5
    text_temperature: Positive = 0.02
    image_temperature: Positive = 0.2

    @property
    def needs(self) -> frozenset[str]:
        """The patches as the LLM sees them, to compare with the question's words."""
        return frozenset({"projected", "question"})

    @property
    def uses(self) -> frozenset[str]:
        """Which patches show padding."""
        return frozenset({"valid"})

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Greedy coverage of words and patches; images whose questions are equally long go together."""
        shares = [self.shares(captures, image, question) for image, question in enumerate(questions)]
        kept: dict[int, Tensor] = {}
        for rows in {share.shape[1] for share in shares}:
            images = [image for image, share in enumerate(shares) if share.shape[1] == rows]
            barred = None if captures.valid is None else ~captures.valid[images]
            picks = covering(torch.stack([shares[i] for i in images]), self.tokens(captures.patches), barred=barred)
            kept.update(zip(images, picks.sort(-1).values, strict=True))
        return Compressed.selection(captures, [kept[image] for image in range(captures.images)])

    def shares(self, captures: Captures, image: int, question: Question | None) -> Float[Tensor, "patch row"]:
        """How well each patch of an image covers each word of its question, if there are any, and each patch."""
        alike = likeness(captures.patch_features[image, None])[0] / self.image_temperature
        covered = self.alpha * torch.softmax(alike, 0) / captures.patches
        words = None if question is None else question.words
        if words is None or not len(words):
            return covered
        meant = cosine(captures.signal("projected")[image, None], words[None])[0] / self.text_temperature
        return torch.cat([torch.softmax(meant, 0) / len(words), covered], 1)
