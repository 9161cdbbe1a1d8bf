"""The tap: what one tower layer attended to, heard without slowing the others down."""

import pytest
import torch
from tiny_vlm import NoAttentionMatrix, fingerprint, make_model

from sparsezip.models.llava import Llava
from sparsezip.pipeline import capture
from sparsezip.plumbing.tap import Tap, received

ALL = frozenset({"cls_attention", "keys"})


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
    captures = capture(adapter, pixels, ALL)
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
        assert torch.equal(capture(Llava(model), pixels, frozenset()).features, expected)


@torch.no_grad()
def test_the_tower_does_not_notice(adapter, pixels):
    plain = adapter.tower(pixels, output_hidden_states=True)
    with Tap(adapter.layer, {n: adapter.heard_from(0.0)[n] for n in ALL}, has_cls=True) as tap:
        tapped = adapter.tower(pixels)
    assert torch.equal(tapped.last_hidden_state, plain.last_hidden_state)
    assert torch.equal(tap.features, plain.hidden_states[-2])


@torch.no_grad()
def test_attention_received_is_averaged_over_all_queries(adapter, pixels):
    """What towers without CLS deliver; 65 queries are more than one chunk."""
    attention, _, _ = eager(adapter, pixels)
    with Tap(adapter.layer, {n: adapter.heard_from(0.0)[n] for n in ALL}, has_cls=False) as tap:
        adapter.tower(pixels)
    torch.testing.assert_close(tap.heard["cls_attention"], attention.mean(2), atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("has_cls", [True, False])
def test_makes_no_attention_matrix(adapter, pixels, has_cls):
    with (
        NoAttentionMatrix(rows=65),
        Tap(adapter.layer, {n: adapter.heard_from(0.0)[n] for n in ALL}, has_cls=has_cls) as tap,
    ):
        adapter.tower(pixels)
    assert tap.heard.keys() == ALL


@torch.no_grad()
def test_eager_attention_would_be_noticed(pixels):
    model = make_model(side=112)
    model.set_attn_implementation("eager")
    with pytest.raises(AssertionError, match="attention matrix"), NoAttentionMatrix(rows=65):
        capture(Llava(model), pixels, ALL)


@torch.no_grad()
def test_listens_on_an_eager_tower_too(adapter, pixels):
    attention, _, keys = eager(adapter, pixels)
    model = make_model(side=112)
    model.set_attn_implementation("eager")
    captures = capture(Llava(model), pixels, ALL)
    torch.testing.assert_close(captures.cls_attention, attention[:, :, 0, 1:], atol=1e-6, rtol=0)
    assert torch.equal(captures.keys, keys)


@torch.no_grad()
@pytest.mark.parametrize("wanted", [frozenset(), frozenset({"keys"}), frozenset({"cls_attention"})])
def test_delivers_only_what_is_wanted(adapter, pixels, wanted):
    assert capture(adapter, pixels, wanted).delivered == wanted


@torch.no_grad()
def test_bfloat16_probabilities_are_float32_and_sum_to_one(pixels):
    model = make_model(side=112, dtype=torch.bfloat16)
    captures = capture(Llava(model), pixels, ALL)
    assert captures.features.dtype == torch.bfloat16
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
    with pytest.raises(error), Tap(adapter.layer, {n: adapter.heard_from(0.0)[n] for n in ALL}, has_cls=True):
        adapter.tower(pixels)
    hook.remove()
    assert fingerprint(adapter.model) == before
