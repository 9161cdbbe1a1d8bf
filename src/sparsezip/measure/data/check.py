"""What of the benchmarks a folder holds, read as a run would read it."""

import json
from dataclasses import dataclass
from pathlib import Path

from ...errors import UsageError
from ..benchmarks.base import HUB_FILE, Benchmark
from .get import how
from .sources import OFFICIAL


@dataclass(frozen=True)
class Found:
    """What is there of one benchmark: questions by group, images, and in words what is missing (empty: nothing)."""

    name: str
    questions: dict[str, int]
    images: int
    missing: str
    remark: str


def check(made: Benchmark, data: Path) -> Found | None:
    """What `data` holds of a benchmark; None where it holds nothing of it."""
    if (data / HUB_FILE).exists() and not _exported(made, data):
        return None
    try:
        samples = made.samples(data)
    except UsageError as error:
        return Found(made.name, {}, 0, str(error), "") if _traces(made, data) else None
    questions: dict[str, int] = {}
    for sample in samples:
        questions[sample.group] = questions.get(sample.group, 0) + 1
    folders = {name.split("/")[0] for name, text in made.example.items() if text is not None}
    absent = [group for group in made.groups if group not in questions] if folders & set(made.groups) else []
    missing = f"{made.title}: the {made.group_noun}s {', '.join(absent)} are missing." if absent else ""
    published = OFFICIAL[made.name].questions if made.name in OFFICIAL else len(samples)
    remark = f"the published set has {published:,} questions" if len(samples) != published else ""
    return Found(made.name, questions, len({sample.image for sample in samples}), missing, remark)


def cure(found: Found, data: Path) -> str:
    """How what is missing is had."""
    source = OFFICIAL.get(found.name)
    if source is None:
        return ""
    there = [str(data / part.folder) for part in source.parts if (data / part.folder).exists()]
    command = f"sparsezip data get {found.name} {data}"
    move = f"move {' and '.join(there)} away, then " if there and len(there) == len(source.parts) else ""
    return how(found.name, data) if not source.parts else f"{move}{command}"


def _exported(made: Benchmark, data: Path) -> bool:
    """Whether the Hub's data set that lies right in `data` is this benchmark's."""
    try:
        source = json.loads((data / "source.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return made.hub is not None and isinstance(source, dict) and source.get("id") == made.hub.id


def _traces(made: Benchmark, data: Path) -> bool:
    """Whether a part of the benchmark's layout is there."""
    names = [name for name, text in made.example.items() if text is not None]
    return (data / made.name).exists() or any((data / name).exists() for name in [*names, *made.groups])
