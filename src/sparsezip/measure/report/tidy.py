"""The numbers of a report as CSV: one row for each run, benchmark, group, method and score. Empty: not measured."""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from .fairness import budget_of
from .summary import COSTS, OTHERS

TIMES = ("ttft_ms", "decode_ms", "latency_ms")
ALL = "all"  # the group that is no group
FORMULA = ("=", "+", "-", "@")  # how a text begins that a spreadsheet would carry out


def text(results: Mapping[str, Any]) -> str:
    """The whole file. Shares are between 0 and 1, times in ms; costs are those of all groups together."""
    rows = list(_rows(results))
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _safe(value) for key, value in row.items()})
    return file.getvalue()


def _rows(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    record = results["record"]
    for name, benchmark in results["benchmarks"].items():
        parts = {ALL: benchmark["methods"]} | {group: part["methods"] for group, part in benchmark["groups"].items()}
        for group, methods in parts.items():
            for label, method in methods.items():
                for score, estimate in method["scores"].items():
                    yield {
                        "run": " ".join(record.get("runs_of", {}).get(label, [])),
                        "benchmark": name,
                        "group": group,
                        "method": label,
                        "budget": budget_of(record["config"]["methods"][label]),
                        "unequal_budgets": bool(results["unequal"]),
                        "score": score,
                        "n": estimate["n"],
                        **{key: estimate[key] for key in ("value", "low", "high")},
                        **_differences(method["differences"], score),
                        **_costs(benchmark["methods"][label] if group == ALL else {}),
                    }


def _differences(differences: Mapping[str, Any], score: str) -> dict[str, Any]:
    return {
        f"minus_{other}" + ("" if key == "value" else f"_{key}"): differences.get(other, {}).get(score, {}).get(key)
        for other in OTHERS
        for key in ("value", "low", "high", "p", "p_holm")
    }


def _costs(method: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "same_answer": method.get("agreement", {}).get("value"),
        **{cost: method.get(cost) for cost in COSTS},
        **{f"{time}_{point}": (method.get(time) or {}).get(point) for time in TIMES for point in ("median", "p90")},
    }


def _safe(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
