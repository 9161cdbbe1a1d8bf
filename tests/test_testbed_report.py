"""The report of a testbed checkpoint, and the curves of its training."""

import random
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from PIL import Image
from transformers.modeling_outputs import BaseModelOutputWithPooling

import sparsezip
from sparsezip.testbed import curves
from sparsezip.testbed.drawing import draw
from sparsezip.testbed.questions import TYPES, Asked, ask
from sparsezip.testbed.scenes import Difficulty, make
from sparsezip.testbed.score import Answered, _figures, answers, score, table

SCENE = make("test", 1, difficulty=Difficulty(sign=1.0))


def answered(type_, rows):
    """Rows of (right answer, what was answered, what was answered blind) as the report collects them."""
    return [Answered(Asked(type_, "?", right), SCENE, seen, blind) for right, seen, blind in rows]


def test_figures_of_a_type_are_those_counted_by_hand():
    rows = [("yes", "yes", "no"), ("yes", "no", "no"), ("no", "no", "no"), ("no", "no", "yes"), ("no", "", "no")]
    (figures,) = _figures(answered("exist", rows))
    assert figures.pop("interval") == pytest.approx((0.2307, 0.8824), abs=1e-4)  # Wilson's, for three of five
    assert figures == {
        "measure": "exact", "n": 5, "score": 0.6, "blind": 0.4, "majority": 0.6, "chance": 0.5,
        "yes_recall": 0.5, "no_recall": pytest.approx(2 / 3), "balanced": pytest.approx(7 / 12),
    }  # fmt: skip
    (figures,) = _figures(answered("color", [("red", "red", "blue"), ("red", "Red", "red")]))
    assert (figures["score"], figures["blind"], figures["chance"]) == (0.5, 0.5, 1 / 8)
    assert "yes_recall" not in figures


def test_texts_are_also_told_by_how_near_they_come():
    exact, near = _figures(answered("field", [("AB12", "AB12", ""), ("AB12", "AB13", "CCCC")]))
    assert (exact["score"], exact["blind"]) == (0.5, 0.0)
    assert (near["measure"], near["score"], near["blind"]) == ("ANLS", 0.875, 0.0)


def test_a_caption_is_scored_against_every_order_of_its_things():
    things = [make("test", f"caption/{i}") for i in range(3)]
    rows = []
    for scene in things:
        q = ask(scene, "caption", random.Random(0))
        rows.append(Answered(q, scene, q.answer, "a red star and a red star"))
    (figures,) = _figures(rows)
    assert figures["measure"] == "CIDEr"
    assert figures["score"] > 3 * figures["blind"]


def test_answers_that_share_a_prefix_are_those_of_each_prompt_alone():
    opened = sparsezip.load("testbed", device="cpu")
    model, processor = opened.model, opened.processor
    asked = [q for t in TYPES if t != "field" for q in (ask(SCENE, t, random.Random(t)),) if q]
    pixels = processor.image_processor(Image.fromarray(draw(SCENE)), return_tensors="pt").pixel_values
    with torch.no_grad():
        together = answers(model, processor, pixels, asked)
        (features,) = model.get_image_features(pixel_values=pixels).pooler_output
        for q, answer in zip(asked, together, strict=True):
            frame = "<image>" * model.config.image_seq_length
            inputs = processor.tokenizer(f"USER: {frame}\n{q.text} ASSISTANT:", return_tensors="pt")
            made = model.generate(
                **inputs, max_new_tokens=64 if q.type == "caption" else 8, do_sample=False,
                mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=[features])},
            )  # fmt: skip
            alone = processor.tokenizer.decode(made[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
            assert answer == alone.strip(), q


def test_the_report_asks_for_all_numbers_alike_and_for_both_sizes_of_glyphs():
    report = score(per_type=12, seed=5, only=("count", "read"))
    rows = {(row["type"], row["measure"]): row for row in report["types"]}
    assert set(rows) == {("count", "exact"), *((t, m) for t in ("read", "read 28 px") for m in ("exact", "ANLS"))}
    assert rows["count", "exact"]["majority"] == pytest.approx(2 / 12)
    assert all(row["n"] == 12 for row in report["types"])
    (easy,) = score(per_type=6, seed=5, only=("count",), level="easy")["types"]  # where there are three at most
    assert (easy["n"], easy["chance"], easy["majority"]) == (6, pytest.approx(1 / 3), pytest.approx(1 / 3))
    text = table(report)
    assert report["revision"] in text
    assert "standard held-out scenes of seed 5" in text
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 2 + 5


def test_curves_keep_the_later_report_of_a_step_that_was_taken_again(tmp_path):
    for step, loss in ((50, 3.0), (100, 2.0), (150, 9.0), (100, 1.5), (150, 1.0)):
        curves.record(tmp_path, {"step": step, "minutes": step / 10, "loss": loss, "shape": 1 - loss / 10})
    assert [(row["step"], row["loss"]) for row in curves.read(tmp_path)] == [(50, 3.0), (100, 1.5), (150, 1.0)]
    assert curves.read(tmp_path / "none") == []


def test_a_report_that_a_kill_broke_off_does_not_hide_the_others(tmp_path):
    for step in (50, 100, 150):
        curves.record(tmp_path, {"step": step, "minutes": step / 10, "loss": 1.0})
        if step == 50:
            with (tmp_path / curves.FILE).open("a") as file:
                file.write('{"step": 10')
    assert [row["step"] for row in curves.read(tmp_path)] == [50, 150]  # the second stands behind the broken one


def test_curves_are_drawn_where_their_values_are():
    rows = [{"step": 50 * i, "minutes": float(i), "loss": 2.0 / i, "shape": i / 4} for i in range(1, 5)]
    root = ElementTree.fromstring(curves.draw({"tower": rows, "oracle": []}))
    lines = root.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2  # shares and losses of the one stage that has run
    shape, loss = ([tuple(map(float, p.split(","))) for p in line.get("points").split()] for line in lines)
    assert [x for x, _ in shape] == sorted(x for x, _ in shape)
    assert [y for _, y in shape] == sorted((y for _, y in shape), reverse=True)  # higher shares stand higher
    assert [y for _, y in loss] == sorted(y for _, y in loss)
