"""The model class that lmms-eval makes."""

from collections.abc import Callable, Iterator
from itertools import groupby, islice
from typing import Any

import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from loguru import logger
from PIL import Image
from tqdm import tqdm

from .. import methods
from ..errors import UnsupportedCallError
from ..vlm import load


class Sparsezip(lmms):
    """A model that answers through one method."""

    def __init__(
        self,
        pretrained: str = "testbed",
        method: str = "keep_all",
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        attn_implementation: str = "sdpa",
        clip: str | None = None,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        """Raises UsageError, of whatever kind, for a model, method or setting that is not there."""
        super().__init__()
        self.method = methods.method(method, **settings)
        self.vlm = load(pretrained, device=device, dtype=dtype, attn_implementation=attn_implementation, clip=clip)
        self.batch_size = int(batch_size)

    @property
    def device(self) -> torch.device:
        """Where the model is; lmms-eval gathers there what several processes answered."""
        return self.vlm.device

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """One answer to each request, cut off at the task's stop strings."""
        answers, layers = [], 0.0
        with tqdm(total=len(requests), disable=self.rank != 0, desc=self.method.name) as bar:
            for settings, batch in _batches(requests, self.batch_size):
                contexts = [request.args[0] for request in batch]
                images = [self._image(*request.args[2:]) for request in batch]
                stops, generation = _generation(settings)
                for context, answer in zip(
                    contexts, self.vlm.answer(images, contexts, self.method, **generation), strict=True
                ):
                    text = min((answer.text.split(stop)[0] for stop in stops if stop), key=len, default=answer.text)
                    self.cache_hook.add_partial("generate_until", (context, settings), text)
                    answers.append(text)
                    layers += sum(answer.tokens_per_layer) / len(answer.tokens_per_layer)
                bar.update(len(batch))
        if answers:
            logger.info(f"{self.method.name}: mean visual tokens per LLM layer {layers / len(answers):.1f}")
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refused: answers are generated."""
        raise UnsupportedCallError(
            "sparsezip generates answers; tasks that compare likelihoods (multiple_choice) need another model."
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refused: every request is one question about one image."""
        raise UnsupportedCallError(
            "sparsezip answers one question about one image; tasks of several rounds need another model."
        )

    def _image(self, visual: Callable[[Any], Any], doc: int, task: str, split: str) -> Image.Image:
        """The image of a request. Raises UnsupportedCallError where it has none, several or a video."""
        visuals = visual(self.task_dict[task][split][doc]) or []
        if len(visuals) != 1 or not isinstance(visuals[0], Image.Image):
            kinds = ", ".join(type(one).__name__ for one in visuals) or "no image"
            raise UnsupportedCallError(
                f"Task {task}, document {doc} comes with {kinds}, but sparsezip answers questions about one image. "
                "Leave the task out."
            )
        return visuals[0].convert("RGB")


def _batches(requests: list[Instance], size: int) -> Iterator[tuple[dict[str, Any], list[Instance]]]:
    """Requests in their order, `size` at a time, with the generation settings that they share."""
    for _, same in groupby(requests, key=lambda request: repr(request.args[1])):
        while batch := list(islice(same, size)):
            yield batch[0].args[1], batch


def _generation(settings: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """A task's generation settings as its stop strings and what `VLM.answer` takes."""
    until = settings.get("until") or []
    stops = [until] if isinstance(until, str) else list(until)
    generation = {"max_new_tokens": settings.get("max_new_tokens", 1024), "num_beams": settings.get("num_beams") or 1}
    if settings.get("temperature"):
        generation |= {"do_sample": True, "temperature": settings["temperature"], "top_p": settings.get("top_p")}
    return stops, generation
