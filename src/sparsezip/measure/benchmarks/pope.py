"""POPE: does a model see objects that are not there? 3,000 yes/no questions in each of 3 splits, on 500 COCO images.

Source: https://github.com/RUCAIBox/POPE (Li et al., EMNLP 2023), folder output/coco; images: COCO val2014.
Licence: MIT (annotations); COCO images under the terms of Flickr.
Official scorer: evaluate.py of that repository, the metric yes_no's "pope_official". The splits differ in how the
absent object is drawn: at random, among frequent objects, among objects that often stand beside those present.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from ...errors import DataError
from ..metrics import yes_no
from ..metrics.interval import Estimate, mean, ratio
from ..records import Row
from .base import Benchmark, Entry, chosen, first_existing, id_of, json_lines, text_of

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
    columns: ClassVar = {
        "accuracy": "acc %",
        "f1": "F1 %",
        "precision": "prec %",
        "recall": "rec %",
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
            for place, row in json_lines(path):
                label = text_of(row, "label", place).lower()
                if label not in ("yes", "no"):
                    raise DataError(f'{place} has the label "{label}"; POPE knows yes and no.')
                entries.append(
                    Entry(
                        id=f"{split}/{id_of(row, 'question_id', place)}",
                        image=text_of(row, "image", place),
                        question=text_of(row, "text", place),
                        references=[label],
                        group=split,
                    )
                )
        return entries

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
