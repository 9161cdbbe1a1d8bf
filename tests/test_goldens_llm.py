"""Whole forward passes of a small LLM under the drops, against passes of the authors' code (see goldens/README.md)."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import DynamicCache, LlamaConfig, LlamaModel

from sparsezip import methods
from sparsezip.plumbing.drop import Drop
from sparsezip.tensors import Decoder

FILES = sorted((Path(__file__).parent / "goldens").glob("llm_tiny_*.safetensors"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
SYSTEM, VISUAL, TEXT, LAYERS = 35, 576, 20, 26


def make_llm(values, theta=10000.0):
    """The golden's Llama: 26 layers that share three sets of weights."""
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    llm = LlamaModel(config).eval()
    for index, layer in enumerate(llm.layers):
        prefix = f"in.w.{index % 3}."
        layer.load_state_dict({k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)})
    llm.norm.load_state_dict({"weight": values["in.w.norm.weight"]})
    return llm


class Watched:
    """A method whose drops are noted."""

    def __init__(self, method):
        self.method, self.kept, self.views = method, [], []

    def __getattr__(self, name):
        return getattr(self.method, name)

    def keep(self, view):
        self.views.append(view)
        self.kept.append(self.method.keep(view))
        return self.kept[-1]


@torch.no_grad()
def run(values, method, theta=10000.0):
    """The final hidden states of the text, what the drops kept, the image, and the cache."""
    llm, watched, images, cache = make_llm(values, theta), Watched(method), [], DynamicCache()
    drop = Drop(llm, watched, images.extend, nullcontext)
    visual = torch.zeros(1, SYSTEM + VISUAL + TEXT, dtype=torch.bool)
    visual[:, SYSTEM : SYSTEM + VISUAL] = True
    drop.expect(visual, None, [[VISUAL]], lambda text: Decoder(layers=LAYERS, text=text))
    torch.manual_seed(4321)  # as the golden did: between two clusters the noise decides
    hidden = llm(inputs_embeds=values["in.inputs_embeds"], past_key_values=cache, use_cache=True).last_hidden_state
    drop.restore()
    lengths = [cache.get_seq_length(layer) for layer in range(LAYERS)]
    return hidden[0, -TEXT:], watched, images[0], lengths


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


def meets(text_hidden, watched, values, name):
    """Hidden states and the choice of every stage."""
    close(text_hidden, values[f"{name}.text_hidden"])
    for stage, kept in enumerate(watched.kept):
        assert torch.equal(kept.indices[0], values[f"{name}.stage{stage}.keep"])


@each_file
def test_the_llm_without_drops(path):
    values = load_file(path)
    for theta, name in ((10000.0, "full.theta10000"), (1e10, "full.theta1e+10")):
        text_hidden, _, image, _ = run(values, methods.FastV(budget=VISUAL), theta)
        close(text_hidden, values[f"{name}.text_hidden"])
        assert image.entering == [VISUAL] * LAYERS


@each_file
@pytest.mark.parametrize(
    ("name", "k", "r"),
    [
        ("inplace.K2_288", 2, 0.5),
        ("inplace.K2_166", 2, 410 / 576),
        ("inplace.K2_144", 2, 0.75),
        ("inplace.K3_144", 3, 0.75),
        ("masked.K2_288", 2, 0.5),
        ("kvcache.K3_288.cache0", 3, 0.5),
        ("kvcache.K3_288.cache1", 3, 0.5),
        ("hf.K2_R0.5", 2, 0.5),
        ("hf.K2_R0.667", 2, 0.667),
        ("hf.K2_R0.778", 2, 0.778),
        ("hf.K2_R0.889", 2, 0.889),
        ("hf.K3_R0.75", 3, 0.75),
    ],
)
def test_fastv(path, name, k, r):
    values = load_file(path)
    text_hidden, watched, image, lengths = run(values, methods.FastV(k=k, r=r))
    close(text_hidden, values[f"fastv.{name}.text_hidden"])
    kept = values[f"fastv.{name}.keep"]
    assert torch.equal(watched.kept[0].indices[0], kept)
    assert image.entering == [VISUAL] * k + [len(kept)] * (LAYERS - k)
    if f"fastv.{name}.cache_lengths" in values and "kvcache" not in name:  # there layer 2 fills its cache twice
        assert lengths == values[f"fastv.{name}.cache_lengths"].tolist()


@each_file
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("default", {"layers": (8, 16, 24), "ratios": (0.5, 0.25, 0.125)}),
        ("early", {"layers": (2, 6, 15), "ratios": (0.4, 0.2, 0.1)}),
    ],
)
def test_pyramiddrop(path, name, settings):
    values = load_file(path)
    text_hidden, watched, image, _ = run(values, methods.PyramidDrop(paper=True, **settings))
    meets(text_hidden, watched, values, f"pdrop.{name}")
    counts = [VISUAL, *(len(kept.indices[0]) for kept in watched.kept)]
    starts = [0, *settings["layers"], LAYERS]
    assert image.entering == [
        count for count, start, end in zip(counts, starts, starts[1:], strict=False) for _ in range(end - start)
    ]


@each_file
@torch.no_grad()
def test_pyramiddrop_with_two_rows_padded_on_the_right(path):
    values = load_file(path)
    llm, embeds = make_llm(values), values["in.inputs_embeds"][0]
    for layer in llm.layers[:8]:  # the golden ranks the embeddings themselves with layer 8
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    rows = [torch.cat([embeds[:179], embeds[611:631]]), torch.cat([embeds[:35], embeds[235:379], embeds[611:623]])]
    mask = torch.ones(2, 199, dtype=torch.long)
    mask[1, 191:] = 0
    visual = torch.zeros(2, 199, dtype=torch.bool)
    visual[:, 35:179] = True
    watched = Watched(methods.PyramidDrop(paper=True, layers=(8,), ratios=(0.5,)))
    drop = Drop(llm, watched, [].extend, nullcontext)
    drop.expect(visual, mask, [[144], [144]], lambda text: Decoder(layers=LAYERS, text=text))
    positions, handed = (mask.cumsum(1) - 1) * mask, []
    llm.layers[8].register_forward_pre_hook(lambda _, __, given: handed.append(given), with_kwargs=True)
    llm(inputs_embeds=torch.nn.utils.rnn.pad_sequence(rows, True), attention_mask=mask, position_ids=positions)
    assert torch.equal(torch.stack([kept.indices[0] for kept in watched.kept]), values["pdrop.b2.keep"])
    expected = values["pdrop.b2.attention_mask"].bool()
    for row in range(2):  # padding is on the left here, on the right there
        count = int(expected[row].sum())
        counted = values["pdrop.b2.position_ids"][row][expected[row]]
        assert torch.equal(handed[-1]["position_ids"][row, -count:], counted)
    drop.restore()


@each_file
@pytest.mark.parametrize("tokens", [192, 128, 64])
def test_dart(path, tokens):
    values = load_file(path)
    text_hidden, watched, _, _ = run(values, methods.DART(k=2, max_tokens=tokens, paper=True))
    close(text_hidden, values[f"dart.{tokens}.text_hidden"])
    assert torch.equal(watched.kept[0].indices[0], values[f"dart.{tokens}.keep"])


def sparsevlm(version, **settings):
    return methods.SparseVLM(version=version, paper=True, **settings)


@each_file
@pytest.mark.parametrize("retained", [192, 128, 96, 64])
def test_sparsevlm_plus(path, retained):
    values, name = load_file(path), f"sparsevlm_plus.{retained}"
    method = sparsevlm("2.0", retained_tokens=retained)
    text_hidden, watched, image, _ = run(values, method, theta=1e10)
    meets(text_hidden, watched, values, name)
    # The authors count behind each layer, we count what enters it.
    assert image.entering[1:] == values[f"{name}.v_token_num"][:-1].tolist()


@each_file
@pytest.mark.parametrize("retained", [192, 128, 96, 64])
def test_sparsevlm_15(path, retained):
    values, name = load_file(path), f"sparsevlm_v15.{retained}"
    text_hidden, watched, image, _ = run(values, sparsevlm("1.5", retained_tokens=retained))
    assert image.entering[1:] == values[f"{name}.v_token_num"][:-1].tolist()
    meets(text_hidden, watched, values, name)


@each_file
@pytest.mark.parametrize(("scale", "bias"), [(13.5, 0.0), (9.0, 6.0), (0.8, 0.0)])
def test_sparsevlm_1(path, scale, bias):
    values, name = load_file(path), f"sparsevlm_v1.{scale}_{bias}"
    text_hidden, watched, image, _ = run(values, sparsevlm("1.0", scale=scale, bias=bias))
    assert image.entering[1:] == values[f"{name}.v_token_num"][:-1].tolist()
    meets(text_hidden, watched, values, name)


def test_there_are_goldens():
    assert FILES
