"""Exact match: 1 where the answer is one of the references, else 0.

Case, blanks at the ends, doubled blanks and a final full stop do not count.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def same(answer: str, reference: str) -> bool:
    """Whether two answers say the same."""
    return _plain(answer) == _plain(reference)


def score(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"per_row", "mean"} over rows {"prediction", "answers": list}; the mean of no rows is None."""
    per_row = [float(any(same(row["prediction"], answer) for answer in row["answers"])) for row in rows]
    return {"per_row": per_row, "mean": sum(per_row) / len(per_row) if per_row else None}


def _plain(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").rstrip().casefold()
