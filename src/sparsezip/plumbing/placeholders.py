"""The image placeholders of a prompt: count them, and drop those whose visual tokens are not sent.

An image of N patches is announced by N placeholder ids in a row. When K < N tokens are sent for it, its first K
placeholders stay (the model fills them in reading order, and positions are counted anew), the others are cut out of
every per-token tensor of the call, and the rows are padded to one length again.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import UnsupportedCallError

# Per-token arguments besides input_ids and attention_mask, and what stands in their padding.
PER_TOKEN = {"labels": -100, "token_type_ids": 0, "mm_token_type_ids": 0}


def images_per_row(input_ids: Int[Tensor, "row token"], placeholder: int, *, patches: int, images: int) -> list[int]:
    """How many of the `images` (of `patches` patches each) every row announces, in reading order.

    Raises UnsupportedCallError when placeholders and images do not match.
    """
    counts = input_ids.eq(placeholder).sum(1).tolist()
    if sum(counts) != images * patches or any(count % patches for count in counts):
        raise UnsupportedCallError(
            f"The prompts hold {' + '.join(map(str, counts))} image placeholders (token {placeholder}), but {images} "
            f"images of {patches} patches were given, which need {images * patches}. Make input_ids with the model's "
            "own processor, which writes one placeholder per patch, and give every image once."
        )
    return [count // patches for count in counts]


@dataclass(frozen=True, eq=False)
class Shortening:
    """Which columns of a batch of prompts stay, and where they go."""

    kept: Bool[Tensor, "row token"]
    placed: Bool[Tensor, "row shorter"]

    def __call__(self, values: Int[Tensor, "row token"], padding: int) -> Int[Tensor, "row shorter"]:
        """A per-token tensor in its shorter form."""
        shorter = values.new_full(self.placed.shape, padding)
        shorter[self.placed] = values[self.kept]
        return shorter


def shortening(
    input_ids: Int[Tensor, "row token"],
    attention_mask: Int[Tensor, "row token"] | Bool[Tensor, "row token"] | None,
    placeholder: int,
    *,
    patches: int,
    tokens: list[int],
) -> Shortening | None:
    """How to cut `patches` placeholders per image down to `tokens[image]`; None when there is nothing to cut.

    Padding is cut as well and made anew, on the right if the caller padded there, else on the left.
    """
    if all(count == patches for count in tokens):
        return None
    is_image = input_ids.eq(placeholder)
    rank = torch.arange(patches, device=input_ids.device).repeat(len(tokens))
    sent = torch.tensor(tokens, device=input_ids.device).repeat_interleave(patches)
    kept = torch.ones_like(is_image) if attention_mask is None else is_image | attention_mask.bool()
    kept[is_image] = rank < sent
    lengths = kept.sum(1, keepdim=True)
    width = int(lengths.max())
    column = torch.arange(width, device=input_ids.device)
    on_the_right = attention_mask is not None and not attention_mask[:, -1].all()
    placed = column < lengths if on_the_right else column >= width - lengths
    return Shortening(kept, placed)
