"""What the LLM's time cannot go below on this machine, and models of what official implementations pay.

`floor` times the matrix products and the attention of a prefill by themselves: what is left when everything around them
costs nothing. The others are models of cost, not anybody's code: the operations that an
implementation adds or replaces, at the same shapes, put in the place of ours.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention

from ...methods.base import Method
from ...models.pointwise import Pointwise
from .architectures import TEXT
from .bench import Bench, Timed, Times


def floor(bench: Bench, tokens: int) -> Callable[[], Times]:
    """Matrix products and attention of the prefill of a prompt with so many visual tokens."""
    model, llm, rows = bench.model, bench.adapter.decoder, tokens + sum(TEXT)
    config = model.config.get_text_config()
    head_dim = config.hidden_size // config.num_attention_heads
    distinct = list({id(layer.self_attn.q_proj.weight): layer for layer in llm.layers}.values())
    often = len(llm.layers) / len(distinct)
    parts = [part for layer in distinct for part in layer.modules() if isinstance(part, nn.Linear)]
    inputs = {
        width: torch.randn(bench.batch, rows, width).to(model.device, model.dtype)
        for width in {part.in_features for part in parts} | {config.hidden_size}
    }
    heads = inputs[config.hidden_size].view(bench.batch, rows, -1, head_dim).transpose(1, 2)
    last = inputs[config.hidden_size][:, 0].contiguous()

    @torch.inference_mode()
    def run() -> Times:
        trace = Timed(cuda=bench.cuda)
        with trace.timed("layers"):
            for part in parts:
                part(inputs[part.in_features])
            for _ in distinct:
                scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        with trace.timed("head"):
            model.get_output_embeddings()(last)
        return {"prefill": trace.stages["layers"] * often + trace.stages["head"]}

    return run


@contextmanager
def eager(part: Any) -> Iterator[None]:
    """A tower or a decoder whose attention makes every layer's full matrix."""
    usual = part.config._attn_implementation
    part.set_attn_implementation("eager")
    try:
        yield
    finally:
        part.set_attn_implementation(usual)


def eager_tower(bench: Bench, adapter: Pointwise) -> Callable[[], Times]:
    """VisionZip's official code: the whole tower on eager attention that it returns; choosing is left out."""
    tower, pixels = adapter.tower, adapter.pixels(bench.images)

    @torch.inference_mode()
    def run() -> Times:
        trace = Timed(cuda=bench.cuda)
        with eager(tower), trace.timed("tower"):
            tower(pixels, output_attentions=True, output_hidden_states=True)
        return trace.stages

    return run


def eager_decoder(bench: Bench, method: Method) -> Callable[[], Times]:
    """SparseVLM's main branch: attention written out in Python in every layer of the LLM."""
    usual = bench.dropped(method)

    def run() -> Times:
        with eager(bench.adapter.decoder):
            return usual()

    return run


def greedy_loop(bench: Bench, tokens: int) -> Callable[[], Times]:
    """DivPrune's official code: all patches projected, then a loop in Python that fetches index after index."""
    tower: Any = bench.adapter.tower

    @torch.inference_mode()
    def run() -> Times:
        features = torch.randn(bench.batch, bench.patches, tower.config.hidden_size).to(tower.device, tower.dtype)
        trace = Timed(cuda=bench.cuda)
        with trace.timed("project"):
            projected = bench.adapter.project(features)
        with trace.timed("compress"):
            for rows in projected:
                rows[torch.tensor(sorted(one_by_one(rows, tokens)), device=rows.device)]
        return trace.stages

    return run


def one_by_one(rows: Float[Tensor, "patch width"], count: int) -> list[int]:
    """`count` patches, each the one whose most alike chosen one is least alike, by cosine; asked for one at a time."""
    directions = normalize(rows, dim=-1)
    distance = 1 - directions @ directions.mT
    chosen = [int(distance.topk(2, dim=0, largest=False).values[1].argmax())]
    while len(chosen) < count:
        chosen.append(int(distance[torch.tensor(chosen, device=rows.device)].amin(0).argmax()))
    return chosen
