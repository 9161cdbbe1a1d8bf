"""Families whose projector works patch by patch: methods choose among the tower's own patches, as the papers do.

Only what is kept goes through the projector, and the tower ends behind the layer that the projector reads.
"""

from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import UnsupportedCallError, UnsupportedModelError
from ..plumbing.tap import Tap
from ..plumbing.weights import weight_of
from ..tensors import Captures
from .base import Adapter, Batch, Encoded, Grid, Seen, TowerPass
from .clip import ClipText


class Pointwise(Adapter):
    """A CLIP tower with CLS, of which the projector (linear, activation, linear) reads one layer's patches.

    Raises UnsupportedModelError for another tower, several feature layers, or CLS in the prompt.
    """

    offers: frozenset[str] = frozenset(
        {"cls_attention", "keys", "projected", "last_query", "last_keys", "low_attention", "question"}
    )
    cls: ClassVar[int | None] = 0
    tower_weights: ClassVar[tuple[str, ...]] = ("vision_tower.",)
    question_weights: ClassVar[tuple[str, ...]] = ("multi_modal_projector.", "embed_tokens.")

    def __init__(self, model: Any) -> None:
        """See the class."""
        super().__init__(model)
        config = model.config
        tower = type(self.tower).__name__
        if tower != "CLIPVisionModel":
            raise UnsupportedModelError(
                f"This {type(model).__name__} has a {tower} as vision tower; {self.name} models are supported with a "
                "CLIPVisionModel."
            )
        layer, count = config.vision_feature_layer, len(self.layers)
        # Hidden state 0 is the input of the first layer, so state j is the output of layer j - 1.
        if not isinstance(layer, int) or not -count <= layer <= count or layer == 0:
            raise UnsupportedModelError(
                f"This model reads vision_feature_layer={layer!r} of a tower of {count} layers; one layer's output is "
                "needed, such as -2."
            )
        self._layer = layer - 1 if layer > 0 else layer
        if config.vision_feature_select_strategy != "default":
            raise UnsupportedModelError(
                f'This model has vision_feature_select_strategy="{config.vision_feature_select_strategy}", which gives '
                'CLS a place of its own in the prompt; only "default" is supported (patches without CLS).'
            )

    @property
    def layer(self) -> Any:
        """The layer before the last in every released checkpoint."""
        return self.layers[self._layer]

    def check_call(self, call: dict[str, Any]) -> None:
        """Calls may not choose another layer or keep CLS."""
        super().check_call(call)
        config = self.model.config
        for name in ("vision_feature_layer", "vision_feature_select_strategy"):
            value = call.pop(name, None)
            if value not in (None, getattr(config, name)):
                raise UnsupportedCallError(
                    f"The call asks for {name}={value!r}, but this model is compressed with {getattr(config, name)!r}. "
                    "Leave it out, or set it in model.config before compressing."
                )

    def encode(self, call: dict[str, Any], seen: list[Seen], asked: TowerPass) -> Encoded:
        """The tower's own patches."""
        captures = self.tower_pass(call, seen, asked)
        return Encoded([Batch(captures, [(image, 0) for image in range(captures.images)])])

    def tower_pass(self, call: dict[str, Any], seen: list[Seen], asked: TowerPass) -> Captures:
        """What the tower makes of all `pixels`, up to the layer that the projector reads."""
        pixels, own = self.pixels(call), self.own_grid(call)
        grid = asked.grid or own
        with self.tapped(seen, asked) as tap:
            if grid == own:
                self.tower(pixels)
            else:
                self.tower(scaled(pixels, own, grid), interpolate_pos_encoding=True)
        heard = {name: its for name, (its,) in tap.heard.items()}
        return Captures(features=tap.features, grid=grid, **cast(Any, heard))

    def pixels(self, call: dict[str, Any]) -> Float[Tensor, "image channel height width"]:
        """What the tower is run on."""
        return call["pixel_values"]

    def own_grid(self, call: dict[str, Any]) -> Grid:
        """The grid of what the tower is run on: one patch per `patch_size` pixels."""
        patch, (height, width) = self.model.config.vision_config.patch_size, call["pixel_values"].shape[-2:]
        return height // patch, width // patch

    def tapped(self, seen: list[Seen], asked: TowerPass) -> Tap:
        """Up to the layer that the projector reads."""
        heard_from = self.heard_from(asked.low_layer)
        taps = {name: heard_from[name] for name in heard_from.keys() & asked.captures}
        return Tap(self.layer, taps, cls=self.cls, received=asked.received)

    def project(self, features: Tensor) -> Tensor:
        """linear, activation, linear."""
        return self.model.base_model.multi_modal_projector(features)

    def sent(self, features: list[Float[Tensor, "_ dim"]], encoded: Encoded) -> list[Float[Tensor, "_ width"]]:
        """Through the projector, all images at once."""
        if len(encoded.batches) == 1:
            patches = encoded.batches[0].captures.patch_features
            if len(patches) == len(features) and all(
                len(own) == len(all_) and own.data_ptr() == all_.data_ptr()
                for own, all_ in zip(features, patches, strict=True)
            ):  # laid out as in the unmodified model: the same kernel, the same bits
                return list(self.project(patches))
        lengths = [len(its) for its in features]
        if len(set(lengths)) == 1:
            return list(self.project(torch.stack(features)))
        return list(self.project(torch.cat(features)).split(lengths))

    def carry_back(self, words: Float[Tensor, "word width"]) -> Float[Tensor, "dim"]:
        """Back through both linear layers: W1' W2' mean, the activation left out."""
        projector = self.model.base_model.multi_modal_projector
        carried = words.float().mean(0)
        for layer in (projector.linear_2, projector.linear_1):
            with weight_of(layer, like=words) as weight:
                carried = carried.to(weight.device, weight.dtype) @ weight  # no copy of the weights in float32
        return carried.float()

    def lend(self, clip: ClipText | None) -> None:
        """Raises UnsupportedModelError for a CLIP whose tower has another width."""
        width = getattr(self.tower.config, "hidden_size", None)
        if clip is not None and clip.width != width:
            raise UnsupportedModelError(
                f"The vision tower of this CLIP is {clip.width} wide, that of this model {width}. Give the CLIP that "
                "the model's tower was taken from."
            )
        self.clip = clip
        self.offers = self.offers - {"image_embeds"} | ({"image_embeds"} if clip else set())


def scaled(
    pixel_values: Float[Tensor, "image channel height width"], grid: Grid, smaller: Grid
) -> Float[Tensor, "image channel lower narrower"]:
    """Images of `grid` patches made so small that they have `smaller` patches, each of as many pixels as before."""
    height, width = (
        pixels // count * fewer for pixels, count, fewer in zip(pixel_values.shape[-2:], grid, smaller, strict=True)
    )
    small = interpolate(pixel_values.float(), (height, width), mode="bicubic", antialias=True)
    return small.to(pixel_values.dtype)
