"""POPE: does a model see objects that are not there? 3,000 yes/no questions in each of 3 splits, on 500 COCO images.

Source: https://github.com/RUCAIBox/POPE (Li et al., EMNLP 2023), folder output/coco; images: COCO val2014.
Licence: MIT (annotations); COCO images under the terms of Flickr.
Official scorer: evaluate.py of that repository, the metric yes_no's "pope_official". The splits differ in how the
absent object is drawn: at random, among frequent objects, among objects that often stand beside those present.
Hub: lmms-lab-encoder/POPE (until July 2026 lmms-lab/POPE), whose "image_source" lacks the suffix of the file's name.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...errors import DataError
from ..annotations import first_existing, id_of, image_of, json_lines, text_of
from ..metrics import yes_no
from ..metrics.interval import Estimate, mean, ratio
from ..records import Row
from .base import Benchmark, Entry, Hub, chosen, prompts

EXAMPLE = {
    f"coco_pope_{split}.json": (
        '{"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard in the image?", '
        '"label": "yes"}\n'
        '{"question_id": 2, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a backpack in the image?", '
        '"label": "no"}\n'
    )
    for split in ("random", "popular", "adversarial")
} | {"images/COCO_val2014_000000310196.jpg": None}
SPLITS = ("random", "popular", "adversarial")


class Pope(Benchmark):
    """Object hallucination, asked with yes/no questions."""

    name = "pope"
    title = "POPE"
    example: ClassVar = EXAMPLE
    group_noun = "split"
    groups = SPLITS
    prompts: ClassVar = prompts(lmms_eval=128)
    hub = Hub("lmms-lab-encoder/POPE", "test")
    columns: ClassVar = {
        "accuracy": "acc %",
        "f1": "F1 %",
        "precision": "prec %",
        "recall": "rec %",
        "no_recall": "no rec %",
        "yes_ratio": "yes %",
    }
    headline = "accuracy"
    together = 2  # a yes and a no, so that a part of the questions is balanced like the whole
    image_folders = ("images", "val2014", "")

    def read(self, roots: Sequence[Path], only: Sequence[str]) -> list[Entry]:
        """The questions of coco_pope_SPLIT.json, which may lie in a folder annotations or coco."""
        entries = []
        for split in chosen(SPLITS, only, "split of POPE"):
            file = f"coco_pope_{split}.json"
            path = first_existing(
                (root / folder / file for root in roots for folder in ("", "annotations", "coco")), f"POPE: {file}"
            )
            entries += [
                self._entry(row, place, split, image_of(row, "image", place)) for place, row in json_lines(path)
            ]
        return entries

    def entry_of(self, row: Mapping[str, Any], place: str) -> Entry:
        """A row of lmms-lab-encoder/POPE: its question is called "question", its label "answer"."""
        split = text_of(row, "category", place)
        if split not in SPLITS:
            raise DataError(f"{place} has the category {split!r:.60}; POPE knows {', '.join(SPLITS)}.")
        image = image_of(row, "image_source", place)
        renamed = {**row, "text": row.get("question"), "label": row.get("answer")}
        return self._entry(renamed, place, split, image if image.endswith(".jpg") else f"{image}.jpg")

    def _entry(self, row: Mapping[str, Any], place: str, split: str, image: str) -> Entry:
        label = text_of(row, "label", place).lower()
        if label not in ("yes", "no"):
            raise DataError(f"{place} has the label {label!r:.60}; POPE knows yes and no.")
        number, question = id_of(row, "question_id", place), text_of(row, "text", place)
        return Entry(id=f"{split}/{number}", image=image, question=question, references=[label], group=split)

    def measures(self, rows: Sequence[Row]) -> dict[str, Estimate]:
        """Accuracy, precision, recall and F1 of "yes", the recall of "no", and the share of "yes" among the answers."""
        said = [(row.image, yes_no.prediction(row.answer or "") == "yes", row.references[0] == "yes") for row in rows]
        return {
            "accuracy": mean((image, yes == label) for image, yes, label in said),
            "precision": ratio((image, yes and label, yes) for image, yes, label in said),
            "recall": ratio((image, yes and label, label) for image, yes, label in said),
            "f1": ratio((image, 2 * (yes and label), yes + label) for image, yes, label in said),
            "no_recall": ratio((image, not yes and not label, not label) for image, yes, label in said),
            "yes_ratio": mean((image, yes) for image, yes, _ in said),
        }
