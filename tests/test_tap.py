"""The tap: what one tower layer attended to, heard without slowing the others down."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vlm import NoAttentionMatrix, captured, fingerprint, make_model

from sparsezip.models.llava import Llava
from sparsezip.models.pointwise import scaled
from sparsezip.plumbing.tap import Tap, received

ALL = frozenset({"cls_attention", "keys"})
EVERY = ALL | {"last_query", "last_keys", "low_attention"}


def tapped(adapter, wanted=ALL, *, cls=0, low_layer=0.0):
    heard_from = adapter.heard_from(low_layer)
    return Tap(adapter.layer, {name: heard_from[name] for name in wanted}, cls=cls)


@pytest.fixture(scope="module")
def adapter():
    return Llava(make_model(side=112))


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 112, 112, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def eager(adapter, pixels):
    """Attentions and hidden state of the tapped layer, and its keys, by transformers' own means."""
    model = make_model(side=112)
    model.load_state_dict(adapter.model.state_dict())
    model.set_attn_implementation("eager")
    tower, keys = model.model.vision_tower, []
    hook = tower.encoder.layers[-2].self_attn.k_proj.register_forward_hook(lambda m, args, out: keys.append(out))
    output = tower(pixels, output_attentions=True, output_hidden_states=True)
    hook.remove()
    keys = keys[0].unflatten(-1, (2, 16)).mean(2)
    return output.attentions[-2], output.hidden_states[-2], keys


@torch.no_grad()
def test_hears_what_eager_attention_shows(adapter, pixels):
    attention, hidden, keys = eager(adapter, pixels)
    captures = captured(adapter, pixels, ALL)
    assert attention[:, :, 0, 1:].max() > 0.3  # peaked, so that a wrong scale or row would show
    torch.testing.assert_close(captures.cls_attention, attention[:, :, 0, 1:], atol=1e-6, rtol=0)
    torch.testing.assert_close(captures.keys, keys, atol=1e-4, rtol=0)  # values of several tens
    torch.testing.assert_close(captures.features, hidden, atol=1e-4, rtol=0)
    assert captures.grid == (8, 8)


@torch.no_grad()
def test_taps_the_layer_the_projector_reads(pixels):
    for layer in (-1, -3, 1, 3):
        model = make_model(side=112, vision_feature_layer=layer)
        expected = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[layer]
        assert torch.equal(captured(Llava(model), pixels, frozenset()).features, expected)


@torch.no_grad()
@pytest.mark.parametrize(("low_layer", "index"), [(0.0, 0), (0.25, 1), (0.7, 3), (1.0, 3)])
def test_an_early_layer_is_a_share_of_the_depth(adapter, pixels, low_layer, index):
    model = make_model(side=112)
    model.set_attn_implementation("eager")
    expected = model.model.vision_tower(pixels, output_attentions=True).attentions[index][:, :, 0, 1:]
    captures = captured(adapter, pixels, frozenset({"low_attention", "cls_attention"}), low_layer=low_layer)
    torch.testing.assert_close(captures.low_attention, expected, atol=1e-5, rtol=0)
    assert (captures.low_attention - captures.cls_attention).abs().max() > 0.01


def projections(adapter, pixels, layer=-1):
    """What q_proj and k_proj of a layer give in the unmodified tower."""
    seen, attention = {}, adapter.tower.encoder.layers[layer].self_attn
    hooks = [
        getattr(attention, name).register_forward_hook(lambda module, args, out, name=name: seen.update({name: out}))
        for name in ("q_proj", "k_proj")
    ]
    adapter.tower(pixels)
    for hook in hooks:
        hook.remove()
    return seen["q_proj"], seen["k_proj"]


@torch.no_grad()
def test_query_and_keys_of_the_last_layer_are_its_projections_bit_for_bit(adapter, pixels):
    query, keys = projections(adapter, pixels)
    captures = captured(adapter, pixels, EVERY)
    assert torch.equal(captures.last_query, query[:, 0])
    assert torch.equal(captures.last_keys, keys)
    with tapped(adapter, {"last_query"}, cls=None) as tap:
        adapter.tower(pixels)
    torch.testing.assert_close(tap.heard["last_query"][0], query.mean(1), atol=1e-5, rtol=0)


@torch.no_grad()
def test_one_layer_can_tell_everything(pixels):
    """Where the projector reads the last layer, all of it is heard from one attention module."""
    adapter = Llava(make_model(side=112, vision_feature_layer=-1))
    query, keys = projections(adapter, pixels)
    captures = captured(adapter, pixels, EVERY, low_layer=1.0)
    assert captures.delivered == EVERY
    assert torch.equal(captures.last_query, query[:, 0])
    assert torch.equal(captures.low_attention, captures.cls_attention)
    torch.testing.assert_close(captures.keys, keys.unflatten(-1, (2, 16)).mean(2), atol=1e-5, rtol=0)
    logits = query.unflatten(-1, (2, 16))[:, 0, :, None] @ keys.unflatten(-1, (2, 16)).permute(0, 2, 3, 1) / 4
    torch.testing.assert_close(captures.cls_attention, logits.softmax(-1)[:, :, 0, 1:], atol=1e-6, rtol=0)


@torch.no_grad()
def test_projected_patches_are_the_unmodified_models(adapter, pixels):
    expected = torch.stack(list(adapter.model.model.get_image_features(pixels).pooler_output))
    assert torch.equal(captured(adapter, pixels, frozenset({"projected"})).projected, expected)


@torch.no_grad()
@pytest.mark.parametrize("grid", [(3, 2), (5, 5), (1, 8)])
def test_images_are_scaled_down_as_pillow_does_it(adapter, pixels, grid):
    size = (grid[1] * 14, grid[0] * 14)
    small = [
        [
            torch.tensor(np.asarray(Image.fromarray(channel.numpy()).resize(size, Image.Resampling.BICUBIC)))
            for channel in image
        ]
        for image in pixels
    ]
    small = torch.stack([torch.stack(channels) for channels in small])
    torch.testing.assert_close(scaled(pixels, (8, 8), grid), small, atol=1e-4, rtol=0)
    plain = adapter.tower(scaled(pixels, (8, 8), grid), interpolate_pos_encoding=True, output_hidden_states=True)
    captures = captured(adapter, pixels, EVERY | {"projected"}, grid=grid)
    assert captures.grid == grid
    assert captures.delivered == EVERY | {"projected"}
    assert torch.equal(captures.features, plain.hidden_states[-2])


@torch.no_grad()
@pytest.mark.parametrize(("wanted", "run"), [(frozenset(), 3), (ALL, 3), (EVERY, 4)])
def test_the_tower_runs_as_far_as_it_is_read(adapter, pixels, wanted, run):
    """Of four layers the projector reads the third; two signals are queries and keys of the fourth, not its output."""
    plain = adapter.tower(pixels, output_hidden_states=True)
    begun, ended = [], []
    hooks = [layer.register_forward_pre_hook(lambda module, args: begun.append(module)) for layer in adapter.layers]
    hooks += [layer.register_forward_hook(lambda module, args, out: ended.append(module)) for layer in adapter.layers]
    try:
        with tapped(adapter, wanted) as tap:
            adapter.tower(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    assert (len(begun), len(ended)) == (run, 3)
    assert torch.equal(tap.features, plain.hidden_states[-2])
    again = adapter.tower(pixels, output_hidden_states=True)
    assert torch.equal(again.last_hidden_state, plain.last_hidden_state)


@torch.no_grad()
def test_a_tower_that_was_compiled_whole_is_run_whole(pixels):
    adapter = Llava(make_model(side=112))
    expected = captured(adapter, pixels, frozenset())
    adapter.tower.compile(backend="eager", fullgraph=True)
    assert torch.equal(captured(adapter, pixels, frozenset()).features, expected.features)


@torch.no_grad()
def test_attention_received_is_averaged_over_all_queries(adapter, pixels):
    """What towers without CLS deliver; 65 queries are more than one chunk."""
    attention, _, _ = eager(adapter, pixels)
    with tapped(adapter, EVERY, cls=None) as tap:
        adapter.tower(pixels)
    torch.testing.assert_close(tap.heard["cls_attention"][0], attention.mean(2), atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("cls", [0, None])
def test_makes_no_attention_matrix(adapter, pixels, cls):
    with NoAttentionMatrix(rows=65), tapped(adapter, EVERY, cls=cls) as tap:
        adapter.tower(pixels)
    assert tap.heard.keys() == EVERY


@torch.no_grad()
def test_eager_attention_would_be_noticed(pixels):
    model = make_model(side=112)
    model.set_attn_implementation("eager")
    with pytest.raises(AssertionError, match="attention matrix"), NoAttentionMatrix(rows=65):
        captured(Llava(model), pixels, ALL)


@torch.no_grad()
def test_listens_on_an_eager_tower_too(adapter, pixels):
    attention, _, keys = eager(adapter, pixels)
    model = make_model(side=112)
    model.set_attn_implementation("eager")
    captures = captured(Llava(model), pixels, ALL)
    torch.testing.assert_close(captures.cls_attention, attention[:, :, 0, 1:], atol=1e-6, rtol=0)
    assert torch.equal(captures.keys, keys)


@torch.no_grad()
@pytest.mark.parametrize("wanted", [frozenset(), {"keys"}, {"cls_attention", "last_keys"}, {"projected"}, EVERY])
def test_delivers_only_what_is_wanted(adapter, pixels, wanted):
    assert captured(adapter, pixels, frozenset(wanted)).delivered == wanted


@torch.no_grad()
def test_bfloat16_probabilities_are_float32_and_sum_to_one(pixels):
    model = make_model(side=112, dtype=torch.bfloat16)
    captures = captured(Llava(model), pixels, EVERY)
    assert captures.features.dtype == captures.last_query.dtype == captures.last_keys.dtype == torch.bfloat16
    assert captures.cls_attention.dtype == captures.keys.dtype == torch.float32
    assert (captures.cls_attention.sum(-1) < 1).all()  # the CLS row's own share is missing
    query = torch.randn(1, 2, 100, 8).bfloat16()
    torch.testing.assert_close(received(query, query, 1.0).sum(-1), torch.ones(1, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_leaves_the_layer_as_it_was_after_an_error(adapter, pixels, error):
    before = fingerprint(adapter.model)

    def fail(*_):
        raise error

    hook = adapter.attention(adapter.layer).out_proj.register_forward_hook(fail)
    with pytest.raises(error), tapped(adapter, EVERY):
        adapter.tower(pixels)
    hook.remove()
    assert fingerprint(adapter.model) == before
