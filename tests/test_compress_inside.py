"""Methods inside the LLM, alone and behind another, under unmodified calls of transformers."""

from dataclasses import replace

import pytest
import torch
from test_compress import NEW, ROWS, alone, answers
from tiny_vlm import NoAttentionMatrix, fingerprint, inputs_for, make_config, make_model, make_processor, picture
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlavaForConditionalGeneration, StaticCache, StoppingCriteria

import sparsezip
from sparsezip.errors import BudgetError, SettingError, UnsupportedCallError
from sparsezip.methods.base import LayerMethod
from sparsezip.pipeline import _method

INSIDE = [name for name in sparsezip.list_methods() if issubclass(sparsezip.methods.registry.get(name), LayerMethod)]
METHODS = [
    pytest.param(sparsezip.methods.FastV(k=1, r=0.5), id="fastv"),
    pytest.param(sparsezip.methods.PyramidDrop(layers=(1, 2), ratios=(0.5, 0.2)), id="pyramiddrop"),
    pytest.param(sparsezip.methods.PyramidDrop(layers=(1, 2), ratios=(0.5, 0.2), paper=True), id="pyramiddrop-paper"),
    pytest.param(sparsezip.methods.SparseVLM(layers=(0, 1), budget=10), id="sparsevlm"),
    pytest.param(sparsezip.methods.SparseVLM(layers=(0, 1), budget=10, paper=True), id="sparsevlm-paper"),
    pytest.param(sparsezip.methods.SparseVLM(version="2.0", layers=(0, 1), budget=9), id="sparsevlm-plus"),
    pytest.param(sparsezip.methods.DART(budget=10), id="dart"),
    pytest.param(sparsezip.methods.PACT(budget=11), id="pact"),
    pytest.param(sparsezip.methods.AutoPrune(budget=10), id="autoprune"),
    pytest.param(sparsezip.methods.VisionZip(budget=12) | sparsezip.methods.FastV(k=1, r=0.5), id="pair"),
]
CHOSEN = {(method.values[0].parts[1] or method.values[0]).name for method in METHODS}
METHODS += [pytest.param(sparsezip.method(name, budget=12), id=name) for name in INSIDE if name not in CHOSEN]
every = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="module")
def model():
    return make_model()


@torch.no_grad()
@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_budget_of_all_patches_is_the_unmodified_model_bit_for_bit(name, padding_side, dtype):
    model = make_model(dtype=dtype)
    inputs = inputs_for(*ROWS, padding_side=padding_side)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    expected, tokens = model(**inputs).logits, answers(model, inputs)
    for method in (sparsezip.method(name, budget=16), sparsezip.method(f"keep_all|{name}", keep_ratio=1.0)):
        with sparsezip.compress(model, method) as trace:
            assert torch.equal(model(**inputs).logits, expected)
            assert torch.equal(answers(model, inputs), tokens)
        assert trace.tokens_per_layer == [16.0] * 3
        assert [image.tokens_per_layer for image in trace.images] == [[16] * 3] * 4


@torch.no_grad()
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_ratio_of_nothing_is_the_unmodified_model_bit_for_bit(model, padding_side):
    inputs = inputs_for(*ROWS, padding_side=padding_side)
    expected = model(**inputs).logits
    for method in (
        sparsezip.methods.FastV(k=1, r=0.0),
        sparsezip.methods.PyramidDrop(layers=(1, 2), ratios=(1.0, 1.0)),
        sparsezip.methods.SparseVLM(layers=(0, 1), budget=16),
    ):
        with sparsezip.compress(model, method) as trace:
            assert torch.equal(model(**inputs).logits, expected)
        assert trace.tokens_per_layer == [16.0] * 3


@torch.no_grad()
def test_fastv_is_the_model_with_columns_masked(model):
    """A reference without any change of shape: later layers see the whole sequence, but not the dropped columns."""
    inputs = alone(ROWS[0])
    eager = LlavaForConditionalGeneration(make_config()).eval()
    eager.load_state_dict(model.state_dict())
    eager.set_attn_implementation("eager")
    out = eager(**inputs, output_attentions=True, output_hidden_states=True)
    columns = inputs["input_ids"][0].eq(3).nonzero()[:, 0]
    scores = out.attentions[0][0, :, -1, columns].mean(0)
    kept = scores.topk(8).indices.sort().values
    dropped = columns[~torch.isin(torch.arange(16), kept)]
    llm, hidden = eager.model.language_model, out.hidden_states[1]
    length = hidden.shape[1]
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
    mask[:, dropped] = torch.finfo(torch.float32).min
    positions = torch.arange(length)[None]
    tables = llm.rotary_emb(hidden, position_ids=positions)
    for layer in llm.layers[1:]:
        hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=tables, position_ids=positions)
    stays = torch.ones(length, dtype=torch.bool)
    stays[dropped] = False
    expected = eager.lm_head(llm.norm(hidden))[0, stays]
    with sparsezip.compress(model, sparsezip.methods.FastV(k=1, r=0.5)) as trace:
        logits = model(**inputs).logits[0]
    torch.testing.assert_close(logits[stays], expected, atol=2e-4, rtol=0)
    assert expected.abs().max() > 5
    assert torch.equal(trace.images[0].kept, kept)
    assert trace.images[0].tokens == 16
    assert trace.images[0].tokens_per_layer == [16, 8, 8]
    assert trace.tokens_per_layer == [16.0, 8.0, 8.0]
    assert torch.equal(trace.images[0].source[kept], torch.arange(8))
    assert (trace.images[0].source >= 0).sum() == 8
    assert trace.stages["drop"] > 0


@every
def test_rows_equal_the_rows_run_alone(model, method):
    inputs = inputs_for(*ROWS)
    assert not inputs["attention_mask"].all()
    with sparsezip.compress(model, method, processor=make_processor()) as trace:
        together = answers(model, inputs)
        images = list(trace.images)
        counted = trace.tokens_per_layer
        singles = []
        for number, row in enumerate(ROWS):
            assert together[number].tolist() == answers(model, alone(row))[0].tolist()
            singles += trace.images
    plain = answers(model, inputs)
    assert any(together[number].tolist() != plain[number].tolist() for number in (0, 1, 3))
    assert together[2].tolist() == plain[2].tolist()  # the row without an image
    for mine, single in zip(images, singles, strict=True):
        assert torch.equal(mine.kept, single.kept)
        assert torch.equal(mine.source, single.source)
        assert mine.tokens_per_layer == single.tokens_per_layer
    assert counted == [sum(image.tokens_per_layer[layer] for image in images) / 4 for layer in range(3)]
    assert counted[0] > counted[-1]


@every
@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"cache_implementation": "offloaded"},
    ],
    ids=str,
)
def test_ways_of_generating(model, method, settings):
    beams = "num_beams" in settings
    if settings.get("cache_implementation") == "offloaded" and not torch.accelerator.is_available():
        settings = {"cache_implementation": "dynamic"}
    rows = ROWS if beams else ROWS[:1]
    inputs = inputs_for(*rows)
    copies = settings.get("num_return_sequences", 1)
    with sparsezip.compress(model, method, processor=make_processor()):
        together = answers(model, inputs, **settings)
        for number, row in enumerate(rows):
            single = answers(model, alone(row), **(settings if beams else {}))
            assert torch.equal(together[number * copies : (number + 1) * copies], single)


@every
@pytest.mark.parametrize("draft", ["lookup", "assistant"])
def test_drafted_tokens_change_nothing(model, method, draft):
    # A prompt without a repetition in front of the image: transformers itself cannot look up a draft with placeholders.
    inputs = make_processor()(images=picture(1), text="<image>\nstar star star star", return_tensors="pt")
    settings = {"assistant_model": make_model(seed=3)} if draft == "assistant" else {"prompt_lookup_num_tokens": 3}
    with sparsezip.compress(model, method, processor=make_processor()):
        assert torch.equal(answers(model, inputs, **settings), answers(model, inputs))


@every
def test_decoding_step_by_step_equals_generate(model, method):
    inputs = alone(ROWS[0])
    with sparsezip.compress(model, method, processor=make_processor()), torch.no_grad():
        expected = answers(model, inputs)[0].tolist()
        cache = DynamicCache(config=model.config.get_text_config())
        out = model(**inputs, past_key_values=cache, use_cache=True)
        found = [int(out.logits[0, -1].argmax())]
        while len(found) < NEW:
            step = torch.tensor([[found[-1]]])
            out = model(input_ids=step, past_key_values=cache, use_cache=True)
            found.append(int(out.logits[0, -1].argmax()))
    assert found == expected


def test_each_layers_cache_is_as_long_as_what_it_saw(model):
    inputs = alone(ROWS[0])
    with sparsezip.compress(model, sparsezip.methods.PyramidDrop(layers=(1, 2), ratios=(0.5, 0.25))) as trace:
        cache = model.generate(
            **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True
        ).past_key_values
    assert trace.images[0].tokens_per_layer == [16, 8, 4]
    other = int(inputs["input_ids"].ne(3).sum()) + 2
    assert [cache.get_seq_length(layer) for layer in range(3)] == [16 + other, 8 + other, 4 + other]


@every
def test_no_attention_matrix_is_made(method):
    """Only the rows that a method reads are computed, never [head, token, token]."""
    model = make_model(side=112)
    inputs = inputs_for(("What color is the star?", [1]), side=112)
    length = inputs["input_ids"].shape[1]
    method = replace(method, budget=40) if method.budget else method
    with sparsezip.compress(model, method, processor=make_processor(112)), NoAttentionMatrix(length):
        model.generate(**inputs, max_new_tokens=2, do_sample=False)


@every
def test_the_model_is_left_as_it_was(model, method):
    before = fingerprint(model)
    with sparsezip.compress(model, method, processor=make_processor()):
        answers(model, inputs_for(*ROWS))
    assert fingerprint(model) == before
    sparsezip.attach(model, method)
    sparsezip.detach(model)
    assert fingerprint(model) == before


def test_a_pair_has_one_budget(model):
    inputs = alone(ROWS[0])
    for match, measure in (
        ("mean_tokens_per_layer", lambda layers: sum(layers) / 3),
        ("tokens", lambda layers: layers[-1]),
    ):
        pair = sparsezip.method("grid|fastv", fastv={"k": 1}, budget=6, match=match)
        with sparsezip.compress(model, pair) as trace:
            answers(model, inputs)
        image = trace.images[0]
        assert image.tokens == image.tokens_per_layer[0] == 12
        assert measure(image.tokens_per_layer) == 6 or 5 < measure(image.tokens_per_layer) <= 6
        assert len(image.kept) == image.tokens_per_layer[-1]
        assert torch.equal(image.source[image.kept], torch.arange(len(image.kept)))


@pytest.mark.parametrize("name", [*INSIDE, "grid|fastv", "grid|pyramiddrop"])
def test_flops_are_matched(name, monkeypatch):
    """As torch counts them in the LLM; looking ahead is among them, the method's own stage is not."""
    inputs = inputs_for(("What color is the star?", [1]), side=112)
    model, own = make_model(side=112), []

    def spent(run, inside="Global"):
        counter = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), counter, torch.no_grad():
            result = run()
        counts = counter.get_flop_counts()
        return sum(sum(counts[part].values()) for part in counts if part.endswith(inside)), result

    def flops(method):
        with sparsezip.compress(model, method):
            return spent(lambda: model(**inputs), "language_model")[0]

    made = {"match": "flops", "budget": 25 if "|" in name else 52}
    wanted = flops(sparsezip.methods.Grid(budget=made["budget"]))
    kind = type(sparsezip.method(name).parts[1])
    for stage in ("keep", "settled"):
        original = getattr(kind, stage)

        def watched(self, view, original=original):
            counted, result = spent(lambda: original(self, view))
            own.append(counted)
            return result

        monkeypatch.setattr(kind, stage, watched)
    found = flops(sparsezip.method(name, **made)) - sum(own)
    assert 0.96 * wanted < found <= wanted * 1.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_cache": False}, "chosen anew at every step"),
        ({"cache_implementation": "static"}, "one that grows"),
        ({"prefill_chunk_size": 8}, "at once"),
    ],
)
def test_what_cannot_be_served_is_refused(model, settings, message):
    with sparsezip.compress(model, "fastv"), pytest.raises(UnsupportedCallError, match=message):
        answers(model, alone(ROWS[0]), **settings)
    with sparsezip.compress(model, "fastv"):  # nothing to drop, nothing to refuse
        answers(model, alone(ROWS[2]), use_cache=False)


def test_a_static_cache_of_the_callers_is_refused(model):
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
    with sparsezip.compress(model, "fastv"), pytest.raises(UnsupportedCallError, match="StaticCache"):
        model(**alone(ROWS[0]), past_key_values=cache)


def test_a_budget_out_of_reach_is_refused(model):
    with (
        sparsezip.compress(model, sparsezip.methods.FastV(budget=2)),
        pytest.raises(BudgetError, match=r"mean of 6\.0"),
    ):
        model(**alone(ROWS[0]))
    with (
        sparsezip.compress(model, sparsezip.methods.FastV(budget=2, match="flops")),
        pytest.raises(BudgetError, match="times the FLOPs of 2 tokens in every layer"),
    ):
        model(**alone(ROWS[0]))
    with pytest.raises(SettingError, match="room for one"):
        sparsezip.methods.FastV() | sparsezip.methods.FastV()


def test_a_call_that_failed_leaves_nothing_behind(model):
    text = alone(ROWS[2])
    expected = answers(model, text)

    class Stops(StoppingCriteria):
        def __call__(self, *_, **__):
            raise KeyError("on the way")

    hook = model.model.language_model.register_forward_pre_hook(lambda *_: 1 / 0)
    with sparsezip.compress(model, sparsezip.methods.FastV(k=1)):
        with pytest.raises(ZeroDivisionError):
            answers(model, alone(ROWS[0]))
        hook.remove()
        assert torch.equal(answers(model, text), expected)
        with pytest.raises(KeyError, match="on the way"):
            answers(model, alone(ROWS[0]), stopping_criteria=[Stops()])
        assert torch.equal(answers(model, text), expected)


@pytest.mark.parametrize("given", [sparsezip.methods.FastV, None, 3])
def test_what_is_no_method_is_refused(given):
    with pytest.raises(SettingError, match="Give a method"):
        _method(given)


def test_the_method_sees_the_prompts_text(model):
    """What stands behind the image is what the method is told to ask."""
    seen = []

    class Shown(sparsezip.methods.FastV):
        def drop(self, view):
            seen.append(view)
            return super().drop(view)

    inputs = inputs_for(*ROWS)
    with sparsezip.compress(model, Shown(k=1)):
        model(**inputs)
    embed = model.get_input_embeddings()
    rows = [row for row, (_, pictures) in zip(inputs["input_ids"], ROWS, strict=True) for _ in pictures]
    for view, ids in zip(seen, rows, strict=True):
        last = int(ids.eq(3).nonzero()[-1])
        torch.testing.assert_close(view.text_embeds[0], embed(ids[last + 1 :]))
        assert view.first_embeds[0].shape == (16, 48)
    # Two images of one row are two views of it.
    assert [int(view.visual[0][0]) for view in seen[1:3]] == [
        int(place) for place in (rows[1].ne(0).cumsum(0) - 1)[rows[1].eq(3)][[0, 16]]
    ]
