"""What every method scored at every budget, picked from the results of a run: small enough to be kept and drawn.

compared["budgets"]         those of the run, in the order they were asked for
compared["measured"]        on which model, with what, when
compared["missing"]         {method: {"budgets", "why"}}: budgets that a method could not meet
compared["unequal"]         what was not granted the same, in sentences
compared["benchmarks"]      one for each: "title", "score" (its headline's heading), "digits" (behind its point),
                            "questions", "images", "groups"
    ["methods"][name]       points, the most tokens first: "budget" (None: the method's own settings), "sent" and
                            "per_layer" (mean visual tokens, into the LLM and into each of its layers), "ms" (median
                            of the time of an answer), "value", "low" and "high" (95 % interval) as they are shown, in
                            percent where the heading says so
"""

from collections.abc import Mapping
from typing import Any

from .fairness import budget_of, left_out, without_budget


def compare(results: Mapping[str, Any], measured: str) -> dict[str, Any]:
    """The points of a run; `measured`: the line that says on what."""
    methods = results["record"]["config"]["methods"]
    budgets = dict.fromkeys(budget_of(methods[label]) for label in methods)
    return {
        "budgets": [budget for budget in budgets if budget is not None],
        "measured": measured,
        "missing": left_out(results),
        "unequal": results["unequal"],
        "benchmarks": [_benchmark(results, made) for made in results["benchmarks"].values()],
    }


def _benchmark(results: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    methods = results["record"]["config"]["methods"]
    factor, digits = form_of(made, made["headline"])
    series: dict[str, list[dict[str, Any]]] = {}
    for label in results["methods"]:
        budget, mine = budget_of(methods[label]), made["methods"][label]
        score, latency = mine["scores"][made["headline"]], mine["latency_ms"]
        costs = {"sent": mine["tokens"], "per_layer": mine["tokens_per_layer"], "ms": latency and latency["median"]}
        shown = {key: score[key] and factor * score[key] for key in ("value", "low", "high")}
        point = {key: _rounded(value) for key, value in costs.items()}
        point |= {key: _rounded(value, digits + 1) for key, value in shown.items()}
        series.setdefault(without_budget(label, budget), []).append({"budget": budget, **point})
    return {
        "title": made["title"],
        "score": made["columns"][made["headline"]],
        "digits": digits,
        "questions": made["questions"],
        "images": made["images"],
        "groups": sorted(made["groups"]),
        "methods": {
            name: sorted(points, key=lambda point: -(point["per_layer"] or 0)) for name, points in series.items()
        },
    }


def form_of(made: Mapping[str, Any], score: str) -> tuple[int, int]:
    """How a score is written: times what, with how many digits behind the point."""
    if made["columns"][score].endswith("%"):
        return 100, 1
    values = [abs(method["scores"][score]["value"] or 0) for method in made["methods"].values()]
    return 1, 1 if max(values, default=0) >= 10 else 3  # sums of a thousand, and captions around one


def _rounded(value: float | None, digits: int = 2) -> float | None:
    return None if value is None else round(value, digits)
