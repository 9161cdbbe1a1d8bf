"""What the LLM's time cannot go below on this machine, and models of what official implementations pay.

`floor` times the matrix products and the attention of a prefill, and of a step of decoding, by themselves: what is left
when everything around them costs nothing. The others are models of cost, not anybody's code: the operations that an
implementation adds or replaces, at the same shapes, put in the place of ours.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize, scaled_dot_product_attention

from ...methods.base import Method
from .architectures import TEXT
from .bench import Bench, Timed, Times


def floor(bench: Bench, tokens: int) -> Callable[[], Times]:
    """Matrix products and attention of a prompt with so many visual tokens, and of one more token."""
    model, llm = bench.model, bench.adapter.decoder
    config = model.config.get_text_config()
    distinct = list({id(layer.self_attn.q_proj.weight): layer for layer in llm.layers}.values())
    often = len(llm.layers) / len(distinct)

    def products(rows: int) -> None:
        head_dim = config.hidden_size // config.num_attention_heads
        for layer in distinct:
            for part in layer.modules():
                if isinstance(part, nn.Linear):
                    part(made(rows, part.in_features))
            if rows > 1:
                heads = made(rows, config.hidden_size).view(bench.batch, rows, -1, head_dim).transpose(1, 2)
                scaled_dot_product_attention(heads, heads, heads, is_causal=True)

    inputs: dict[tuple[int, int], torch.Tensor] = {}

    def made(rows: int, width: int) -> torch.Tensor:
        if (rows, width) not in inputs:
            inputs[rows, width] = torch.randn(bench.batch, rows, width).to(model.device, model.dtype)
        return inputs[rows, width]

    @torch.inference_mode()
    def run() -> Times:
        times: Times = {}
        for stage, rows in (("prefill", tokens + sum(TEXT)), ("decode", 1)):
            trace = Timed(cuda=bench.cuda)
            with trace.timed("layers"):
                products(rows)
            with trace.timed("head"):
                model.get_output_embeddings()(made(1, config.hidden_size))
            times[stage] = trace.stages["layers"] * often + trace.stages["head"]
        return times

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


def eager_tower(bench: Bench) -> Callable[[], Times]:
    """VisionZip's official code: the whole tower on eager attention, all layers' attention and features returned."""
    tower: Any = bench.adapter.tower

    @torch.inference_mode()
    def run() -> Times:
        trace = Timed(cuda=bench.cuda)
        with eager(tower), trace.timed("tower"):
            tower(bench.pixels, output_attentions=True, output_hidden_states=True)
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
    """DivPrune's official code: a loop in Python that fetches one index after the other from the device."""

    @torch.inference_mode()
    def run() -> Times:
        features = bench.pixels.new_empty(bench.batch, bench.patches, bench.model.config.get_text_config().hidden_size)
        features.normal_()
        trace = Timed(cuda=bench.cuda)
        with trace.timed("compress"):
            for rows in features:
                unit = normalize(rows, dim=-1)
                distance = 1 - unit @ unit.mT
                nearest = distance.topk(2, dim=0, largest=False).values[1]
                chosen = [int(nearest.argmax())]
                while len(chosen) < tokens:
                    apart = distance[torch.tensor(chosen, device=rows.device)].amin(0)
                    chosen.append(int(apart.argmax()))
                rows[torch.tensor(sorted(chosen), device=rows.device)]
        return trace.stages

    return run
