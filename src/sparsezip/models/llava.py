"""LLaVA-1.5: a CLIP tower, two linear layers, any decoder. `LlavaForConditionalGeneration` in transformers.

The projector reads the output of one tower layer (`vision_feature_layer`, usually -2) without its CLS row, so every
image takes one placeholder per patch: 24 x 24 = 576 at 336 px.
"""

from typing import Any, ClassVar

from torch import Tensor

from ..errors import UnsupportedCallError, UnsupportedModelError
from .base import Adapter


class Llava(Adapter):
    """LLaVA-1.5 in transformers' format."""

    name: ClassVar[str] = "llava"
    architectures: ClassVar[frozenset[str]] = frozenset({"LlavaForConditionalGeneration"})
    offers: frozenset[str] = frozenset(
        {"cls_attention", "keys", "projected", "last_query", "last_keys", "low_attention", "question"}
    )
    tower_weights: ClassVar[tuple[str, ...]] = ("vision_tower.",)
    question_weights: ClassVar[tuple[str, ...]] = ("multi_modal_projector.", "embed_tokens.")
    prompt: ClassVar[str] = "USER: <image>\n{question} ASSISTANT:"

    def __init__(self, model: Any) -> None:
        """Raises UnsupportedModelError for a tower other than CLIP, several feature layers, or CLS in the prompt."""
        super().__init__(model)
        config = model.config
        tower = type(self.tower).__name__
        if tower != "CLIPVisionModel":
            raise UnsupportedModelError(
                f"This LLaVA has a {tower} as vision tower; so far LLaVA is supported with a CLIPVisionModel."
            )
        layer, count = config.vision_feature_layer, len(self.layers)
        # Hidden state 0 is the input of the first layer, so state j is the output of layer j - 1.
        if not isinstance(layer, int) or not -count <= layer <= count or layer == 0:
            raise UnsupportedModelError(
                f"This LLaVA reads vision_feature_layer={layer!r} of a tower of {count} layers; one layer's output is "
                "needed, such as -2."
            )
        self._layer = layer - 1 if layer > 0 else layer
        if config.vision_feature_select_strategy != "default":
            raise UnsupportedModelError(
                f'This LLaVA has vision_feature_select_strategy="{config.vision_feature_select_strategy}", which gives '
                'CLS a place of its own in the prompt; only "default" is supported (patches without CLS).'
            )

    @classmethod
    def patches(cls, config: dict[str, Any]) -> int | None:
        """Every image is scaled to the tower's square."""
        vision = config.get("vision_config", {})
        if "image_size" not in vision or "patch_size" not in vision:
            return None
        return (vision["image_size"] // vision["patch_size"]) ** 2

    @property
    def placeholder(self) -> int:
        """`<image>`."""
        return self.model.config.image_token_id

    @property
    def decoder(self) -> Any:
        """Any decoder-only model of transformers, without its head."""
        return self.model.base_model.language_model

    @property
    def llm_layers(self) -> int:
        """As configured."""
        return self.model.config.text_config.num_hidden_layers

    @property
    def tower(self) -> Any:
        """CLIP."""
        return self.model.base_model.vision_tower

    @property
    def layers(self) -> Any:
        """24 of them in CLIP-L."""
        return self.tower.encoder.layers

    @property
    def layer(self) -> Any:
        """The layer before the last in every released checkpoint."""
        return self.layers[self._layer]

    def attention(self, layer: Any) -> Any:
        """Self-attention."""
        return layer.self_attn

    @property
    def has_cls(self) -> bool:
        """CLIP has one."""
        return True

    def grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """One patch per `patch_size` pixels."""
        patch = self.model.config.vision_config.patch_size
        return pixel_values.shape[-2] // patch, pixel_values.shape[-1] // patch

    def check_call(self, call: dict[str, Any]) -> None:
        """Calls may not choose another layer or keep CLS."""
        config = self.model.config
        for name in ("vision_feature_layer", "vision_feature_select_strategy"):
            value = call.pop(name, None)
            if value not in (None, getattr(config, name)):
                raise UnsupportedCallError(
                    f"The call asks for {name}={value!r}, but this model is compressed with {getattr(config, name)!r}. "
                    "Leave it out, or set it in model.config before compressing."
                )
        if call.pop("image_sizes", None) is not None:
            raise UnsupportedCallError("image_sizes belongs to towers with images of any size. Leave it out.")

    def project(self, features: Tensor) -> Tensor:
        """linear, activation, linear."""
        return self.model.base_model.multi_modal_projector(features)

    def carry_back(self, words: Tensor) -> Tensor:
        """Back through both linear layers: W1' W2' mean, the activation left out."""
        projector = self.model.base_model.multi_modal_projector
        outer, inner = projector.linear_2.weight, projector.linear_1.weight
        mean = words.to(outer.device).float().mean(0)
        return ((mean.to(outer.dtype) @ outer).to(inner.device) @ inner).float()  # no copy of the weights in float32
