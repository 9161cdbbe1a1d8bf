"""What a method sees inside an LLM, made up from a seed."""

from dataclasses import replace

import torch

from sparsezip.tensors import LayerView

HEADS, HEAD_DIM, WIDTH, SYSTEM = 4, 8, 24, 3


def view(rows=2, visual=30, text=5, dtype=torch.float32, seed=0, **more):
    """`rows` of 3 tokens of a system prompt, `visual` tokens of an image and `text` words, with a rotary table."""
    torch.manual_seed(seed)
    length = SYSTEM + visual + text
    angles = torch.arange(length)[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001]).repeat(2)
    made = LayerView(
        q=(2 * torch.randn(rows, HEADS, length, HEAD_DIM)).to(dtype),
        k=(2 * torch.randn(rows, HEADS, length, HEAD_DIM)).to(dtype),
        hidden=torch.randn(rows, length, WIDTH).to(dtype),
        embeds=torch.randn(rows, length, WIDTH).to(dtype),
        position_ids=torch.arange(length).repeat(rows, 1),
        visual=[torch.arange(SYSTEM, SYSTEM + visual)] * rows,
        text=[torch.arange(SYSTEM + visual, length)] * rows,
        stage=0,
        depth=1,
        rope=(angles.cos().to(dtype).repeat(rows, 1, 1), angles.sin().to(dtype).repeat(rows, 1, 1)),
        norm=lambda hidden: torch.nn.functional.normalize(hidden.float(), dim=-1).to(hidden.dtype),
    )
    return replace(made, **more)
