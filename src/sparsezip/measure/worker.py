"""What answers: a model with the methods of a run. A runner has one of these, or several on other machines.

A batch that does not fit in the accelerator's memory is halved until it does, and the size that was fine is kept for
the method's later batches. Whatever else fails in a batch is found the same way: by halves, down to the question that
is at fault, whose row then says what went wrong.
"""

import gc
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from ..errors import BudgetError, FailureError, ImageError, UsageError
from ..images import open_image
from ..methods.base import Method
from ..registry import from_file
from . import maps
from .plan import Batch
from .records import Row, Sample

# What accelerators, the machine and cuBLAS say.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


@runtime_checkable
class Model(Protocol):
    """What is evaluated: `sparsezip.load` returns one, and so does `load(**settings)` of a user's own file."""

    @property
    def name(self) -> str:
        """As it was asked for."""

    @property
    def revision(self) -> str:
        """Which weights it has."""

    def answer(
        self, images: list[Image.Image], questions: list[str], method: Method, max_new_tokens: int
    ) -> Sequence[Any]:
        """One answer per row: text, tokens, tokens_before, tokens_per_layer (list), timing (stage to ms, "total").

        Where they are there, also prefill_flops, kv_bytes and maps (kept, source, grid). An image that several
        questions are about is the same object each time.
        """


@dataclass(frozen=True)
class Job:
    """One batch to be answered under one method."""

    batch: Batch
    label: str
    samples: list[Sample]
    max_new_tokens: int


class Worker:
    """A loaded model with the methods of a run, by label."""

    def __init__(self, model: Model, methods: Mapping[str, Method]) -> None:
        self._model, self._methods = model, methods
        self._images: dict[Path, Image.Image] = {}  # of the last job: the methods of a batch share them
        self._fits: dict[str, int] = {}  # questions at once, where a method ran out of memory with more

    def described(self) -> dict[str, Any]:
        """What makes the model the one it is: name, revision, device, dtype."""
        inner = getattr(self._model, "model", None)
        return {
            "name": self._model.name,
            "revision": self._model.revision,
            "device": str(getattr(inner, "device", None)),
            "dtype": str(getattr(inner, "dtype", None)),
        }

    def warm_up(self, first: Mapping[str, list[Sample]], tokens: Mapping[str, int]) -> dict[str, str]:
        """Answer the `first` questions of every benchmark with every method, for nothing.

        tokens: the longest answer, by benchmark. Returns the methods that cannot meet their budget, and what they say.
        Raises UsageError where a method cannot work with its settings, FailureError where it answers none of the
        questions for another reason than memory.
        """
        refused: dict[str, str] = {}
        for name, samples in first.items():
            for label in self._methods:
                if not samples or label in refused:
                    continue
                errors = self._answers(Job(Batch(-1, name, []), label, samples, tokens[name]))[1]
                for error in errors.values():
                    if isinstance(error, BudgetError):
                        refused[label] = str(error)
                    elif isinstance(error, UsageError) and not isinstance(error, ImageError):
                        raise error
                failed = [error for error in errors.values() if not out_of_memory(error)]
                if len(failed) == len(samples) and label not in refused:
                    raise FailureError(f"{label} answers no question of {name} ({_told(failed[0])}).") from failed[0]
        return refused

    def answer(self, job: Job) -> list[Row]:
        """The rows of a job, in its order. What is broken costs its own question only."""
        answers, errors = self._answers(job)

        def measured(sample: Sample) -> dict[str, Any]:
            return answers[sample.id] if sample.id in answers else {"error": _told(errors[sample.id])}

        return [
            Row.of(sample, benchmark=job.batch.benchmark, method=job.label, batch=job.batch.number, **measured(sample))
            for sample in job.samples
        ]

    def _answers(self, job: Job) -> tuple[dict[str, dict[str, Any]], dict[str, Exception]]:
        """What was measured of each question, and what went wrong with the others."""
        answers: dict[str, dict[str, Any]] = {}
        errors: dict[str, Exception] = {}
        sound = self._sound(job.samples, errors)
        size = self._fits.get(job.label, len(sound)) or 1
        waiting = [sound[start : start + size] for start in range(0, len(sound), size)][::-1]
        fine, tight = 0, False
        while waiting:
            part = waiting.pop()
            try:
                answers |= self._asked(part, job)
                fine = max(fine, len(part))
                continue
            except Exception as error:  # whatever it is, it must not cost the other questions of a run of hours
                wrong = error.with_traceback(None)  # which holds on to the tensors that were too many
            if len(part) == 1:
                errors[part[0].id] = wrong
            else:
                waiting += [part[(len(part) + 1) // 2 :], part[: (len(part) + 1) // 2]]
            if out_of_memory(wrong):
                tight = True
                _free()
        if tight and fine:
            self._fits[job.label] = fine
        return answers, errors

    def _sound(self, samples: Sequence[Sample], errors: dict[str, Exception]) -> list[Sample]:
        """The samples whose images can be opened, which then are; the others go to `errors`."""
        before, self._images = self._images, {}
        for sample in samples:
            if sample.image not in self._images:
                try:
                    self._images[sample.image] = before.get(sample.image) or open_image(sample.image)
                except ImageError as error:
                    errors[sample.id] = error
        return [sample for sample in samples if sample.image in self._images]

    def _asked(self, part: Sequence[Sample], job: Job) -> dict[str, dict[str, Any]]:
        answers = self._model.answer(
            [self._images[sample.image] for sample in part],
            [sample.question for sample in part],
            self._methods[job.label],
            max_new_tokens=job.max_new_tokens,
        )
        return {sample.id: _measured(answer, sample) for sample, answer in zip(part, answers, strict=True)}


def make_worker(model: str, methods: Mapping[str, Method], loading: Mapping[str, Any]) -> Worker:
    """A worker with the model of that name: for `sparsezip.load`, or "FILE.py" with a function load(**loading).

    Raises UsageError where there is no such model.
    """
    if not model.endswith(".py"):
        from ..vlm import load  # only now: data at fault are told of before a model is opened

        return Worker(load(model, **loading), methods)
    own = getattr(from_file(model), "load", None)
    if own is None:
        raise UsageError(f"{model} has no function load(**settings) that returns a model.")
    try:
        opened = own(**loading)
    except UsageError:
        raise
    except Exception as error:  # anything may be in it
        raise UsageError(f"load() of {model} failed ({_told(error)}).") from error
    lacking = [part for part in ("name", "revision", "answer") if not hasattr(opened, part)]
    if lacking:
        raise UsageError(f"load() of {model} returns no model: {type(opened).__name__} lacks {', '.join(lacking)}.")
    return Worker(opened, methods)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says so, of whichever device: torch has a class of its own, and not for all of them."""
    said = str(error).lower()
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and any(words in said for words in OUT_OF_MEMORY))


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"


def _measured(answer: Any, sample: Sample) -> dict[str, Any]:
    layers, image, bearing = answer.tokens_per_layer, getattr(answer, "maps", None), sample.answer_patches
    return {
        "answer": answer.text,
        "tokens": answer.tokens,
        "tokens_before": answer.tokens_before,
        "tokens_per_layer": sum(layers) / len(layers) if layers else None,
        "prefill_flops": getattr(answer, "prefill_flops", None),  # a user's own model may not know
        "kv_bytes": getattr(answer, "kv_bytes", None),
        "map": _map(image),
        "answer_patch_recall": bearing.recall(image.kept.tolist(), image.grid)
        if bearing and image is not None and getattr(image, "views", 1) == 1
        else None,
        "timing_ms": dict(answer.timing),
    }


def _map(image: Any) -> str | None:
    """Where the patches of an image went; None where each has a token of its own, or nobody knows."""
    if image is None or getattr(image, "views", 1) > 1:  # which no picture can be drawn of
        return None
    source = image.source.tolist()
    if -1 not in source and len(set(source)) == len(source):
        return None
    return maps.pack(image.kept.tolist(), source, image.grid)


def _free() -> None:
    """Give back what the accelerator's allocator holds of a batch that failed."""
    gc.collect()
    if torch := sys.modules.get("torch"):
        for device in (torch.cuda, torch.mps):
            if device.is_available():
                device.empty_cache()
