"""Opening checkpoints: whole, or the tower alone; folders and the Hub's cache; what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_vlm import make_model, make_processor, picture

import sparsezip
from sparsezip.errors import UnknownNameError, UnsupportedCallError, UnsupportedModelError
from sparsezip.models import load as opening

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
    other = changed(single, tmp_path / "other", architectures=["Qwen2VLForConditionalGeneration"])
    (other / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModelError, match=r"Qwen2VL.* is not supported.*llava \(LlavaForConditional"):
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


def test_quantization_goes_by_transformers_own_name(single):
    with pytest.raises(UnsupportedCallError, match=r"no option quantization='4bit'.*quantization_config="):
        sparsezip.load(single, quantization="4bit")
