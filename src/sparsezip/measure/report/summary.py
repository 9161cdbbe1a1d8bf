"""From the rows of a run to its numbers: what every method scored, with intervals, and what it cost.

    results["methods"]      labels, in the order they were asked for
    results["answers"], results["failed"]    how many rows there are, and how many of them are failures
    results["failures"]     the first of these
    results["notes"]        what a reader of the table has to know: unequal budgets, failures, a change of versions
    results["benchmarks"][name]
        "title", "columns", "headline", "group_noun", "remark", "questions", "images"
        "methods"[label]    "n", "failed"
                            "scores"[score]               {"value", "low", "high"}: 95 % interval, clustered by image
                            "differences"[other][score]   the same for this method minus keep_all, and minus random
                            "agreement"                   {"value", ...}: the share of answers equal to keep_all's
                            "tokens", "tokens_before", "tokens_per_layer"     means over questions
                            "latency_ms", "stages_ms"[stage]                  {"median", "p10", "p90"}
                            "latency_ratio"               the same of latency over keep_all's, question by question
        "groups"[group]     "n", "methods"[label] with "n", "scores" and "differences"

None stands for what was not measured, never 0. Differences rest on the questions both methods answered.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ..benchmarks import benchmark
from ..benchmarks.base import Benchmark
from ..clock import spread
from ..metrics import exact_match
from ..metrics.interval import Estimate, mean
from ..records import Row
from ..store import read_record, read_rows

REFERENCE, FLOOR = "keep_all", "random"
OTHERS = (REFERENCE, FLOOR)  # what every method is compared with, where the run has them
FAILURES_SHOWN = 20
SAME_BUDGET = 0.01  # relative difference in mean tokens per layer up to which methods compare


def read(folder: Path) -> dict[str, Any]:
    """The numbers of the run in `folder`, finished or not. Raises FailureError where it holds none."""
    return summarise(read_record(folder), read_rows(folder))


def summarise(record: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """The numbers of a run; see the head of this file."""
    labels = list(record["config"]["methods"])
    failures = [row for row in rows if row.error is not None]
    names = [name for name in record["config"]["benchmarks"] if any(row.benchmark == name for row in rows)]
    results = {
        "record": dict(record),
        "methods": labels,
        "answers": len(rows),
        "failed": len(failures),
        "failures": [
            {"benchmark": row.benchmark, "method": row.method, "id": row.id, "image": row.image, "error": row.error}
            for row in failures[:FAILURES_SHOWN]
        ],
        "benchmarks": {
            name: _benchmark(benchmark(name), [row for row in rows if row.benchmark == name], labels) for name in names
        },
    }
    return {**results, "notes": _notes(results)}


def difference(made: Benchmark, rows: Sequence[Row], others: Sequence[Row]) -> dict[str, Estimate]:
    """Every score on `rows` minus that on `others`, paired: on the questions that both answered."""
    common = {row.id for row in rows} & {row.id for row in others}
    mine, theirs = (made.measures([row for row in side if row.id in common]) for side in (rows, others))
    return {score: mine[score] - theirs[score] for score in mine}


def _benchmark(made: Benchmark, rows: Sequence[Row], labels: Sequence[str]) -> dict[str, Any]:
    answered = {label: [row for row in rows if row.method == label and row.error is None] for label in labels}
    groups = list(dict.fromkeys(row.group for row in rows))
    return {
        "title": made.title,
        "columns": dict(made.columns),
        "headline": made.headline,
        "group_noun": made.group_noun,
        "questions": len({row.id for row in rows}),
        "images": len({row.image for row in rows}),
        "methods": {
            label: {
                "failed": sum(row.method == label and row.error is not None for row in rows),
                **_scores(made, label, answered),
                **_cost(label, answered),
            }
            for label in labels
        },
        "remark": made.remark(groups),
        "groups": {
            group: {
                "n": len({row.id for row in rows if row.group == group}),
                "methods": {label: _scores(made, label, _only(answered, group)) for label in labels},
            }
            for group in (groups if len(groups) > 1 else [])
        },
    }


def _only(answered: Mapping[str, Sequence[Row]], group: str) -> dict[str, list[Row]]:
    return {label: [row for row in rows if row.group == group] for label, rows in answered.items()}


def _scores(made: Benchmark, label: str, answered: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    rows = answered[label]
    return {
        "n": len(rows),
        "scores": {name: _shown(estimate) for name, estimate in made.measures(rows).items()},
        "differences": {
            other: {name: _shown(estimate) for name, estimate in difference(made, rows, answered[other]).items()}
            for other in OTHERS
            if other in answered and other != label
        },
    }


def _cost(label: str, answered: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    rows = answered[label]
    whole = {row.id: row for row in answered.get(REFERENCE, ())} if label != REFERENCE else {}
    pairs = [(row, whole[row.id]) for row in rows if row.id in whole]
    stages = dict.fromkeys(stage for row in rows for stage in row.timing_ms if stage != "total")
    return {
        "agreement": _shown(
            mean((row.image, exact_match.same(row.answer or "", other.answer or "")) for row, other in pairs)
        ),
        "tokens": _mean([row.tokens for row in rows]),
        "tokens_before": _mean([row.tokens_before for row in rows]),
        "tokens_per_layer": _mean([row.tokens_per_layer for row in rows]),
        "latency_ms": spread(row.timing_ms.get("total") for row in rows),
        "latency_ratio": spread(
            row.timing_ms["total"] / other.timing_ms["total"]
            for row, other in pairs
            if "total" in row.timing_ms and other.timing_ms.get("total")
        ),
        "stages_ms": {stage: spread(row.timing_ms.get(stage) for row in rows) for stage in stages},
    }


def _shown(estimate: Estimate) -> dict[str, float | None]:
    low, high = estimate.interval() or (None, None)
    return {"value": estimate.value, "low": low, "high": high}


def _mean(values: Sequence[int | float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return fmean(measured) if measured else None


def _notes(results: Mapping[str, Any]) -> list[str]:
    notes = [made["remark"] for made in results["benchmarks"].values() if made["remark"]]
    for made in results["benchmarks"].values():
        budgets = {
            label: method["tokens_per_layer"]
            for label, method in made["methods"].items()
            if label != REFERENCE and method["tokens_per_layer"] is not None
        }
        if budgets and max(budgets.values()) > (1 + SAME_BUDGET) * min(budgets.values()):
            listed = ", ".join(f"{label} {tokens:.1f}" for label, tokens in budgets.items())
            notes.append(
                f"{made['title']}: the budgets differ, so scores do not compare at equal cost. "
                f"Mean visual tokens per LLM layer: {listed}."
            )
    if results["failed"]:
        notes.append(f"{results['failed']} of {results['answers']} answers failed and are not in any score.")
    first, *later = results["record"]["sessions"]
    changed = sorted(
        {key for session in later for key in session if key != "started" and session[key] != first.get(key)}
    )
    if changed:
        notes.append(f"The run was resumed under other conditions than it began with: {', '.join(changed)}.")
    return notes
