"""What each patch is worth. Every score is computed in float32, per image, whatever the batch and the input dtype.

Sources: SparseZip (Geppert, Chen, Mittal, Maheen Aboobacker, 2025) for the hybrid score, TRIM (Song et al., COLING
2025) and CDPruner (Zhang et al., NeurIPS 2025) for the sign of the relevance in CLIP space.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import SettingError
from ..tensors import Captures, Question

RESOLUTION = 1e-6  # of float32, with room for the sums: a spread below it is rounding, not signal


@dataclass(frozen=True, kw_only=True)
class Alphas:
    """Weights of the three terms of the hybrid score."""

    attn: float = 1.0
    entropy: float = 0.8
    mutual: float = 1.0


def salience(cls_attention: Float[Tensor, "image head patch"]) -> Float[Tensor, "image patch"]:
    """Mean over heads of the CLS attention to each patch."""
    return cls_attention.float().mean(1)


def detail(keys: Float[Tensor, "image patch key"], tau_feat: float) -> Float[Tensor, "image patch"]:
    """Entropy of softmax(key / tau_feat), as a share of the largest possible one: 0 to 1."""
    return entropy(torch.softmax(keys.float() / tau_feat, -1)) / math.log(max(keys.shape[-1], 2))


def mutual(keys: Float[Tensor, "image patch key"], tau_sim: float) -> Float[Tensor, "image patch"]:
    """Mutual-information proxy: 1 - entropy of softmax(cosine to the other patches / tau_sim) / log(patch).

    1 says that one other patch alone resembles this one, 0 that all others resemble it equally.
    """
    if keys.shape[1] == 1:
        return keys.new_zeros(keys.shape[:2], dtype=torch.float32)
    spread = []
    for directions in unit(keys):  # one [patch, patch] matrix at a time: a batch of them would leave the cache
        likeness = (directions @ directions.mT) / tau_sim
        spread.append(entropy(torch.softmax(likeness.fill_diagonal_(-torch.inf), -1)))
    return 1 - torch.stack(spread) / math.log(keys.shape[1])


def single_head(
    query: Float[Tensor, "image dim"], keys: Float[Tensor, "image row dim"], patches: int
) -> Float[Tensor, "image patch"]:
    """Attention of one query to the patches with the heads side by side, not split: softmax(<query, key> / sqrt(dim)).

    The softmax runs over all keys, the CLS row in front included. Source: LLaVA-PruMerge (ICCV 2025).
    """
    logits = pairs(query[:, None], keys)[:, 0] / math.sqrt(query.shape[-1])
    return torch.softmax(logits, -1)[:, -patches:]


def relevance(
    features: Float[Tensor, "image patch dim"], query: Float[Tensor, "image dim"]
) -> Float[Tensor, "image patch"]:
    """Softmax over the patches of <query, feature> / sqrt(dim), the query being text carried into the tower's space."""
    return torch.softmax(pairs(features, query[:, None])[..., 0] / math.sqrt(features.shape[-1]), -1)


def question_relevance(
    captures: Captures, questions: list[Question | None], *, clip_only: bool = False, cosines: bool = True
) -> Float[Tensor, "image patch"]:
    """How much each patch has to do with the question: mean cosine (or inner product) over the question's vectors.

    In CLIP space where both sides are there, and NEGATIVE: CLIP's patches turn away from the words that name them. In
    LLM space otherwise (not with `clip_only`): projected patches and words. 0 for an image without a question.

    Raises SettingError for a question that has vectors in neither space.
    """
    silent = captures.features.new_zeros(captures.patches, dtype=torch.float32)
    rows = []
    for i, question in enumerate(questions):
        clip, words = (None, None) if question is None else (question.clip, question.words)
        if question is None:
            rows.append(silent)
        elif clip is not None and captures.image_embeds is not None:
            rows.append(-_likeness(captures.image_embeds[i], clip, cosines))
        elif words is not None and not clip_only:
            rows.append(_likeness(captures.signal("projected")[i], words, cosines))
        else:
            space = "CLIP's space" if clip_only else "the LLM's space or CLIP's"
            raise SettingError(f"The question of image {i} of the batch has no vectors in {space} to compare with.")
    return torch.stack(rows)


def _likeness(
    patches: Float[Tensor, "patch width"], text: Float[Tensor, "word width"], cosines: bool
) -> Float[Tensor, "patch"]:
    compare = cosine if cosines else pairs
    return compare(text[None], patches[None])[0].sum(0) / max(len(text), 1)


def hybrid(
    cls_attention: Float[Tensor, "image head patch"],
    keys: Float[Tensor, "image _ key"],
    *,
    alphas: Alphas | Mapping[str, float],
    tau_feat: float,
    tau_sim: float,
    relevance: Float[Tensor, "image patch"] | None = None,
    cross_beta: float = 0.0,
) -> Float[Tensor, "image patch"]:
    """alphas.attn z(salience) + alphas.entropy z(detail) + alphas.mutual z(mutual) + cross_beta z(relevance).

    `keys` may hold the CLS row in front; it is left out. z is the z-score over the patches of one image. A term whose
    weight is 0 is not computed.
    """
    alphas = alphas if isinstance(alphas, Alphas) else Alphas(**alphas)
    patches = cls_attention.shape[-1]
    keys = keys[:, -patches:]
    score = keys.new_zeros((len(keys), patches), dtype=torch.float32)
    if alphas.attn:
        score = score + alphas.attn * zscore(salience(cls_attention), RESOLUTION / patches)
    if alphas.entropy:
        score = score + alphas.entropy * zscore(detail(keys, tau_feat))
    if alphas.mutual:
        score = score + alphas.mutual * zscore(mutual(keys, tau_sim))
    if cross_beta and relevance is not None:
        score = score + cross_beta * zscore(relevance, RESOLUTION / patches)
    return score


def zscore(values: Float[Tensor, "image patch"], resolution: float = RESOLUTION) -> Float[Tensor, "image patch"]:
    """Z-score over the patches of each image (unbiased deviation); 0 where the spread is below `resolution`."""
    wide = values.double()  # so that the statistics do not depend on how a batch is summed
    centred = wide - wide.mean(-1, keepdim=True)
    spread = (centred.square().sum(-1, keepdim=True) / max(values.shape[-1] - 1, 1)).sqrt()
    return torch.where(spread <= resolution, 0, centred / spread).float()  # NaN stays NaN


def entropy(probabilities: Float[Tensor, "*rows choice"]) -> Float[Tensor, "*rows"]:
    """Shannon entropy of each row, in nats."""
    terms: Tensor = torch.special.entr(probabilities)
    return terms.sum(-1)


def cosine(
    left: Float[Tensor, "image left key"], right: Float[Tensor, "image right key"]
) -> Float[Tensor, "image left right"]:
    """Cosine similarity of every left with every right vector, in float32; 0 for a zero vector."""
    return torch.stack([unit(rows) @ unit(columns).mT for rows, columns in zip(left, right, strict=True)])


def likeness(vectors: Float[Tensor, "image patch key"]) -> Float[Tensor, "image patch patch"]:
    """Cosine similarity of every two patches of an image, in float32; 0 for a zero vector."""
    matrices = []
    patches, step = vectors.shape[1], max(64, -(-vectors.shape[1] // 64) * 16)
    for image in vectors:
        directions = unit(image)
        lower = directions.new_zeros(patches, patches)
        for start in range(0, patches, step):  # what lies above these blocks, 3/8 of the products, is mirrored
            stop = start + step
            lower[start:stop, :stop] = directions[start:stop] @ directions[:stop].mT
        matrices.append(lower.tril() + lower.tril(-1).mT)
    return torch.stack(matrices)


def unit(vectors: Float[Tensor, "*rows key"]) -> Float[Tensor, "*rows key"]:
    """The vectors at length 1, in float32."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


def pairs(
    left: Float[Tensor, "image left key"], right: Float[Tensor, "image right key"]
) -> Float[Tensor, "image left right"]:
    """Inner product of every left with every right vector, in float32.

    One product per image: a batched one may round differently for another batch size.
    """
    return torch.stack([rows.float() @ columns.float().mT for rows, columns in zip(left, right, strict=True)])
