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

from . import methods
from .errors import UnsupportedCallError
from .images import opened
from .methods.base import Method
from .models import load as checkpoints
from .models.base import Adapter
from .models.load import Checkpoint
from .ops.budget import flops
from .pipeline import compress
from .trace import ImageTrace, now


@dataclass(frozen=True, eq=False)
class Answer:
    """One answer and what it cost."""

    text: str
    maps: ImageTrace  # where the patches went
    tokens: int  # visual tokens that entered the LLM
    tokens_before: int  # that the unmodified model sends of the image
    tokens_per_layer: list[float]
    timing: dict[str, float]  # ms by stage, this answer's share of its batch
    prefill_flops: float  # of the LLM's layers, for the tokens of this prompt that entered each, padding not counted
    kv_bytes: int  # that the same tokens' keys and values take in the cache


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

        An image that is given several times (the same object or path) is processed and goes through the tower once. A
        method that does not read the question then compresses it once as well. The answers are the same either way.

        `generation` goes to transformers' generate (do_sample=True, num_beams=4, ...). The timing's stages: prepare
        (image and text processing), tower, question, compress, project, prefill (the rest up to the first token),
        decode; "ttft" is the time to the first token and "total" everything. Each answer is given an equal share of
        its batch's time, so questions on one image share what was done once.

        Raises ImageError for an image that cannot be read, UnsupportedCallError for a question that holds an image
        placeholder, for images and questions that do not pair up and for settings that do not return one text each,
        and what `compress` raises.
        """
        _check_pairs(images, questions, generation)
        if not len(images):
            return []
        method = methods.method(method) if isinstance(method, str) else method
        start = now()
        inputs = self._prepare(images, questions)
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
        is_text = inputs["attention_mask"].bool() & inputs["input_ids"].ne(self.adapter.placeholder)
        costs = [
            cost(self.adapter, method, image.tokens_per_layer, text)
            for image, text in zip(trace.images, is_text.sum(1).tolist(), strict=True)
        ]
        return [
            Answer(
                text=text.strip(),
                maps=_on_cpu(image),
                tokens=image.tokens,
                tokens_before=image.before,
                tokens_per_layer=[float(tokens) for tokens in image.tokens_per_layer],
                timing=dict(timing),
                prefill_flops=prefill_flops,
                kv_bytes=kv_bytes,
            )
            for text, image, (prefill_flops, kv_bytes) in zip(texts, trace.images, costs, strict=True)
        ]

    def _prepare(self, images: Sequence[Image.Image | str | Path], questions: Sequence[str]) -> dict[str, Any]:
        for question in questions:
            if self.processor.image_token in question:
                raise UnsupportedCallError(
                    f'The question "{question}" contains {self.processor.image_token}, which stands for an image. '
                    "Leave it out: every question is asked about one image, which is put in front of it."
                )
        prompts = [self.prompt(question) for question in questions]
        distinct, shown = _distinct(images) if self.adapter.shares else (list(images), [*range(len(images))])
        pictures = [opened(image) for image in distinct]
        settings = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        if len(pictures) == len(prompts):
            inputs = self.processor(images=[[picture] for picture in pictures], text=prompts, **settings)
        else:  # the processor says what stands in a prompt for each picture
            mark = self.processor.image_token
            inputs = self.processor(
                images=pictures, text=[mark] * len(pictures), return_text_replacement_offsets=True, **settings
            )
            written = [replaced["replacement"] for (replaced,) in inputs.pop("text_replacement_offsets")]
            texts = [prompt.replace(mark, written[image]) for prompt, image in zip(prompts, shown, strict=True)]
            inputs.update(self.processor.tokenizer(texts, **settings))
        if "token_type_ids" not in inspect.signature(self.model.forward).parameters:  # some tokenizers add them unasked
            inputs.pop("token_type_ids", None)
        shares = {"shown": shown} if self.adapter.shares else {}
        return {**inputs.to(self.device, self.model.dtype), **shares}

    @property
    def _pad_token(self) -> int:
        tokenizer = self.processor.tokenizer
        return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def load(name_or_path: str | Path, **options: Any) -> VLM:
    """Open "testbed", a folder or a Hub id (device=, dtype=, ...) as a model that answers; see models/load.py."""
    return VLM(**vars(checkpoints.load(name_or_path, **options)))


def cost(adapter: Adapter, method: Method, entering: list[int], text: int) -> tuple[float, int]:
    """FLOPs of the LLM's layers and bytes of the cache for a prompt of one image and `text` tokens besides.

    `entering`: the visual tokens that enter each layer.
    """
    llm, inner = adapter.size(text), method.parts[1]
    drops = inner.after(llm.layers) if inner is not None and inner.looks_ahead else []
    looked = [layer for layer in drops if entering[layer + 1] < entering[layer]]
    return flops(entering, llm, looked), llm.per_cached * sum(visual + text for visual in entering)


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


def _distinct(images: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """Every image once, and for each of those given which one it is."""
    images = list(images)  # of a sequence that makes them as they are asked for, two could have one id
    keys = [image if isinstance(image, str | Path) else id(image) for image in images]
    once = dict(zip(keys, images, strict=True))
    place = {key: place for place, key in enumerate(once)}
    return list(once.values()), [place[key] for key in keys]


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
