"""A model that answers questions about images, and says what every answer cost."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria

from .errors import UnsupportedCallError
from .images import opened
from .methods.base import Method
from .models import load as checkpoints
from .models.load import Checkpoint
from .pipeline import compress
from .trace import ImageTrace, now


@dataclass(frozen=True, eq=False)
class Answer:
    """One answer and what it cost."""

    text: str
    maps: ImageTrace  # where the patches went
    tokens: int  # visual tokens that entered the LLM
    tokens_before: int  # patches the tower made of the image
    tokens_per_layer: list[float]
    timing: dict[str, float]  # ms by stage, this answer's share of its batch


class VLM(Checkpoint):
    """A checkpoint with its processor, ready to be asked."""

    def ask(
        self,
        image: Image.Image | str | Path,
        question: str,
        method: Method | str = "keep_all",
        max_new_tokens: int = 16,
        **generation: Any,
    ) -> Answer:
        """The answer to one question about one image. Arguments and errors as for `answer`."""
        return self.answer([image], [question], method, max_new_tokens, **generation)[0]

    def answer(
        self,
        images: Sequence[Image.Image | str | Path],
        questions: Sequence[str],
        method: Method | str = "keep_all",
        max_new_tokens: int = 16,
        **generation: Any,
    ) -> list[Answer]:
        """One answer per pair of image and question, decoded greedily in one batch.

        `generation` goes to transformers' generate (do_sample=True, num_beams=4, ...). The timing's stages: prepare
        (image and text processing), tower, question, compress, project, prefill (the rest up to the first token),
        decode; "ttft" is the time to the first token and "total" everything.

        Raises ImageError for an image that cannot be read, UnsupportedCallError for a question that holds an image
        placeholder, for images and questions that do not pair up and for settings that do not return one text each,
        and what `compress` raises.
        """
        _check_pairs(images, questions, generation)
        if not len(images):
            return []
        start = now()
        inputs = self._prepare([opened(image) for image in images], questions)
        prepared = now()
        first = _FirstToken()
        settings = {"do_sample": False, "num_beams": 1, "pad_token_id": self._pad_token} | generation
        settings["stopping_criteria"] = [first, *(generation.get("stopping_criteria") or [])]
        with compress(self.model, method, processor=self.processor, clip=self.adapter.clip) as trace:
            sequences = self.model.generate(**inputs, max_new_tokens=max_new_tokens, **settings)
        end = now()
        texts = self.processor.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        ends = {"prepare": prepared - start, **trace.stages}
        ends |= {"prefill": first.moment - start - sum(ends.values()), "decode": end - first.moment}
        ends |= {"ttft": first.moment - start, "total": end - start}
        timing = {stage: took / len(texts) for stage, took in ends.items()}
        return [
            Answer(
                text=text.strip(),
                maps=_on_cpu(image),
                tokens=image.tokens,
                tokens_before=image.patches,
                tokens_per_layer=[float(tokens) for tokens in image.tokens_per_layer],
                timing=dict(timing),
            )
            for text, image in zip(texts, trace.images, strict=True)
        ]

    def _prepare(self, images: list[Image.Image], questions: Sequence[str]) -> dict[str, Any]:
        for question in questions:
            if self.processor.image_token in question:
                raise UnsupportedCallError(
                    f'The question "{question}" contains {self.processor.image_token}, which stands for an image. '
                    "Leave it out: every question is asked about one image, which is put in front of it."
                )
        prompts = [self.prompt(question) for question in questions]
        inputs = self.processor(images=images, text=prompts, padding=True, padding_side="left", return_tensors="pt")
        if "token_type_ids" not in inspect.signature(self.model.forward).parameters:  # some tokenizers add them unasked
            inputs.pop("token_type_ids", None)
        return dict(inputs.to(self.model.device, self.model.dtype))

    @property
    def _pad_token(self) -> int:
        tokenizer = self.processor.tokenizer
        return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def load(name_or_path: str | Path, **options: Any) -> VLM:
    """Open "testbed", a folder or a Hub id (device=, dtype=, ...) as a model that answers; see models/load.py."""
    return VLM(**vars(checkpoints.load(name_or_path, **options)))


def _check_pairs(images: Sequence[Any], questions: Sequence[str], generation: dict[str, Any]) -> None:
    if len(images) != len(questions):
        raise UnsupportedCallError(
            f"{len(images)} images came with {len(questions)} questions. Give one image per question; an image that is "
            "asked about twice is given twice."
        )
    for name, usual in (("num_return_sequences", 1), ("return_dict_in_generate", False)):
        if generation.get(name) not in (None, usual):
            raise UnsupportedCallError(
                f"The call asks for {name}={generation[name]!r}, but every question gets one answer, as text. Leave it "
                "out, or call model.generate under compress()."
            )


def _on_cpu(image: ImageTrace) -> ImageTrace:
    return replace(image, kept=image.kept.cpu(), source=image.source.cpu())


class _FirstToken(StoppingCriteria):
    """Stops nothing; notes when the first token was there."""

    def __init__(self) -> None:
        self.moment = float("nan")

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if math.isnan(self.moment):
            self.moment = now()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
