"""The laws of every model family, checked for each file of models/.

A family brings a tiny model of its own in `tiny_families.TINY`; a file without one fails here. What is particular to
families is in test_families.py.
"""

import inspect
from dataclasses import fields

import pytest
import torch
import transformers
from tiny_families import TINY, Tiny
from tiny_vlm import fingerprint, heard, make_config
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlavaForConditionalGeneration, SiglipVisionConfig

import sparsezip
from sparsezip import methods, models
from sparsezip.errors import UnsupportedCallError, UnsupportedModelError
from sparsezip.methods.base import LayerMethod, Method
from sparsezip.models.base import Adapter
from sparsezip.models.load import adapter_for
from sparsezip.tensors import Captures

FAMILIES = sparsezip.list_models()
ROWS = (("Is there a red circle?", [0]), ("What?", []), ("What color is the star?", [1, 2]))


def close(actual, expected):
    """To float32's rounding, of logits that spread by 1."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=3e-6)


def everything(model):
    """The model's fingerprint, but for what unmodified Qwen models write down in every call."""
    return {
        name: ({key: value for key, value in own.items() if key != "rope_deltas"}, hooks)
        for name, (own, hooks) in fingerprint(model).items()
    }


def takes_videos(name):
    (architecture,) = models.registry.get(name).architectures
    forward = getattr(transformers, architecture).forward
    return "pixel_values_videos" in inspect.signature(forward).parameters


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return models.registry.get(request.param)


@pytest.fixture(scope="module")
def tiny(family) -> Tiny:
    return TINY[family.name]


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.make_model()


@pytest.fixture(scope="module")
def inputs(tiny):
    return tiny.inputs(*ROWS)


def made(adapter: Adapter, name: str, **settings) -> Method:
    """A method of the list with settings that it has; without CLS all patches speak in its place."""
    kind = methods.registry.get(name)
    if not kind.takes_budget:
        settings = {}
    if not kind().needs <= adapter.offers:
        settings["saliency"] = "received"
    if adapter.deepstack and "k" in settings:
        settings["k"] = adapter.deepstack + 1
    return kind(**settings)


def several(adapter: Adapter) -> list[Method]:
    """Methods of every kind that the family serves."""
    ways = [made(adapter, name, keep_ratio=0.4) for name in ("random", "visionzip", "sparsezip", "divprune", "tome")]
    ways += [made(adapter, "hired", keep_ratio=0.4), methods.method("random", budget=9, budget_scope="prompt")]
    if not adapter.refuses_inside:
        fastv = made(adapter, "fastv", k=1, r=0.6)
        ways += [fastv, made(adapter, "divprune", keep_ratio=0.6) | fastv]
        layers = (2, 3) if adapter.llm_layers > 3 else (1, 2)
        layers = layers if not adapter.deepstack else (adapter.deepstack + 1,)
        ratios = (0.5, 0.25)[: len(layers)]
        ways.append(methods.method("pyramiddrop", layers=layers, ratios=ratios))
    return ways


def generated(model, inputs, **settings):
    """The first step's logits and the new tokens, of every row (or beam)."""
    settings = {"max_new_tokens": 5, "do_sample": False} | settings
    out = model.generate(**inputs, output_logits=True, return_dict_in_generate=True, **settings)
    return out.logits[0], out.sequences[:, inputs["input_ids"].shape[1] :]


def test_every_family_has_a_tiny_model():
    assert sorted(TINY) == sorted(FAMILIES)


def test_a_family_says_what_it_is(family):
    assert issubclass(family, Adapter)
    assert not inspect.isabstract(family)
    assert inspect.getmodule(family).__name__ == f"sparsezip.models.{family.name}"
    assert family.architectures
    assert "{question}" in family.prompt
    optional = {field.name for field in fields(Captures) if field.default is None}
    assert family.offers <= optional | {"question"}


def test_building_an_adapter_changes_nothing(family, model):
    before = everything(model)
    assert type(adapter_for(model)) is family
    assert everything(model) == before


# -- nothing left out: unmodified transformers, bit for bit --------------------------------------------------------


@torch.no_grad()
def test_everything_kept_is_transformers_bit_for_bit(model, inputs):
    settings = {"max_new_tokens": 8, "do_sample": False}
    logits, tokens = model(**inputs).logits, model.generate(**inputs, **settings)
    before, adapter = everything(model), adapter_for(model)
    ways = ["keep_all", made(adapter, "visionzip", keep_ratio=1.0), made(adapter, "random", budget=1000)]
    if not adapter.refuses_inside:
        ways.append(made(adapter, "fastv", keep_ratio=1.0, k=1))
    for method in ways:
        with sparsezip.compress(model, method) as trace:
            assert torch.equal(model(**inputs).logits, logits)
            assert torch.equal(model.generate(**inputs, **settings), tokens)
        assert [image.tokens for image in trace.images] == [len(one.patch) for one in adapter.seen({**inputs})]
        assert everything(model) == before
    assert torch.equal(model(**inputs).logits, logits)


@torch.no_grad()
def test_rows_without_images_are_those_of_transformers(model, tiny):
    inputs = tiny.inputs(("What?", []), ("What color is the star?", []))
    logits, tokens = model(**inputs).logits, model.generate(**inputs, max_new_tokens=5, do_sample=False)
    for method in several(adapter_for(model)):
        with sparsezip.compress(model, method) as trace:
            assert torch.equal(model(**inputs).logits, logits)
            assert torch.equal(model.generate(**inputs, max_new_tokens=5, do_sample=False), tokens)
        assert trace.images == []


# -- a row of a batch is what it is alone --------------------------------------------------------------------------


@torch.no_grad()
def test_rows_of_a_batch_are_like_rows_alone(model, tiny, inputs):
    for method in several(adapter_for(model)):
        with sparsezip.compress(model, method) as trace:
            together, answers = generated(model, inputs)
            sent = [image.tokens for image in trace.images]
            layers = [image.tokens_per_layer for image in trace.images]
            alone = [(generated(model, tiny.inputs(row)), [*trace.images]) for row in ROWS]
        close(together, torch.cat([logits for (logits, _), _ in alone]))
        assert torch.equal(answers, torch.cat([tokens for (_, tokens), _ in alone]))
        if method.budget_scope == "image":
            assert sent == [image.tokens for _, images in alone for image in images]
            assert layers == [image.tokens_per_layer for _, images in alone for image in images]


@torch.no_grad()
def test_padding_may_be_on_the_right(model, tiny, inputs):
    """In a plain call, where labels follow."""
    right, adapter = tiny.inputs(*ROWS, padding_side="right"), adapter_for(model)
    places = [len(one.patch) for one in adapter.seen({**right})]
    ways: list[Method] = [made(adapter, "random", keep_ratio=0.4)]
    ways += [] if adapter.refuses_inside else [made(adapter, "fastv", k=1)]
    for method in ways:
        with sparsezip.compress(model, method) as trace:
            expected = generated(model, inputs)[0]
            alone = [model(**row, labels=labelled(row)).loss for row in map(tiny.inputs, ROWS)]
            output = model(**right, labels=labelled(right))
        gone = [place - image.tokens for place, image in zip(places, trace.images, strict=True)]
        last = right["attention_mask"].sum(1) - torch.tensor([gone[0], 0, gone[1] + gone[2]]) - 1
        close(output.logits[torch.arange(len(ROWS)), last], expected)
        close(output.loss, torch.stack(alone).mean())


def labelled(inputs):
    """The last six tokens of every row, whose loss all rows then share alike."""
    number = inputs["attention_mask"].cumsum(1)
    return inputs["input_ids"].masked_fill((number <= number[:, -1:] - 6) | ~inputs["attention_mask"].bool(), -100)


@torch.no_grad()
def test_beams_see_the_images_of_their_row(model, family, tiny, inputs):
    """As in unmodified transformers, and right too where its 5.18 is not: rows of several images or tiles."""
    if family.name == "llama4":
        with pytest.raises(ValueError):  # noqa: PT011  # transformers' own, under compression as without
            generated(model, inputs, num_beams=2)
        return
    ways: list[Method | str] = [made(adapter_for(model), "random", keep_ratio=0.4), "keep_all"]
    ways += [] if family.refuses_inside else [made(adapter_for(model), "fastv", k=1)]
    for method in ways:
        with sparsezip.compress(model, method):
            first, tokens = generated(model, inputs, num_beams=2)
            greedy = generated(model, inputs)[0]
            alone = [generated(model, tiny.inputs(row), num_beams=2)[1] for row in ROWS]
        close(first, greedy.repeat_interleave(2, 0))
        assert torch.equal(tokens, torch.cat(alone))


# -- the model is as before ----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("place", ["tower", "decoder"])
def test_restored_after_an_exception(model, inputs, place):
    adapter, logits = adapter_for(model), model(**inputs).logits
    before = everything(model)  # transformers leaves hooks of its own in a first call
    ways: list[Method] = [made(adapter, "visionzip", keep_ratio=0.4)]
    ways += [] if adapter.refuses_inside else [made(adapter, "fastv", k=1)]
    broken = adapter.layers[0] if place == "tower" else adapter.decoder.layers[-1]
    for method in ways:
        hook = broken.register_forward_hook(lambda *_: 1 / 0)
        try:
            with pytest.raises(ZeroDivisionError), sparsezip.compress(model, method):
                model.generate(**inputs, max_new_tokens=2)
        finally:
            hook.remove()
        assert everything(model) == before
        assert torch.equal(model(**inputs).logits, logits)


# -- what an adapter says ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_everything_offered_is_delivered(model, inputs):
    adapter = adapter_for(model)
    seen, wanted = adapter.seen({**inputs}), adapter.offers - {"question"}
    for received in (False, True):
        named = wanted | (adapter.received if received else frozenset())
        batches = heard(adapter, {**inputs}, seen, named, received=received).batches
        views = [view for batch in batches for view in batch.views]
        assert sorted(views) == [(image, view) for image, one in enumerate(seen) for view in range(len(one.views))]
        for batch in batches:
            captures = batch.captures
            assert captures.delivered == named
            assert {seen[image].views[view] for image, view in batch.views} == {captures.grid}
            assert captures.projected.shape[1:] == (captures.patches, model.config.get_text_config().hidden_size)
    if "question" in adapter.offers:
        question = adapter.question(torch.tensor([5, 6]))
        assert question.words.shape == (2, model.config.get_text_config().hidden_size)
        assert question.tower.shape == captures.features.shape[-1:]


@torch.no_grad()
def test_the_prompt_has_a_place_for_every_patch(model, inputs):
    adapter = adapter_for(model)
    seen = adapter.seen({**inputs})
    assert int(inputs["input_ids"].eq(adapter.placeholder).sum()) == sum(len(image.patch) for image in seen)
    for image in seen:
        shown = image.patch[image.patch >= 0]
        assert shown.unique().tolist() == list(range(image.patches))
        assert torch.equal(image.patch[image.place], torch.arange(image.patches))


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
def test_the_decoders_size_is_what_a_layer_computes(tiny, tokens):
    model = tiny.make_model()
    model.set_attn_implementation("eager")  # whose products are counted one by one
    adapter = adapter_for(model)
    size, decoder, counter = adapter.size(text=7), adapter.decoder, FlopCounterMode(display=False)
    hidden = torch.randn(1, tokens, model.config.get_text_config().hidden_size)
    with counter:
        decoder(inputs_embeds=hidden, use_cache=False)
    counts, own = counter.get_flop_counts(), f"{type(decoder).__name__}.layers.0"
    assert sum(counts[own].values()) == size.per_token * tokens + size.per_pair * tokens**2
    looked = [sum(counts[f"{own}.self_attn.{name}_proj"].values()) for name in "qkv"]
    assert sum(looked) == size.per_look * tokens
    assert (size.layers, size.text) == (adapter.llm_layers, 7)


# -- every method on every family ----------------------------------------------------------------------------------


@torch.no_grad()
def test_every_method_runs_or_is_refused(model, family, inputs):
    """Nothing but UnsupportedModelError, which says what to do; methods that read CLS are refused without it."""
    adapter, before = adapter_for(model), everything(model)
    for name in sparsezip.list_methods():
        settings = {"keep_ratio": 0.4} if methods.registry.get(name).takes_budget else {}
        method = methods.method(name, **settings)
        if not method.needs <= adapter.offers | {"image_embeds"}:
            with pytest.raises(UnsupportedModelError, match=r'saliency="received".*Methods that work here: '):
                sparsezip.attach(model, method)
            method = methods.method(name, saliency="received", **settings)
        try:
            with sparsezip.compress(model, method) as trace:
                model.generate(**inputs, max_new_tokens=1, do_sample=False)
        except UnsupportedModelError:
            assert name == "downsample" or isinstance(method, LayerMethod)
            continue
        assert len(trace.images) == 3
        assert all(image.tokens >= 1 for image in trace.images)
    assert everything(model) == before


# -- calls and models that are not served --------------------------------------------------------------------------


@pytest.mark.parametrize("family", [name for name in FAMILIES if takes_videos(name)], indirect=True)
def test_videos_beside_images_are_refused(model, inputs):
    with sparsezip.compress(model, "random"), pytest.raises(UnsupportedCallError, match="Give the frames as images"):
        model(**inputs, pixel_values_videos=inputs["pixel_values"])


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
