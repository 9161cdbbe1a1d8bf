"""Yes/no questions: accuracy, precision, recall, F1 of "yes", and the share of "yes" among the predictions.

Scorers that read the same answers differently, each met on golden rows made by its authors' code:
- pope_official: RUCAIBox/POPE evaluate.py. The first sentence decides, commas aside: "no" if one of its words, split at
  single spaces, is exactly No, no or not; anything else is "yes", also an empty answer, "NO" or "isn't".
- llava_eval_pope_by_category: haotian-liu/LLaVA eval_pope.py. The same reading, scored per category.
- lmms_eval: EvolvingLMMs-Lab/lmms-eval tasks/pope. Only "yes" and "no" themselves count, in any case; its yes_ratio is
  the share of "yes" among the LABELS.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...registry import unknown

Rows = Sequence[Mapping[str, Any]]


def prediction(answer: str) -> str:
    """What an answer says, "yes" or "no", as the official POPE scorer reads it."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def score(rows: Rows, scorer: str = "pope_official") -> dict[str, Any]:
    """The scores of rows {"answer", "label", for the scorer by category also "category"}, as fractions.

    A fraction that the official code would divide by zero for is None. Raises UnknownNameError for an unknown scorer.
    """
    if scorer not in SCORERS:
        raise unknown("scorer", scorer, SCORERS)
    return SCORERS[scorer](rows)


def _pope_official(rows: Rows) -> dict[str, Any]:
    pairs = [(prediction(row["answer"]), "no" if row["label"] == "no" else "yes") for row in rows]
    tp, fp, tn, fn = (pairs.count(pair) for pair in (("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "yes")))
    precision, recall = _share(tp, tp + fp), _share(tp, tp + fn)
    return {
        "TP": tp,
        "FP": fp,
        "TN": tn,
        "FN": fn,
        "acc": _share(tp + tn, len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall)
        if precision is not None and recall is not None
        else None,
        "yes_ratio": _share(tp + fp, len(pairs)),
    }


def _llava_by_category(rows: Rows) -> dict[str, Any]:
    categories = dict.fromkeys(row["category"] for row in rows)
    return {name: _pope_official([row for row in rows if row["category"] == name]) for name in categories}


def _lmms_eval(rows: Rows) -> dict[str, Any]:
    pairs = [(row["answer"].lower().strip(), row["label"].lower().strip()) for row in rows]
    tp, fp, fn = (pairs.count(pair) for pair in (("yes", "yes"), ("yes", "no"), ("no", "yes")))
    labels = [label for _, label in pairs]
    precision, recall = _share(tp, tp + fp) or 0, _share(tp, tp + fn) or 0  # this scorer's own zeros
    return {
        "accuracy": _share(sum(answer == label for answer, label in pairs), len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1_score": _share(2 * precision * recall, precision + recall) or 0,
        "yes_ratio": _share(labels.count("yes"), len(labels)) or 0,
    }


def _share(part: int | float, whole: int | float) -> float | None:
    return part / whole if whole else None


SCORERS: dict[str, Callable[[Rows], dict[str, Any]]] = {
    "pope_official": _pope_official,
    "llava_eval_pope_by_category": _llava_by_category,
    "lmms_eval": _lmms_eval,
}
