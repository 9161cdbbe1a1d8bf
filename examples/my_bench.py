"""Counting, with a metric of its own: sparsezip eval --benchmark examples/my_bench.py --data FOLDER --out runs/counting

FOLDER/questions.jsonl    {"id": 1, "image": "scene.png", "question": "How many stars are there?", "answer": "2"}
FOLDER/images/scene.png
"""

import re
from typing import ClassVar

from sparsezip.measure.annotations import first_existing, id_of, image_of, json_lines, text_of
from sparsezip.measure.benchmarks.base import Benchmark, Entry
from sparsezip.measure.metrics.interval import mean


class Counting(Benchmark):
    """How near is the number in the answer?"""

    title = "counting"
    columns: ClassVar = {"nearness": "near %", "exact": "exact %"}
    headline = "nearness"

    def read(self, roots, only):
        """One question per line; complaints name file and row."""
        file = first_existing((root / "questions.jsonl" for root in roots), "questions.jsonl")
        return [self.entry_of(row, place) for place, row in json_lines(file)]

    def entry_of(self, row, place):
        """A row as it is asked and scored."""
        question, answer = text_of(row, "question", place), text_of(row, "answer", place)
        return Entry(id_of(row, "id", place), image_of(row, "image", place), question, [answer], "all")

    def measures(self, rows):
        """Every score of the table, with an interval that is clustered by image."""
        off = [(row.image, abs(number(row.answer or "") - number(row.references[0]))) for row in rows]
        return {"nearness": mean((i, 1 / (1 + n)) for i, n in off), "exact": mean((i, n == 0) for i, n in off)}


def number(text):
    """The first number in a text; without one, a number that is far off."""
    found = re.search(r"\d+", text)
    return int(found[0]) if found else 10**9
