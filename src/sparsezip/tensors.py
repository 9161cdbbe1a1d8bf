"""The nouns of sparsezip: what a tower pass delivers, what a question says, what compression returns.

Axis words: image, patch (a tower token), row (patches, with CLS in front if the tower has one), head, key, dim (tower
width), width (LLM width), word, token (what reaches the LLM), kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .errors import SettingError


@dataclass(frozen=True, kw_only=True, eq=False)
class Captures:
    """One pass of the vision tower over a batch of images that share one grid.

    `features` is the hidden state the projector reads, `cls_attention` the CLS row of that layer's attention
    probabilities over the patches (in towers without CLS: the mean attention a patch receives), `keys` the layer's keys
    with bias, averaged over heads. Rows are patches in raster order, behind one CLS row if the tower has CLS. All but
    `features` and `grid` is optional: a method names in `needs` what it reads.

    Raises SettingError when a shape does not fit the grid.
    """

    features: Float[Tensor, "image row dim"]
    grid: tuple[int, int]  # (rows, cols) of patches
    cls_attention: Float[Tensor, "image head patch"] | None = None
    keys: Float[Tensor, "image _ key"] | None = None
    projected: Float[Tensor, "image patch width"] | None = None  # the patches after the projector
    image_embeds: Float[Tensor, "image patch clip"] | None = None  # the patches in CLIP's joint space
    last_query: Float[Tensor, "image all_heads"] | None = None  # CLS query of the tower's last layer
    last_keys: Float[Tensor, "image _ all_heads"] | None = None  # keys of the tower's last layer, heads side by side
    low_attention: Float[Tensor, "image low_head patch"] | None = None  # CLS row of an early layer
    valid: Bool[Tensor, "image patch"] | None = None  # False: the patch shows padding
    tiles: tuple[int, int] | None = None  # (rows, cols) of the tiling the images were cut from
    frames: int | None = None  # the images are the frames of videos, so many each
    total: int | None = None  # tokens for all tiles of the image, or frames, together

    def __post_init__(self) -> None:
        rows, cols = self.grid
        if min(rows, cols) < 1 or self.features.shape[1] - rows * cols not in (0, 1):
            raise SettingError(
                f"Captures: {self.features.shape[1]} feature rows do not fit a grid of {rows} x {cols} = {rows * cols} "
                "patches. Give one row per patch, and at most one CLS row in front."
            )
        for name, axis, extra in _PATCH_AXES:
            value = getattr(self, name)
            if value is not None and value.shape[axis] - self.patches not in (0, extra):
                raise SettingError(
                    f"Captures: {name} covers {value.shape[axis]} patches, but the grid has {self.patches}."
                )

    @property
    def images(self) -> int:
        """Number of images in the batch."""
        return self.features.shape[0]

    @property
    def patches(self) -> int:
        """Number of patches per image, CLS not counted."""
        return self.grid[0] * self.grid[1]

    @property
    def has_cls(self) -> bool:
        """Whether row 0 of the features is a CLS token."""
        return self.features.shape[1] > self.patches

    @property
    def patch_features(self) -> Float[Tensor, "image patch dim"]:
        """The features without CLS (a view)."""
        return self.features[:, -self.patches :]

    @property
    def patch_keys(self) -> Float[Tensor, "image patch key"]:
        """The keys without CLS (a view). Raises SettingError when there are none."""
        return self.signal("keys")[:, -self.patches :]

    def of(self, images: Sequence[int]) -> "Captures":
        """The images of those numbers, in that order; one may come several times."""
        chosen = list(images)
        tensors = {name: value[chosen] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **cast(Any, tensors))

    def signal(self, name: str) -> Tensor:
        """The optional field `name`; raises SettingError when the tower did not deliver it."""
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise SettingError(f"These captures hold no {name}. They hold: {', '.join(sorted(self.delivered))}.")
        return value

    @property
    def delivered(self) -> frozenset[str]:
        """Names of the optional fields that are present."""
        optional = (field.name for field in fields(self) if field.default is None)
        return frozenset(name for name in optional if getattr(self, name) is not None)


# field, axis that counts patches, rows it may have besides
_PATCH_AXES = (
    ("cls_attention", 2, 0),
    ("keys", 1, 1),
    ("projected", 1, 0),
    ("image_embeds", 1, 0),
    ("last_keys", 1, 1),
    ("low_attention", 2, 0),
    ("valid", 1, 0),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """The question's own words (no template, no system text) in the spaces a method may compare patches in."""

    words: Float[Tensor, "word width"] | None = None  # the LLM's input embeddings
    clip: Float[Tensor, "chunk clip"] | None = None  # CLIP's text embeddings
    tower: Float[Tensor, "dim"] | None = None  # carried into tower space through the projector's transpose


@dataclass(frozen=True, kw_only=True, eq=False)
class Compressed:
    """What is sent to the LLM, and where every patch went. One entry per image.

    `features`: the tokens in the order the LLM gets them, tower width, the tower's dtype. `kept`: patch indices of the
    dominant tokens, ascending, CLS not counted. `source`: for each patch the output token that holds it (the one with
    the largest weight, the lowest of equals), or -1 if it was dropped.
    """

    features: list[Float[Tensor, "_ dim"]]
    kept: list[Int[Tensor, "_"]]
    source: list[Int[Tensor, "patch"]]

    @property
    def tokens(self) -> list[int]:
        """Number of tokens sent, per image."""
        return [len(features) for features in self.features]

    @classmethod
    def selection(cls, captures: Captures, kept: list[Int[Tensor, "_"]], *, with_cls: bool = False) -> "Compressed":
        """Send the `kept` patches (ascending indices) as they are, behind CLS if `with_cls`, and drop all others."""
        features, source = [], []
        for rows, patches, indices in zip(captures.features, captures.patch_features, kept, strict=True):
            features.append(torch.cat([rows[: int(with_cls)], patches[indices]]))
            place = torch.full((captures.patches,), -1, device=indices.device)
            place[indices] = torch.arange(len(indices), device=indices.device) + int(with_cls)
            source.append(place)
        return cls(features=features, kept=kept, source=source)

    @classmethod
    def everything(cls, captures: Captures) -> "Compressed":
        """Send every patch unchanged (views of the captures, no copy)."""
        every = torch.arange(captures.patches, device=captures.features.device)
        return cls(
            features=list(captures.patch_features), kept=[every] * captures.images, source=[every] * captures.images
        )


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """The LLM's size, as far as a budget depends on it."""

    layers: int
    per_token: float = 1.0  # FLOPs of one token in one layer
    per_pair: float = 0.0  # FLOPs of one query meeting one key in one layer
    per_look: float = 0.0  # FLOPs of one token's queries, keys and values in one layer
    per_cached: int = 0  # bytes of one token's keys and values in one layer
    text: int = 0  # tokens of the prompt that are not the image's


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerView:
    """What a method inside the LLM sees behind one of its layers, in the prefill, of an image's tokens.

    `q`, `k`: queries and keys after RoPE, of that layer or, for a method that looks ahead, of the next one; one key
    head per query head. `hidden`: what goes on to the next layer. `embeds`: the input of the LLM's first layer.
    `visual`, `text`: positions in `hidden` of the image's tokens and of the text behind the last image, ascending, one
    tensor per row. `stage`: how many drops came before. `depth`: the layer's index. Rows hold no padding.
    """

    q: Float[Tensor, "row head token head_dim"]
    k: Float[Tensor, "row head token head_dim"]
    hidden: Float[Tensor, "row token width"]
    embeds: Float[Tensor, "row all_tokens width"]
    position_ids: Int[Tensor, "row token"]
    visual: list[Int[Tensor, "_"]]
    text: list[Int[Tensor, "_"]]
    stage: int
    depth: int
    count: int | None = None  # tokens to leave, merged ones included; None: the method's own settings say
    began: list[Int[Tensor, "_"]] | None = None  # positions in `embeds` of the image's tokens; None: one block of them
    rope: tuple[Float[Tensor, "row token turned"], Float[Tensor, "row token turned"]] | None = None  # cos, sin
    norm: Callable[[Tensor], Tensor] | None = None  # the LLM's final norm; None: `hidden` is normalised already

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.hidden.shape[0]

    def row(self, index: int) -> "LayerView":
        """One row as a view of its own (tensor views, no copies)."""
        one = slice(index, index + 1)
        return replace(
            self,
            **{
                name: getattr(self, name)[one]
                for name in ("q", "k", "hidden", "embeds", "position_ids", "visual", "text")
            },
            began=self.began and self.began[one],
            rope=self.rope and (self.rope[0][one], self.rope[1][one]),
        )

    @property
    def first_embeds(self) -> list[Float[Tensor, "_ width"]]:
        """The LLM's input embeddings of the image's tokens as they began, per row."""
        if self.began is not None:
            return [embeds[began] for embeds, began in zip(self.embeds, self.began, strict=True)]
        shift = self.embeds.shape[1] - self.hidden.shape[1]
        return [
            embeds[int(visual[0]) : int(text[0]) + shift]
            for embeds, visual, text in zip(self.embeds, self.visual, self.text, strict=True)
        ]

    @property
    def text_embeds(self) -> list[Float[Tensor, "_ width"]]:
        """The LLM's input embeddings of the text, per row: only visual tokens in front of it have gone."""
        shift = self.embeds.shape[1] - self.hidden.shape[1]
        return [embeds[text + shift] for embeds, text in zip(self.embeds, self.text, strict=True)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """Which visual tokens stay in the LLM, one entry per row.

    `indices`: ascending, counted from the first visual token. `merged`: tokens made of the others, appended behind.
    `source`: for each visual token the place that holds it, -1 if it was dropped; places count the kept ones, then the
    merged ones. `hidden`: what the kept tokens hold from here on (None: what they held). `sizes`: how many tokens each
    place stands for, where attention is to count them so (None: one each).
    """

    indices: list[Int[Tensor, "_"]]
    source: list[Int[Tensor, "_"]]
    merged: list[Float[Tensor, "_ width"]] | None = None
    hidden: list[Float[Tensor, "_ width"]] | None = None
    sizes: list[Float[Tensor, "_"]] | None = None

    @classmethod
    def selection(cls, indices: list[Int[Tensor, "_"]], visual: list[int]) -> "Kept":
        """Keep those (ascending) of `visual[row]` tokens as they are, and drop the others."""
        source = []
        for kept, count in zip(indices, visual, strict=True):
            place = torch.full((count,), -1, device=kept.device)
            place[kept] = torch.arange(len(kept), device=kept.device)
            source.append(place)
        return cls(indices=indices, source=source)

    @property
    def tokens(self) -> list[int]:
        """Number of tokens that stay, merged ones included, per row."""
        merged = [len(rows) for rows in self.merged] if self.merged is not None else [0] * len(self.indices)
        return [len(kept) + more for kept, more in zip(self.indices, merged, strict=True)]
