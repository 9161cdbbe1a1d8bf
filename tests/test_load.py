"""Opening checkpoints: whole, or the tower alone; folders and the Hub's cache; what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_families import TINY
from tiny_vlm import fingerprint, make_model, make_processor, picture
from transformers import BitsAndBytesConfig

import sparsezip
from sparsezip.errors import UnknownNameError, UnsupportedCallError, UnsupportedModelError
from sparsezip.models import load as opening
from sparsezip.models.base import TowerPass

QUESTION = "What color is the star?"


@pytest.fixture(scope="module")
def model():
    return make_model()


def saved(model, folder, **settings):
    model.save_pretrained(folder, **settings)
    make_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def single(model, tmp_path_factory):
    return saved(model, tmp_path_factory.mktemp("single"))


@pytest.fixture(scope="module")
def sharded(model, tmp_path_factory):
    folder = saved(model, tmp_path_factory.mktemp("sharded"), max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


@pytest.fixture(params=["single", "sharded"])
def folder(request):
    return request.getfixturevalue(request.param)


def in_cache(folder, cache, commit="0123456789abcdef0123456789abcdef01234567"):
    """`folder` as the Hub's cache would hold it under the id owner/tiny."""
    home = cache / "models--owner--tiny"
    shutil.copytree(folder, home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    return {"cache_dir": str(cache), "local_files_only": True}


def test_opens_what_transformers_saved(model, folder):
    vlm = sparsezip.load(folder)
    for (name, weight), (other, expected) in zip(vlm.model.named_parameters(), model.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(weight, expected)
    assert type(vlm.model) is type(model)
    assert not vlm.model.training
    assert vlm.name == str(folder)
    assert vlm.model.model.vision_tower.config._attn_implementation == "sdpa"
    assert type(vlm.processor.image_processor).__name__ == "CLIPImageProcessorPil"


def test_device_dtype_and_attention_are_passed_on(single):
    vlm = sparsezip.load(single, device="cpu", dtype="bfloat16", attn_implementation="eager")
    assert vlm.model.dtype == torch.bfloat16
    assert vlm.model.config._attn_implementation == "eager"
    answer = vlm.ask(picture(1), QUESTION, sparsezip.method("visionzip", budget=5))
    assert answer.tokens == 5


def test_the_revision_names_the_weights(model, single, tmp_path):
    first = sparsezip.load(single).revision
    assert first.startswith("sha256:")
    assert first == sparsezip.load(saved(model, tmp_path / "copy")).revision == sparsezip.load_tower(single).revision
    assert first != sparsezip.load(saved(make_model(seed=1), tmp_path / "other")).revision


def test_the_revision_of_a_hub_checkpoint_is_its_commit(single, tmp_path):
    vlm = sparsezip.load("owner/tiny", **in_cache(single, tmp_path))
    assert vlm.revision == "0123456789abcdef0123456789abcdef01234567"
    assert vlm.name == "owner/tiny"
    assert vlm.ask(picture(1), QUESTION).tokens == 16


# -- the tower alone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", [None, QUESTION])
@pytest.mark.parametrize("method", ["sparsezip", "visionzip", "grid"])
def test_the_tower_alone_compresses_as_the_whole_model(folder, question, method):
    made = sparsezip.method(method, budget=6)
    tower = sparsezip.load_tower(folder, question=question is not None)
    whole = sparsezip.load(folder)
    images = [picture(1), picture(2)]
    alone, expected = (sparsezip.compress_images(part, images, made, question) for part in (tower, whole))
    assert [image.tokens for image in alone.images] == [6, 6]
    for image, other in zip(alone.images, expected.images, strict=True):
        assert torch.equal(image.kept, other.kept)
        assert torch.equal(image.source, other.source)
    if question:
        answers = whole.answer(images, [question] * 2, made)
        assert [a.maps.source.tolist() for a in answers] == [image.source.tolist() for image in alone.images]


def test_the_question_changes_what_is_kept(folder):
    tower = sparsezip.load_tower(folder, question=True)
    method = sparsezip.method("sparsezip", budget=8, cross_beta=5.0)
    images = [picture(seed) for seed in range(8)]
    texts = [QUESTION, "Is there a red circle?", None]
    kept = [
        [image.kept.tolist() for image in sparsezip.compress_images(tower, images, method, text).images]
        for text in texts
    ]
    assert kept[0] != kept[1] != kept[2] != kept[0]
    assert kept[0] == [
        image.kept.tolist() for image in sparsezip.compress_images(tower, images, method, [QUESTION] * 8).images
    ]


def test_only_the_towers_weights_are_read(folder, monkeypatch):
    read = []

    class Spy:
        def __init__(self, file, framework):
            self.file = opening_safe_open(file, framework)

        def __enter__(self):
            self.tensors = self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def keys(self):
            return self.tensors.keys()

        def get_tensor(self, name):
            read.append(name)
            return self.tensors.get_tensor(name)

    opening_safe_open = opening.safe_open
    monkeypatch.setattr(opening, "safe_open", Spy)
    tower = sparsezip.load_tower(folder)
    assert read
    assert all("vision_tower." in name for name in read)
    assert len(tower.model.language_model.layers) == 0
    read.clear()
    sparsezip.load_tower(folder, question=True)
    besides = [name for name in read if "vision_tower." not in name]
    assert sorted(name.split(".")[-2] for name in besides) == ["embed_tokens", *["linear_1"] * 2, *["linear_2"] * 2]


def test_shards_without_the_tower_need_not_be_there(sharded, tmp_path):
    where = in_cache(sharded, tmp_path)
    snapshot = next((tmp_path / "models--owner--tiny" / "snapshots").iterdir())
    shards = json.loads((snapshot / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {shard for name, shard in shards.items() if "vision_tower." in name}
    spare = set(shards.values()) - needed
    assert spare
    for shard in spare:
        (snapshot / shard).unlink()
    tower = sparsezip.load_tower("owner/tiny", **where)
    assert sparsezip.compress_images(tower, [picture(1)], "grid").images
    with pytest.raises(UnsupportedModelError, match=r"has no model-.*safetensors"):
        sparsezip.load_tower("owner/tiny", question=True, **where)


def test_names_of_older_files_are_understood(model, single, tmp_path):
    """Checkpoints of LLaVA-1.5 on the Hub hold an older layout, which transformers renames on loading."""
    folder = tmp_path / "older"
    shutil.copytree(single, folder)
    tensors = {}
    for name, tensor in load_file(single / "model.safetensors").items():
        name = name.removeprefix("model.").replace("vision_tower.", "vision_tower.vision_model.")
        tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tower = sparsezip.load_tower(folder, question=True)
    for name, weight in tower.model.vision_tower.named_parameters():
        assert torch.equal(weight, model.model.vision_tower.get_parameter(name))
    assert torch.equal(tower.model.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_a_tower_opened_without_a_question_cannot_be_asked(single):
    tower = sparsezip.load_tower(single)
    with pytest.raises(UnsupportedCallError, match="question=True"):
        sparsezip.compress_images(tower, [picture(1)], "sparsezip", QUESTION)
    sparsezip.compress_images(tower, [picture(1)], "grid", QUESTION)  # which does not read it


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("liuhaotian/llava-v1.5-7b", r"original LLaVA format.*llava-hf/llava-1\.5-7b-hf"),
        ("liuhaotian/llava-v1.5-13b", r"llava-hf/llava-1\.5-13b-hf"),
        ("liuhaotian/llava-v1.6-mistral-7b", r"llava-hf/llava-v1\.6-mistral-7b-hf"),
        ("liuhaotian/llava-v1.5-7b-lora", r"huggingface\.co/llava-hf"),
    ],
)
@pytest.mark.parametrize("how", [sparsezip.load, sparsezip.load_tower])
def test_original_checkpoints_are_answered_with_their_twin(name, message, how):
    with pytest.raises(UnsupportedModelError, match=message):
        how(name)


@pytest.mark.parametrize("name", ["testbad", "/nowhere/at/all", "a/b/c"])
def test_unknown_names(name):
    with pytest.raises(UnknownNameError, match=name) as caught:
        sparsezip.load(name)
    assert ('Did you mean "testbed"?' in str(caught.value)) == (name == "testbad")


def test_a_file_is_no_model_whatever_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "scene.png").touch()
    monkeypatch.setattr(opening, "cached_file", lambda *_, **__: pytest.fail("the Hub was asked"))
    for open_ in (sparsezip.load, sparsezip.load_clip):
        with pytest.raises(UnknownNameError, match="There is no model"):
            open_("owner/scene.png")


def test_a_hub_id_that_is_not_to_be_had(tmp_path):
    with pytest.raises(UnknownNameError, match='no model "owner/tiny" to be had'):
        sparsezip.load("owner/tiny", cache_dir=str(tmp_path), local_files_only=True)


def changed(folder, target, **config):
    shutil.copytree(folder, target)
    file = target / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return target


@pytest.mark.parametrize("how", [sparsezip.load, sparsezip.load_tower])
def test_other_families_are_refused_before_anything_is_loaded(single, tmp_path, how):
    other = changed(single, tmp_path / "other", architectures=["Blip2ForConditionalGeneration"])
    (other / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModelError, match=r"Blip2.* is not supported.*llava \(LlavaForConditional"):
        how(other)
    original = changed(single, tmp_path / "original", architectures=["LlavaLlamaForCausalLM"])
    with pytest.raises(UnsupportedModelError, match="original LLaVA format"):
        how(original)
    nameless = changed(single, tmp_path / "nameless", architectures=None)
    with pytest.raises(UnsupportedModelError, match="names no architecture"):
        how(nameless)


@pytest.mark.parametrize("how", [sparsezip.load, sparsezip.load_tower])
def test_only_safetensors_are_read(model, single, tmp_path, how):
    folder = tmp_path / "pickled"
    shutil.copytree(single, folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match=r"model\.safetensors"):
        how(folder)


# -- several places, offloading, quantization ----------------------------------------------------------------------

TOWER = {"model.vision_tower": "disk", "model.multi_modal_projector": "disk", "model.language_model": "cpu"}
LLM = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "model.language_model": "disk"}
LAYERS = {
    "model.vision_tower": "cpu",
    "model.multi_modal_projector.linear_1": "disk",
    "model.multi_modal_projector.linear_2": "cpu",
    "model.language_model.embed_tokens": "disk",
    "model.language_model.layers.0": "cpu",
    "model.language_model.layers.1": "disk",
    "model.language_model.layers.2": "disk",
    "model.language_model.norm": "disk",
}
PLACES = {
    "cpu": "cpu",
    "auto": "auto",
    "all offloaded": {"": "disk"},
    "tower offloaded": TOWER | {"lm_head": "cpu"},
    "LLM offloaded": LLM | {"lm_head": "disk"},
    "layers offloaded": LAYERS | {"lm_head": "cpu"},
}
METHODS = {
    "keep_all": None,
    "visionzip": 5,
    "sparsezip": 6,
    "grid": 4,
    "fastv": 8,
    "sparsevlm": 8,
    "visionzip|fastv": 6,
}
SCENE = Path(__file__).parents[1] / "examples" / "scene.png"


def answers(vlm, name, budget=None, image=None):
    """Text, patches and tokens by layer of two questions in one batch."""
    budget = budget or METHODS[name]
    method = sparsezip.method(name, **({} if budget is None else {"budget": budget}))
    images = [image, image] if image else [picture(1), picture(2)]
    given = vlm.answer(images, [QUESTION, "Is there a red circle?"], method)
    return [(one.text, one.maps.source.tolist(), one.tokens_per_layer) for one in given]


# transformers 5.18 takes "meta", where offloaded weights wait, for the model's device.
waiting = pytest.mark.filterwarnings("ignore:You are calling .generate.. with the `input_ids` being on a device type")


@waiting
@pytest.mark.parametrize("name", PLACES)
def test_a_model_in_several_places_answers_as_in_one(single, tmp_path, name):
    offloaded = "offloaded" in name
    vlm = sparsezip.load(single, device_map=PLACES[name], offload_folder=tmp_path)
    assert any(weight.is_meta for weight in vlm.model.parameters()) == offloaded
    before = fingerprint(vlm.model)
    whole = sparsezip.load(single)
    for method in METHODS:
        assert answers(vlm, method) == answers(whole, method), method
    assert fingerprint(vlm.model) == before
    assert vlm.device.type == "cpu"
    method = sparsezip.method("sparsezip", budget=6)
    own, expected = (sparsezip.compress_images(one, [picture(1)], method, QUESTION).images[0] for one in (vlm, whole))
    assert torch.equal(own.source, expected.source)


@waiting
def test_what_was_brought_in_is_let_go(single, tmp_path):
    """The tower ends early, and the projector's weights are read: neither may leave weights behind."""
    vlm = sparsezip.load(single, device_map={"": "disk"}, offload_folder=tmp_path)
    for method in METHODS:
        answers(vlm, method)
        assert all(weight.is_meta for weight in vlm.model.parameters()), method
    vlm.adapter.question(torch.tensor([7, 8, 9]))
    assert all(weight.is_meta for weight in vlm.model.parameters())


quantized = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def testbed():
    return sparsezip.load("testbed")


def linear(vlm):
    """The linear layers inside the language model's decoder, and those outside, by name."""
    inside = {name: layer for name, layer in vlm.model.named_modules() if isinstance(layer, torch.nn.Linear)}
    outside = {name: layer for name, layer in inside.items() if "language_model" not in name}
    return {name: layer for name, layer in inside.items() if name not in outside}, outside


@quantized
@pytest.mark.parametrize(("bits", "kind", "size"), [("4bit", "Linear4bit", 0.5), ("8bit", "Linear8bitLt", 1.0)])
def test_quantization_is_of_the_language_model_alone(testbed, bits, kind, size):
    vlm = sparsezip.load("testbed", quantization=bits)
    inside, outside = linear(vlm)
    assert {type(layer).__name__ for layer in inside.values()} == {kind}
    plain, other = linear(testbed)
    assert inside.keys() == plain.keys()
    assert outside.keys() == other.keys()
    assert {name.split(".")[-1] for name in outside} >= {"linear_1", "linear_2", "fc1", "q_proj", "lm_head"}
    for name, layer in outside.items():
        assert type(layer) is torch.nn.Linear
        assert torch.equal(layer.weight, other[name].weight)
    for name, layer in inside.items():
        assert layer.weight.numel() * layer.weight.element_size() == plain[name].weight.numel() * size

    inputs = vlm.processor(images=Image.open(SCENE), text=vlm.prompt(QUESTION), return_tensors="pt")
    given = vlm.model.generate(**inputs, do_sample=False, max_new_tokens=4)
    with sparsezip.compress(vlm.model, "keep_all"):
        assert torch.equal(vlm.model.generate(**inputs, do_sample=False, max_new_tokens=4), given)
    for method in ("visionzip", "sparsezip", "fastv"):
        given, of_whole = (answers(one, method, 192, SCENE) for one in (vlm, testbed))
        assert given[0][0] == of_whole[0][0] == "yellow"
        for (_, source, layers), (_, other_source, other_layers) in zip(given, of_whole, strict=True):
            assert layers == other_layers
            assert source == other_source or method == "fastv"  # which chooses by the LLM


@quantized
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantizer_of_ones_own_may_take_the_projector(testbed, bits):
    vlm = sparsezip.load("testbed", quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}bit": True}))
    assert type(vlm.model.model.multi_modal_projector.linear_1) is not torch.nn.Linear
    words = torch.tensor([7, 8, 9])
    carried, expected = (one.adapter.question(words).tower for one in (vlm, testbed))
    assert torch.cosine_similarity(carried, expected, 0) > 0.97
    assert answers(vlm, "sparsezip", 192, SCENE)[0][0] == "yellow"


@pytest.mark.parametrize(
    ("asked", "place"),
    [({"device": "cpu"}, {"": "cpu"}), ({"device_map": "auto"}, "auto"), ({}, {"": "cuda"})],
)
@pytest.mark.parametrize("bits", [4, 8])
def test_where_and_in_what_type_bitsandbytes_computes(single, monkeypatch, asked, place, bits):
    given = {}

    def from_pretrained(source, **options):
        given.update(options)
        raise OSError("seen enough")

    monkeypatch.setattr(opening, "_default_device", lambda: "cuda")
    monkeypatch.setattr(opening.AutoModelForImageTextToText, "from_pretrained", from_pretrained)
    with pytest.raises(UnsupportedModelError, match="seen enough"):
        sparsezip.load(single, quantization=f"{bits}bit", dtype="bfloat16", **asked)
    config = given["quantization_config"]
    assert (config.load_in_4bit, config.load_in_8bit) == (bits == 4, bits == 8)
    assert (config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)
    assert given["device_map"] == place
    with pytest.raises(UnsupportedModelError):
        sparsezip.load(single, quantization=f"{bits}bit")
    assert given["quantization_config"].bnb_4bit_compute_dtype == torch.float32  # the checkpoint's


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu", "device_map": "auto"}, r"device='cpu' and device_map='auto' both.*Give one of them\."),
        ({"quantization": "3bit"}, r"no quantization='3bit'\. Give \"4bit\" or \"8bit\""),
        (
            {"quantization": "4bit", "quantization_config": {"load_in_4bit": True}},
            r"quantization='4bit' and quantization_config= both.*Give one of them\.",
        ),
        ({"attn_implementation": "flash_attention_2"}, r"cannot be opened as asked: .*FlashAttention2.*Install it"),
    ],
)
def test_options_that_cannot_be_met(single, options, message):
    with pytest.raises(UnsupportedCallError, match=message):
        sparsezip.load(single, **options)


@pytest.mark.parametrize("lacking", [["accelerate"], ["bitsandbytes"], ["accelerate", "bitsandbytes"]])
def test_packages_that_are_not_there_are_named(single, monkeypatch, lacking):
    for package in ("accelerate", "bitsandbytes"):
        monkeypatch.setattr(opening, f"is_{package}_available", lambda there=package not in lacking: there)
    message = f"quantization='8bit' needs {' and '.join(lacking)}, .* pip install -U {' '.join(lacking)}\\."
    with pytest.raises(UnsupportedCallError, match=message):
        sparsezip.load(single, quantization="8bit")
    if "accelerate" in lacking:
        with pytest.raises(UnsupportedCallError, match=r"device_map= needs accelerate, .* pip install -U accelerate\."):
            sparsezip.load(single, device_map="auto")


def test_what_is_quantized_is_not_quantized_again(single, tmp_path):
    folder = changed(single, tmp_path / "quantized", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnsupportedCallError, match=r"quantization='4bit' was asked for, but .* is quantized already"):
        sparsezip.load(folder, quantization="4bit")


KEYS = TowerPass(captures=frozenset({"keys"}))


@torch.no_grad()
@pytest.mark.parametrize("family", sparsezip.list_models())
def test_the_tower_alone_makes_what_the_whole_model_makes(family, tmp_path, monkeypatch):
    """Of every family; and of the language model nothing but the words' embeddings is read."""
    tiny = TINY[family]
    model = tiny.make_model()
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(opening, "_processor", lambda *args, **settings: None)  # some need torchvision
    call, whole = dict(tiny.inputs(("What color is it?", [1]))), opening.adapter_for(model)
    expected = whole.encode(call, whole.seen(call), KEYS)
    for asked in (False, True):
        tower = opening.load_tower(tmp_path, question=asked)
        found = tower.adapter.encode(call, tower.adapter.seen(call), KEYS)
        for mine, its in zip(found.batches, expected.batches, strict=True):
            assert torch.equal(mine.captures.features, its.captures.features)
            assert torch.equal(mine.captures.keys, its.captures.keys)
        assert ("question" in tower.adapter.offers) == asked
        assert not any(".layers." in name and "self_attn.q_proj" in name for name, _ in decoder_of(tower.model))
    words = torch.tensor([5, 6])
    assert torch.equal(tower.adapter.question(words).tower, whole.question(words).tower)


def decoder_of(model):
    """Parameters outside of the tower."""
    return [(name, its) for name, its in model.named_parameters() if not name.split(".")[0].startswith("vis")]


class Opens:
    """Stands for AutoProcessor, of a family whose video processor has no PIL backend."""

    def __init__(self, processor, error=None):
        self.processor, self.error = processor, error

    def from_pretrained(self, source, *, trust_remote_code, backend=None, **where):
        if backend == "pil":
            raise ImportError("Video processor cannot be loaded - requested pil backend is not available.")
        if self.error:
            raise self.error
        return self.processor


def test_a_processor_with_videos_has_images_made_by_pil(single, monkeypatch):
    processor = make_processor()
    processor.image_processor = None
    monkeypatch.setattr(opening, "AutoProcessor", Opens(processor))
    vlm = sparsezip.load(single)
    assert vlm.processor is processor
    assert type(processor.image_processor).__name__ == "CLIPImageProcessorPil"
    assert vlm.ask(picture(1), QUESTION, "grid", max_new_tokens=2).tokens == 16


@pytest.mark.parametrize(
    ("opens", "message"),
    [
        (Opens(None, ImportError("It requires the Torchvision library. See there")), "library. Install torchvision"),
        (Opens(None, OSError("no processor_config.json")), "cannot be opened: no processor_config.json"),
    ],
)
def test_a_processor_that_cannot_be_opened_says_why(single, monkeypatch, opens, message):
    monkeypatch.setattr(opening, "AutoProcessor", opens)
    with pytest.raises(UnsupportedModelError, match=message):
        sparsezip.load(single)


def test_a_tokenizer_is_no_processor(model, tmp_path):
    model.save_pretrained(tmp_path)
    make_processor().tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="cannot be opened"):
        sparsezip.load(tmp_path)
