"""The stages of a call, one by one, on made-up prompts: what `sparsezip time` puts a clock to.

What is timed is the library's own way through transformers: what stands in front of the LLM (`pipeline.Splice`), then
the unmodified `generate` on the shorter prompt. On a CPU the CPU time of this process counts, since it does not grow
while another process has the core; on a GPU the wall time, once the GPU has caught up.
"""

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria

from ...methods.base import Method, Questions
from ...models.load import adapter_for
from ...ops.select import spread as evenly
from ...pipeline import Splice
from ...plumbing.generate import Call
from ...tensors import Captures, Compressed
from ...trace import Trace, now
from .architectures import PHOTO, TEXT, image_processor

STAGES = ("prepare", "tower", "question", "compress", "project", "splice", "prefill", "drop", "decode")
Times = dict[str, float]  # ms by stage


@dataclass(frozen=True, kw_only=True)
class Ideal(Method):
    """As many patches as the budget says, whose indices are there beforehand: what no method can be faster than."""

    name: ClassVar[str] = "ideal"

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Gather the features; nothing is looked at."""
        device = captures.features.device
        kept, source = _known(captures.grid, self.tokens(captures.patches), device)
        features = [rows.index_select(0, kept) for rows in captures.patch_features]
        return Compressed(features=features, kept=[kept] * captures.images, source=[source] * captures.images)


@cache
def _known(grid: tuple[int, int], count: int, device: torch.device) -> tuple[Int[Tensor, "kept"], Int[Tensor, "patch"]]:
    kept = evenly(grid, count).to(device)
    source = torch.full((grid[0] * grid[1],), -1, device=device)
    source[kept] = torch.arange(len(kept), device=device)
    return kept, source


@dataclass
class Timed(Trace):
    """A trace whose stages are timed as the device wants it: CPU time on a CPU, wall time on a GPU."""

    cuda: bool = False

    def moment(self) -> float:
        """Milliseconds that count."""
        return now() if self.cuda else 1000 * time.process_time()


class _FirstToken(StoppingCriteria):
    """Stops nothing; notes when the first token was there."""

    def __init__(self, moment: Callable[[], float]) -> None:
        self.moment, self.at = moment, 0.0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.at = self.at or self.moment()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Bench:
    """A model and a batch of made-up prompts, each with one image of noise and the text of a short question."""

    def __init__(self, model: Any, batch: int = 1, answer_tokens: int = 2, seed: int = 0) -> None:
        """`answer_tokens`: how long each answer is."""
        self.model, self.batch, self.answer_tokens = model, batch, answer_tokens
        self.adapter, self.cuda = adapter_for(model), model.device.type == "cuda"
        draw = torch.Generator().manual_seed(seed)
        self.photo = Image.fromarray(torch.randint(256, (*PHOTO, 3), generator=draw).to(torch.uint8).numpy())
        self.processor = image_processor(model.config)
        self.images = self._images()
        self.seen = self.adapter.seen(self.images)[0]
        self.patches = len(self.seen.patch)  # and the ends of lines, where there are any
        vocabulary = model.config.get_text_config().vocab_size
        words = torch.randint(vocabulary - 1, (batch, sum(TEXT)), generator=draw)
        words += words >= self.adapter.placeholder
        places = torch.full((batch, self.patches), self.adapter.placeholder)
        ids = torch.cat([words[:, : TEXT[0]], places, words[:, TEXT[0] :]], 1).to(model.device)
        self.prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
            self.prompt["mm_token_type_ids"] = ids.eq(self.adapter.placeholder).long()

    def _images(self) -> Call:
        made = self.processor([self.photo] * self.batch, return_tensors="pt").to(self.model.device, self.model.dtype)
        return {**made}

    def prepare(self) -> Times:
        """Photographs to pixels, on the model's device."""
        trace = Timed(cuda=self.cuda)
        with trace.timed("prepare"):
            self._images()
        return trace.stages

    def splice(self, method: Method) -> tuple[Splice, Call, Times]:
        """Everything in front of the LLM: what the unmodified `generate` goes on with, and what it took."""
        trace = Timed(cuda=self.cuda)
        splice = Splice(self.adapter, method, trace=trace)
        start = trace.moment()
        try:
            with torch.inference_mode():
                call = splice({**self.prompt, **self.images})
        except BaseException:
            splice.restore()
            raise
        whole = trace.moment() - start
        return splice, call, {**trace.stages, "splice": whole - sum(trace.stages.values())}

    def generate(self, call: Call) -> Times:
        """Prefill, then the mean of the steps that decode, and on a GPU the most memory that both took."""
        moment = Timed(cuda=self.cuda).moment
        first = _FirstToken(moment)
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        held, start = torch.cuda.memory_allocated() if self.cuda else 0, moment()
        length = {"max_new_tokens": self.answer_tokens, "min_new_tokens": self.answer_tokens}
        self.model.generate(**call, **length, do_sample=False, pad_token_id=0, stopping_criteria=[first])
        end, steps = moment(), self.answer_tokens - 1
        times = {"prefill": first.at - start, **({"decode": (end - first.at) / steps} if steps else {})}
        return times | ({"peak_bytes": float(torch.cuda.max_memory_allocated() - held)} if self.cuda else {})

    def sent(self, method: Method) -> Callable[[], Times]:
        """Timed over and over: everything in front of the LLM."""
        return lambda: self.splice(method)[2]

    def answered(self, tokens: int) -> Callable[[], Times]:
        """Timed over and over: the LLM on so many visual tokens."""
        method = Ideal(budget=tokens)
        _, call, _ = self.splice(method)
        return lambda: self.generate(call)

    def dropped(self, method: Method) -> Callable[[], Times]:
        """Timed over and over: the whole of a method that drops tokens inside the LLM."""

        def run() -> Times:
            splice, call, times = self.splice(method)
            try:
                return times | self.generate(call) | {"drop": splice.trace.stages.get("drop", 0.0)}
            finally:
                splice.restore()

        return run

    def entering(self, method: Method) -> list[int]:
        """The visual tokens of an image that enter each layer of the LLM."""
        splice, call, _ = self.splice(method)
        try:
            if method.parts[1] is not None:
                self.generate(call)
            return splice.trace.images[0].tokens_per_layer
        finally:
            splice.restore()
