"""Models in the shape of published ones with random weights: how long they take does not depend on what they learnt.

    model = build("llava-1.5-7b", dtype=torch.bfloat16, share_layers=True)

Nothing is downloaded. The model is made without storage and filled in seconds; with `share_layers` every fourth layer
of the language model shares its weights (a quarter of them, 3.2 GB of LLaVA-1.5-7B in bfloat16, still more than any
cache holds), so that a small machine can hold it and reads as much memory per layer as the real one.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2VLImageProcessorPil,
)

from ...models.load import adapter_for
from ...registry import unknown

SHARED = 4  # layers that share their weights
PHOTO = (480, 640)  # height and width, in pixels
TEXT = (35, 40)  # tokens in front of the image and behind it: LLaVA-1.5's prompt with a short question


def _llava(width: int, inner: int, layers: int, heads: int, kind: Any = LlavaConfig) -> PreTrainedConfig:
    tower = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=32064,
        max_position_embeddings=4096,
    )
    made: PreTrainedConfig = kind(vision_config=tower, text_config=text, image_token_index=32000)
    return made


def _qwen2_5_vl() -> PreTrainedConfig:
    text = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    tower = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    return Qwen2_5_VLConfig(text_config=text, vision_config=tower)


ARCHITECTURES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llava-1.5-7b": lambda: _llava(4096, 11008, 32, 32),
    "llava-1.5-13b": lambda: _llava(5120, 13824, 40, 40),
    "llava-next-7b": lambda: _llava(4096, 11008, 32, 32, LlavaNextConfig),
    "qwen2.5-vl-7b": _qwen2_5_vl,
}


def image_processor(config: PreTrainedConfig) -> Any:
    """What makes a photograph into the arguments of such a model."""
    if isinstance(config, Qwen2_5_VLConfig):
        tower: Any = config.vision_config
        return Qwen2VLImageProcessorPil(patch_size=tower.patch_size, merge_size=tower.spatial_merge_size)
    side = config.vision_config.image_size
    settings: dict[str, Any] = {
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "do_convert_rgb": True,
    }
    if isinstance(config, LlavaNextConfig):
        settings["image_grid_pinpoints"] = config.image_grid_pinpoints
        return LlavaNextImageProcessorPil(**settings)
    return CLIPImageProcessorPil(**settings)


def build(
    name: str, *, dtype: torch.dtype, device: str = "cpu", share_layers: bool = False, seed: int = 0
) -> PreTrainedModel:
    """A model of that shape, ready to generate; it never ends an answer by itself.

    Raises UnknownNameError for a shape that is not there.
    """
    if name not in ARCHITECTURES:
        raise unknown("architecture", name, ARCHITECTURES)
    return of_config(ARCHITECTURES[name](), dtype=dtype, device=device, share_layers=share_layers, seed=seed)


def of_config(
    config: PreTrainedConfig, *, dtype: torch.dtype, device: str = "cpu", share_layers: bool = False, seed: int = 0
) -> PreTrainedModel:
    """The same of a config."""
    with torch.device("meta"):
        kind: Any = AutoModelForImageTextToText
        model = kind.from_config(config, dtype=dtype)
    layers = adapter_for(model).decoder.layers
    if share_layers:
        distinct = -(-len(layers) // SHARED)
        for number in range(distinct, len(layers)):
            _share(layers[number], layers[number % distinct])
    _materialise(model, torch.device(device))
    with torch.random.fork_rng(devices=[device] if "cuda" in device else []):
        torch.manual_seed(seed)
        model.init_weights()
    model.generation_config.eos_token_id = None
    made: PreTrainedModel = model.eval()
    return made


def _share(layer: nn.Module, other: nn.Module) -> None:
    """Let a layer have the other's parameters."""
    for mine, its in zip(layer.modules(), other.modules(), strict=True):
        mine._parameters.update(its._parameters)
        mine._is_hf_initialized = True  # type: ignore[assignment]  # with transformers: filled once, with the other


def _materialise(model: nn.Module, device: torch.device) -> None:
    """Storage for parameters and buffers; what was one tensor stays one."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty_like(tensor, device=device)
                    made[id(tensor)] = nn.Parameter(empty, False) if isinstance(tensor, nn.Parameter) else empty
                tensors[name] = made[id(tensor)]
