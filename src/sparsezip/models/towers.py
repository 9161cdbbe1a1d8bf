"""What families have in common: towers, and ways of cutting images into tiles."""

import inspect
from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, image_size_to_num_patches

from ..errors import UnsupportedCallError
from .base import Adapter, Grid, Seen


class Pixtral(Adapter):
    """Images of any size, all in one sequence, each line of patches ended by a token of the prompt."""

    tower_weights: ClassVar[tuple[str, ...]] = ("vision_tower.", "multi_modal_projector.")
    question_weights: ClassVar[tuple[str, ...]] = ("embed_tokens.",)
    prompt: ClassVar[str] = "[INST][IMG]{question}[/INST]"
    image_arguments: ClassVar[frozenset[str]] = frozenset({"pixel_values", "image_sizes"})
    interrupts = True

    def seen(self, call: dict[str, Any], *, tiled: bool = False) -> list[Seen]:
        """`image_sizes` [image, 2]: height and width in pixels."""
        side = self.model.config.vision_config.patch_size * self.merge
        return [Seen.plainly((height // side, width // side)) for height, width in _rows(call, "image_sizes")]

    @property
    def layers(self) -> Any:
        """All of them."""
        return self.tower.transformer.layers

    def attention(self, layer: Any) -> Any:
        """Under another name."""
        return layer.attention


class Qwen(Adapter):
    """Images and videos of any size, patches in squares of `merge`, positions on three axes."""

    tower_weights: ClassVar[tuple[str, ...]] = ("visual.",)
    question_weights: ClassVar[tuple[str, ...]] = ("embed_tokens.",)
    prompt: ClassVar[str] = (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n"
    )
    image_arguments: ClassVar[frozenset[str]] = frozenset({"pixel_values", "image_grid_thw"})
    video_arguments: ClassVar[frozenset[str]] = frozenset({"pixel_values_videos", "video_grid_thw"})

    def seen(self, call: dict[str, Any], *, tiled: bool = False) -> list[Seen]:
        """`image_grid_thw` or `video_grid_thw` [image, 3]: frames, height and width in patches of the tower."""
        side = self.merge
        return [
            Seen.plainly(*[(height // side, width // side)] * frames)
            for frames, height, width in _rows(call, f"{self.modality}_grid_thw")
        ]

    @property
    def tower(self) -> Any:
        """Under another name."""
        return self.model.base_model.visual

    @property
    def layers(self) -> Any:
        """All of them."""
        return self.tower.blocks

    def attention(self, layer: Any) -> Any:
        """Under another name."""
        return layer.attn

    @property
    def merge(self) -> int:
        """Of the patch merger."""
        return self.tower.spatial_merge_size

    def pooled(self, rows: Float[Tensor, "row *rest"], grid: Grid) -> Float[Tensor, "patch *rest"]:
        """The rows of a square stand one after another."""
        return rows.view(-1, self.merge**2, *rows.shape[1:]).mean(1)

    def positions(self, call: dict[str, Any]) -> Int[Tensor, "axis row token"]:
        """Time, height and width of the whole prompt."""
        ids, kinds = call["input_ids"], call.get("mm_token_type_ids")
        if kinds is None:
            kinds = ids.eq(self.placeholder) * (2 if self.modality == "video" else 1)
        read = inspect.signature(self.model.base_model.get_rope_index).parameters
        given = {name: call[name] for name in (*_ROPE, "attention_mask") if name in read and call.get(name) is not None}
        positions, _ = self.model.base_model.get_rope_index(ids, mm_token_type_ids=kinds, **given)
        return positions


_ROPE = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")  # what positions on three axes depend on


class Tiled(Adapter):
    """Images cut into tiles of the tower's size, of which only the prompt tells which belong together."""

    interrupts = True

    tower_weights: ClassVar[tuple[str, ...]] = ("vision_tower.", "multi_modal_projector.")
    question_weights: ClassVar[tuple[str, ...]] = ("embed_tokens.",)

    def seen(self, call: dict[str, Any], *, tiled: bool = False) -> list[Seen]:
        """As many tiles each as the prompts have placeholders for."""
        if call.get("input_ids") is None:
            raise UnsupportedCallError(
                f"How {self.name} models cut images into tiles is told by the prompt, and there is none here. Use ask."
            )
        side = self.side
        return [
            Seen.plainly(*[(side, side)] * tiles)
            for row in call["input_ids"].tolist()
            for tiles in tiles_of(row, self.placeholder, side**2)
        ]

    @property
    def side(self) -> int:
        """Patches along a side of a tile."""
        config = self.model.config.vision_config
        return _side(config.image_size) // _side(config.patch_size) // self.merge


class Shuffled(Tiled):
    """As in Idefics3."""

    tower_weights: ClassVar[tuple[str, ...]] = ("vision_model.", "connector.")
    prompt: ClassVar[str] = "<|im_start|>User:<image>{question}<end_of_utterance>\nAssistant:"
    image_arguments: ClassVar[frozenset[str]] = frozenset({"pixel_values", "pixel_attention_mask"})

    @property
    def decoder(self) -> Any:
        """Under another name."""
        return self.model.base_model.text_model

    @property
    def tower(self) -> Any:
        """Under another name."""
        return self.model.base_model.vision_model

    @property
    def merge(self) -> int:
        """Of the pixel shuffle."""
        return self.model.config.scale_factor


def tiles_of(row: list[int], placeholder: int, size: int) -> list[int]:
    """How many tiles of `size` placeholders each image of a prompt has.

    Tiles follow each other directly, or behind tokens that say where they are, of which those in front of an image's
    last tile are always the same: what stands in front of the prompt's last placeholders ends an image.
    """
    runs, before = list[tuple[int, int]](), -1
    for column, token in enumerate(row):
        if token == placeholder and before != placeholder:
            runs.append((before, column))
        before = token
    counts, tiles = list[int](), 0
    for number, (mark, start) in enumerate(runs):
        stop = runs[number + 1][1] if number + 1 < len(runs) else len(row)
        tiles += row[start:stop].count(placeholder) // size
        if mark == runs[-1][0]:
            counts.append(tiles)
            tiles = 0
    return counts


class AnyRes(Adapter):
    """An image and its tiles, which are laid out as one picture again, with the end of each line marked.

    Methods see the image and the picture, or with `tiled` all tiles as they come from the tower, the whole image first.
    """

    image_arguments: ClassVar[frozenset[str]] = frozenset({"pixel_values", "image_sizes", "batch_num_images"})
    tiles_apart: ClassVar[bool] = False  # whether methods can be given tiles as they come from the tower

    @property
    def tile(self) -> Grid:
        """Patches of a tile."""
        config = self.model.config.vision_config
        side = config.image_size // config.patch_size
        return side, side

    def seen(self, call: dict[str, Any], *, tiled: bool = False) -> list[Seen]:
        """`image_sizes` [image, 2]: height and width in pixels, before anything was cut."""
        _rows(call, "image_sizes")
        config, patches, found = self.model.config, self.tile[0] * self.tile[1], list[Seen]()
        for tiles, size in zip(self.tiles(call), call["image_sizes"], strict=True):
            number = torch.arange(tiles * patches, dtype=torch.float32).view(tiles, patches, 1)
            packed = self.packed(number, size, torch.full((1,), -1.0))[:, 0]
            line_ends = packed == -1
            if tiled and self.tiles_apart:
                tiling = get_anyres_image_grid_shape(
                    size.tolist(), config.image_grid_pinpoints, config.vision_config.image_size
                )
                found.append(Seen([self.tile] * tiles, packed.long(), tiling if tiles > 1 else None))
                continue
            patch = torch.where(line_ends, -1, (~line_ends).cumsum(0) - 1)
            views = [self.tile]
            if tiles > 1 and line_ends.any() and len(patch) - int(line_ends.sum()) > patches:  # else all is padding
                lines = int(line_ends.sum())
                views.append((lines, int((~line_ends).sum() - patches) // lines))
            found.append(Seen(views, patch))
        return found

    def tiles(self, call: dict[str, Any]) -> list[int]:
        """Tiles of each image, the whole one included."""
        config = self.model.config
        return [
            image_size_to_num_patches(size.tolist(), config.image_grid_pinpoints, config.vision_config.image_size)
            for size in call["image_sizes"]
        ]

    @abstractmethod
    def packed(
        self, tiles: Float[Tensor, "tile patch dim"], size: Tensor, line_end: Float[Tensor, "dim"] | None = None
    ) -> Float[Tensor, "place dim"]:
        """What the patches of an image of that size hold, laid out as transformers does it."""

    def by_view(
        self, heard: dict[str, list[Tensor]], call: dict[str, Any], seen: list[Seen]
    ) -> dict[str, list[Tensor]]:
        """What was heard of the tiles, laid out as their patches are."""
        made: dict[str, list[Tensor]] = {name: [] for name in heard}
        for name, (rows,) in heard.items():
            images = zip(rows.split(self.tiles(call)), call["image_sizes"], seen, strict=True)
            for tiles, size, one in images:
                if name == "last_query":
                    made[name] += [tiles[0], tiles[1:].mean(0)][: len(one.views)]
                else:
                    views = self.patchwise(name, tiles, partial(self.packed, size=size))
                    made[name] += views.split(one.sizes, -1 if name in ("cls_attention", "low_attention") else 0)
        return made


def _rows(call: dict[str, Any], name: str) -> list[list[int]]:
    if call.get(name) is None:
        raise UnsupportedCallError(f"The call has pixel_values without {name}. Give all that the processor returns.")
    return torch.as_tensor(call[name]).tolist()


def _side(size: Any) -> int:
    return size if isinstance(size, int) else size[0]
