"""The attention that text pays to an image inside the LLM. Only the rows that are read are computed, in float32.

Sources: SparseVLM (Zhang et al., ICML 2025) for the raters, SparseVLM+ (2025) for gravity.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import FailureError
from ..tensors import LayerView

Rope = tuple[Float[Tensor, "row token turned"], Float[Tensor, "row token turned"]]  # cos, sin of the turned dimensions


def rows(
    q: Float[Tensor, "row head token head_dim"], k: Float[Tensor, "row head token head_dim"], queries: Int[Tensor, "_"]
) -> Float[Tensor, "row head query token"]:
    """Causal attention probabilities of the `queries` (positions) over all tokens; 0 for what comes behind a query.

    Raises FailureError when one is not finite.
    """
    logits = q[:, :, queries].float() @ k.float().mT / math.sqrt(q.shape[-1])
    behind = torch.arange(k.shape[2], device=k.device) > queries[:, None]
    probabilities = torch.softmax(logits.masked_fill_(behind, -torch.inf), -1)
    if not probabilities.isfinite().all():
        raise FailureError(
            "The attention inside the LLM is not finite, so its visual tokens cannot be ranked: the LLM computed NaN "
            "or infinite values. If it runs in float16, use bfloat16 or float32."
        )
    return probabilities


def asking(view: LayerView) -> Int[Tensor, "_"]:
    """Positions of the text behind the images, of a view of one row; of the last token where there is no text."""
    (text,) = view.text
    return text if len(text) else view.visual[0].new_tensor([view.hidden.shape[1] - 1])


def rating(words: Float[Tensor, "word width"], patches: Float[Tensor, "patch width"]) -> Float[Tensor, "word"]:
    """How much of the image is about each word: softmax over the words of <patch, word>, mean over the patches."""
    return torch.softmax(patches.float() @ words.float().mT, -1).mean(0)


def raters(words: Float[Tensor, "word width"], patches: Float[Tensor, "patch width"]) -> Int[Tensor, "_"]:
    """The words with a `rating` above the mean, ascending; all words where they are rated alike."""
    share = rating(words, patches)
    chosen = (share > share.mean()).nonzero().flatten()
    return chosen if len(chosen) else torch.arange(len(words), device=words.device)


def information(attention: Float[Tensor, "head word patch"], eps: float = 0.0) -> float:
    """Mutual information of words and patches in bits, summed over heads: sum of p(w, i) log2 p(w, i) / (p(w) p(i)).

    Every word is as likely as the others, and p(i | w) is its `attention` to the patch, which need not add up to 1.
    `eps` is added to p(w) p(i). Source: AutoPrune (NeurIPS 2025).
    """
    given = attention.double()
    alone = given.mean(1, keepdim=True) + eps * given.shape[1]
    return (torch.xlogy(given, given) - torch.xlogy(given, alone)).sum().item() / given.shape[1] / math.log(2)


def rotary(position_ids: Int[Tensor, "row token"], head_dim: int = 128, base: float = 10000.0) -> Rope:
    """Cosine and sine of the rotary embedding, in float32, as LLaMA lays them out: the frequencies twice."""
    frequencies = base ** -(torch.arange(0, head_dim, 2, device=position_ids.device).float() / head_dim)
    angles = (position_ids[..., None] * frequencies).repeat(1, 1, 2)
    return angles.cos(), angles.sin()


def gravity(rope: Rope, queries: Int[Tensor, "_"], floor: float = 0.05) -> Float[Tensor, "row query token"]:
    """What RoPE alone makes of the distance from each query to each token: <RoPE(1), RoPE(1)> / sqrt(head_dim).

    It falls with the distance and, far away (at 1707 for base 10000), below zero, where it says nothing any more: it is
    held above `floor` times its value at distance 0.
    """
    cos, sin = (part.float() for part in rope)
    pull = (cos[:, queries] @ cos.mT + sin[:, queries] @ sin.mT) / math.sqrt(cos.shape[-1])
    return pull.clamp(min=floor * math.sqrt(cos.shape[-1]))
