"""Scenes: open one-word questions by type (colour, shape, ...) on drawn scenes, which yes/no questions do not cover.

Source: drawn by this package, `sparsezip testbed data OUT --seed S --scenes N`.
Licence: Apache-2.0, as this package.
Official scorer: exact match, here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from ..annotations import first_existing, id_of, image_of, json_lines, text_of
from ..metrics import exact_match
from ..metrics.interval import Estimate, mean
from ..records import Row
from .base import Benchmark, Entry, chosen

EXAMPLE = {
    "scenes.jsonl": (
        '{"question_id": 1, "image": "000000.png", "question": "what color is the star?", "answer": "red", '
        '"type": "color"}\n'
        '{"question_id": 2, "image": "000000.png", "question": "what shape is the red thing?", "answer": "star", '
        '"type": "shape"}\n'
    ),
    "images/000000.png": None,
}


class Scenes(Benchmark):
    """What is in a drawn scene, asked with open questions."""

    name = "scenes"
    title = "scenes"
    example: ClassVar = EXAMPLE
    group_noun = "type"
    columns: ClassVar = {"exact_match": "EM %"}
    headline = "exact_match"

    def read(self, roots: Sequence[Path], only: Sequence[str]) -> list[Entry]:
        """The questions of scenes.jsonl."""
        entries = []
        for place, row in json_lines(first_existing((root / "scenes.jsonl" for root in roots), "scenes.jsonl")):
            entries.append(
                Entry(
                    id=id_of(row, "question_id", place),
                    image=image_of(row, "image", place),
                    question=text_of(row, "question", place),
                    references=[text_of(row, "answer", place)],
                    group=text_of(row, "type", place),
                )
            )
        types = chosen(list(dict.fromkeys(entry.group for entry in entries)), only, "type of question in scenes")
        return [entry for entry in entries if entry.group in types]

    def measures(self, rows: Sequence[Row]) -> dict[str, Estimate]:
        """The share of exactly right answers."""
        answers = [{"prediction": row.answer or "", "answers": row.references} for row in rows]
        right = exact_match.score(answers)["per_row"]
        return {"exact_match": mean(zip((row.image for row in rows), right, strict=True))}
