"""ANLS, the average normalised Levenshtein similarity to the nearest reference (Biten et al. 2019), 0 to 1.

A similarity below the threshold counts as 0: such an answer is wrong, not misspelt. The distance is taken on lower-case
text with single spaces but divided by the length of the text as given, as both official codes have it, so doubled
spaces raise a score. A similarity of exactly .5 is kept, as in both codes (the usual definition drops it).

Scorers, each met on golden rows made by its authors' code:
- lmms_eval, vlmevalkit: threshold .5, blanks around the prediction removed; the two agree.
- lmms_eval_unstripped: the same on the prediction as generated. lmms_eval_no_threshold: nothing is set to 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rapidfuzz.distance import Levenshtein

from ...registry import unknown

SCORERS = {  # (threshold, strip the prediction)
    "lmms_eval": (0.5, True),
    "lmms_eval_unstripped": (0.5, False),
    "lmms_eval_no_threshold": (0.0, True),
    "vlmevalkit": (0.5, True),
}


def similarity(answer: str, references: Sequence[str], threshold: float = 0.5) -> float:
    """How near `answer` comes to the nearest reference, 0 to 1."""
    nearness = 1 - min(_distance(answer, reference) for reference in references)
    return nearness if nearness >= threshold else 0.0


def score(rows: Sequence[Mapping[str, Any]], scorer: str = "lmms_eval") -> dict[str, Any]:
    """{"per_row", "mean"} over rows {"prediction", "answers": list}; the mean of no rows is None.

    Raises UnknownNameError for an unknown scorer.
    """
    if scorer not in SCORERS:
        raise unknown("scorer", scorer, SCORERS)
    threshold, strip = SCORERS[scorer]
    per_row = [
        similarity(row["prediction"].strip() if strip else row["prediction"], row["answers"], threshold) for row in rows
    ]
    return {"per_row": per_row, "mean": sum(per_row) / len(per_row) if per_row else None}


def _distance(answer: str, reference: str) -> float:
    longer = max(len(text.upper()) for text in (answer, reference))  # upper: as both codes; it counts a sharp s twice
    distance = Levenshtein.distance(*(" ".join(text.lower().split()) for text in (answer, reference)))
    return distance / longer if longer else 0.0
