"""The laws of every model family, checked for each file of models/.

A family brings a tiny model of its own in `TINY`; a file without one fails here.
"""

import inspect
from dataclasses import fields

import pytest
import torch
from tiny_vlm import captured, fingerprint, inputs_for, make_config, make_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlavaForConditionalGeneration, SiglipVisionConfig

import sparsezip
from sparsezip import models
from sparsezip.errors import UnsupportedModelError
from sparsezip.models.base import Adapter
from sparsezip.models.load import adapter_for
from sparsezip.tensors import Captures

TINY = {"llava": make_model}
FAMILIES = sparsezip.list_models()


@pytest.fixture(params=FAMILIES)
def family(request):
    return models.registry.get(request.param)


@pytest.fixture
def model(family):
    return TINY[family.name]()


@pytest.fixture
def inputs():
    return inputs_for(("What color is the star?", [1]), ("hello", []), ("Is there a red circle?", [2, 3]))


def test_every_family_is_listed():
    assert "llava" in FAMILIES


def test_a_family_says_what_it_is(family):
    assert issubclass(family, Adapter)
    assert not inspect.isabstract(family)
    assert inspect.getmodule(family).__name__ == f"sparsezip.models.{family.name}"
    assert family.architectures
    assert "{question}" in family.prompt
    optional = {field.name for field in fields(Captures) if field.default is None}
    assert family.offers <= optional | {"question"}


def test_building_an_adapter_changes_nothing(family, model):
    before = fingerprint(model)
    assert type(adapter_for(model)) is family
    assert fingerprint(model) == before


@torch.no_grad()
def test_keep_all_is_transformers_bit_for_bit(model, inputs):
    settings = {"max_new_tokens": 8, "do_sample": False}
    logits, tokens = model(**inputs).logits, model.generate(**inputs, **settings)
    before = fingerprint(model)
    with sparsezip.compress(model, "keep_all"):
        assert torch.equal(model(**inputs).logits, logits)
        assert torch.equal(model.generate(**inputs, **settings), tokens)
    assert fingerprint(model) == before
    assert torch.equal(model(**inputs).logits, logits)


@torch.no_grad()
def test_everything_offered_is_delivered(model, inputs):
    adapter = adapter_for(model)
    captures = captured(adapter, inputs["pixel_values"], adapter.offers - {"question"})
    assert captures.delivered == adapter.offers - {"question"}
    assert captures.has_cls == (adapter.cls is not None)
    assert captures.grid == adapter.seen({**inputs})[0].grid
    if "question" in adapter.offers:
        question = adapter.question(torch.tensor([5, 6]))
        assert question.words.shape == (2, model.config.text_config.hidden_size)
        assert question.tower.shape == captures.features.shape[-1:]


@torch.no_grad()
def test_the_prompt_has_a_place_for_every_patch(model, inputs):
    adapter = adapter_for(model)
    places = sum(len(image.patch) for image in adapter.seen({**inputs}))
    assert int(inputs["input_ids"].eq(adapter.placeholder).sum()) == places


@torch.no_grad()
def test_the_llm_has_as_many_layers_as_the_adapter_says(model, inputs):
    output = model(**inputs, output_hidden_states=True)
    assert len(output.hidden_states) == adapter_for(model).llm_layers + 1


@torch.no_grad()
def test_the_decoder_is_what_runs(model, inputs):
    adapter, ran = adapter_for(model), []
    places = [*adapter.decoder.layers, adapter.decoder.norm, adapter.decoder.rotary_emb]
    hooks = [place.register_forward_hook(lambda module, args, out: ran.append(module)) for place in places]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    assert set(ran) == set(places)
    assert len(adapter.decoder.layers) == adapter.llm_layers


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 40])
def test_the_decoders_size_is_what_a_layer_computes(model, tokens):
    model.set_attn_implementation("eager")  # whose products are counted one by one
    size = adapter_for(model).size(text=7)
    decoder, counter = adapter_for(model).decoder, FlopCounterMode(display=False)
    hidden = torch.randn(1, tokens, model.config.text_config.hidden_size)
    places = decoder.rotary_emb(hidden, torch.arange(tokens)[None])
    with counter:
        decoder.layers[0](hidden, position_embeddings=places)
    assert counter.get_total_flops() == size.per_token * tokens + size.per_pair * tokens**2
    counts, own = counter.get_flop_counts(), f"{type(decoder.layers[0]).__name__}.self_attn"
    looked = [sum(counts[f"{own}.{name}_proj"].values()) for name in "qkv"]
    assert sum(looked) == size.per_look * tokens
    assert (size.layers, size.text) == (adapter_for(model).llm_layers, 7)


# -- LLaVA models that are not served ------------------------------------------------------------------------------


def test_llava_with_another_tower_is_refused():
    config = make_config()
    config.vision_config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    with pytest.raises(UnsupportedModelError, match="SiglipVisionModel as vision tower"):
        adapter_for(LlavaForConditionalGeneration(config))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vision_feature_select_strategy": "full"}, 'vision_feature_select_strategy="full"'),
        ({"vision_feature_layer": [-2, -1]}, r"vision_feature_layer=\[-2, -1\]"),
        ({"vision_feature_layer": 0}, "vision_feature_layer=0"),
        ({"vision_feature_layer": -5}, "vision_feature_layer=-5 of a tower of 4 layers"),
    ],
)
def test_llava_with_other_features_is_refused(settings, message):
    with pytest.raises(UnsupportedModelError, match=message):
        adapter_for(LlavaForConditionalGeneration(make_config(**settings)))


def test_a_class_of_ones_own_belongs_to_its_parents_family():
    class Tuned(LlavaForConditionalGeneration):
        """As user code derives one."""

    assert adapter_for(Tuned(make_config())).name == "llava"
