"""Which methods may stand side by side: those that were granted the same.

The measure is the mean number of visual tokens per LLM layer, as it was counted. Methods compare
- under one budget, where all of them got about the same: `SAME_BUDGET`, or a token, as inside an LLM whole ones go;
- and any two of them where they have a budget in common, so that a sweep compares with a sweep.
The uncompressed model stands beside everything.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

REFERENCE, FLOOR = "keep_all", "random"
UNEQUAL = "UNEQUAL BUDGETS"
SAME_BUDGET = 0.01  # relative difference in mean tokens per layer up to which methods of one budget compare


def budget_of(settings: Mapping[str, Any]) -> int | float | None:
    """What a method of the record was granted: a number of tokens, or a share of the patches."""
    budget: int | float | None = settings.get("budget") or settings.get("keep_ratio")
    return budget


def without_budget(label: str, budget: int | float | None) -> str:
    """The label of a method at several budgets, without the one."""
    for key in ("budget", "keep_ratio"):
        label = label.replace(f"({key}={budget})", "").replace(f"{key}={budget}, ", "")
    return label


def left_out(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The methods that could not meet some budget: {"budgets": those, "why": what was said of the first}."""
    missing: dict[str, dict[str, Any]] = {}
    for label, why in results["left_out"].items():
        budget = budget_of(results["record"]["config"]["methods"][label])
        missing.setdefault(without_budget(label, budget), {"budgets": [], "why": why})["budgets"].append(budget)
    return missing


def unequal(results: Mapping[str, Any]) -> list[str]:
    """What stands side by side in `results` though it was not granted the same: a line for each benchmark."""
    record = results["record"]
    methods = record["config"]["methods"]
    lines = []
    for made in results["benchmarks"].values():
        means = {
            label: made["methods"][label]["tokens_per_layer"]
            for label in results["methods"]
            if methods[label].get("name", label) != REFERENCE and made["methods"][label]["tokens_per_layer"] is not None
        }
        at_budget: dict[Any, dict[str, float]] = {}
        series: dict[str, dict[str, float]] = {}
        for label, tokens in means.items():
            at_budget.setdefault(budget_of(methods[label]), {})[label] = tokens
            series.setdefault(_method(record, label), {})[label] = tokens
        mixed = [part for part in at_budget.values() if not _same(list(part.values()))] or _apart(series)
        lines += [
            f"{made['title']}: the budgets differ, so scores do not compare at equal cost. "
            f"Mean visual tokens per LLM layer: {', '.join(f'{label} {tokens:.1f}' for label, tokens in part.items())}."
            for part in mixed
        ]
    return lines


def marked(title: str, unequal: Sequence[str]) -> str:
    """The title of a table or a picture: it says so where what is `unequal` was allowed to stand side by side."""
    return f"{UNEQUAL}: {title}" if unequal else title


def _method(record: Mapping[str, Any], label: str) -> str:
    """What a method is called at any budget, in any run; where the report compares models or prompts, in its own."""
    name = without_budget(label, budget_of(record["config"]["methods"][label]))
    run = record.get("runs_of", {}).get(label, [""])[0]
    return name if record.get("across") else name.removesuffix(f" [{run}]")


def _apart(series: Mapping[str, Mapping[str, float]]) -> list[dict[str, float]]:
    """The methods that have no budget in common with some other, if any: label to mean tokens per layer."""
    strangers: dict[str, float] = {}
    for one, other in combinations(series.values(), 2):
        if not any(_same([tokens, its]) for tokens in one.values() for its in other.values()):
            strangers |= {**one, **other}
    return [strangers] if strangers else []


def _same(means: Sequence[float]) -> bool:
    return max(means) <= max((1 + SAME_BUDGET) * min(means), min(means) + 1)
