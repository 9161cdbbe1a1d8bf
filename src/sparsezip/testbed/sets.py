"""Benchmark sets of scenes, written in the original layouts of POPE, MME, DocVQA, COCO captions and VQAv2.

    OUT/scenes/scenes.jsonl + images/                       open questions by type, on scenes and on forms
    OUT/pope/coco_pope_{random,popular,adversarial}.json    JSON lines; six questions an image, half of them true
    OUT/pope/images/
    OUT/mme/<subtask>/NAME.png + NAME.txt                   two lines of question<TAB>Yes|No
    OUT/docvqa/val_v1.0_withQT.json + documents/
    OUT/coco_caption/annotations/captions_val2014.json + val2014/
    OUT/vqav2/v2_*_val2014_*.json + val2014/
    OUT/*/answer_patches.jsonl                              which patches bear an answer (measure/answer_patches.py);
                                                            captions have none

The loaders that read the real benchmarks read these. One seed gives the same files on every machine; only the bytes of
the PNGs depend on the zlib that packed them. No set of one split shares a scene with one of the other.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import UsageError
from ..measure.answer_patches import FILE
from ..registry import unknown
from .drawing import draw
from .questions import NUMBERS, ORDERS, YES_NO, Asked, absent, article, ask, describe, fields, pairs, patches_of
from .scenes import LEVELS, Scene, make

SPLITS = ("held-out", "train")
OPEN = ("color", "shape", "exist", "position", "relation", "read")  # types of open questions, but for count
SIGNS = 0.5  # the share of scenes with a sign among those with open questions
MME_SUBTASKS = {
    "existence": ("exist",),
    "count": ("count_yn",),
    "position": ("position_yn", "relation_yn"),
    "color": ("color_yn",),
    "OCR": ("read_yn",),
}
VQA_TYPES = (  # VQAv2's own names for how a question begins
    "what color is the", "is there a", "is there", "how many", "where is the", "is the", "what does the", "what",
)  # fmt: skip
ANNOTATORS = 10


@dataclass(frozen=True)
class Source:
    """Where the scenes of a set come from."""

    split: str
    seed: int
    level: str

    def scene(self, name: str, *, sign: float | None = None, form: float = 0.0) -> Scene:
        """The scene of that name. `sign`, `form`: how likely it has a sign (none: as the level says), or is a form."""
        level = LEVELS[self.level]
        dial = replace(level, sign=level.sign if sign is None else sign, form=form)
        return make(self.split, f"{self.seed}/{name}", difficulty=dial)

    def draws(self, name: str) -> random.Random:
        """What the questions of that name are drawn with."""
        return random.Random(f"{self.split}/{self.seed}/{name}/questions")


def write(out: Path, seed: int, scenes: int, split: str = "held-out", level: str = "standard") -> None:
    """Write the six sets under `out`.

    `scenes` images of open questions and as many questions about forms; a quarter as many images for POPE, captions
    and VQAv2, an eighth per MME subtask and a fifth as documents (at least two each). They are made beside `out` and
    take its name when they are complete. split: "held-out" or "train"; level: a name in scenes.LEVELS.
    Raises UsageError where `out` holds something already or cannot be made, UnknownNameError for an unknown name.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    out = out.resolve()
    # The name tells the content apart, so that what a kill left is written again and never mixed with other sets.
    partial = out.with_name(f"{out.name}.{split}-{level}-seed{seed}-scenes{scenes}.partial")
    try:
        if out.exists() and any(out.iterdir()):
            raise UsageError(f"{out} is not empty. Choose another folder.")
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"The sets cannot be written to {out} ({error.strerror}).") from None
    source = Source(split, seed, level)
    _write_scenes(partial / "scenes", source, scenes)
    write_pope(partial / "pope", seed, max(2, scenes // 4), split, level)
    _write_mme(partial / "mme", source, max(2, scenes // 8))
    _write_docvqa(partial / "docvqa", source, max(2, scenes // 5))
    _write_captions(partial / "coco_caption", source, max(2, scenes // 4))
    _write_vqav2(partial / "vqav2", source, max(2, scenes // 4))
    partial.rename(out)


def open_questions(source: Source, name: str, count: int) -> Iterator[tuple[Scene, list[Asked]]]:
    """`count` scenes, each with a question of type "count" and at most one of each type in OPEN.

    Guessing does not pay: the numbers to count, one to six, take turns, and of other questions that could be asked, the
    one whose answer was the rarest so far is.
    """
    numbers = min(len(NUMBERS) - 1, LEVELS[source.level].objects[1])
    used: Counter[tuple[str, str]] = Counter()
    for i in range(count):
        rng, number = source.draws(f"{name}/{i}"), 1 + i % numbers
        for turn in range(400):  # six alike are rare
            scene = source.scene(f"{name}/{i}/{turn}", sign=SIGNS)
            counted = ask(scene, "count", rng, number=number)
            if counted:
                break
        asked = [counted] if counted else []
        for type_ in OPEN:
            if possible := [q for _ in range(24) if (q := ask(scene, type_, rng))]:
                asked.append(min(possible, key=lambda q: used[q.type, q.answer]))
                used[type_, asked[-1].answer] += 1
        yield scene, asked


def _save(scene: Scene, path: Path) -> None:
    """The scene as a PNG, whatever the name says: JPEG would not give every machine the same pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(scene)).save(path, "png", compress_level=3)


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    _text(path, "".join(json.dumps(row) + "\n" for row in rows))


class _Bearing:
    """The lines of a set's answer_patches.jsonl."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}  # POPE's splits repeat questions

    def add(self, scene: Scene, image: str, question: str, patches: Iterable[int]) -> None:
        """Note the patches, if there are any. Image and question as the benchmark's loader has them."""
        grid, patches = [scene.rows, scene.columns], list(patches)
        if patches:
            row = {"image": image, "question": question, "grid": grid, "patches": patches}
            self.rows[image, question] = row

    def write(self, folder: Path) -> None:
        """Write what was noted."""
        _lines(folder / FILE, self.rows.values())


def _write_scenes(folder: Path, source: Source, count: int) -> None:
    rows, bearing = list[dict[str, Any]](), _Bearing()

    def add(scene: Scene, name: str, asked: list[Asked]) -> None:
        _save(scene, folder / "images" / name)
        for q in asked:
            row = {"question_id": len(rows), "image": name, "question": q.text, "answer": q.answer, "type": q.type}
            rows.append(row)
            bearing.add(scene, name, q.text, q.patches)

    for i, (scene, asked) in enumerate(open_questions(source, "scenes", count)):
        add(scene, f"{i:05d}.png", asked)
    forms, left = 0, count
    while left:
        form = source.scene(f"scenes/form/{forms}", form=1.0)
        asked = fields(form)[:left]
        add(form, f"form{forms:05d}.png", asked)
        forms, left = forms + 1, left - len(asked)
    _lines(folder / "scenes.jsonl", rows)
    bearing.write(folder)


def write_pope(folder: Path, seed: int, count: int, split: str = "held-out", level: str = "standard") -> None:
    """Write `count` scenes in POPE's layout: in each of its splits six questions an image, where it holds three things.

    Real POPE has 500 images.
    """
    source, bearing = Source(split, seed, level), _Bearing()
    scenes = [source.scene(f"pope/{i}") for i in range(count)]
    for i, scene in enumerate(scenes):
        _save(scene, folder / "images" / f"{i:05d}.png")
    frequent = [pair for pair, _ in Counter(pair for s in scenes for pair in sorted(pairs(s))).most_common()]
    for part in ("random", "popular", "adversarial"):
        rows: list[dict[str, Any]] = []
        for i, scene in enumerate(scenes):
            rng, name, here = source.draws(f"pope/{part}/{i}"), f"{i:05d}.png", sorted(pairs(scene))
            present = rng.sample(here, min(3, len(here)))
            missing: list[tuple[str, str]] = []
            if part == "popular":
                missing = [pair for pair in frequent if pair not in here][: len(present)]
            while len(missing) < len(present):  # a small set may hold too few frequent pairs
                pair = absent(scene, rng, part == "adversarial")
                if pair not in missing:
                    missing.append(pair)
            for yes, no in zip(present, missing, strict=True):
                for pair, label in ((yes, "yes"), (no, "no")):
                    text = f"Is there {article(' '.join(pair))} in the image?"
                    rows.append({"question_id": len(rows) + 1, "image": name, "text": text, "label": label})
                    things = [thing for thing in scene.things if (thing.color, thing.shape) == pair]
                    bearing.add(scene, name, text, patches_of(scene, *things))
        _lines(folder / f"coco_pope_{part}.json", rows)
    bearing.write(folder)


def _write_mme(folder: Path, source: Source, count: int) -> None:
    bearing = _Bearing()
    for subtask, types in MME_SUBTASKS.items():
        made = tried = 0
        while made < count:
            name = f"mme/{subtask}/{tried}"
            scene = source.scene(name, sign=1.0) if subtask == "OCR" else source.scene(name)
            rng, tried = source.draws(name), tried + 1
            both = [ask(scene, types[made % len(types)], rng, truth=truth) for truth in (True, False)]
            if all(both):  # some scenes do not allow this question
                _save(scene, folder / subtask / f"{made:04d}.png")
                lines = "".join(f"{q.text}{YES_NO}\t{q.answer.capitalize()}\n" for q in both if q)
                _text(folder / subtask / f"{made:04d}.txt", lines)
                for q in filter(None, both):
                    bearing.add(scene, f"{subtask}/{made:04d}", q.text, q.patches)
                made += 1
    bearing.write(folder)


def _write_docvqa(folder: Path, source: Source, count: int) -> None:
    data, bearing = list[dict[str, Any]](), _Bearing()
    for i in range(count):
        form, name = source.scene(f"docvqa/{i}", form=1.0), f"documents/{i:05d}.png"
        _save(form, folder / name)
        for q in fields(form):
            data.append(
                {
                    "questionId": len(data) + 1, "question": q.text, "question_types": ["form"], "image": name,
                    "docId": i, "answers": [q.answer], "data_split": "val",
                }
            )  # fmt: skip
            bearing.add(form, name, q.text, q.patches)
    head = {"dataset_name": "testbed forms", "dataset_version": "1.0", "dataset_split": "val"}
    _text(folder / "val_v1.0_withQT.json", json.dumps({**head, "data": data}, indent=1))
    bearing.write(folder)


def _write_captions(folder: Path, source: Source, count: int) -> None:
    images, captions = list[dict[str, Any]](), list[dict[str, Any]]()
    for i in range(1, count + 1):
        scene, name = source.scene(f"coco_caption/{i}"), f"COCO_val2014_{i:012d}.png"
        _save(scene, folder / "val2014" / name)
        images.append({"id": i, "file_name": name, "height": scene.height, "width": scene.width, "license": 1})
        for order in ORDERS:
            caption = describe(scene, order).answer
            captions.append({"image_id": i, "id": len(captions) + 1, "caption": caption})
    head = {"info": {"description": "testbed captions"}, "licenses": [{"id": 1, "name": "Apache-2.0"}]}
    whole = {**head, "images": images, "annotations": captions}
    _text(folder / "annotations" / "captions_val2014.json", json.dumps(whole, indent=1))


def _write_vqav2(folder: Path, source: Source, count: int) -> None:
    questions, annotations, bearing = list[dict[str, Any]](), list[dict[str, Any]](), _Bearing()
    for i, (scene, asked) in enumerate(open_questions(source, "vqav2", count), 1):
        image = f"COCO_val2014_{i:012d}.jpg"  # as the loader spells every number
        _save(scene, folder / "val2014" / image)
        for place, q in enumerate(asked):
            ids = {"image_id": i, "question_id": 1000 * i + place}
            answer = q.answer.lower()  # as people's answers are: the official scorer lowers those of a model
            kind = "yes/no" if answer in ("yes", "no") else "number" if answer.isdigit() else "other"
            said = [{"answer": answer, "answer_confidence": "yes", "answer_id": n + 1} for n in range(ANNOTATORS)]
            begins = next(words for words in VQA_TYPES if q.text.lower().startswith(f"{words} "))
            questions.append({**ids, "question": q.text})
            about = {"question_type": begins, "answer_type": kind, "multiple_choice_answer": answer, "answers": said}
            annotations.append({**ids, **about})
            bearing.add(scene, image, q.text, q.patches)
    head = {"info": {"description": "testbed questions"}, "license": {"name": "Apache-2.0"}, "data_type": "mscoco"}
    head |= {"data_subtype": "val2014"}
    for file, key, rows in (
        ("v2_OpenEnded_mscoco_val2014_questions.json", "questions", questions),
        ("v2_mscoco_val2014_annotations.json", "annotations", annotations),
    ):
        _text(folder / file, json.dumps({**head, "task_type": "Open-Ended", key: rows}))
    bearing.write(folder)
