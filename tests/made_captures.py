"""Captures and questions made up from a seed, and ways to take them apart."""

from dataclasses import fields, replace

import torch

from sparsezip.tensors import Captures, Question

DIM, KEY, HEADS = 24, 8, 4


def captures(images=3, grid=(6, 7), cls=True, dtype=torch.float32, seed=0):
    """A tower pass with every optional signal."""
    torch.manual_seed(seed)
    patches = grid[0] * grid[1]
    rows = patches + int(cls)
    return Captures(
        features=torch.randn(images, rows, DIM).to(dtype),
        grid=grid,
        cls_attention=torch.softmax(2 * torch.randn(images, HEADS, rows), -1)[..., -patches:].to(dtype),
        keys=torch.randn(images, rows, KEY).to(dtype),
        projected=torch.randn(images, patches, 16).to(dtype),
        image_embeds=torch.randn(images, patches, 12).to(dtype),
        last_query=torch.randn(images, DIM).to(dtype),
        last_keys=torch.randn(images, rows, DIM).to(dtype),
        low_attention=torch.softmax(torch.randn(images, HEADS, patches), -1).to(dtype),
        valid=torch.ones(images, patches, dtype=torch.bool),
    )


def questions(images=3, seed=1):
    """One question per image; the last image has none."""
    torch.manual_seed(seed)
    asked = [
        Question(words=torch.randn(4, 16), clip=torch.randn(1, 12), tower=torch.randn(DIM)) for _ in range(images - 1)
    ]
    return [*asked, None]


def only(made, wanted):
    """The same pass with the optional signals in `wanted` and no other."""
    return replace(made, **dict.fromkeys(made.delivered - wanted))


def image(made, *indices):
    """The same pass with those images alone."""
    tensors = {f.name: getattr(made, f.name) for f in fields(made) if isinstance(getattr(made, f.name), torch.Tensor)}
    return replace(made, **{name: value[list(indices)] for name, value in tensors.items()})


def constant(made, value=0.5):
    """The same pass with every signal the same everywhere."""
    tensors = {f.name: getattr(made, f.name) for f in fields(made) if isinstance(getattr(made, f.name), torch.Tensor)}
    return replace(made, **{name: torch.full_like(old, value) for name, old in tensors.items() if name != "valid"})
