"""The image placeholders of a prompt: count them, and drop those whose visual tokens are not sent.

An image of N visual tokens is announced by N placeholder ids. When K < N tokens are sent for it, its first K
placeholders stay (the model fills them in reading order, and positions are counted anew), the others are cut out of
every per-token tensor of the call, and the rows are padded to one length again.
"""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import UnsupportedCallError

# Per-token arguments besides input_ids and attention_mask, and what stands in their padding.
PER_TOKEN = {"labels": -100, "token_type_ids": 0, "mm_token_type_ids": 0}


def images_per_row(input_ids: Int[Tensor, "row token"], placeholder: int, lengths: list[int]) -> list[int]:
    """How many images every row announces, in reading order, of which each has `lengths[image]` placeholders.

    Raises UnsupportedCallError when placeholders and images do not match.
    """
    counts = input_ids.eq(placeholder).sum(1).tolist()
    ends = [0, *accumulate(lengths)]
    reached = [ends.index(count) if count in ends else None for count in accumulate(counts, initial=0)]
    if None in reached or sum(counts) != ends[-1]:
        each = sorted(set(lengths))
        wanted = f"{each[0]} patches" if len(each) == 1 else f"{', '.join(map(str, lengths))} visual tokens"
        raise UnsupportedCallError(
            f"The prompts hold {' + '.join(map(str, counts))} image placeholders (token {placeholder}), but "
            f"{len(lengths)} images of {wanted} were given, which need {ends[-1]}. Make input_ids with the model's own "
            "processor, which writes one placeholder per visual token, and give every image once."
        )
    return [after - before for before, after in pairwise(cast(list[int], reached))]


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
    lengths: list[int],
    tokens: list[int],
    places: list[Int[Tensor, "_"]] | None = None,
) -> Shortening | None:
    """How to cut the `lengths[image]` placeholders of each image to `tokens[image]`; None with nothing to cut.

    The first ones stay or, where `places[image]` says, those.

    Padding is cut as well and made anew, on the right if the caller padded there, else on the left.
    """
    if tokens == lengths:
        return None
    is_image = input_ids.eq(placeholder)
    kept = torch.ones_like(is_image) if attention_mask is None else is_image | attention_mask.bool()
    if places is None:
        stays = torch.cat([torch.arange(length) < sent for length, sent in zip(lengths, tokens, strict=True)])
    else:
        shifts = accumulate(lengths[:-1], initial=0)
        stays = torch.zeros(sum(lengths), dtype=torch.bool)
        stays[torch.cat([place.cpu() + shift for place, shift in zip(places, shifts, strict=True)])] = True
    kept[is_image] = stays.to(kept.device)
    width_of = kept.sum(1, keepdim=True)
    width = int(width_of.max())
    column = torch.arange(width, device=input_ids.device)
    on_the_right = attention_mask is not None and not attention_mask[:, -1].all()
    placed = column < width_of if on_the_right else column >= width - width_of
    return Shortening(kept, placed)


def origins(
    input_ids: Int[Tensor, "row token"], placeholder: int, lengths: list[int], places: list[Int[Tensor, "_"]] | None
) -> Int[Tensor, "row token"]:
    """The column whose position each column is to have: its own, and an image's first ones those of its tokens.

    `places[image]`: for each of its tokens one of the image's placeholders; None: all have their own.
    """
    column = torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape).clone()
    if places is None:
        return column
    is_image = input_ids.eq(placeholder)
    own = column[is_image]
    pieces = []
    for its, place in zip(own.split(lengths), places, strict=True):
        pieces += [its[place.to(its.device)], its[len(place) :]]
    column[is_image] = torch.cat(pieces)
    return column
