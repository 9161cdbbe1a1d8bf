"""Where the tokens of a prompt are once some have left it: rows without padding, and batches padded anew.

Sequences are told in the columns of the whole prompt: a token keeps the position of its column and follows its mask.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UnsupportedCallError
from ..tensors import Decoder, Kept, LayerView


@dataclass(eq=False)
class Image:
    """The visual tokens of one image on their way through the LLM."""

    row: int
    visual: Int[Tensor, "_"]  # where they are in their row, padding not counted
    method: Any
    llm: Decoder
    plan: list[int] | None  # what each drop leaves; None: the method's settings say
    began: Int[Tensor, "_"]  # where they were in the prompt
    source: Int[Tensor, "_"]  # for every token that entered the LLM the place that holds it now, -1: dropped
    own: Int[Tensor, "_"]  # for every place the token that it is, -1: one made of several
    end: int  # where the row goes on behind it; the last of it may be text that stood between its tokens
    entering: list[int] = field(default_factory=list)  # tokens that entered each layer

    @classmethod
    def of(cls, row: int, visual: Int[Tensor, "_"], method: Any, llm: Decoder) -> "Image":
        """An image of which nothing is dropped yet."""
        every, plan = torch.arange(len(visual), device=visual.device), method.plan(len(visual), llm)
        end = int(visual[-1]) + 1
        return cls(
            row=row, visual=visual, method=method, llm=llm, plan=plan, began=visual, source=every, own=every, end=end
        )

    def settle(self, view: LayerView) -> None:
        """Let the first view decide how the budget is spent."""
        self.method = self.method.settled(view)
        self.plan = self.method.plan(len(self.visual), self.llm)

    def loses(self, stage: int) -> bool:
        """Whether drop number `stage` takes anything."""
        return self.plan is None or self.plan[stage] < len(self.visual)

    def concerns(self, stage: int) -> bool:
        """Whether the method has to see the image at drop number `stage`."""
        return self.loses(stage) or (self.method.adapts and stage == 0 and self.loses(-1))

    def advance(self, kept: Kept, visual: Int[Tensor, "_"]) -> None:
        """Follow a drop: where in the row is what is left."""
        (indices,), (source,), (tokens,) = kept.indices, kept.source, kept.tokens
        self.source = torch.where(self.source < 0, -1, source[self.source.clamp(min=0)])
        self.own = torch.cat([self.own[indices], indices.new_full((tokens - len(indices),), -1)])
        self.visual = visual


@dataclass(frozen=True, eq=False)
class Layout:
    """The tokens of a sequence, row by row, in terms of the prompt's columns."""

    real: Bool[Tensor, "row token"]  # False: padding
    column: Int[Tensor, "row token"]  # the column whose mask it follows; of a merged token its image's last one
    place: Int[Tensor, "row token"]  # the column whose position it has; of a merged token that of a member
    own: Bool[Tensor, "row token"]  # whether it is the token of that column
    size: Float[Tensor, "row token"]  # how many tokens it counts for in attention

    @classmethod
    def of(cls, real: Bool[Tensor, "row token"]) -> "Layout":
        """The prompt itself."""
        column = torch.arange(real.shape[1], device=real.device).expand(real.shape)
        return cls(real=real, column=column, place=column, own=real, size=torch.ones_like(real, dtype=torch.float32))

    def repeated(self, times: int) -> "Layout":
        """Every row as often as the model has it."""
        return Layout(**{name: value.repeat_interleave(times, 0) for name, value in vars(self).items()})

    def until(self, width: int) -> "Layout":
        """Without what came behind the prompt's `width` columns."""
        behind = int((self.column[0] >= width).sum())
        return Layout(**{name: value[:, : value.shape[1] - behind] for name, value in vars(self).items()})

    @property
    def sized(self) -> bool:
        """Whether any token counts for several."""
        return bool((self.size != 1).any())

    @property
    def count(self) -> Int[Tensor, "row token"]:
        """Positions counted anew, from 0."""
        return (self.real.cumsum(1) - 1).clamp(min=0)


def after(
    row: dict[str, Tensor], images: list[tuple[Image, Kept | None]]
) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """A row behind a drop, and what the tokens hold that are not what they were, by their place in it."""
    pieces: list[dict[str, Tensor]] = []
    changed: list[tuple[Tensor, Tensor]] = []
    end = length = 0

    def add(indices: Any, **instead: Tensor) -> None:
        nonlocal length
        pieces.append({name: value[indices] for name, value in row.items()} | instead)
        length += len(pieces[-1]["take"])

    for image, drop in images:
        first, behind = int(image.visual[0]), image.end
        add(slice(end, first))
        start, end = length, behind
        if drop is None:
            add(slice(first, behind))
            image.visual, image.end = image.visual - first + start, length
            continue
        (indices,), (source,) = drop.indices, drop.source
        sizes = None if drop.sizes is None else drop.sizes[0].to(row["size"])
        stays = torch.ones(behind - first, dtype=torch.bool, device=indices.device)
        stays[image.visual - first] = False  # text that stands between, such as the ends of lines, is left
        stays[image.visual[indices] - first] = True
        still = stays.cumsum(0)[image.visual[indices] - first] - 1 + start
        left = first + stays.nonzero()[:, 0]
        add(
            left,
            **(
                {} if sizes is None else {"size": row["size"][left].index_copy(0, still - start, sizes[: len(indices)])}
            ),
        )
        if drop.hidden is not None:
            changed.append((still, drop.hidden[0]))
        if drop.merged is not None and len(drop.merged[0]):
            count, kept = len(drop.merged[0]), length
            places = range(len(indices), len(indices) + count)
            members = [(source == place).nonzero()[:, 0] for place in places]
            middle = torch.stack([member[len(member) // 2] for member in members])
            add(
                image.visual[middle],
                column=row["column"][behind - 1].expand(count),
                own=row["own"].new_zeros(count),
                size=row["size"].new_ones(count) if sizes is None else sizes[len(indices) :],
            )
            changed.append((torch.arange(kept, length, device=indices.device), drop.merged[0]))
        image.advance(drop, torch.cat([still, torch.arange(start + len(left), length, device=still.device)]))
        image.end = length
    add(slice(end, None))
    return {name: torch.cat([piece[name] for piece in pieces]) for name in row}, changed


def padded(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of different lengths stacked, with padding on the left."""
    width = max(len(row["take"]) for row in rows)

    def stacked(name: str) -> Tensor:
        values = [row[name] for row in rows]
        return torch.stack([torch.cat([v.new_full((width - len(v),), name == "size"), v]) for v in values])

    return {name: stacked(name) for name in rows[0]}


def gathered(table: Tensor, columns: Int[Tensor, "row token"]) -> Tensor:
    """The columns of a table [row or 1, column, ...]."""
    table = table.expand(len(columns), *table.shape[1:])
    return table.gather(1, columns.view(*columns.shape, *[1] * (table.ndim - 2)).expand(-1, -1, *table.shape[2:]))


def masked(
    mask: Any,
    real: Bool[Tensor, "row key"],
    size: Float[Tensor, "row key"],
    order: Bool[Tensor, "*row query key"],
    dtype: torch.dtype,
    flash: bool,
) -> Any:
    """A mask [row, 1, query, key] or, for FlashAttention, [row, key], cut to real keys, to order, weighed by size."""
    sized = bool((size != 1).any())
    if flash:  # causal by itself, and without a mask where nothing is masked
        if sized:
            raise UnsupportedCallError("Tokens that count for several need attn_implementation sdpa or eager.")
        mask = real if mask is None else mask.bool() & real
        return None if mask.all() else mask
    queries, keys = order.shape[-2:]
    itself = torch.ones(queries, keys, dtype=torch.bool, device=real.device).tril(keys - queries).triu(keys - queries)
    allowed = (real[:, None] & order) | itself  # padding sees itself: a row without any key has no softmax
    allowed = allowed[:, None]
    least = torch.finfo(dtype).min
    if mask is None:
        mask = allowed
    elif mask.dtype == torch.bool:
        mask = (mask & allowed) | itself
    else:
        mask = mask.masked_fill(~allowed, least).masked_fill(itself, 0)
    if not sized:
        return mask
    bias = size.log()[:, None, None].to(dtype)
    return torch.where(mask, bias, least) if mask.dtype == torch.bool else mask + bias


def text_behind(images: list[Image], row: int, length: int) -> Int[Tensor, "_"]:
    """Where the text behind the last image of a row is."""
    end = max(image.end for image in images if image.row == row)
    return torch.arange(end, length, device=images[0].visual.device)
