"""DocVQA: questions on scanned documents, answered with a span of their text. Validation: 5,349 questions, 1,286 pages.

Source: https://rrc.cvc.uab.es/?ch=17 (Mathew et al., WACV 2021), task 1, after registration.
Licence: research only; documents of the UCSF Industry Documents Library.
Official scorer: the challenge server (ANLS, threshold .5); checked here against lmms-eval and VLMEvalKit.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from ...errors import DataError
from ..metrics import anls, exact_match
from ..metrics.interval import Estimate, mean
from ..records import Row
from .base import Benchmark, Entry, chosen, first_existing, id_of, objects, read_text, text_of

EXAMPLE = {
    "val_v1.0_withQT.json": """{"dataset_name": "SP-DocVQA", "dataset_split": "val", "dataset_version": "1.0", "data": [
        {"questionId": 49153, "question": "What is the 'actual' value per 1000, during the year 1975?",
         "question_types": ["figure/diagram"], "image": "documents/pybv0228_81.png", "docId": 14465,
         "ucsf_document_id": "pybv0228", "ucsf_document_page_no": "81", "answers": ["0.28"], "data_split": "val"}]}""",
    "documents/pybv0228_81.png": None,
}
FILES = ("val_v1.0_withQT.json", "val_v1.0.json")


class DocVqa(Benchmark):
    """Reading documents."""

    name = "docvqa"
    title = "DocVQA"
    example: ClassVar = EXAMPLE
    group_noun = "split"
    columns: ClassVar = {"anls": "ANLS %", "exact_match": "EM %"}
    headline = "anls"
    max_new_tokens = 32

    def read(self, roots: Sequence[Path], only: Sequence[str]) -> list[Entry]:
        """The questions of the validation split, whose file may lie in a folder annotations."""
        chosen(["val"], only, "split of DocVQA")
        path = first_existing(
            (root / folder / file for root in roots for folder in ("", "annotations") for file in FILES),
            "DocVQA: the annotation file",
        )
        try:
            rows = json.loads(read_text(path))["data"]
        except (ValueError, TypeError, KeyError):
            rows = None
        if not isinstance(rows, list) or not rows:
            raise DataError(f'{path} is not a JSON object whose "data" lists questions.')
        entries = []
        for place, row in objects(rows, path):
            answers = row.get("answers")
            if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
                raise DataError(f'{place} has no "answers"{"" if answers is None else f" but {answers!r}"}.')
            entries.append(
                Entry(
                    id=id_of(row, "questionId", place),
                    image=text_of(row, "image", place),
                    question=text_of(row, "question", place),
                    references=answers,
                    group="val",
                )
            )
        return entries

    def measures(self, rows: Sequence[Row]) -> dict[str, Estimate]:
        """ANLS at threshold .5, and the share of answers that equal a reference."""
        images = [row.image for row in rows]
        answers = [{"prediction": row.answer or "", "answers": row.references} for row in rows]
        return {
            "anls": mean(zip(images, anls.score(answers)["per_row"], strict=True)),
            "exact_match": mean(zip(images, exact_match.score(answers)["per_row"], strict=True)),
        }
