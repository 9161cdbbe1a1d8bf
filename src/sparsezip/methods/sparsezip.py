"""sparsezip: attention, local detail, redundancy and text pick K patches; clusters of the keys hold all others.

Paper: Geppert, Chen, Mittal, Maheen Aboobacker, "SparseZip: Text-Aware Visual Token Selection and Compression", 2025.
Code: W1nd55/VisionZip-exp, utils/sparsezip_compressor.py (of its two scorers, the one the paper's formulas describe).
Parity: golden vectors of the authors' code, skip_ctx_merge=True: scores to 2e-6, K and indices exactly, tokens to 2e-6.
Differs: no CLS is sent, a patch takes its place; skip_ctx_merge means; skip_hybrid_attn keeps the text term.
"""

import logging
import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ..errors import SettingError
from ..ops.budget import afford, dynamic_k, split
from ..ops.merge import append, clustered, remaining, strided, weighted_mean
from ..ops.score import RESOLUTION, Alphas, hybrid, relevance, salience, zscore
from ..ops.select import top
from ..tensors import Captures, Compressed
from .base import Method, Questions

log = logging.getLogger(__name__)

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class DynK:
    """K = round(log(variance of the scores + eps) + c), kept within k_min and k_max."""

    c: float = 12.0
    eps: Positive = 1e-3


@dataclass(frozen=True, kw_only=True)
class Merging:
    """How the other patches become `contextual_num` tokens (None: 32, or with a budget its share of 10 in 64)."""

    contextual_num: Annotated[int, Field(ge=0)] | None = None
    kmeans_init_factor: Annotated[float, Field(ge=1)] = 2.0  # centres per contextual token, if `agglomerative`
    kmeans_iters: Annotated[int, Field(ge=0)] = 1
    agglomerative: bool = False


@dataclass(frozen=True, kw_only=True)
class SparseZip(Method):
    """Send 1 + K + contextual_num tokens, the one being CLS with `paper` where there is one, and a patch otherwise.

    K follows the scores (`dynamic_k`) or is `dominant`; a budget overrides both. The `skip_` switches put VisionZip's
    attention score, a fixed K and VisionZip's merging in place of the method's own: all three together are VisionZip.
    Raises SettingError for k_min above k_max.
    """

    name: ClassVar[str] = "sparsezip"
    sizing: ClassVar[frozenset[str]] = frozenset(
        {"dominant", "k_min", "k_max", "dynk", "dynamic_k", "skip_dynamic_k", "merging.contextual_num"}
    )

    alphas: Alphas = field(default_factory=Alphas)
    tau_feat: Positive = 0.15
    tau_sim: Positive = 0.08
    cross_beta: float = 0.3
    dynamic_k: bool = True
    dynk: DynK = DynK()
    k_min: Annotated[int, Field(ge=1)] = 32
    k_max: Annotated[int, Field(ge=1)] = 64
    dominant: Annotated[int, Field(ge=1)] = 54
    merging: Merging = Merging()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    skip_hybrid_attn: bool = False
    skip_dynamic_k: bool = False
    skip_ctx_merge: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k_min > self.k_max:
            raise SettingError(f"SparseZip got k_min={self.k_min}, above k_max={self.k_max}. Lower k_min.")
        if not (self.merging.agglomerative or self.skip_ctx_merge):
            log.info("kmeans_init_factor is unused: without agglomerative, contextual_num centres are seeded.")

    @property
    def needs(self) -> frozenset[str]:
        """CLS attention and keys, and the question if the text term counts."""
        return frozenset({"cls_attention", "keys"} | ({"question"} if self._reads_text else set()))

    def tokens(self, patches: int) -> int:
        """The least these settings may send."""
        return sum(self._shares(patches))

    def check(self, patches: int) -> None:
        """Raise BudgetError when an image of `patches` patches has too few, or no dominant token is left."""
        if not self.sends_everything(patches) or self.asked(patches) is None:
            afford("SparseZip", *self._shares(patches), patches)

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Score, choose K, select, cluster and merge."""
        scores = self.scores(captures, questions)
        dominant, contextual = self._shares(captures.patches)
        counts, most = [dominant] * captures.images, dominant
        if self._adapts:
            most = min(self.k_max + 1, captures.patches - contextual)
            counts = [k + 1 for k in dynamic_k(scores, self.dynk.c, self.dynk.eps, self.k_min, most - 1)]
        with_cls = self.paper and captures.has_cls
        kept = top(scores, [count - int(with_cls) for count in counts])
        selection = Compressed.selection(captures, kept, with_cls=with_cls)
        if not contextual:
            return selection
        rest = remaining(kept, captures.patches)
        if self.skip_ctx_merge:
            groups = strided(captures.patch_features, captures.patch_keys, rest, contextual, add=self.paper)
            return append(selection, *groups)
        weights = salience(captures.signal("cls_attention")).clamp(min=1e-12)  # float16 attention underflows to 0
        centres = contextual
        if self.merging.agglomerative:  # never more than there are patches left, whatever K the batch has
            centres = min(math.ceil(self.merging.kmeans_init_factor * contextual), captures.patches - most)
        iterations = self.merging.kmeans_iters
        labels = clustered(captures.patch_keys, rest, weights, contextual, centres, iterations, self.seed)
        return append(selection, labels, weighted_mean(captures.patch_features, labels, weights, contextual))

    def scores(self, captures: Captures, questions: Questions) -> Float[Tensor, "image patch"]:
        """The score of every patch; the text term is 0 for an image without a question."""
        attention, text = captures.signal("cls_attention"), self._relevance(captures, questions)
        if self.skip_hybrid_attn:
            plain = attention.float().sum(1)
            if text is None:
                return plain
            return plain + self.cross_beta * plain.std(-1, keepdim=True) * zscore(text, RESOLUTION / captures.patches)
        return hybrid(
            attention,
            captures.patch_keys,
            alphas=self.alphas,
            tau_feat=self.tau_feat,
            tau_sim=self.tau_sim,
            relevance=text,
            cross_beta=self.cross_beta,
        )

    def _relevance(self, captures: Captures, questions: Questions) -> Float[Tensor, "image patch"] | None:
        queries = [None if question is None else question.tower for question in questions]
        if not self._reads_text or all(query is None for query in queries):
            return None
        silent = captures.features.new_zeros(captures.features.shape[-1])  # alike for every patch: a z-score of 0
        stacked = torch.stack([(silent if query is None else query).float() for query in queries])
        return relevance(captures.patch_features, stacked)

    @property
    def _reads_text(self) -> bool:
        return self.cross_beta != 0 and not (self.paper and self.skip_hybrid_attn)

    @property
    def _adapts(self) -> bool:
        return self.dynamic_k and not self.skip_dynamic_k and self.budget is None and self.keep_ratio is None

    def _shares(self, patches: int) -> tuple[int, int]:
        asked = self.asked(patches)
        if asked is not None:
            return split(asked, self.merging.contextual_num)
        contextual = 32 if self.merging.contextual_num is None else self.merging.contextual_num
        return 1 + (self.k_min if self._adapts else self.dominant), contextual
