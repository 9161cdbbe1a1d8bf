"""VQAv2: open questions on COCO photographs, ten people's answers each. val2014: 214,354 questions on 40,504 images.

Source: https://visualqa.org/download.html (Goyal et al., CVPR 2017), v2_Questions_Val_mscoco.zip and
v2_Annotations_Val_mscoco.zip; images: COCO val2014.
Licence: CC BY 4.0 (annotations); COCO images under the terms of Flickr.
Official scorer: GT-Vision-Lab/VQA, vqaEval.py: soft accuracy over ten answers. It does not normalise an answer on which
all ten agree, so LLaVA's scripts do that before they hand answers in (convert_vqav2_for_submission.py), as here.
Published LLaVA results are on test-dev, which only the challenge server scores; here it is the validation set.
Hub: lmms-lab-encoder/VQAv2 (until July 2026 lmms-lab/VQAv2), which repeats the image in every row.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...errors import DataError
from ..annotations import by_id, first_existing, id_of, listed, text_of, texts_of
from ..metrics import vqa
from ..metrics.interval import Estimate, mean
from ..records import Row
from .base import Benchmark, Entry, Hub, chosen

QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
EXAMPLE = {
    QUESTIONS: """{"info": {"description": "This is v2.0 of the VQA dataset."}, "task_type": "Open-Ended",
        "data_type": "mscoco", "data_subtype": "val2014", "license": {"name": "CC BY 4.0"}, "questions": [
        {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000},
        {"image_id": 262148, "question": "Is the man on a ramp?", "question_id": 262148003}]}""",
    ANNOTATIONS: """{"info": {"description": "This is v2.0 of the VQA dataset."}, "data_type": "mscoco",
        "data_subtype": "val2014", "license": {"name": "CC BY 4.0"}, "annotations": [
        {"question_type": "none of the above", "multiple_choice_answer": "down", "answers": [
         {"answer": "down", "answer_confidence": "yes", "answer_id": 1},
         {"answer": "down", "answer_confidence": "yes", "answer_id": 2},
         {"answer": "at table", "answer_confidence": "yes", "answer_id": 3},
         {"answer": "down", "answer_confidence": "maybe", "answer_id": 4},
         {"answer": "down", "answer_confidence": "yes", "answer_id": 5}],
         "image_id": 262148, "answer_type": "other", "question_id": 262148000},
        {"question_type": "is the man", "multiple_choice_answer": "yes", "answers": [
         {"answer": "yes", "answer_confidence": "yes", "answer_id": 1},
         {"answer": "yes", "answer_confidence": "yes", "answer_id": 2},
         {"answer": "yes", "answer_confidence": "maybe", "answer_id": 3},
         {"answer": "yes", "answer_confidence": "yes", "answer_id": 4}],
         "image_id": 262148, "answer_type": "yes/no", "question_id": 262148003}]}""",
    "val2014/COCO_val2014_000000262148.jpg": None,
}
TYPES = ("yes/no", "number", "other")


class Vqav2(Benchmark):
    """Open questions on photographs."""

    name = "vqav2"
    title = "VQAv2"
    example: ClassVar = EXAMPLE
    group_noun = "answer type"
    groups = TYPES
    columns: ClassVar = {"accuracy": "overall %", "yes_no": "yes/no %", "number": "number %", "other": "other %"}
    headline = "accuracy"
    hub = Hub("lmms-lab-encoder/VQAv2", "validation")
    image_folders = ("val2014", "images", "")

    def read(self, roots: Sequence[Path], only: Sequence[str]) -> list[Entry]:
        """The questions of the validation set, whose two files may lie in folders questions and annotations."""
        types = chosen(TYPES, only, "answer type of VQAv2")
        questions, annotations = (
            listed(
                first_existing(
                    (root / folder / file for root in roots for folder in ("", "annotations", "questions")),
                    f"VQAv2: {file}",
                ),
                key,
            )
            for file, key in ((QUESTIONS, "questions"), (ANNOTATIONS, "annotations"))
        )
        answers = by_id(annotations, "question_id")
        entries = []
        for place, row in questions:
            number = id_of(row, "question_id", place)
            if number not in answers:
                raise DataError(f'{place} asks question "{number[:60]}", which {ANNOTATIONS} does not answer.')
            where, answer = answers[number]
            entry = self._entry(row, place, answer, where)
            if entry.group in types:
                entries.append(entry)
        return entries

    def entry_of(self, row: Mapping[str, Any], place: str) -> Entry:
        """A row of lmms-lab-encoder/VQAv2: question and annotation in one."""
        return self._entry(row, place, row, place)

    def _entry(self, row: Mapping[str, Any], place: str, answer: Mapping[str, Any], where: str) -> Entry:
        kind = text_of(answer, "answer_type", where)
        if kind not in TYPES:
            raise DataError(f"{where} has the answer type {kind!r:.60}; VQAv2 knows {', '.join(TYPES)}.")
        return Entry(
            id=id_of(row, "question_id", place),
            image=_image(row, place),
            question=text_of(row, "question", place),
            references=_answers(answer, where),
            group=kind,
        )

    def remark(self, groups: Sequence[str]) -> str | None:
        """Which set this is."""
        return "VQAv2: the validation set; published LLaVA results are on test-dev, which only its server scores."

    def measures(self, rows: Sequence[Row]) -> dict[str, Estimate]:
        """The official soft accuracy of normalised answers, over all questions and by the type of their answers."""
        scored = [(row.group, row.image, vqa.accuracy(row.answer or "", row.references, "llava")) for row in rows]
        return {
            "accuracy": mean((image, right) for _, image, right in scored),
            **{
                kind.replace("/", "_"): mean((image, right) for group, image, right in scored if group == kind)
                for kind in TYPES
            },
        }


def _image(row: Mapping[str, Any], place: str) -> str:
    number = row.get("image_id")
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 10**12:
        raise DataError(f'{place} has no "image_id", a number of up to 12 digits.')
    return f"COCO_val2014_{number:012d}.jpg"


def _answers(row: Mapping[str, Any], place: str) -> list[str]:
    """The ten answers, in their order."""
    answers = row.get("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise DataError(f'{place} has no "answers", a list of objects.')
    return texts_of({"answers": [answer.get("answer") for answer in answers]}, "answers", place)
