"""The scenes, their labels and questions, and the benchmark sets written from them."""

import hashlib
import json
import random
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from sparsezip.testbed import scenes, sets
from sparsezip.testbed.questions import TYPES, absent, ask, corpus, pairs
from sparsezip.testbed.scenes import COLORS, PATCH, SHAPES, Difficulty, draw, make, patch_labels


def test_one_seed_gives_the_same_pixels_everywhere():
    digest = hashlib.sha256()
    for i in range(6):
        digest.update(draw(make("held-out", i, difficulty=Difficulty(form=0.3, sign=0.5))).tobytes())
    assert digest.hexdigest() == "3be927c3a112177265b89678e6d55124b641cfa301c08efdec89f951c974ed1a"


def test_scenes_hold_what_the_difficulty_asks_for():
    for i in range(40):
        scene = make("held-out", f"dial/{i}")
        assert 4 <= len(scene.things) <= 8
        assert 1 <= len(scene.distractors) <= 2
        assert scene.clutter
        assert draw(scene).shape == (336, 336, 3)
    assert len(make("held-out", 0, difficulty=Difficulty(objects=(1, 1))).things) == 1
    assert make("held-out", 0, difficulty=Difficulty(form=1.0)).form


def test_train_and_held_out_scenes_differ_under_the_same_seed():
    assert make("train", 0) != make("held-out", 0)


def test_patches_labelled_with_a_thing_show_its_colour():
    for i in range(10):
        scene = make("held-out", f"labels/{i}")
        image, (thing_of, _) = draw(scene).astype(int), patch_labels(scene)
        for index, thing in enumerate(scene.things):
            rows, columns = np.nonzero(thing_of == index)
            assert len(rows), "every thing shows in some patch"
            for row, column in zip(rows, columns, strict=True):
                patch = image[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH].reshape(-1, 3)
                assert (abs(patch - np.array(thing.rgb)).sum(1) < 6).mean() > 0.08


@pytest.mark.parametrize("type_", TYPES)
def test_answers_are_true_of_the_scene(type_):
    found = Counter()
    for i in range(60):
        rng = random.Random(f"{type_}/{i}")
        scene = make("held-out", f"answers/{i}", difficulty=Difficulty(sign=1.0, form=float(type_ == "field")))
        asked = ask(scene, type_, rng)
        if not asked:
            continue
        found[asked.answer] += 1
        assert asked.type == type_
        words = asked.text.replace("?", " ").replace('"', " ").split()
        colors = [w for w in words if w in COLORS]
        shapes = [s for w in words for s in SHAPES if w in (s, s + "s", s + "es")]
        here = [
            t for t in scene.things if (not colors or t.color == colors[0]) and (not shapes or t.shape == shapes[0])
        ]
        if type_ == "color":
            assert [t.color for t in here] == [asked.answer]
        elif type_ == "shape":
            assert [t.shape for t in here] == [asked.answer]
        elif type_.startswith("exist") or type_ == "color_yn":
            assert asked.answer == ("yes" if here else "no")
        elif type_ == "count":
            assert asked.answer == str(len(here))
        elif type_ == "count_yn":
            number = next(n for n, word in enumerate(["no", "one", "two", "three", "four"]) if word in words)
            assert asked.answer == ("yes" if number == len(here) else "no")
        elif type_ in ("position", "position_yn"):
            (thing,) = here
            side = "left" if thing.x < 168 else "right"
            assert asked.answer == (side if type_ == "position" else "yes" if side in words else "no")
        elif type_ == "read":
            assert asked.answer == scene.sign.text
        elif type_ == "read_yn":
            assert asked.answer == ("yes" if scene.sign.text in words else "no")
        else:
            assert (words[-1], asked.answer) in [(name, value) for name, value, _ in scene.form]
    assert sum(found.values()) >= 20
    assert max(found.values()) < 0.75 * sum(found.values()) or type_ in ("count", "read"), found


def test_hard_absent_pairs_share_an_attribute_and_are_absent():
    for i in range(30):
        scene, rng = make("held-out", f"absent/{i}"), random.Random(i)
        color, shape = absent(scene, rng, hard=True)
        assert (color, shape) not in pairs(scene)
        assert any(t.color == color or t.shape == shape for t in scene.things)


def test_every_word_of_a_question_is_one_token():
    from sparsezip.testbed.model import make_tokenizer

    tokenizer = make_tokenizer()
    for line in corpus():
        for word in line.replace("?", "").replace(".", "").replace('"', "").split()[1:]:
            if len(word) > 1:
                assert len(tokenizer.tokenize(" " + word)) == 1, word
    assert tokenizer.tokenize("AB3") == ["A", "B", "3"]
    text = 'Any 7 wörds, even odd ones: "ok"?'
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_sets_have_the_original_layouts_and_repeat_for_a_seed(tmp_path):
    sets.write(tmp_path / "a", seed=3, scenes=8)
    sets.write(tmp_path / "b", seed=3, scenes=8)
    sets.write(tmp_path / "c", seed=4, scenes=8)
    files = [sorted(p.relative_to(tmp_path / x) for p in (tmp_path / x).rglob("*.*")) for x in "ab"]
    assert files[0] == files[1]
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files[0])
    annotations = "pope/coco_pope_random.json"
    assert (tmp_path / "a" / annotations).read_text() != (tmp_path / "c" / annotations).read_text()
    for split in ("random", "popular", "adversarial"):
        rows = [json.loads(r) for r in (tmp_path / f"a/pope/coco_pope_{split}.json").read_text().splitlines()]
        assert Counter(r["label"] for r in rows) == {"yes": len(rows) // 2, "no": len(rows) // 2}
        assert all((tmp_path / "a/pope/images" / r["image"]).exists() for r in rows)
        assert len({(r["image"], r["text"]) for r in rows}) == len(rows)
    for subtask in sets.MME_SUBTASKS:
        for text in (tmp_path / "a/mme" / subtask).glob("*.txt"):
            answers = [line.split("\t")[1] for line in text.read_text().splitlines()]
            assert answers == ["Yes", "No"]
            assert text.with_suffix(".png").exists()
    forms = json.loads((tmp_path / "a/docvqa/val_v1.0_withQT.json").read_text())["data"]
    assert all((tmp_path / "a/docvqa" / row["image"]).exists() and row["answers"] for row in forms)
    questions = [json.loads(r) for r in (tmp_path / "a/scenes/scenes.jsonl").read_text().splitlines()]
    assert {"color", "shape", "exist"} <= {q["type"] for q in questions}
    with Image.open(tmp_path / "a/scenes/images" / questions[0]["image"]) as image:
        assert image.size == (336, 336)


def test_windows_hold_labels_of_their_own_size():
    scene = make("train", 0, grid=8, difficulty=Difficulty(objects=(2, 4), distractors=(0, 1)))
    assert draw(scene).shape == (112, 112, 3)
    assert [labels.shape for labels in patch_labels(scene)] == [(8, 8), (8, 8)]
    assert set(scenes.mask("star", 20).flatten()) > {0, 255}


@pytest.mark.parametrize("type_", ["exist", "exist_shape", "exist_color", "color_yn", "count_yn"])
def test_a_yes_no_question_does_not_give_its_answer_away(type_):
    answers = {}  # by the number or the kind of words asked about
    for i in range(400):
        asked = ask(make("held-out", f"blind/{i}"), type_, random.Random(f"{type_}/blind/{i}"))
        if asked:
            answers.setdefault(asked.text.split()[2] if type_ == "count_yn" else "", Counter())[asked.answer] += 1
    for found in answers.values():
        if sum(found.values()) >= 60:
            assert 0.36 < found["yes"] / sum(found.values()) < 0.64, answers


def test_a_scene_without_things_allows_no_question():
    bare = make("train", 0, difficulty=Difficulty(objects=(0, 0), sign=1.0))
    assert [ask(bare, type_, random.Random(0)) for type_ in TYPES] == [None] * len(TYPES)
