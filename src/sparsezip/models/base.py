"""What a VLM family must say about itself. A family is one file of this folder; its name is the file's name.

An adapter describes: where the tower and its layers are, how an image stands in the prompt, how what the tower makes
becomes visual tokens, what it can deliver. All hook work is done by the plumbing, once for every family.

The route of `Adapter` itself serves any family: transformers makes an image's tokens (`get_image_features`), the tower
is listened to on the way, and a method chooses among the tokens, which it calls patches. Where the projector works
patch by patch, `pointwise.Pointwise` lets it choose in front of the projector, as the papers do.
"""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..errors import UnsupportedCallError, UnsupportedModelError
from ..plumbing.tap import Tap
from ..tensors import Captures, Decoder, Question
from .clip import ClipText

Grid = tuple[int, int]  # rows, columns


@dataclass(frozen=True, eq=False)
class Seen:
    """How one image is seen, and how it stands in the prompt.

    `views`: the grids (rows, columns) of patches that it is seen as: itself, or a picture of the whole and one of all
    its tiles, or the frames of a video. `patch`: what each of its placeholders stands for, a patch counted over all
    views or -1 for none (the end of a line). `tiling`: rows and columns of tiles, where the views are the image as a
    whole and these, one by one.
    """

    views: list[Grid]
    patch: Int[Tensor, "place"]
    tiling: Grid | None = None

    @classmethod
    def plainly(cls, *views: Grid) -> "Seen":
        """One placeholder for each patch, in their order."""
        return cls(list(views), torch.arange(sum(rows * cols for rows, cols in views)))

    @property
    def sizes(self) -> list[int]:
        """Patches of each view."""
        return [rows * cols for rows, cols in self.views]

    @property
    def patches(self) -> int:
        """Patches of all views."""
        return sum(self.sizes)

    @property
    def grid(self) -> Grid:
        """The grid of the only view; of several, a line of all their patches."""
        return self.views[0] if len(self.views) == 1 else (1, self.patches)

    @property
    def place(self) -> Int[Tensor, "patch"]:
        """The placeholder of each patch; the first one for padding, which has none."""
        place = torch.zeros(self.patches, dtype=torch.long)
        shown = (self.patch >= 0).nonzero()[:, 0]
        place[self.patch[shown]] = shown
        return place

    @property
    def whole(self) -> tuple[Int[Tensor, "kept"], Int[Tensor, "patch"]]:
        """Kept and source of an image that is sent whole: every patch but padding, each in its place."""
        shown = self.patch[self.patch >= 0].sort().values
        source = torch.full((self.patches,), -1)
        source[shown] = self.place[shown]
        return shown, source

    def places(self, tokens: int, kept: Int[Tensor, "kept"], source: Int[Tensor, "patch"]) -> Int[Tensor, "token"]:
        """The placeholder whose position each token has: that of its patch, of a merged one the first of its patches.

        CLS, which holds no patch, has the first.
        """
        held = (source >= 0).nonzero()[:, 0]
        first = torch.full((tokens,), len(source), device=source.device)
        first = first.scatter_reduce(0, source[held], held, "amin")
        first[source[kept]] = kept
        return torch.cat([self.place, self.place[:1]]).to(source.device)[first]


@dataclass(frozen=True, kw_only=True)
class TowerPass:
    """What a tower pass is to bring."""

    captures: frozenset[str] = frozenset()  # fields of Captures that are heard of the tower's attention
    low_layer: float = 0.0  # where low_attention is from, as a share of the tower's depth
    received: bool = False  # whether all rows speak where CLS would
    whole: Sequence[bool] = ()  # which images are sent as they are
    grid: Grid | None = None  # scale the images down so that this is their grid, where the adapter `resizes`


@dataclass(frozen=True, eq=False)
class Batch:
    """Views of one grid, which a method sees at a time."""

    captures: Captures
    views: list[tuple[int, int]]  # of each: which image, and which of its views


@dataclass(frozen=True, eq=False)
class Encoded:
    """What the tower made of the images of a call."""

    batches: list[Batch]
    # [place, width] per image: what the unmodified model sends; None: an image that is not asked for whole. None of all
    # where these are the method's features, projected.
    tokens: list[Any] | None = None
    output: Any = None  # of get_image_features

    def of(self, images: Sequence[int]) -> "Encoded":
        """Images of one view each by their numbers; one may come several times."""
        (batch,) = self.batches
        views = [(place, 0) for place in range(len(images))]
        return replace(self, batches=[Batch(batch.captures.of(images), views)])

    def with_all(self, change: Callable[[Captures], Captures]) -> "Encoded":
        """The same with other captures."""
        return replace(self, batches=[replace(batch, captures=change(batch.captures)) for batch in self.batches])


def batched(captures: dict[str, list[Tensor]], seen: list[Seen]) -> list[Batch]:
    """Batches of all views of one grid. `captures`: by name, one tensor for each view of each image."""
    views = [((image, view), grid) for image, one in enumerate(seen) for view, grid in enumerate(one.views)]
    numbers: dict[Grid, list[int]] = {}
    for number, (_, grid) in enumerate(views):
        numbers.setdefault(grid, []).append(number)
    made = []
    for grid, all_ in numbers.items():
        stacked: dict[str, Any] = {
            name: torch.stack([its[number] for number in all_]) for name, its in captures.items()
        }
        made.append(Batch(Captures(grid=grid, **stacked), [views[number][0] for number in all_]))
    return made


class Ragged(list[Tensor]):
    """Tokens of any number, where a family expects one tensor of all images."""

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """[token, 1, width]; as many tensors as before where accelerate's hooks move what a module is given."""
        if "non_blocking" in kwargs:
            return Ragged(its.to(*args, **kwargs) for its in self)
        return torch.cat(self)[:, None].to(*args, **kwargs)

    def flatten(self, first: int, last: int) -> Tensor:
        """[token, width]"""
        return torch.cat(self)


class Sent(BaseModelOutputWithPooling):
    """What takes the place of get_image_features' output: one tensor per prompt that has images.

    Of one tensor per image transformers 5.18 makes A A B B where two beams need A B A B.
    """

    __no_type_check__: ClassVar[bool] = True  # the annotations say a tensor

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, Ragged(value) if isinstance(value, list) and name == "pooler_output" else value)


class Adapter(ABC):
    """One model seen as a member of its family. Building one changes nothing in the model.

    Raises UnsupportedModelError for a model of the family that is configured in a way the adapter cannot serve.
    """

    name: ClassVar[str]
    architectures: ClassVar[frozenset[str]]  # class names in transformers
    vision: ClassVar[str | None] = None  # model_type of the tower, where families share a class
    # Optional fields of Captures the tower can deliver, and "question".
    offers: frozenset[str] = frozenset({"keys", "last_keys", "projected", "question"})
    resizes: ClassVar[bool] = False  # whether the tower can be run on images scaled down, which all have one size
    # What it can deliver besides when all patches speak in the place of CLS.
    received: ClassVar[frozenset[str]] = frozenset({"cls_attention", "low_attention", "last_query"})
    cls: ClassVar[int | None] = None  # the tower's row that is a CLS token
    tower_weights: ClassVar[tuple[str, ...]]  # parts of the names of the tower's weights in a checkpoint
    question_weights: ClassVar[tuple[str, ...]]  # and of what a question needs besides
    prompt: ClassVar[str]  # with "{question}", for a checkpoint whose processor has no chat template
    image_arguments: ClassVar[frozenset[str]] = frozenset({"pixel_values"})  # of a call
    video_arguments: ClassVar[frozenset[str]] = frozenset()  # where videos are served
    refuses_inside: ClassVar[str | None] = None  # why tokens cannot be dropped inside the LLM
    # Whether a prompt has text between the placeholders of an image: its tokens then keep the places of their patches.
    interrupts: bool = False
    deepstack: int = 0  # layers of the LLM that visual features are added behind
    shares: ClassVar[bool] = False  # whether a call may say with `shown` which image stands where
    clip: ClipText | None = None  # the user's own, see `lend`

    def __init__(self, model: Any) -> None:
        """`model`: the transformers model, or a part of it that holds tower, projector and embeddings."""
        self.model = model
        self.modality = "image"

    def of_videos(self) -> "Adapter":
        """The same model's adapter for calls with videos: an image is a video then, its views are the frames."""
        made = copy.copy(self)
        made.modality = "video"
        return made

    @property
    def arguments(self) -> frozenset[str]:
        """Arguments of a call that describe its images, or videos."""
        return self.video_arguments if self.modality == "video" else self.image_arguments

    # -- what a family says --------------------------------------------------------------------------------------

    @abstractmethod
    def seen(self, call: dict[str, Any], *, tiled: bool = False) -> list[Seen]:
        """The images of a call, in their order. Nothing is run.

        `tiled`: where tiles are laid out as one picture, see them one by one all the same, as the tower does.
        Raises UnsupportedCallError for image arguments that do not tell.
        """

    @classmethod
    def patches(cls, config: dict[str, Any]) -> int | None:
        """Patches of every image, read from config.json; None where that does not tell."""
        return None

    @property
    def placeholder(self) -> int:
        """The id that stands for one visual token in input_ids."""
        return getattr(self.model.config, f"{self.modality}_token_id")

    @property
    def decoder(self) -> Any:
        """The language model's decoder, which has `layers`, `norm` and `rotary_emb`."""
        return self.model.base_model.language_model

    @property
    def llm_layers(self) -> int:
        """Number of layers of the language model."""
        return self.model.config.get_text_config().num_hidden_layers

    @property
    def tower(self) -> Any:
        """The vision tower."""
        return self.model.base_model.vision_tower

    @property
    def layers(self) -> Any:
        """The tower's layers in their order, as far as every patch sees all others there."""
        return self.tower.encoder.layers

    @property
    def layer(self) -> Any:
        """The one whose attention and keys are those of the image."""
        return self.layers[-1]

    def attention(self, layer: Any) -> Any:
        """The attention module of one of them."""
        return layer.self_attn

    @property
    def merge(self) -> int:
        """The side of the square of tower rows that becomes one patch."""
        return 1

    def pooled(self, rows: Float[Tensor, "row *rest"], grid: Grid) -> Float[Tensor, "patch *rest"]:
        """What tower rows of one view hold, averaged over those that become one patch. Rows are in raster order."""
        (height, width), side = grid, self.merge
        blocks = rows.view(height, side, width, side, *rows.shape[1:])
        return blocks.mean((1, 3)).flatten(0, 1)

    def check_call(self, call: dict[str, Any]) -> None:
        """Raise UnsupportedCallError for image arguments that the adapter cannot serve; remove those it has seen to."""
        if call.get("pixel_values_videos") is not None and self.modality == "image":
            why = "not beside images" if self.video_arguments else f"not those of {self.name} models"
            raise UnsupportedCallError(f"Videos are compressed, but {why}. Give the frames as images.")

    def positions(self, call: dict[str, Any]) -> Int[Tensor, "axis row token"] | None:
        """Where the whole prompt's tokens are, on each of several axes; None where tokens are just counted."""
        return None

    def placed(
        self, positions: Int[Tensor, "axis row token"], origin: Int[Tensor, "row shorter"], mask: Tensor
    ) -> Int[Tensor, "*axes row shorter"]:
        """The position_ids of a shorter prompt whose tokens have the positions of those columns of the whole one.

        Where there are several axes, transformers wants the plain count in front, which its masks go by.
        """
        own = positions.gather(2, origin.expand(len(positions), *origin.shape))
        if len(positions) == 1:
            return own[0]
        count = (mask.long().cumsum(1) - 1).clamp(min=0)
        return torch.cat([count[None].to(own), own])

    # -- the generic route ---------------------------------------------------------------------------------------

    def encode(self, call: dict[str, Any], seen: list[Seen], asked: TowerPass) -> Encoded:
        """Run the tower once, listening to what is asked."""
        with self.tapped(seen, asked) as tap:
            output = self.run(call)
        flat = self.made(output)
        flat = flat.flatten(0, 1) if isinstance(flat, Tensor) else torch.cat([*flat])
        tokens = list(flat.split([len(image.patch) for image in seen]))
        signals = self.by_view(tap.heard, call, seen)
        signals["features"] = [
            view
            for one, its in zip(seen, tokens, strict=True)
            for view in (its if len(its) == one.patches else its[one.patch >= 0]).split(one.sizes)
        ]
        return Encoded(batched(signals, seen), tokens, output)

    def run(self, call: dict[str, Any]) -> Any:
        """Transformers' own way from pixels to tokens."""
        function = getattr(self.model.base_model, f"get_{self.modality}_features")
        known = inspect.signature(function).parameters.keys() & self.arguments
        return function(**{name: call[name] for name in known if call.get(name) is not None}, return_dict=True)

    def made(self, output: Any) -> Any:
        """Its tokens, of which transformers makes one tensor of one size, or a list or tuple."""
        return output.pooler_output

    def by_view(
        self, heard: dict[str, list[Tensor]], call: dict[str, Any], seen: list[Seen]
    ) -> dict[str, list[Tensor]]:
        """Captures of each view of each image: what was heard of the tower's rows, which become patches."""
        grids = [grid for one in seen for grid in one.views]
        return {
            name: [
                rows if name == "last_query" else self.patchwise(name, rows, partial(self.pooled, grid=grid))
                for rows, grid in zip([view for its in heard[name] for view in its], grids, strict=True)
            ]
            for name in heard
        }

    def patchwise(self, name: str, rows: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        """`change` tower rows [..., row, dim] into patches, with axes as the capture has them and without CLS."""
        if name in ("cls_attention", "low_attention"):
            return change(rows.mT).mT
        if self.cls is not None:
            rows = rows[..., 1:, :] if self.cls == 0 else rows[..., :-1, :]
        return change(rows)

    def tapped(self, seen: list[Seen], asked: TowerPass) -> Tap:
        """Listening to the tower's attention, its rows told apart by views."""
        heard_from = self.heard_from(asked.low_layer)
        return Tap(
            None,
            {name: heard_from[name] for name in heard_from.keys() & asked.captures},
            cls=self.cls,
            received=asked.received,
            lengths=[size * self.merge**2 for image in seen for size in image.sizes],
        )

    def project(self, features: Tensor) -> Tensor:
        """[..., patch, dim] as methods see them to [..., token, width] of the LLM."""
        return features

    def sent(self, features: list[Float[Tensor, "_ dim"]], encoded: Encoded) -> list[Float[Tensor, "_ width"]]:
        """What a method sends of each image, as the LLM gets it."""
        return features

    def outputs(self, encoded: Encoded, tokens: list[Tensor], held: list[tuple[Tensor, Tensor] | None]) -> Any:
        """What the model is given in place of pixels.

        `tokens`: [token, width] of all images of one prompt. `held`: kept and source of each image; None: sent whole.
        """
        return Sent(pooler_output=cast(Any, tokens))

    def carry_back(self, words: Float[Tensor, "word width"]) -> Float[Tensor, "dim"]:
        """The mean of words' embeddings carried to where methods see patches."""
        return words.float().mean(0)

    # -- what every adapter has ----------------------------------------------------------------------------------

    def heard_from(self, low_layer: float) -> dict[str, nn.Module]:
        """For each capture that is heard from an attention module: which one. `low_layer`: share of the depth."""
        last, low = self.layers[-1], self.layers[min(round(low_layer * len(self.layers)), len(self.layers) - 1)]
        layers = {"cls_attention": self.layer, "keys": self.layer, "last_query": last, "last_keys": last}
        return {name: self.attention(layer) for name, layer in (layers | {"low_attention": low}).items()}

    def lend(self, clip: ClipText | None) -> None:
        """Let the adapter use the CLIP that the tower is from: patches and questions in CLIP's joint space.

        Raises UnsupportedModelError for a CLIP that does not fit.
        """
        if clip is not None:
            raise UnsupportedModelError(
                f"{self.name} models do not show methods the patches of a CLIP tower, so clip= has no use here."
            )

    def size(self, text: int) -> Decoder:
        """The language model's size, for prompts with `text` tokens besides the image's. An MLP has three matrices."""
        config = self.model.config.get_text_config()
        width, heads = config.hidden_size, config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or width // heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        looked = width * (heads + 2 * key_heads) * head_dim
        inner = getattr(config, "intermediate_size_mlp", None) or config.intermediate_size  # Llama 4: of one expert
        weights = looked + width * (heads * head_dim + 3 * inner)
        return Decoder(
            layers=self.llm_layers,
            per_token=2 * weights,
            per_pair=4 * heads * head_dim,
            per_look=2 * looked,
            per_cached=2 * key_heads * head_dim * self.model.dtype.itemsize,
            text=text,
        )

    def question(self, words: Tensor) -> Question:
        """The question whose token ids are `words` [word]."""
        embeddings = self.embed(words)
        return Question(words=embeddings, tower=self.carry_back(embeddings))

    def embed(self, ids: Tensor) -> Tensor:
        """The LLM's input embeddings of token ids, [word] to [word, width]."""
        embeddings = self.model.get_input_embeddings()
        device = embeddings.weight.device
        return embeddings(ids if device.type == "meta" else ids.to(device))  # to offloaded ones accelerate brings them
