"""A model that answers: ask one, answer many, what it cost."""

import time
from pathlib import Path

import pytest
import torch
from tiny_vlm import make_model, make_processor, picture, prompt
from transformers import MaxLengthCriteria

import sparsezip
from sparsezip.errors import ImageError, UnsupportedCallError
from sparsezip.models.llava import Llava
from sparsezip.vlm import VLM

IMAGES = [picture(1), picture(2), picture(3)]
QUESTIONS = ["What color is the star?", "Is there a red circle in it, and is it red?", "no?"]


def make_vlm(template="default", **settings):
    model = make_model(**settings)
    processor = make_processor() if template == "default" else make_processor(template=template)
    return VLM("tiny", Path(), model, processor, Llava(model))


@pytest.fixture(scope="module")
def vlm():
    return make_vlm()


@pytest.mark.parametrize("method", ["keep_all", "visionzip", "sparsezip"])
def test_rows_of_a_batch_equal_the_rows_run_alone(vlm, method, monkeypatch):
    tokenizer = vlm.processor.tokenizer  # one that pads on the wrong side and adds what the model does not take
    monkeypatch.setattr(tokenizer, "padding_side", "right")
    monkeypatch.setattr(tokenizer, "model_input_names", ["input_ids", "attention_mask", "token_type_ids"])
    made = method if method == "keep_all" else sparsezip.method(method, budget=5)
    together = vlm.answer(IMAGES, QUESTIONS, made, max_new_tokens=8)
    assert len({answer.text for answer in together}) == 3
    for image, question, answer in zip(IMAGES, QUESTIONS, together, strict=True):
        alone = vlm.ask(image, question, made, max_new_tokens=8)
        assert answer.text == alone.text
        assert torch.equal(answer.maps.source, alone.maps.source)
        assert (answer.tokens, answer.tokens_before) == (16 if method == "keep_all" else 5, 16)
        assert answer.tokens_per_layer == [float(answer.tokens)] * 3
        assert answer.maps.grid == (4, 4)


def test_the_answer_is_what_transformers_decodes(vlm):
    inputs = vlm.processor(images=IMAGES[0], text=prompt(QUESTIONS[0]), return_tensors="pt")
    tokens = vlm.model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert vlm.ask(IMAGES[0], QUESTIONS[0], max_new_tokens=8).text == vlm.processor.tokenizer.decode(tokens).strip()


def test_greedy_unless_asked(vlm):
    vlm.model.generation_config.do_sample, vlm.model.generation_config.temperature = True, 5.0
    try:
        texts = {vlm.ask(IMAGES[0], QUESTIONS[0]).text for _ in range(3)}
        sampled = {vlm.ask(IMAGES[0], QUESTIONS[0], do_sample=True).text for _ in range(3)}
    finally:
        vlm.model.generation_config.do_sample, vlm.model.generation_config.temperature = None, None
    assert texts == {vlm.ask(IMAGES[0], QUESTIONS[0]).text}
    assert len(sampled) == 3
    assert vlm.ask(IMAGES[0], QUESTIONS[0], num_beams=3).text


def test_without_a_chat_template_the_family_has_its_own_form(vlm):
    bare = make_vlm(template=None)
    assert bare.prompt("What?") == "USER: <image>\nWhat? ASSISTANT:"
    assert vlm.prompt("What?") == "USER: <image>\nWhat? ASSISTANT:"
    method = sparsezip.method("sparsezip", budget=5)
    assert bare.ask(IMAGES[0], QUESTIONS[0], method).text == vlm.ask(IMAGES[0], QUESTIONS[0], method).text
    assert make_vlm(template="{{ 'Q: <image>' + messages[0]['content'][1]['text'] }}").prompt("{a}") == "Q: <image>{a}"


def test_times_add_up_and_are_shared_by_the_rows(vlm):
    method = sparsezip.method("sparsezip", budget=5)
    one = vlm.ask(IMAGES[0], QUESTIONS[0], method)
    start = time.perf_counter()
    three = vlm.answer(IMAGES, QUESTIONS, method)
    took = (time.perf_counter() - start) * 1000
    assert 0 < sum(answer.timing["total"] for answer in three) <= took  # each its share, not each the whole
    stages = ["prepare", "tower", "question", "compress", "project", "prefill", "decode"]
    for timing in (one.timing, *(answer.timing for answer in three)):
        assert list(timing) == [*stages, "ttft", "total"]
        assert all(took > 0 for took in timing.values())
        assert sum(timing[stage] for stage in stages) == pytest.approx(timing["total"])
        assert timing["ttft"] == pytest.approx(timing["total"] - timing["decode"])
    assert "question" not in vlm.ask(IMAGES[0], QUESTIONS[0]).timing


def test_the_time_of_every_stage_is_that_of_the_stage(vlm, monkeypatch):
    """Every stage in turn is the only one that takes time, by a clock of the test's own."""
    clock = [0.0]
    for module in ("trace", "vlm"):
        monkeypatch.setattr(f"sparsezip.{module}.now", lambda: clock[0])

    def slowed(function):
        def slow(*args, **kwargs):
            clock[0] += 200
            return function(*args, **kwargs)

        return slow

    layers = vlm.model.model.language_model.layers
    places = {
        "prepare": (VLM, "_prepare"),
        "tower": (vlm.model.model.vision_tower, "forward"),
        "question": (vlm.adapter, "question"),
        "compress": (sparsezip.methods.SparseZip, "compress"),
        "project": (vlm.model.model.multi_modal_projector, "forward"),
        "prefill": (layers[0], "forward"),
    }
    method = sparsezip.method("sparsezip", budget=5)
    for stage, (owner, name) in places.items():
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, slowed(getattr(owner, name)))
            patch.setattr("sparsezip.pipeline.adapter_for", lambda model: vlm.adapter)
            timing = vlm.ask(IMAGES[0], QUESTIONS[0], method, max_new_tokens=1).timing
        assert {other: took for other, took in timing.items() if took} == {stage: 200, "ttft": 200, "total": 200}
    with monkeypatch.context() as patch:
        patch.setattr(sparsezip.methods.FastV, "keep", slowed(sparsezip.methods.FastV.keep))
        timing = vlm.ask(IMAGES[0], QUESTIONS[0], sparsezip.methods.FastV(k=1), max_new_tokens=1).timing
    assert {stage: took for stage, took in timing.items() if took} == {"drop": 200, "ttft": 200, "total": 200}


def test_images_may_be_files(vlm, tmp_path):
    IMAGES[0].save(tmp_path / "image.png")
    expected = vlm.ask(IMAGES[0], QUESTIONS[0]).text
    assert vlm.ask(tmp_path / "image.png", QUESTIONS[0]).text == expected
    assert vlm.ask(str(tmp_path / "image.png"), QUESTIONS[0]).text == expected
    assert vlm.ask(IMAGES[0].convert("RGBA"), QUESTIONS[0]).text == expected
    with pytest.raises(ImageError):
        vlm.ask(tmp_path / "none.png", QUESTIONS[0])


def test_a_question_that_smuggles_in_an_image_is_refused(vlm):
    with pytest.raises(UnsupportedCallError, match="contains <image>"):
        vlm.ask(IMAGES[0], "What is <image>?")
    assert "generate" not in vars(vlm.model)


@pytest.mark.parametrize(
    "settings",
    [{"num_return_sequences": 2, "do_sample": True}, {"return_dict_in_generate": True}],
    ids=lambda settings: next(iter(settings)),
)
def test_one_answer_per_question(vlm, settings):
    name, value = next(iter(settings.items()))
    with pytest.raises(UnsupportedCallError, match=f"asks for {name}={value}"):
        vlm.ask(IMAGES[0], QUESTIONS[0], **settings)
    usual = vlm.ask(IMAGES[0], QUESTIONS[0], num_return_sequences=1, return_dict_in_generate=False)
    assert usual.text == vlm.ask(IMAGES[0], QUESTIONS[0]).text


def test_images_and_questions_pair_up(vlm):
    assert vlm.answer([], []) == []
    for images, questions in ((IMAGES, QUESTIONS[:2]), (IMAGES[:1], QUESTIONS), (IMAGES, []), ([], QUESTIONS)):
        with pytest.raises(UnsupportedCallError, match=f"{len(images)} images came with {len(questions)} questions"):
            vlm.answer(images, questions)


def test_stopping_criteria_of_ones_own(vlm):
    width = len(vlm.processor(images=IMAGES[0], text=prompt(QUESTIONS[0]))["input_ids"][0])
    method = sparsezip.method("visionzip", budget=5)
    stopped = vlm.ask(IMAGES[0], QUESTIONS[0], method, stopping_criteria=[MaxLengthCriteria(width + 3)])
    assert stopped.text == vlm.ask(IMAGES[0], QUESTIONS[0], method, max_new_tokens=3).text
    assert stopped.timing["decode"] > 0


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_is_refused_where_it_is_read(vlm, question):
    for asked in (vlm, make_vlm(template=None)):
        with pytest.raises(UnsupportedCallError, match="no words in it"):
            asked.ask(IMAGES[0], question, sparsezip.method("sparsezip", budget=5))
        assert asked.ask(IMAGES[0], question, sparsezip.method("visionzip", budget=5)).tokens == 5


def test_images_without_language_model(vlm):
    method = sparsezip.method("sparsezip", budget=5)
    trace = sparsezip.compress_images(vlm, IMAGES, method, QUESTIONS[0])
    assert set(trace.stages) == {"tower", "question", "compress"}
    assert len(trace.images) == 3
    asked = vlm.answer(IMAGES, [QUESTIONS[0]] * 3, method)
    assert [a.maps.kept.tolist() for a in asked] == [image.kept.tolist() for image in trace.images]
