"""The CLIP that a user lends: against transformers' own CLIPModel, alone and in a model under compression."""

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from tiny_vlm import inputs_for, make_clip, make_clip_tokenizer, make_model, make_processor, picture

import sparsezip
from sparsezip.errors import UnknownNameError, UnsupportedCallError, UnsupportedModelError
from sparsezip.methods.base import Method
from sparsezip.models.clip import ClipText
from sparsezip.tensors import Compressed

ROWS = [("What color is the star?", [1]), ("Is there a red circle?", [2, 3])]


@dataclass(frozen=True, kw_only=True)
class Listens(Method):
    """Sends one token and notes what it was given."""

    name: ClassVar[str] = "listens"
    seen: ClassVar[list] = []

    @property
    def needs(self):
        return frozenset({"question", "image_embeds"})

    def tokens(self, patches):
        return 1

    def reduce(self, captures, questions):
        self.seen[:] = [captures, questions]
        return Compressed.selection(captures, [torch.tensor([0])] * captures.images)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def full(model):
    return make_clip(model)


@pytest.fixture(scope="module")
def clip(full):
    return ClipText(full, make_clip_tokenizer())


@pytest.fixture(scope="module")
def folders(model, full, tmp_path_factory):
    vlm, clip = tmp_path_factory.mktemp("vlm"), tmp_path_factory.mktemp("clip")
    model.save_pretrained(vlm)
    make_processor().save_pretrained(vlm)
    full.save_pretrained(clip)
    make_clip_tokenizer().save_pretrained(clip)
    return vlm, clip


@torch.no_grad()
def features_of(full, text):
    """What transformers makes of a text."""
    return full.get_text_features(**make_clip_tokenizer()(text, return_tensors="pt")).pooler_output


@torch.no_grad()
def test_text_is_embedded_as_transformers_does(full, clip):
    for text, _ in ROWS:
        assert torch.equal(clip.text(text), features_of(full, text))
    assert not torch.equal(clip.text("a star"), clip.text("a circle"))
    assert torch.equal(clip.text(""), features_of(full, ""))


@torch.no_grad()
@pytest.mark.parametrize(("letters", "pieces"), [(75, [75]), (76, [75, 1]), (200, [75, 75, 50])])
def test_text_too_long_for_clip_is_embedded_in_pieces(full, clip, letters, pieces):
    text = "".join("bcdfg"[number % 5] for number in range(letters))  # one token each
    embedded = clip.text(text)
    assert embedded.shape == (len(pieces), 20)
    start = 0
    for row, length in zip(embedded, pieces, strict=True):
        assert torch.equal(row, features_of(full, text[start : start + length])[0])
        start += length


@torch.no_grad()
def test_patches_go_the_way_of_cls(full, clip):
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    hidden = full.vision_model(pixels).last_hidden_state
    embedded = clip.patches(hidden)
    assert embedded.shape == (2, 17, 20)
    torch.testing.assert_close(embedded[:, 0], full.get_image_features(pixels).pooler_output, atol=1e-4, rtol=1e-5)
    assert clip.patches(hidden.bfloat16()).dtype == torch.float32  # CLIP's own dtype


# -- in a model under compression ----------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("given", [None, "Is it red?"])
def test_methods_get_patches_and_question_in_clips_space(model, full, clip, given):
    inputs = inputs_for(*ROWS)
    with sparsezip.compress(model, Listens(), processor=make_processor(), clip=clip, question=given) as trace:
        model(**inputs)
    captures, questions = Listens.seen
    hidden = full.vision_model(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
    expected = full.visual_projection(full.vision_model.post_layernorm(hidden))
    torch.testing.assert_close(captures.image_embeds, expected, atol=1e-4, rtol=1e-5)
    asked = [ROWS[0][0], ROWS[1][0], ROWS[1][0]] if given is None else [given] * 3
    for question, text in zip(questions, asked, strict=True):
        assert torch.equal(question.clip, features_of(full, text))
        assert question.words is not None
    assert set(trace.stages) == {"tower", "clip", "question", "compress", "project"}


READ_CLIP = [name for name in sparsezip.list_methods() if "image_embeds" in sparsezip.method(name).uses]


@pytest.mark.parametrize("method", READ_CLIP)
def test_the_methods_that_ask_for_it_work_with_it(model, clip, method):
    made = sparsezip.method(method, budget=5)
    kept = []
    for lent in (clip, None):
        with sparsezip.compress(model, made, processor=make_processor(), clip=lent) as trace:
            model.generate(**inputs_for(*ROWS), max_new_tokens=2, do_sample=False)
        assert [image.tokens for image in trace.images] == [5] * 3
        kept.append([image.source.tolist() for image in trace.images])
    assert kept[0] != kept[1]


@torch.no_grad()
def test_a_clip_that_no_method_asks_for_is_not_run(model, full, clip):
    hook = full.text_projection.register_forward_hook(lambda *_: 1 / 0)
    with sparsezip.compress(model, sparsezip.method("sparsezip", budget=5), clip=clip):
        model(**inputs_for(*ROWS))
    hook.remove()


def test_without_one_the_argument_is_named(model, clip):
    with pytest.raises(UnsupportedModelError, match=r"listens needs image_embeds.*clip=.*load_clip.*visionzip"):
        sparsezip.attach(model, Listens(), processor=make_processor())
    with pytest.raises(UnsupportedCallError, match="processor="):
        sparsezip.attach(model, Listens(), clip=clip)
    own = sparsezip.Question(clip=torch.ones(1, 20))
    with torch.no_grad(), sparsezip.compress(model, Listens(), clip=clip, question=own):
        model(**inputs_for(*ROWS))
    assert Listens.seen[1] == [own] * 3


def test_the_clip_of_another_tower_is_refused(model):
    other = ClipText(make_clip(model, width=16), make_clip_tokenizer())
    with pytest.raises(UnsupportedModelError, match="this CLIP is 16 wide, that of this model 32"):
        sparsezip.attach(model, "keep_all", clip=other)
    assert "generate" not in vars(model)


# -- opened from files ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_clip_is_opened_without_its_towers_layers(full, clip, folders):
    opened = sparsezip.load_clip(folders[1])
    assert len(opened.model.vision_model.encoder.layers) == 0
    assert not opened.model.training
    assert opened.width == 32
    hidden = torch.randn(1, 16, 32)
    for text, _ in ROWS:
        torch.testing.assert_close(opened.text(text), clip.text(text), atol=1e-5, rtol=0)
    torch.testing.assert_close(opened.patches(hidden), clip.patches(hidden), atol=1e-5, rtol=0)
    assert sparsezip.load_clip(folders[1], dtype="bfloat16").text("star").dtype == torch.bfloat16


def test_a_model_that_answers_takes_one(clip, folders):
    images, question, method = [picture(1), picture(2)], "Is there a red circle?", sparsezip.method("trim", budget=5)
    seen = []
    for lent in (folders[1], str(folders[1]), clip):
        vlm = sparsezip.load(folders[0], clip=lent)
        answers = vlm.answer(images, [question] * 2, method)
        alone = sparsezip.compress_images(vlm, images, method, question)
        tower = sparsezip.load_tower(folders[0], question=True, clip=lent)
        towers = sparsezip.compress_images(tower, images, method, question)
        for trace in ([answer.maps for answer in answers], alone.images, towers.images):
            seen.append([image.source.tolist() for image in trace])
    assert all(each == seen[0] for each in seen)
    plain = sparsezip.load(folders[0])
    assert [answer.maps.source.tolist() for answer in plain.answer(images, [question] * 2, method)] != seen[0]
    with pytest.raises(UnsupportedModelError, match="clip="):
        plain.ask(images[0], question, sparsezip.method("trim", paper=True))


def test_what_is_no_clip_is_refused(folders, full, tmp_path):
    with pytest.raises(UnsupportedModelError, match="model_type='llava'"):
        sparsezip.load_clip(folders[0])
    with pytest.raises(UnknownNameError, match="nowhere"):
        sparsezip.load_clip("nowhere")
    with pytest.raises(UnknownNameError, match="nowhere"):
        sparsezip.load(folders[0], clip="nowhere")
    (tmp_path / "config.json").write_text(json.dumps(full.config.to_dict()))
    torch.save(full.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match="cannot be opened"):
        sparsezip.load_clip(tmp_path)
