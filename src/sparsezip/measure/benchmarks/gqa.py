"""GQA: compositional questions on photographs with one right answer. testdev, balanced: 12,578 on 398 images.

Source: https://cs.stanford.edu/people/dorarad/gqa/download.html (Hudson and Manning, CVPR 2019), questions1.2.zip and
images.zip.
Licence: CC BY 4.0 (annotations); images of Visual Genome, CC BY 4.0.
Official scorer: its eval/eval.py, which wants the exact answer; LLaVA's scripts take off case and a final full stop
first (scripts/convert_gqa_for_eval.py), as here. Binary: every structural type but "query", which is open.
Hub: lmms-lab-encoder/GQA (until July 2026 lmms-lab/GQA), questions and images as configurations of their own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...errors import DataError
from ..annotations import first_existing, id_of, inside, objects, parsed, read_text, text_of
from ..metrics import exact_match
from ..metrics.interval import Estimate, mean
from ..records import Row
from .base import Benchmark, Entry, Hub, chosen

EXAMPLE = {
    "testdev_balanced_questions.json": """{"201307251": {"semantic": [{"operation": "select", "dependencies": [],
        "argument": "scene"}], "entailed": [], "equivalent": ["201307251"], "question": "Is it overcast?",
        "imageId": "n161313", "isBalanced": true, "groups": {"global": null, "local": "13-cloudy_overcast"},
        "answer": "no", "semanticStr": "select: scene", "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
        "types": {"detailed": "weatherVerify", "semantic": "global", "structural": "verify"},
        "fullAnswer": "No, it is clear."},
        "201640614": {"semantic": [], "entailed": [], "equivalent": ["201640614"],
        "question": "Who is wearing the dress?", "imageId": "n161313", "isBalanced": true,
        "groups": {"global": "person", "local": "14-dress_wearing,s"}, "answer": "woman", "semanticStr": "",
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}}, "types": {"detailed": "categoryRelS",
        "semantic": "rel", "structural": "query"}, "fullAnswer": "The woman is wearing a dress."}}""",
    "images/n161313.jpg": None,
}
TYPES = ("verify", "query", "choose", "logical", "compare")


class Gqa(Benchmark):
    """Compositional questions on photographs."""

    name = "gqa"
    title = "GQA"
    example: ClassVar = EXAMPLE
    group_noun = "structural type"
    groups = TYPES
    columns: ClassVar = {"accuracy": "acc %", "binary": "binary %", "open": "open %"}
    headline = "accuracy"
    hub = Hub("lmms-lab-encoder/GQA", "testdev", "testdev_balanced_instructions", "testdev_balanced_images")

    def read(self, roots: Sequence[Path], only: Sequence[str]) -> list[Entry]:
        """The questions of testdev_balanced_questions.json, which may lie in a folder questions or questions1.2."""
        path = first_existing(
            (
                root / folder / "testdev_balanced_questions.json"
                for root in roots
                for folder in ("", "questions", "questions1.2", "annotations", "data")
            ),
            "GQA: testdev_balanced_questions.json",
        )
        whole = parsed(read_text(path), str(path))
        if not isinstance(whole, dict) or not whole:
            raise DataError(f"{path} is not a JSON object of questions by their ids.")
        placed = zip(whole, objects(whole.values(), path), strict=True)
        entries = [self.entry_of({**row, "id": number}, place) for number, (place, row) in placed]
        types = chosen(TYPES, only, "structural type of GQA")
        return [entry for entry in entries if entry.group in types]

    def entry_of(self, row: Mapping[str, Any], place: str) -> Entry:
        """A row of lmms-lab-encoder/GQA, which is the original's with its id in it."""
        types = row.get("types")
        kind = text_of(types if isinstance(types, dict) else {}, "structural", place)
        if kind not in TYPES:
            raise DataError(f"{place} has the structural type {kind!r:.60}; GQA knows {', '.join(TYPES)}.")
        return Entry(
            id=id_of(row, "id", place),
            image=inside(f"{id_of(row, 'imageId', place)}.jpg", place),
            question=text_of(row, "question", place),
            references=[text_of(row, "answer", place)],
            group=kind,
        )

    def hub_image(self, row: Mapping[str, Any], place: str) -> str:
        """The images are rows of their own, by their ids."""
        return inside(f"{id_of(row, 'id', place)}.jpg", place)

    def measures(self, rows: Sequence[Row]) -> dict[str, Estimate]:
        """The share of right answers: over all, over binary questions, and over open ones."""
        answers = [{"prediction": (row.answer or "").strip(), "answers": row.references} for row in rows]
        right = exact_match.score(answers, "llava")["per_row"]
        scored = [(row.group == "query", row.image, value) for row, value in zip(rows, right, strict=True)]
        return {
            "accuracy": mean((image, value) for _, image, value in scored),
            "binary": mean((image, value) for is_open, image, value in scored if not is_open),
            "open": mean((image, value) for is_open, image, value in scored if is_open),
        }
