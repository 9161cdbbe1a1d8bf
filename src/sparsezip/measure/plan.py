"""What is answered together, and in which order. Nothing here needs torch.

Every batch is of one benchmark. Questions on one image stand side by side, in one batch where they fit, so that they
share a pass of the vision tower. Images come in the order of their longest question, the longest first: questions of a
batch are of similar length, so that little of it is padding, and what is too much for the memory shows at once. Length
is counted in characters, which needs no model. The same questions always give the same plan.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .records import Sample


@dataclass(frozen=True)
class Batch:
    """Samples of one benchmark that are answered together."""

    number: int
    benchmark: str
    ids: list[str]


@dataclass(frozen=True)
class Plan:
    """The batches in the order in which they are answered, and the samples in the data's."""

    samples: dict[str, list[str]]  # ids by benchmark
    batches: list[Batch]

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, written: Any) -> "Plan":
        """The plan that `to_json` wrote. Earlier versions wrote the batches alone: their order is the data's."""
        whole = written if isinstance(written, dict) else {"batches": written, "samples": {}}
        plan = cls(whole["samples"], [Batch(**batch) for batch in whole["batches"]])
        if whole is not written:
            for batch in plan.batches:
                plan.samples.setdefault(batch.benchmark, []).extend(batch.ids)
        return plan


def planned(samples: Mapping[str, Sequence[Sample]], batch_size: int) -> Plan:
    """Batches of at most `batch_size` questions.

    A batch may stay smaller: another image begins in it only where all its questions fit.
    """
    batches: list[Batch] = []
    for name, mine in samples.items():
        waiting: dict[int, deque[tuple[int, list[str]]]] = {}  # by size: place in the order, questions on one image
        for place, ids in enumerate(_by_image(mine, batch_size)):
            waiting.setdefault(len(ids), deque()).append((place, ids))
        while any(waiting.values()):
            together: list[str] = []
            while fitting := [queue for size, queue in waiting.items() if queue and size <= batch_size - len(together)]:
                together += min(fitting, key=lambda queue: queue[0][0]).popleft()[1]
            batches.append(Batch(len(batches), name, together))
    return Plan({name: [sample.id for sample in mine] for name, mine in samples.items()}, batches)


def turns(plan: Sequence[Batch], labels: Sequence[str]) -> Iterator[tuple[Batch, str]]:
    """Every batch under every method in turn; the method that comes first changes from batch to batch."""
    for batch in plan:
        first = batch.number % max(len(labels), 1)
        yield from ((batch, label) for label in [*labels[first:], *labels[:first]])


def _by_image(samples: Sequence[Sample], most: int) -> list[list[str]]:
    """The ids of the questions on each image, the image with the longest one first; at most `most` in one list."""
    asked: dict[str, list[Sample]] = {}
    for sample in samples:
        asked.setdefault(sample.image_id, []).append(sample)
    ordered = sorted(asked.values(), key=lambda mine: -max(len(sample.question) for sample in mine))
    return [
        [sample.id for sample in mine[start : start + most]] for mine in ordered for start in range(0, len(mine), most)
    ]
