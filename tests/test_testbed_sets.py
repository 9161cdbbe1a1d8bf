"""The benchmark sets written from scenes: layouts, balance, and what they say of the patches that bear an answer."""

import hashlib
import json
import random
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from sparsezip.errors import UnknownNameError
from sparsezip.measure.annotations import json_lines
from sparsezip.measure.benchmarks import benchmark
from sparsezip.measure.metrics import vqa
from sparsezip.testbed import scenes, sets
from sparsezip.testbed.scenes import COLORS, LEVELS, PATCH

# sha256 of all texts and pixels of the sets of seed 3 with 6 scenes: changes with every change of scenes or questions.
DIGEST = "7fa868794a0583da1a881322b0534e8c5e5fb7e057a1d5a6e9a0facc812e7788"
SEED, SCENES = 3, 6


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "sets"
    sets.write(folder, SEED, SCENES)
    return folder


def rows(path):
    return [row for _, row in json_lines(path)]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def contents(folder):
    """The bytes of every text and the pixels of every image, by name: how PNGs are packed depends on the machine."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): (
            pixels(path).astype(np.uint8).tobytes() if path.suffix in (".png", ".jpg") else path.read_bytes()
        )
        for path in files
    }


def test_one_seed_gives_the_same_files_everywhere(written):
    digest = hashlib.sha256()
    for name, content in contents(written).items():
        digest.update(f"{name} {len(content)}\n".encode() + content)
    assert digest.hexdigest() == DIGEST


def test_another_seed_level_or_split_gives_other_images_and_questions(written, tmp_path):
    sets.write(tmp_path / "seed", SEED + 1, SCENES)
    sets.write(tmp_path / "level", SEED, SCENES, level="hard")
    sets.write(tmp_path / "split", SEED, SCENES, split="train")
    first = contents(written)
    for other in ("seed", "level", "split"):
        second = contents(tmp_path / other)
        images = [
            {content for name, content in made.items() if name[-4:] in (".png", ".jpg")} for made in (first, second)
        ]
        assert not images[0] & images[1]
        for name in ("pope/coco_pope_random.json", "scenes/scenes.jsonl", "docvqa/val_v1.0_withQT.json"):
            assert first[name] != second[name]
    sets.write(tmp_path / "again", SEED, SCENES)
    assert contents(tmp_path / "again") == first


def test_no_scene_of_one_split_can_be_one_of_the_other(tmp_path, monkeypatch):
    seeds = []

    class Recorded(random.Random):
        def __init__(self, seed):
            seeds.append(seed)
            super().__init__(seed)

    monkeypatch.setattr(scenes.random, "Random", Recorded)
    drawn = {}
    for split in sets.SPLITS:
        seeds.clear()
        sets.write(tmp_path / split, SEED, 2, split=split)
        drawn[split] = set(seeds)
        assert len(drawn[split]) > 20
        assert all(seed.startswith(f"{split}/{SEED}/") for seed in seeds)
    assert not drawn["train"] & drawn["held-out"]


@pytest.mark.parametrize(
    ("name", "count", "groups"),
    [
        ("scenes", None, {*sets.OPEN, "count", "field"}),
        ("pope", 36, {"random", "popular", "adversarial"}),
        ("mme", 20, {"existence", "count", "position", "color", "OCR"}),
        ("docvqa", None, {"val"}),
        ("coco_caption", 2, {"val2014"}),
        ("vqav2", None, {"yes/no", "number", "other"}),
    ],
)
def test_the_loaders_of_the_real_benchmarks_read_every_set(written, name, count, groups):
    samples = benchmark(name).samples(written, prompt="bare")
    assert count is None or len(samples) == count
    assert {sample.group for sample in samples} == groups
    for sample in samples:
        assert sample.question
        assert all(sample.references)
        assert pixels(sample.image).shape == (336, 336, 3)
    if name in ("pope", "mme"):
        for group in groups:
            answers = Counter(sample.references[0] for sample in samples if sample.group == group)
            assert answers["yes"] == answers["no"]
    assert len({(sample.image_id, sample.question, sample.group) for sample in samples}) == len(samples)


def test_scenes_ask_one_question_of_each_type_and_as_many_about_forms(written):
    asked = rows(written / "scenes" / "scenes.jsonl")
    assert all(
        number <= 1 for number in Counter((q["image"], q["type"]) for q in asked if q["type"] != "field").values()
    )
    types = Counter(q["type"] for q in asked)
    assert types["field"] == types["exist"] == types["count"] == SCENES
    assert sorted(q["answer"] for q in asked if q["type"] == "count") == list("123456")
    assert Counter(q["answer"] for q in asked if q["type"] == "exist") == {"yes": SCENES // 2, "no": SCENES // 2}
    assert {q["type"] for q in asked if q["image"].startswith("form")} == {"field"}


def test_mme_asks_a_yes_and_a_no_in_its_own_words(written):
    texts = [path.read_text() for path in sorted((written / "mme").rglob("*.txt"))]
    for text in texts:
        assert re.fullmatch(
            r"[^\t\n]+\? Please answer yes or no\.\tYes\n[^\t\n]+\? Please answer yes or no\.\tNo\n", text
        )
    assert {text.split()[0] for text in texts} == {"Is", "Are", "Does"}
    positions = [path.read_text() for path in sorted((written / "mme" / "position").glob("*.txt"))]
    assert [" at the " in text for text in positions] == [True, False]


def test_five_captions_list_the_same_things_in_five_orders(written):
    made = json.loads((written / "coco_caption" / "annotations" / "captions_val2014.json").read_text())
    told = {}
    for row in made["annotations"]:
        told.setdefault(row["image_id"], []).append(row["caption"])
    assert [row["id"] for row in made["images"]] == list(told)
    reversed_ = 0
    for image, captions in told.items():
        things = [re.split(", | and ", text) for text in captions]
        assert len(captions) == 5
        assert len({tuple(sorted(phrases)) for phrases in things}) == 1
        assert len(set(captions)) > 2
        here = sets.Source("held-out", SEED, "standard").scene(f"coco_caption/{image}").things
        for first, axis in ((0, "x"), (2, "y")):
            if len({getattr(thing, axis) for thing in here}) == len(here):  # no two side by side
                assert things[first] == things[first + 1][::-1]
                reversed_ += 1
    assert reversed_ >= 2


def test_vqav2_has_ten_answers_that_the_official_scorer_takes(written):
    folder = written / "vqav2"
    made = json.loads((folder / "v2_mscoco_val2014_annotations.json").read_text())["annotations"]
    asked = json.loads((folder / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())["questions"]
    signs = 0
    for row, question in zip(made, asked, strict=True):
        answers = [answer["answer"] for answer in row["answers"]]
        assert len(answers) == 10
        assert question["question"].lower().startswith(row["question_type"] + " ")
        assert (question["image_id"], question["question_id"]) == (row["image_id"], row["question_id"])
        signs += row["question_type"] == "what does the"
        assert vqa.accuracy(answers[0].upper(), answers, "llava") == 1  # signs are in capitals
        assert vqa.accuracy("lamp", answers, "llava") == 0
    assert signs


@pytest.mark.parametrize("name", ["scenes", "pope", "vqav2"])
def test_the_patches_that_bear_an_answer_show_the_colour_that_is_asked_about(written, name):
    shares, without = [], 0
    for sample in benchmark(name).samples(written, prompt="bare"):
        (answer, *_), words = sample.references, sample.question.split()
        asked = [color for color in COLORS if color in words or color == answer]
        if len(asked) != 1:
            continue
        if words[:2] == ["Is", "there"] and answer == "no":
            without += 1
            assert sample.answer_patches is None
            continue
        patches = sample.answer_patches
        assert patches.grid == (24, 24)
        image = pixels(sample.image).reshape(24, PATCH, 24, PATCH, 3).swapaxes(1, 2).reshape(576, -1, 3)
        near = abs(image - np.array(COLORS[asked[0]])).max(-1) <= 12
        shares.append(near[list(patches.cells)].mean())
    assert len(shares) >= 4
    assert without >= 1
    assert min(shares) > 0.15
    assert np.mean(shares) > 0.3


def test_every_field_has_a_patch_for_each_character(written):
    for sample in benchmark("docvqa").samples(written, prompt="bare"):
        assert len(sample.answer_patches.cells) == len(sample.references[0])
        assert len({cell // 24 for cell in sample.answer_patches.cells}) == 1
    for sample in benchmark("mme").samples(written, prompt="bare"):
        absent = sample.group == "existence" and sample.references == ["no"]
        assert (sample.answer_patches is None) == absent


def test_who_does_not_see_the_image_cannot_guess_open_questions():
    """The guesser knows the commonest answer to every question in another seed's scenes, and to every type."""
    learnt, made = (
        [q for _, asked in sets.open_questions(sets.Source("held-out", seed, "standard"), "blind", 240) for q in asked]
        for seed in (0, 1)
    )
    known: dict[str, Counter] = {}
    for q in learnt:
        for key in (q.text, q.type):
            known.setdefault(key, Counter())[q.answer] += 1
    chance = {"color": 1 / 8, "shape": 1 / 8, "exist": 1 / 2, "count": 1 / 6, "position": 1 / 4, "relation": 1 / 2}
    for type_, share in (chance | {"read": 0}).items():
        asked = [q for q in made if q.type == type_]
        assert len(asked) > 80
        told = [known[q.text] if q.text in known and known[q.text].total() > 20 else known[type_] for q in asked]
        right = sum(guess.most_common(1)[0][0] == q.answer for guess, q in zip(told, asked, strict=True))
        assert right / len(asked) < share + 0.05, type_
        assert Counter(q.answer for q in asked).most_common(1)[0][1] / len(asked) < share + 0.05, type_


def test_levels_differ_in_how_much_stands_in_a_scene():
    things = {
        level: np.mean([len(sets.Source("train", 0, level).scene(str(i)).things) for i in range(30)])
        for level in LEVELS
    }
    assert things["easy"] < 3 < things["standard"] < 9 < things["hard"]


@pytest.mark.parametrize("wrong", [{"split": "test"}, {"level": "medium"}])
def test_an_unknown_split_or_level_is_refused_before_anything_is_written(tmp_path, wrong):
    with pytest.raises(UnknownNameError, match=r"held-out, train|easy, standard, hard"):
        sets.write(tmp_path / "sets", 0, 2, **wrong)
    assert not list(tmp_path.iterdir())
