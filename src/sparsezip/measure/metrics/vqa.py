"""VQA soft accuracy: an answer that three of the other annotators gave is right, 0 to 1 (Antol et al., ICCV 2015).

For each annotator in turn the answer scores min(n / 3, 1), n being how many of the others gave it; the mean over the
annotators counts. Answers are compared after a normalisation: punctuation goes, number words up to ten become digits,
articles go, contractions get the apostrophe they lack. The codes differ in when and how they normalise:
- vqa_official: GT-Vision-Lab/VQA vqaEval.py, and only where the annotators differ; where all agree, the answer has to
  equal theirs as written, case and full stop included.
- llava: LLaVA's numbers on VQAv2: its converter normalises the answer (as for textvqa), then the official code scores.
- lmms_eval: EvolvingLMMs-Lab/lmms-eval tasks/vqav2. Always normalises.
- textvqa: M4C's evaluator, which LLaVA and lmms-eval use for TextVQA. Always; commas and question marks vanish first
  and a possessive 's becomes a word, so "11,000" and "11000" are the same, and "dog's" is "dog 's".

Their quirks are kept, each met on golden rows made by its authors' code: a punctuation mark turns into a blank, but
goes without one where it stands next to a blank anywhere in the text or the text has a comma between digits (so
"11,000 a-b" is "11000 ab"); only the first 32 full stops are removed; "none" is 0.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ...registry import unknown

MARKS = ';/[]"{}()=+\\_-><@`,?!'
NUMBERS = {"zero": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ["none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
}
ARTICLES = {"a", "an", "the"}
ENDINGS = {  # the words that the official table knows with each ending
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "n't've": "could had might should would",
    "'ve": "could might must not should they we what where who would you",
    "'d": "he how it someone something there they where who you",
    "'d've": "he it she somebody someone something there they we who you",
    "'ll": "how it somebody someone something they what who why you",
    "'s": "he how somebody someone that there what when where who why",
    "'re": "there they what why you",
    "": "ma'am o'clock 'ow's'at 'twas y'all y'all'll y'all'd've",
}
CONTRACTIONS = {  # by what is left of them without one of their apostrophes
    word[:place] + word[place + 1 :]: word
    for ending, stems in ENDINGS.items()
    for word in (stem + ending for stem in stems.split())
    for place, letter in enumerate(word)
    if letter == "'"
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the official table's one slip

_FULL_STOP = re.compile(r"\.(?!\d)")
_COMMA, _COMMAS = re.compile(r"\d,\d"), re.compile(r"\d,+\d")


def accuracy(answer: str, references: Sequence[str], scorer: str = "vqa_official") -> float:
    """The soft accuracy of `answer`, given what each annotator said, 0 to 1. Raises UnknownNameError."""
    answer, references = _reader(scorer)(answer, references)
    same = [reference == answer for reference in references]
    return sum(min(1, (sum(same) - one) / 3) for one in same) / len(same)


def score(rows: Sequence[Mapping[str, Any]], scorer: str = "vqa_official") -> dict[str, Any]:
    """{"per_row", "mean"} over rows {"prediction", "answers": one of each annotator}; the mean of no rows is None.

    Raises UnknownNameError for an unknown scorer.
    """
    _reader(scorer)
    per_row = [accuracy(row["prediction"], row["answers"], scorer) for row in rows]
    return {"per_row": per_row, "mean": sum(per_row) / len(per_row) if per_row else None}


def _reader(scorer: str) -> "Reader":
    if scorer not in SCORERS:
        raise unknown("scorer", scorer, SCORERS)
    return SCORERS[scorer]


def _vqa_official(answer: str, references: Sequence[str]) -> tuple[str, list[str]]:
    answer, *references = (_one_line(text) for text in (answer, *references))
    if len(set(references)) > 1:
        answer, *references = (_plain(text) for text in (answer, *references))
    return answer, references


def _llava(answer: str, references: Sequence[str]) -> tuple[str, list[str]]:
    return _vqa_official(_eval_ai(answer), references)


def _lmms_eval(answer: str, references: Sequence[str]) -> tuple[str, list[str]]:
    answer, *references = (_plain(_one_line(text), _COMMAS) for text in (answer, *references))
    return answer, references


def _textvqa(answer: str, references: Sequence[str]) -> tuple[str, list[str]]:
    return _eval_ai(answer), [_eval_ai(reference) for reference in references]


def _eval_ai(text: str) -> str:
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return _plain(_one_line(text), _COMMAS)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=100_000)  # annotators say the same few things again and again
def _plain(text: str, commas: re.Pattern[str] = _COMMA) -> str:
    tight = commas.search(text) is not None
    marks = {ord(mark): "" if tight or f"{mark} " in text or f" {mark}" in text else " " for mark in MARKS}
    text = _FULL_STOP.sub("", text.translate(marks), count=32)
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


Reader = Callable[[str, Sequence[str]], tuple[str, list[str]]]  # an answer and its references as they are compared
SCORERS: dict[str, Reader] = {
    "vqa_official": _vqa_official,
    "llava": _llava,
    "lmms_eval": _lmms_eval,
    "textvqa": _textvqa,
}
