"""Exact match: 1 where the answer is one of the references, else 0.

Scorers:
- plain: case, blanks at the ends, doubled blanks and a final full stop do not count. This package's own.
The others are the codes for GQA, each met on golden rows made by its authors' code:
- gqa_official: eval.py of the GQA data set. The answer as it is; the references are lower-case.
- llava: LLaVA's converter in front of it, which drops full stops at the end and lowers the case. Published numbers.
- lmms_eval: EvolvingLMMs-Lab/lmms-eval. Blanks at the answer's ends, case and ASCII punctuation do not count.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...registry import unknown


def same(answer: str, reference: str, scorer: str = "plain") -> bool:
    """Whether two answers say the same. Raises UnknownNameError for an unknown scorer."""
    read_answer, read_reference = _readers(scorer)
    return read_answer(answer) == read_reference(reference)


def score(rows: Sequence[Mapping[str, Any]], scorer: str = "plain") -> dict[str, Any]:
    """{"per_row", "mean"} over rows {"prediction", "answers": list}; the mean of no rows is None.

    Raises UnknownNameError for an unknown scorer.
    """
    read_answer, read_reference = _readers(scorer)
    per_row = [float(read_answer(row["prediction"]) in map(read_reference, row["answers"])) for row in rows]
    return {"per_row": per_row, "mean": sum(per_row) / len(per_row) if per_row else None}


def _readers(scorer: str) -> "tuple[Reader, Reader]":
    if scorer not in SCORERS:
        raise unknown("scorer", scorer, SCORERS)
    return SCORERS[scorer]


def _plain(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").rstrip().casefold()


def _as_it_is(text: str) -> str:
    return text


def _llava(text: str) -> str:
    return text.rstrip(".").lower()


def _letters(text: str) -> str:
    return text.lower().translate(dict.fromkeys(map(ord, string.punctuation)))


def _stripped_letters(text: str) -> str:
    return _letters(text.strip())


Reader = Callable[[str], str]
SCORERS: dict[str, tuple[Reader, Reader]] = {  # how an answer is read, and a reference
    "plain": (_plain, _plain),
    "gqa_official": (_as_it_is, _as_it_is),
    "llava": (_llava, _as_it_is),
    "lmms_eval": (_stripped_letters, _letters),
}
