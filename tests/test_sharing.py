"""Questions on one image, asked in one call: prepared and seen once, answered as if each were asked alone."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from test_answers import make_vlm
from tiny_vlm import fingerprint, make_clip, make_clip_tokenizer, picture

import sparsezip
from sparsezip.models.clip import ClipText
from sparsezip.vlm import VLM

QUESTIONS = ["What color is the star?", "no?", "Is there a red circle in it, and is it red?", "Is it red?", "no?"]
SHOWN = [0, 1, 0, 0, 1]  # which of two pictures each is about
PICTURES = [picture(1), picture(2)]
IMAGES = [PICTURES[number] for number in SHOWN]

METHODS = {
    "keep_all": sparsezip.methods.KeepAll(),
    "visionzip": sparsezip.methods.VisionZip(budget=5),
    "sparsezip": sparsezip.methods.SparseZip(budget=5),
    "dynamic": sparsezip.methods.SparseZip(k_min=2, k_max=9, merging={"contextual_num": 2}),  # K differs by question
    "everything": sparsezip.methods.SparseZip(budget=16),
    "downsample": sparsezip.methods.Downsample(budget=5),
    "trim": sparsezip.methods.TRIM(budget=5),
    "cdpruner": sparsezip.methods.CDPruner(budget=5),
    "fastv": sparsezip.methods.FastV(budget=9),
    "pyramiddrop": sparsezip.methods.PyramidDrop(budget=9),
    "visionzip|fastv": sparsezip.method("visionzip|fastv", budget=5),
    "sparsezip|sparsevlm": sparsezip.method("sparsezip|sparsevlm", budget=5),
}
READS = {"sparsezip", "dynamic", "trim", "cdpruner", "sparsezip|sparsevlm"}


@pytest.fixture(scope="module")
def vlm():
    made = make_vlm()
    made.adapter.lend(ClipText(make_clip(made.model), make_clip_tokenizer()))
    return made


class Seen:
    """Counts the images that go through each stage."""

    def __init__(self, vlm, monkeypatch, method):
        self.counts = Counter()
        self._count(monkeypatch, type(vlm.processor.image_processor), "preprocess", "prepare", lambda images: images)
        self._count(monkeypatch, vlm.model.model.vision_tower, "forward", "tower", lambda pixel_values: pixel_values)
        self._count(monkeypatch, type(method), "compress", "compress", lambda captures: captures.features)

    def _count(self, monkeypatch, owner, name, stage, images):
        usual = getattr(owner, name)

        def counting(*args, **kwargs):
            first = args[1] if isinstance(owner, type) else args[0]
            self.counts[stage] += len(images(first))
            return usual(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)


@pytest.mark.parametrize("name", METHODS)
def test_every_answer_is_that_of_the_question_asked_alone(vlm, name, monkeypatch):
    method = METHODS[name]
    alone = [
        vlm.ask(image, question, method, max_new_tokens=8) for image, question in zip(IMAGES, QUESTIONS, strict=True)
    ]
    assert len({answer.text for answer in alone}) >= 4
    seen = Seen(vlm, monkeypatch, method.parts[0])
    together = vlm.answer(IMAGES, QUESTIONS, method, max_new_tokens=8)
    assert seen.counts == {"prepare": 2, "tower": 2, "compress": 5 if name in READS else 2}
    for answer, own in zip(together, alone, strict=True):
        assert answer.text == own.text
        assert torch.equal(answer.maps.kept, own.maps.kept)
        assert torch.equal(answer.maps.source, own.maps.source)
        assert answer.tokens_per_layer == own.tokens_per_layer
        assert (answer.prefill_flops, answer.kv_bytes) == (own.prefill_flops, own.kv_bytes)


def test_the_prompts_are_those_that_the_processor_writes(vlm):
    usual = vlm.processor(
        images=IMAGES,
        text=[vlm.prompt(question) for question in QUESTIONS],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    made = vlm._prepare(IMAGES, QUESTIONS)
    assert made["shown"] == SHOWN
    assert len(made["pixel_values"]) == 2
    assert torch.equal(made["pixel_values"][SHOWN], usual["pixel_values"])
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(made[name], usual[name])


@pytest.mark.parametrize("name", METHODS)
def test_logits_are_the_same(vlm, name):
    shared = vlm._prepare(IMAGES, QUESTIONS)
    apart = vlm._prepare([image.copy() for image in IMAGES], QUESTIONS)
    with sparsezip.compress(vlm.model, METHODS[name], processor=vlm.processor, clip=vlm.adapter.clip) as trace:
        expected = vlm.model(**apart).logits
        traced = [image.source.tolist() for image in trace.images]
        logits = vlm.model(**shared).logits
        assert [image.source.tolist() for image in trace.images] == traced
    assert len(traced) == 5
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)


def test_calls_from_outside_are_taken_as_they_are(vlm, monkeypatch):
    """An image that is repeated in pixel_values is not looked for: its bits are those of the unmodified model."""
    method = sparsezip.methods.VisionZip(budget=5)
    seen = Seen(vlm, monkeypatch, method)
    inputs = vlm.processor(images=[PICTURES[0]] * 2, text=[vlm.prompt("no?")] * 2, return_tensors="pt")
    with sparsezip.compress(vlm.model, method):
        vlm.model(**inputs)
    assert seen.counts == {"prepare": 2, "tower": 2, "compress": 2}


def test_what_is_the_same_image(vlm, tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    PICTURES[0].save(path)
    expected = [vlm.ask(PICTURES[0], question).text for question in QUESTIONS]
    for images, distinct in (
        ([path, path], 1),
        ([str(path), str(path)], 1),
        ([PICTURES[0], PICTURES[0].copy()], 2),
    ):
        with monkeypatch.context() as patch:
            seen = Seen(vlm, patch, METHODS["keep_all"])
            answers = vlm.answer(images, QUESTIONS[: len(images)])
            assert [answer.text for answer in answers] == expected[: len(images)]
        assert seen.counts["tower"] == distinct
    made = vlm.answer(Making(), ["no?"] * 5)
    assert [answer.text for answer in made] == [vlm.ask(image, "no?").text for image in IMAGES]


class Making(Sequence):
    """A sequence that makes its images as they are asked for, so that one may get the id of the one before."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return PICTURES[SHOWN[index]].copy()


def test_one_question_on_one_image_shares_nothing(vlm, monkeypatch):
    seen = Seen(vlm, monkeypatch, METHODS["visionzip"])
    vlm.ask(IMAGES[0], QUESTIONS[0], METHODS["visionzip"])
    assert seen.counts == {"prepare": 1, "tower": 1, "compress": 1}


def test_beams_follow_their_own_image(vlm):
    beams = {"num_beams": 2, "max_new_tokens": 6}
    together = vlm.answer(IMAGES, QUESTIONS, METHODS["visionzip|fastv"], **beams)
    for image, question, answer in zip(IMAGES, QUESTIONS, together, strict=True):
        assert answer.text == vlm.ask(image, question, METHODS["visionzip|fastv"], **beams).text


@pytest.mark.parametrize("name", ["sparsezip", "visionzip|fastv"])
@pytest.mark.parametrize("part", ["vision_tower", "multi_modal_projector", "language_model.layers.1", "language_model"])
def test_a_call_that_fails_leaves_nothing_behind(vlm, name, part, monkeypatch):
    """Out of memory, for one: the caller halves its batch and goes on with the same model."""
    expected = [answer.text for answer in vlm.answer(IMAGES, QUESTIONS, METHODS[name])]
    before = fingerprint(vlm.model)
    with monkeypatch.context() as patch:
        patch.setattr(vlm.model.model.get_submodule(part), "forward", _out_of_memory)
        with pytest.raises(torch.OutOfMemoryError):
            vlm.answer(IMAGES, QUESTIONS, METHODS[name])
    assert fingerprint(vlm.model) == before
    halves = [vlm.answer(IMAGES[part], QUESTIONS[part], METHODS[name]) for part in (slice(2), slice(2, None))]
    assert [answer.text for half in halves for answer in half] == expected


def _out_of_memory(*args, **kwargs):
    raise torch.OutOfMemoryError("out of memory")


def test_each_question_has_its_share_of_the_time(vlm, monkeypatch):
    clock = [0.0]
    for module in ("trace", "vlm"):
        monkeypatch.setattr(f"sparsezip.{module}.now", lambda: clock[0])
    usual = VLM._prepare

    def slow(*args):
        clock[0] += 100
        return usual(*args)

    monkeypatch.setattr(VLM, "_prepare", slow)
    for answer in vlm.answer(IMAGES, QUESTIONS, METHODS["visionzip"]):
        assert {stage: took for stage, took in answer.timing.items() if took} == dict.fromkeys(
            ("prepare", "ttft", "total"), 20
        )
