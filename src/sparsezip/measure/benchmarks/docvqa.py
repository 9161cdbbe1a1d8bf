"""DocVQA: questions on scanned documents, answered with a span of their text. Validation: 5,349 questions, 1,286 pages.

Source: https://rrc.cvc.uab.es/?ch=17 (Mathew et al., WACV 2021), task 1, after registration.
Licence: research only; documents of the UCSF Industry Documents Library.
Official scorer: the challenge server (ANLS, threshold .5); checked here against lmms-eval and VLMEvalKit.
Hub: lmms-lab-encoder/DocVQA (until July 2026 lmms-lab/DocVQA), where document and page make up the image's name.
LLaVA-1.5 was not published on it: its preset is that project's general wording for short answers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..annotations import first_existing, id_of, image_of, inside, listed, text_of, texts_of
from ..metrics import anls, exact_match
from ..metrics.interval import Estimate, mean
from ..records import Row
from .base import Benchmark, Entry, Hub, chosen, prompts

EXAMPLE = {
    "val_v1.0_withQT.json": """{"dataset_name": "SP-DocVQA", "dataset_split": "val", "dataset_version": "1.0", "data": [
        {"questionId": 49153, "question": "What is the 'actual' value per 1000, during the year 1975?",
         "question_types": ["figure/diagram"], "image": "documents/pybv0228_81.png", "docId": 14465,
         "ucsf_document_id": "pybv0228", "ucsf_document_page_no": "81", "answers": ["0.28"], "data_split": "val"}]}""",
    "documents/pybv0228_81.png": None,
}
FOLDERS = ("", "annotations", "spdocvqa_qas")
FILES = ("val_v1.0_withQT.json", "val_v1.0.json")


class DocVqa(Benchmark):
    """Reading documents."""

    name = "docvqa"
    title = "DocVQA"
    example: ClassVar = EXAMPLE
    group_noun = "split"
    columns: ClassVar = {"anls": "ANLS %", "exact_match": "EM %"}
    headline = "anls"
    image_folders = ("images", "spdocvqa_images", "")
    prompts: ClassVar = prompts(lmms_eval=32, small=32)
    hub = Hub("lmms-lab-encoder/DocVQA", "validation", config="DocVQA")

    def read(self, roots: Sequence[Path], only: Sequence[str]) -> list[Entry]:
        """The questions of the validation split, whose file may lie in a folder annotations or spdocvqa_qas."""
        chosen(["val"], only, "split of DocVQA")
        path = first_existing(
            (root / folder / file for root in roots for folder in FOLDERS for file in FILES),
            "DocVQA: the annotation file",
        )
        return [self._entry(row, place, image_of(row, "image", place)) for place, row in listed(path, "data")]

    def entry_of(self, row: Mapping[str, Any], place: str) -> Entry:
        """A row of lmms-lab-encoder/DocVQA."""
        page = f"{text_of(row, 'ucsf_document_id', place)}_{id_of(row, 'ucsf_document_page_no', place)}.png"
        return self._entry(row, place, inside(f"documents/{page}", place))

    def _entry(self, row: Mapping[str, Any], place: str, image: str) -> Entry:
        return Entry(
            id=id_of(row, "questionId", place),
            image=image,
            question=text_of(row, "question", place),
            references=texts_of(row, "answers", place),
            group="val",
        )

    def measures(self, rows: Sequence[Row]) -> dict[str, Estimate]:
        """ANLS at threshold .5, and the share of answers that equal a reference."""
        images = [row.image for row in rows]
        answers = [{"prediction": row.answer or "", "answers": row.references} for row in rows]
        return {
            "anls": mean(zip(images, anls.score(answers)["per_row"], strict=True)),
            "exact_match": mean(zip(images, exact_match.score(answers)["per_row"], strict=True)),
        }
