"""tome: every second patch may join the most similar of the others, and the most similar pairs do, until few are left.

Paper: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023.
Code: none used (facebookresearch/ToMe has a non-commercial licence).
Parity: none; equals an independent implementation in the tests.
Differs: merges behind the tower, at most half of the tokens per round, not a few in each layer; raster order is kept.
"""

from dataclasses import dataclass
from typing import ClassVar

from ..ops.merge import bipartite, mean
from ..tensors import Captures, Compressed
from .base import Method, Questions


@dataclass(frozen=True, kw_only=True)
class ToMe(Method):
    """Send `budget` tokens (64 unless said otherwise), each the mean of the patches that joined it.

    A token stands where the patch stood that the others joined, which is what `kept` names.
    """

    name: ClassVar[str] = "tome"
    blends: ClassVar[bool] = True

    @property
    def needs(self) -> frozenset[str]:
        """Keys to compare by."""
        return frozenset({"keys"})

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Match by cosine of the mean keys."""
        labels, roots = bipartite(captures.patch_keys, self.tokens(captures.patches))
        tokens = mean(captures.patch_features, labels, roots.shape[1])
        return Compressed(features=list(tokens), kept=list(roots), source=list(labels))
