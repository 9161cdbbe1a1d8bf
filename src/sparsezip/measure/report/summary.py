"""From the rows of a run to its numbers: what every method scored, with intervals, and what it cost.

    results["methods"]      labels, in the order they were asked for
    results["compared_with"][label]          what its differences and its agreement rest on: {"keep_all": label, ...}
    results["left_out"][label]               why a method that was asked for did not run
    results["answers"], results["failed"]    how many rows there are, and how many of them are failures
    results["failures"]     the first of each kind, with the number of "answers" that failed for the same reason
    results["unequal"]      what was not granted the same and stands side by side all the same, see fairness.py
    results["notes"]        what a reader of the table has to know: unequal budgets, failures, a change of versions
    results["benchmarks"][name]
        "title", "columns", "headline", "group_noun", "remark", "questions", "images"
        "methods"[label]    "n", "failed"
                            "scores"[score]               {"value", "low", "high", "n"}; 95 %, clustered by image;
                                                          where data say which patches bear the answers, also the mean
                                                          share that was kept, "answer_patch_recall"
                            "differences"[other][score]   the same for this method minus keep_all, and minus random (of
                                                          several, that of the same budget, in the same run), with "p",
                                                          that the difference is 0, and "p_holm", the same adjusted
                                                          for all methods that are compared in this score
                            "agreement"                   {"value", ...}: the share of answers equal to keep_all's
                            "tokens", "tokens_before", "tokens_per_layer", "prefill_flops", "kv_bytes"
                                                          means over questions
                            "ttft_ms", "decode_ms", "latency_ms", "stages_ms"[stage]     {"median", "p10", "p90"}: to
                                                          the first token, from there to the end, in all, by stage
                            "latency_ratio"               the same of latency over keep_all's, question by question,
                                                          where both are of one run
        "groups"[group]     "n", "methods"[label] with "n", "scores" and "differences" ("p_holm": and all groups)

None stands for what was not measured, never 0. Differences rest on the questions both methods answered.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
from .fairness import FLOOR, REFERENCE, budget_of, left_out, unequal

OTHERS = (REFERENCE, FLOOR)  # what every method is compared with, where the run has them
ANSWER_PATCHES = "answer_patch_recall"  # a score of every benchmark whose data say where the answers show
FAILURES_SHOWN = 20
COSTS = ("tokens", "tokens_before", "tokens_per_layer", "prefill_flops", "kv_bytes")
WHOLE = ("total", "ttft")  # in timing_ms: sums of stages, and no stages
MOVED = ("started", "data", "images")  # what may change from session to session without changing a number


def read(folder: Path) -> dict[str, Any]:
    """The numbers of the run in `folder`, finished or not. Raises FailureError where it holds none."""
    return summarise(read_record(folder), read_rows(folder))


def summarise(record: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """The numbers of a run, or of several that runs.joined made one; see the head of this file."""
    methods, absent = record["config"]["methods"], record.get("left_out", {})
    labels = [label for label in methods if label not in absent]
    others = {label: _others(record, labels, label) for label in labels}
    failed = [row for row in rows if row.error is not None]
    kinds = Counter(str(row.error) for row in failed)
    firsts = {str(row.error): row for row in reversed(failed)}
    names = [name for name in record["config"]["benchmarks"] if any(row.benchmark == name for row in rows)]
    results = {
        "record": dict(record),
        "methods": labels,
        "compared_with": others,
        "left_out": dict(absent),
        "answers": len(rows),
        "failed": len(failed),
        "failures": [
            {"benchmark": row.benchmark, "method": row.method, "id": row.id, "image": row.image}
            | {"error": error, "answers": kinds[error]}
            for error in list(kinds)[:FAILURES_SHOWN]
            for row in [firsts[error]]
        ],
        "benchmarks": {
            name: _benchmark(benchmark(name), [row for row in rows if row.benchmark == name], others, record)
            for name in names
        },
    }
    results["unequal"] = unequal(results)
    return {**results, "notes": _notes(results)}


class Measured:
    """The scores of methods on one set of questions, each of which is worked out once."""

    def __init__(self, made: Benchmark, answered: Mapping[str, Sequence[Row]], located: bool = False) -> None:
        """answered: the rows of each method. located: some of them say how many answer patches were kept."""
        self._made, self._answered, self._known = made, answered, dict[Any, dict[str, Estimate]]()
        self._located = located
        self._ids = {label: frozenset(row.id for row in rows) for label, rows in answered.items()}

    def scores(self, label: str, ids: frozenset[str] | None = None) -> dict[str, Estimate]:
        """Every score of a method, on all it answered or on some of it."""
        ids = self._ids[label] if ids is None else ids
        if (label, ids) not in self._known:
            rows = [row for row in self._answered[label] if row.id in ids]
            kept = [(row.image, row.answer_patch_recall) for row in rows if row.answer_patch_recall is not None]
            own = {ANSWER_PATCHES: mean(kept)} if self._located else {}
            self._known[label, ids] = {**self._made.measures(rows), **own}
        return self._known[label, ids]

    def difference(self, label: str, other: str) -> dict[str, Estimate]:
        """Every score of a method minus that of the other, paired: on the questions that both answered."""
        common = self._ids[label] & self._ids[other]
        mine, theirs = self.scores(label, common), self.scores(other, common)
        return {score: mine[score] - theirs[score] for score in mine}


def _others(record: Mapping[str, Any], labels: Sequence[str], label: str) -> dict[str, str]:
    """The labels that a method is compared with, by name: of several those of its run, then that at its budget."""
    methods, found = record["config"]["methods"], {}
    for name in OTHERS:
        named = [other for other in labels if methods[other].get("name", other) == name]
        mine = [other for other in named if _one_run(record, label, other)]
        named = mine or ([] if record.get("across") else named)
        same = [other for other in named if budget_of(methods[other]) == budget_of(methods[label])]
        if len(named) == 1 or len(same) == 1:
            found[name] = (named if len(named) == 1 else same)[0]
    return {name: other for name, other in found.items() if other != label}


def _one_run(record: Mapping[str, Any], label: str, other: str) -> bool:
    """Whether two methods ran side by side, so that their latencies compare; see runs.joined."""
    runs = record.get("runs_of", {})
    return not runs or bool(set(runs[label]) & set(runs[other]))


def _benchmark(
    made: Benchmark, rows: Sequence[Row], others: Mapping[str, Mapping[str, str]], record: Mapping[str, Any]
) -> dict[str, Any]:
    answered: dict[str, list[Row]] = {label: [] for label in others}
    failed = dict.fromkeys(others, 0)
    for row in rows:
        if row.method in others and row.error is None:
            answered[row.method].append(row)
        elif row.method in others:
            failed[row.method] += 1
    groups = list(dict.fromkeys(row.group for row in rows))
    parts = {group: _only(answered, group) for group in (groups if len(groups) > 1 else [])}
    located = any(row.answer_patch_recall is not None for row in rows)
    by_group = {group: _scores(Measured(made, part, located), part, others) for group, part in parts.items()}
    whole = _scores(Measured(made, answered, located), answered, others)
    _adjust([whole])
    _adjust(list(by_group.values()))
    return {
        "title": made.title,
        "columns": {**made.columns, **({ANSWER_PATCHES: "APR %"} if located else {})},
        "headline": made.headline,
        "group_noun": made.group_noun,
        "questions": len({row.id for row in rows}),
        "images": len({row.image for row in rows}),
        "methods": {
            label: {"failed": failed[label], **whole[label], **_cost(label, others[label], answered, record)}
            for label in others
        },
        "remark": made.remark(groups),
        "groups": {
            group: {"n": len({row.id for row in rows if row.group == group}), "methods": methods}
            for group, methods in by_group.items()
        },
    }


def _only(answered: Mapping[str, Sequence[Row]], group: str) -> dict[str, list[Row]]:
    return {label: [row for row in rows if row.group == group] for label, rows in answered.items()}


def _scores(
    measured: Measured, answered: Mapping[str, Sequence[Row]], others: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, Any]]:
    """By method: how many rows, every score, every difference."""
    return {
        label: {
            "n": len(answered[label]),
            "scores": {score: _shown(estimate) for score, estimate in measured.scores(label).items()},
            "differences": {
                name: {
                    score: {**_shown(estimate), "p": estimate.p_value(), "p_holm": None}
                    for score, estimate in measured.difference(label, other).items()
                }
                for name, other in compared.items()
            },
        }
        for label, compared in others.items()
    }


def _adjust(parts: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
    """Fill in "p_holm": p for the number of methods (and groups) compared in a score, after Holm (1979)."""
    families: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for part in parts:
        for method in part.values():
            for other, scores in method["differences"].items():
                for score, difference in scores.items():
                    if difference["p"] is not None:
                        families.setdefault((other, score), []).append(difference)
    for family in families.values():
        least = 0.0
        for place, difference in enumerate(sorted(family, key=lambda difference: difference["p"])):
            difference["p_holm"] = least = max(least, min(1.0, (len(family) - place) * difference["p"]))


def _cost(
    label: str, others: Mapping[str, str], answered: Mapping[str, Sequence[Row]], record: Mapping[str, Any]
) -> dict[str, Any]:
    rows, reference = answered[label], others.get(REFERENCE)
    whole = {row.id: row for row in answered[reference]} if reference else {}
    pairs = [(row, whole[row.id]) for row in rows if row.id in whole]
    timed = pairs if reference and _one_run(record, label, reference) else []
    stages = dict.fromkeys(stage for row in rows for stage in row.timing_ms if stage not in WHOLE)
    return {
        "agreement": _shown(
            mean((row.image, exact_match.same(row.answer or "", other.answer or "")) for row, other in pairs)
        ),
        **{cost: _mean(getattr(row, cost) for row in rows) for cost in COSTS},
        "ttft_ms": spread(row.timing_ms.get("ttft") for row in rows),
        "decode_ms": spread(row.timing_ms.get("decode") for row in rows),
        "latency_ms": spread(row.timing_ms.get("total") for row in rows),
        "latency_ratio": spread(
            row.timing_ms["total"] / other.timing_ms["total"]
            for row, other in timed
            if "total" in row.timing_ms and other.timing_ms.get("total")
        ),
        "stages_ms": {stage: spread(row.timing_ms.get(stage) for row in rows) for stage in stages},
    }


def _shown(estimate: Estimate) -> dict[str, float | None]:
    low, high = estimate.interval() or (None, None)
    return {"value": estimate.value, "low": low, "high": high, "n": estimate.n}


def _mean(values: Iterable[int | float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return fmean(measured) if measured else None


def _notes(results: Mapping[str, Any]) -> list[str]:
    notes = [made["remark"] for made in results["benchmarks"].values() if made["remark"]]
    notes += [*results["record"].get("joined", []), *results["unequal"]]
    for name, missing in left_out(results).items():
        budgets = ", ".join(str(budget) for budget in missing["budgets"] if budget is not None)
        notes.append(f"{name} is left out{f' at {budgets}' if budgets else ''}. {missing['why']}")
    if results["failed"]:
        notes.append(f"{results['failed']} of {results['answers']} answers failed and are not in any score.")
    for run, record in (results["record"].get("runs") or {"": results["record"]}).items():
        first, *later = record["sessions"]
        changed = sorted(
            {key for session in later for key in session if key not in MOVED and session[key] != first.get(key)}
        )
        if changed:
            named = f"run {run}" if run else "run"
            notes.append(f"The {named} was resumed under other conditions than it began with: {', '.join(changed)}.")
    return notes
