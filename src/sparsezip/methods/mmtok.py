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

from ..ops.score import cosine
from ..ops.select import covering
from ..tensors import Captures, Compressed
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

    def tokens(self, patches: int) -> int:
        """The budget, or 64."""
        return self.asked(patches) or 64

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Greedy coverage of words and patches; images whose questions are equally long go together."""
        texts = [None if question is None else question.words for question in questions]
        lengths = [0 if words is None else len(words) for words in texts]
        kept: dict[int, Tensor] = {}
        for length in set(lengths):
            images = [image for image in range(captures.images) if lengths[image] == length]
            shares = self._share_of_patches(captures.patch_features[images])
            if length:
                words = torch.stack([words for image in images if (words := texts[image]) is not None])
                text = self._share_of_words(captures.signal("projected")[images], words)
                shares = torch.cat([text, shares], -1)
            barred = None if captures.valid is None else ~captures.valid[images]
            picks = covering(shares, self.tokens(captures.patches), barred=barred)
            kept.update(zip(images, picks.sort(-1).values, strict=True))
        return Compressed.selection(captures, [kept[image] for image in range(captures.images)])

    def _share_of_words(
        self, projected: Float[Tensor, "image patch width"], words: Float[Tensor, "image word width"]
    ) -> Float[Tensor, "image patch word"]:
        return torch.softmax(cosine(projected, words) / self.text_temperature, 1) / words.shape[1]

    def _share_of_patches(self, features: Float[Tensor, "image patch dim"]) -> Float[Tensor, "image patch patch"]:
        shares = torch.softmax(cosine(features, features) / self.image_temperature, 1)
        return self.alpha * shares / features.shape[1]
