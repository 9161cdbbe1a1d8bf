"""The answers that a method changed, the most instructive first, and where their images lie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import SparsezipError
from ..benchmarks import benchmark
from ..metrics import exact_match
from ..records import Row
from .fairness import FLOOR, REFERENCE

LOST, GAINED, OTHER = "right answer lost", "right answer gained", "other answer"


@dataclass(frozen=True)
class Change:
    """One question to which a method answers otherwise than the uncompressed model."""

    title: str  # of the benchmark
    before: Row
    after: Row
    scores: tuple[float, float] | None  # before and after, 0 to 1; None: the benchmark has none for single answers

    @property
    def kind(self) -> str:
        """What became of the answer."""
        before, after = self.scores or (0.0, 0.0)
        return LOST if after < before else GAINED if after > before else OTHER


def changes(results: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, list[Change]]:
    """By method every answer that differs from keep_all's: those that it lost come first, then those it gained.

    The floor is the last of the methods: what it loses says the least.
    """
    answers = {(row.benchmark, row.method, row.id): row for row in rows if row.error is None}
    found: dict[str, list[Change]] = {label: [] for label in results["methods"]}
    for name, shown in results["benchmarks"].items():
        made, headline = benchmark(name), shown["headline"]
        scored = shown["columns"][headline].endswith("%")  # a share of questions, which a single one has too
        for row in answers.values():
            other = results["compared_with"].get(row.method, {}).get(REFERENCE)
            before = answers.get((name, other, row.id))
            if row.benchmark != name or before is None or exact_match.same(row.answer or "", before.answer or ""):
                continue
            first, second = (made.measures([its])[headline].value if scored else None for its in (before, row))
            scores = None if first is None or second is None else (first, second)
            found[row.method].append(Change(shown["title"], before, row, scores))
    methods = results["record"]["config"]["methods"]
    order = sorted(found, key=lambda label: methods[label].get("name", label) == FLOOR)
    return {label: sorted(found[label], key=_instructive) for label in order if found[label]}


def chosen(found: Mapping[str, Sequence[Change]], most: int) -> dict[str, list[Change]]:
    """At most so many of them: the first of each method, then the second of each, ..."""
    ranked = [(place, _instructive(change), label) for label, its in found.items() for place, change in enumerate(its)]
    taken = dict.fromkeys(found, 0)
    for _, _, label in sorted(ranked)[:most]:
        taken[label] += 1
    return {label: list(its[: taken[label]]) for label, its in found.items() if taken[label]}


def _instructive(change: Change) -> tuple[int, float]:
    before, after = change.scores or (0.0, 0.0)
    return (LOST, GAINED, OTHER).index(change.kind), -abs(after - before)


def images(record: Mapping[str, Any], data: Path | None = None) -> tuple[dict[tuple[str, str], Path], list[str]]:
    """Where the image of each (benchmark, image id) lies, as far as it is known, and why others are not.

    data: where to look; None: where each run found them.
    """
    found: dict[tuple[str, str], Path] = {}
    missing: dict[str, str] = {}
    for run in (record.get("runs") or {"": record}).values():
        config, session = run["config"], run["sessions"][-1]
        for name in config["benchmarks"]:
            if any(known == name for known, _ in found):
                continue
            folder = data or session.get("data")
            if folder is None:
                missing[name] = (
                    f"No images of {name}: the run does not say where they lie. Name the folder with --data."
                )
                continue
            elsewhere = None if data or not session.get("images") else Path(session["images"])
            only = config.get("only", {}).get(name, ())
            try:
                samples = benchmark(name).samples(Path(folder), elsewhere, only, config["prompt"])
            except SparsezipError as error:
                missing[name] = f"No images of {name}: {error}"
                continue
            found |= {(name, sample.image_id): sample.image for sample in samples}
            missing.pop(name, None)
    return found, list(missing.values())
