"""Benchmark sets of held-out scenes, written in the original layouts of POPE, MME and DocVQA, and open questions.

    OUT/pope/coco_pope_{random,popular,adversarial}.json   JSON lines; six questions an image, half of them true
    OUT/pope/images/
    OUT/mme/<subtask>/NAME.png + NAME.txt                   two lines of question<TAB>Yes|No
    OUT/docvqa/val_v1.0_withQT.json + documents/
    OUT/scenes/scenes.jsonl + images/                       one-word questions by type

The loaders that read the real benchmarks read these. One seed gives the same files on every machine.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import UsageError
from .questions import YES_NO, Asked, absent, article, ask, pairs
from .scenes import Difficulty, Scene, draw, make

MME_SUBTASKS = {
    "existence": "exist",
    "count": "count_yn",
    "position": "position_yn",
    "color": "color_yn",
    "OCR": "read_yn",
}
SCENE_QUESTIONS = {"color": 3, "shape": 3, "exist": 2, "count": 1, "position": 1, "read": 1}  # at most, per scene


def write(out: Path, seed: int, scenes: int) -> None:
    """Write the four sets under `out`.

    `scenes` images of open questions; a quarter as many for POPE, a tenth per MME subtask and a fifth as forms
    (at least two each). They are made beside `out` and take its name when they are complete.
    Raises UsageError where `out` holds something already or cannot be made.
    """
    out = out.resolve()
    # The name tells the content apart, so that what a kill left is written again and never mixed with other sets.
    partial = out.with_name(f"{out.name}.seed{seed}-scenes{scenes}.partial")
    try:
        if out.exists() and any(out.iterdir()):
            raise UsageError(f"{out} is not empty. Choose another folder.")
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"The sets cannot be written to {out} ({error.strerror}).") from None
    _write_scenes(partial / "scenes", seed, scenes)
    write_pope(partial / "pope", seed, max(2, scenes // 4))
    _write_mme(partial / "mme", seed, max(2, scenes // 10))
    _write_docvqa(partial / "docvqa", seed, max(2, scenes // 5))
    partial.rename(out)


def held_out(seed: int, name: str, difficulty: Difficulty | None = None) -> Scene:
    """A scene that no training run can have drawn: 4 to 8 things, clutter, at least one distractor."""
    return make("held-out", f"{seed}/{name}", difficulty=difficulty)


def _save(scene: Scene, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(scene)).save(path)


def _lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_scenes(folder: Path, seed: int, count: int) -> None:
    rows: list[dict[str, Any]] = []
    for i in range(count):
        scene, rng, name = held_out(seed, f"scenes/{i}"), random.Random(f"{seed}/scenes/{i}/questions"), f"{i:05d}.png"
        _save(scene, folder / "images" / name)
        for type_, most in SCENE_QUESTIONS.items():
            found: dict[str, Asked] = {}
            for turn in range(4 * most):  # draws repeat themselves
                # Turns alternate between yes and no, so that the existence questions are balanced.
                asked = ask(scene, type_, rng, truth=turn % 2 == 0)
                if asked and len(found) < most:
                    found.setdefault(asked.text, asked)
            for q in found.values():
                row = {"question_id": len(rows), "image": name, "question": q.text, "answer": q.answer, "type": type_}
                rows.append(row)
    _lines(folder / "scenes.jsonl", rows)


def write_pope(folder: Path, seed: int, count: int) -> None:
    """Write `count` scenes in POPE's layout: in each of its splits six questions an image, where it holds three things.

    Real POPE has 500 images.
    """
    scenes = [held_out(seed, f"pope/{i}") for i in range(count)]
    for i, scene in enumerate(scenes):
        _save(scene, folder / "images" / f"{i:05d}.png")
    frequent = [pair for pair, _ in Counter(pair for s in scenes for pair in sorted(pairs(s))).most_common()]
    for split in ("random", "popular", "adversarial"):
        rows: list[dict[str, Any]] = []
        for i, scene in enumerate(scenes):
            rng, name, here = random.Random(f"{seed}/pope/{split}/{i}"), f"{i:05d}.png", sorted(pairs(scene))
            present = rng.sample(here, min(3, len(here)))
            missing: list[tuple[str, str]] = []
            if split == "popular":
                missing = [pair for pair in frequent if pair not in here][: len(present)]
            while len(missing) < len(present):  # a small set may hold too few frequent pairs
                pair = absent(scene, rng, split == "adversarial")
                if pair not in missing:
                    missing.append(pair)
            for yes, no in zip(present, missing, strict=True):
                for pair, label in ((yes, "yes"), (no, "no")):
                    text = f"Is there {article(' '.join(pair))} in the image?"
                    rows.append({"question_id": len(rows) + 1, "image": name, "text": text, "label": label})
        _lines(folder / f"coco_pope_{split}.json", rows)


def _write_mme(folder: Path, seed: int, count: int) -> None:
    for subtask, type_ in MME_SUBTASKS.items():
        made = tried = 0
        while made < count:
            scene = held_out(seed, f"mme/{subtask}/{tried}", Difficulty(sign=1.0 if subtask == "OCR" else 0.25))
            rng = random.Random(f"{seed}/mme/{subtask}/{tried}/questions")
            tried += 1
            both = [ask(scene, type_, rng, truth=truth) for truth in (True, False)]
            if all(both):  # some scenes do not allow this question
                name = f"{made:04d}"
                _save(scene, folder / subtask / f"{name}.png")
                text = "".join(f"{q.text}{YES_NO}\t{q.answer.capitalize()}\n" for q in both if q)
                (folder / subtask / f"{name}.txt").write_text(text)
                made += 1


def _write_docvqa(folder: Path, seed: int, count: int) -> None:
    data: list[dict[str, Any]] = []
    for i in range(count):
        form = held_out(seed, f"docvqa/{i}", Difficulty(form=1.0))
        _save(form, folder / "documents" / f"{i:05d}.png")
        for name, value, _ in form.form:
            data.append(
                {
                    "questionId": len(data) + 1, "question": f"What is the {name}?", "question_types": ["form"],
                    "image": f"documents/{i:05d}.png", "docId": i, "answers": [value], "data_split": "val",
                }
            )  # fmt: skip
    head = {"dataset_name": "testbed forms", "dataset_version": "1.0", "dataset_split": "val"}
    (folder / "val_v1.0_withQT.json").write_text(json.dumps({**head, "data": data}, indent=1))
