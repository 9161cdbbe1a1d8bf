"""From the rows of a run to its numbers: what every method scored, with intervals, and what it cost.

    results["methods"]      labels, in the order they were asked for
    results["left_out"][label]               why a method that was asked for did not run
    results["answers"], results["failed"]    how many rows there are, and how many of them are failures
    results["failures"]     the first of these
    results["notes"]        what a reader of the table has to know: unequal budgets, failures, a change of versions
    results["benchmarks"][name]
        "title", "columns", "headline", "group_noun", "remark", "questions", "images"
        "methods"[label]    "n", "failed"
                            "scores"[score]               {"value", "low", "high"}: 95 % interval, clustered by image
                            "differences"[other][score]   the same for this method minus keep_all, and minus random
                                                          (of several budgets, the random one of the same)
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
SAME_BUDGET = 0.01  # relative difference in mean tokens per layer up to which methods of one budget compare


def read(folder: Path) -> dict[str, Any]:
    """The numbers of the run in `folder`, finished or not. Raises FailureError where it holds none."""
    return summarise(read_record(folder), read_rows(folder))


def summarise(record: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """The numbers of a run; see the head of this file."""
    methods, left_out = record["config"]["methods"], record.get("left_out", {})
    labels = [label for label in methods if label not in left_out]
    others = {label: _others(methods, labels, label) for label in labels}
    failures = [row for row in rows if row.error is not None]
    names = [name for name in record["config"]["benchmarks"] if any(row.benchmark == name for row in rows)]
    results = {
        "record": dict(record),
        "methods": labels,
        "left_out": dict(left_out),
        "answers": len(rows),
        "failed": len(failures),
        "failures": [
            {"benchmark": row.benchmark, "method": row.method, "id": row.id, "image": row.image, "error": row.error}
            for row in failures[:FAILURES_SHOWN]
        ],
        "benchmarks": {
            name: _benchmark(benchmark(name), [row for row in rows if row.benchmark == name], others) for name in names
        },
    }
    return {**results, "notes": _notes(results)}


def difference(made: Benchmark, rows: Sequence[Row], others: Sequence[Row]) -> dict[str, Estimate]:
    """Every score on `rows` minus that on `others`, paired: on the questions that both answered."""
    common = {row.id for row in rows} & {row.id for row in others}
    mine, theirs = (made.measures([row for row in side if row.id in common]) for side in (rows, others))
    return {score: mine[score] - theirs[score] for score in mine}


def budget_of(settings: Mapping[str, Any]) -> int | float | None:
    """What a method of the record was granted: a number of tokens, or a share of the patches."""
    budget: int | float | None = settings.get("budget") or settings.get("keep_ratio")
    return budget


def without_budget(label: str, budget: int | float | None) -> str:
    """The label of a method at several budgets, without the one."""
    return label.replace(f"(budget={budget})", "").replace(f"budget={budget}, ", "")


def left_out(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The methods that could not meet some budget: {"budgets": those, "why": what was said of the first}."""
    missing: dict[str, dict[str, Any]] = {}
    for label, why in results["left_out"].items():
        budget = budget_of(results["record"]["config"]["methods"][label])
        missing.setdefault(without_budget(label, budget), {"budgets": [], "why": why})["budgets"].append(budget)
    return missing


def _others(methods: Mapping[str, Any], labels: Sequence[str], label: str) -> dict[str, str]:
    """The labels that a method is compared with, by name: of several floors the one at the same budget."""
    found = {}
    for name in OTHERS:
        named = [other for other in labels if methods[other].get("name", other) == name]
        same = [other for other in named if budget_of(methods[other]) == budget_of(methods[label])]
        if len(named) == 1 or len(same) == 1:
            found[name] = (named if len(named) == 1 else same)[0]
    return {name: other for name, other in found.items() if other != label}


def _benchmark(made: Benchmark, rows: Sequence[Row], others: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    labels = list(others)
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
                **_scores(made, answered[label], others[label], answered),
                **_cost(answered[label], answered.get(others[label].get(REFERENCE, ""), [])),
            }
            for label in labels
        },
        "remark": made.remark(groups),
        "groups": {
            group: {
                "n": len({row.id for row in rows if row.group == group}),
                "methods": {
                    label: _scores(made, part[label], others[label], part)
                    for part in [_only(answered, group)]
                    for label in labels
                },
            }
            for group in (groups if len(groups) > 1 else [])
        },
    }


def _only(answered: Mapping[str, Sequence[Row]], group: str) -> dict[str, list[Row]]:
    return {label: [row for row in rows if row.group == group] for label, rows in answered.items()}


def _scores(
    made: Benchmark, rows: Sequence[Row], others: Mapping[str, str], answered: Mapping[str, Sequence[Row]]
) -> dict[str, Any]:
    return {
        "n": len(rows),
        "scores": {name: _shown(estimate) for name, estimate in made.measures(rows).items()},
        "differences": {
            name: {score: _shown(estimate) for score, estimate in difference(made, rows, answered[label]).items()}
            for name, label in others.items()
        },
    }


def _cost(rows: Sequence[Row], reference: Sequence[Row]) -> dict[str, Any]:
    whole = {row.id: row for row in reference}
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
    methods = results["record"]["config"]["methods"]
    labels = [label for label in results["methods"] if methods[label].get("name", label) != REFERENCE]
    for made in results["benchmarks"].values():
        for budget in dict.fromkeys(budget_of(methods[label]) for label in labels):
            means = {
                label: made["methods"][label]["tokens_per_layer"]
                for label in labels
                if budget_of(methods[label]) == budget and made["methods"][label]["tokens_per_layer"] is not None
            }
            # Inside an LLM whole tokens are dropped: a budget is met to within one of them.
            if means and max(means.values()) > max((1 + SAME_BUDGET) * min(means.values()), min(means.values()) + 1):
                listed = ", ".join(f"{label} {tokens:.1f}" for label, tokens in means.items())
                notes.append(
                    f"{made['title']}: the budgets differ, so scores do not compare at equal cost. "
                    f"Mean visual tokens per LLM layer: {listed}."
                )
    for name, missing in left_out(results).items():
        budgets = ", ".join(str(budget) for budget in missing["budgets"] if budget is not None)
        notes.append(f"{name} is left out{f' at {budgets}' if budgets else ''}. {missing['why']}")
    if results["failed"]:
        notes.append(f"{results['failed']} of {results['answers']} answers failed and are not in any score.")
    first, *later = results["record"]["sessions"]
    changed = sorted(
        {key for session in later for key in session if key != "started" and session[key] != first.get(key)}
    )
    if changed:
        notes.append(f"The run was resumed under other conditions than it began with: {', '.join(changed)}.")
    return notes
