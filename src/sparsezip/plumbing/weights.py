"""Read the weight of a linear layer wherever it is: in place, offloaded by accelerate, or quantized."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


@contextmanager
def weight_of(layer: Any, like: Tensor) -> Iterator[Float[Tensor, "out in"]]:
    """The weight of a linear layer; where it is quantized, what it does to vectors, of the type and device of `like`.

    An offloaded one is brought in, and let go when the block is left.
    """
    hook = getattr(layer, "_hf_hook", None)  # accelerate's
    if hook is not None:
        hook.pre_forward(layer)
    try:
        weight = getattr(layer, "weight", None)
        if type(weight) is nn.Parameter and weight.is_floating_point():
            yield weight
        else:  # a tensor class or packed integers, different in every quantizer
            one = torch.eye(layer.in_features, dtype=like.dtype, device=like.device)
            yield (layer(one) - layer(torch.zeros_like(one[:1]))).mT
    finally:
        if hook is not None:
            hook.post_forward(layer, None)
