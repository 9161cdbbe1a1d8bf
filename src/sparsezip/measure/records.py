"""What a run is made of: the sample that is asked and the row that is kept of the answer."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .answer_patches import AnswerPatches


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One question on one image, as it will be asked."""

    id: str  # unique within its benchmark
    image: Path
    image_id: str  # the image's name in the data set: intervals are clustered by it
    question: str  # the full text asked: the prompt preset is applied already
    references: list[str]
    group: str  # split, subtask or question type
    answer_patches: AnswerPatches | None = None  # where the answer shows, in data that say so


@dataclass(frozen=True, kw_only=True)
class Row:
    """One answer of one method, or the reason why there is none. None always means: not measured."""

    benchmark: str
    method: str
    batch: int
    id: str
    image: str
    group: str
    question: str
    references: list[str]
    answer: str | None = None
    error: str | None = None
    tokens: int | None = None  # visual tokens that entered the LLM
    tokens_before: int | None = None  # visual tokens the unmodified model would have sent
    tokens_per_layer: float | None = None  # mean over the LLM's layers
    prefill_flops: float | None = None  # of the LLM's layers, for this prompt
    kv_bytes: int | None = None  # that the prompt takes in the cache, over the LLM's layers
    map: str | None = None  # where the patches went, see maps.py
    answer_patches: int | None = None  # how many bear the answer, in the data's own grid
    answer_patch_recall: float | None = None  # the share of them that went through the LLM's last layer unmerged
    timing_ms: dict[str, float] = field(default_factory=dict)  # by stage

    def to_json(self) -> dict[str, Any]:
        """The row as plain JSON values."""
        return asdict(self)

    @classmethod
    def of(cls, sample: Sample, *, benchmark: str, method: str, batch: int, **measured: Any) -> "Row":
        """The row of `sample`, with what was `measured` on it."""
        return cls(
            benchmark=benchmark,
            method=method,
            batch=batch,
            id=sample.id,
            image=sample.image_id,
            group=sample.group,
            question=sample.question,
            references=sample.references,
            answer_patches=len(sample.answer_patches.cells) if sample.answer_patches else None,
            **measured,
        )
