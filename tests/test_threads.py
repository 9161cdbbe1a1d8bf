"""Calls from several threads: two models at once do what each does alone, a second call of one model is refused.

Nothing here waits for time to pass: hooks hold a call where the test wants it, by events and barriers.
"""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from test_compress import ROWS, Varied, alone, answers
from tiny_vlm import captured, fingerprint, inputs_for, make_config, make_model, make_processor
from transformers import LlavaForConditionalGeneration

import sparsezip
from sparsezip import pipeline
from sparsezip.errors import AlreadyCompressedError, UnsupportedCallError
from sparsezip.models.llava import Llava

WAIT = 60  # seconds after which a test that hangs fails
ROUNDS = 6
FASTV = sparsezip.methods.FastV(k=1, r=0.5)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as made:
        yield made


@pytest.fixture
def hurried():
    """Threads take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@torch.no_grad()
def logits_of(model, inputs):
    return model(**inputs).logits


CALLS = {"generate": lambda model, inputs: answers(model, inputs, max_new_tokens=3), "forward": logits_of}


@contextmanager
def hooked(*hooks):
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# -- two models ----------------------------------------------------------------------------------------------------

PAIRS = [
    ("visionzip", FASTV),
    (Varied(), "sparsezip"),
    (
        sparsezip.methods.PyramidDrop(layers=(1, 2), ratios=(0.5, 0.2)),
        sparsezip.methods.SparseVLM(layers=(0, 1), budget=9),
    ),
    ("dart", "pact"),
    (FASTV, FASTV),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(getattr(each, "name", each) for each in pair))
def test_two_models_in_two_threads_do_what_each_does_alone(pool, hurried, pair):
    """Both are in their towers at once, listened to, and then in their LLMs."""
    made = [
        sparsezip.method(each, budget=budget) if isinstance(each, str) else each
        for each, budget in zip(pair, (9, 11), strict=True)
    ]
    config = make_config()  # one object, which transformers keeps in both
    models = [LlavaForConditionalGeneration(config).eval() for _ in made]
    for number, each in enumerate(models):
        each.load_state_dict(make_model(seed=number).state_dict())
    batches = [inputs_for(ROWS[0], ROWS[2]), inputs_for(*ROWS)]

    def rounds(number, method):
        results = []
        with sparsezip.compress(models[number], method, processor=make_processor()) as trace:
            for turn in range(ROUNDS):
                inputs = batches[(number + turn // 2) % 2]
                result = list(CALLS.values())[turn % 2](models[number], inputs)
                seen = [(image.kept.tolist(), image.source.tolist(), image.tokens_per_layer) for image in trace.images]
                results.append((result, seen))
        return results

    before = [fingerprint(each) for each in models]
    expected = [rounds(*each) for each in enumerate(made)]
    met, meeting = [], threading.Barrier(2, action=lambda: met.append(1), timeout=WAIT)
    places = [
        place
        for each in models
        for place in (each.model.vision_tower.encoder.layers[-2].self_attn, each.model.language_model.layers[0].mlp)
    ]

    def meet(*_):
        meeting.wait()

    with hooked(*(place.register_forward_pre_hook(meet) for place in places)):
        results = list(pool.map(rounds, range(2), made))
    assert len(met) == ROUNDS // 2 * (2 + 4)  # the tower once a call, the LLM once or three times
    for own, those in zip(results, expected, strict=True):
        for (result, seen), (other, others) in zip(own, those, strict=True):
            torch.testing.assert_close(result, other, atol=1e-4, rtol=0)
            assert seen == others
    assert not torch.equal(expected[0][0][0], expected[1][0][0])
    assert [fingerprint(each) for each in models] == before


# -- one model -----------------------------------------------------------------------------------------------------


class Held:
    """A call in a thread of its own, which stops at its first way through `place` until `go`."""

    def __init__(self, pool, place, call):
        self.there, self.on = threading.Event(), threading.Event()
        self.hook = place.register_forward_pre_hook(self.stop)
        self.future = pool.submit(call)
        assert self.there.wait(WAIT)

    def stop(self, *_):
        self.hook.remove()
        self.there.set()
        assert self.on.wait(WAIT)

    def go(self):
        self.on.set()
        return self.future.result(WAIT)


def places_of(model):
    return {"tower": model.model.vision_tower.encoder.layers[1], "llm": model.model.language_model.layers[1]}


@pytest.mark.parametrize("second", CALLS)
@pytest.mark.parametrize("first", CALLS)
@pytest.mark.parametrize("place", ["tower", "llm"])
@pytest.mark.parametrize("method", [Varied(), FASTV], ids=lambda method: method.name)
def test_a_second_call_of_one_model_is_refused_and_the_first_is_unharmed(pool, model, method, place, first, second):
    inputs, other = inputs_for(*ROWS), alone(ROWS[0])
    with sparsezip.compress(model, method) as trace:
        expected, own = CALLS[first](model, inputs), CALLS[second](model, other)
        held = Held(pool, places_of(model)[place], lambda: CALLS[first](model, inputs))
        for refused in (other, alone(ROWS[2])):  # with an image, and of text alone
            with pytest.raises(UnsupportedCallError, match=r"MainThread called .* of thread ThreadPool.* is running"):
                CALLS[second](model, refused)
        assert torch.equal(held.go(), expected)
        assert len(trace.images) == 4
        assert torch.equal(CALLS[second](model, other), own)


@pytest.mark.parametrize("call", CALLS)
def test_calls_one_after_another_may_come_from_any_thread(pool, model, call):
    inputs = inputs_for(*ROWS)
    with sparsezip.compress(model, FASTV):
        expected = CALLS[call](model, inputs)
        for _ in range(3):
            assert torch.equal(pool.submit(CALLS[call], model, inputs).result(WAIT), expected)
            assert torch.equal(CALLS[call](model, inputs), expected)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["model", "tower", "llm"])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_failed_is_over(pool, model, call, place, error):
    """The thread that it failed in is alive, and has called before."""
    inputs, over, on = inputs_for(*ROWS), threading.Event(), threading.Event()

    def fail(*_):
        raise error

    def fails():
        where = model if place == "model" else places_of(model)[place]
        with hooked(where.register_forward_pre_hook(fail)), pytest.raises(error):
            CALLS[call](model, inputs)
        over.set()
        assert on.wait(WAIT)

    with sparsezip.compress(model, Varied()):
        expected = CALLS[call](model, inputs)
        pool.submit(CALLS[call], model, inputs).result(WAIT)
        future = pool.submit(fails)
        assert over.wait(WAIT)
        try:
            assert torch.equal(CALLS[call](model, inputs), expected)
        finally:
            on.set()
        future.result(WAIT)


@pytest.mark.parametrize("method", [Varied(), FASTV], ids=lambda method: method.name)
def test_a_call_within_a_call_is_no_second_one(pool, model, method):
    """A logits processor that asks the model itself: plain calls within generate are not compressed."""
    inputs, text, heard = inputs_for(*ROWS), torch.tensor([[1, 9, 10]]), []
    plain = logits_of(model, inputs)

    def asks(input_ids, scores):
        heard.append(logits_of(model, inputs))
        heard.append(model.generate(text, max_new_tokens=2, do_sample=False))
        return scores

    with sparsezip.compress(model, method):
        expected, said = answers(model, inputs), model.generate(text, max_new_tokens=2, do_sample=False)
        assert torch.equal(answers(model, inputs, logits_processor=[asks], max_new_tokens=1), expected[:, :1])
        assert torch.equal(heard[0], plain)
        assert torch.equal(heard[1], said)
        held = Held(pool, places_of(model)["llm"], lambda: answers(model, inputs))  # and it can be taken by others
        held.go()


def test_of_two_threads_that_compress_one_model_at_once_one_is_told(pool, model, monkeypatch):
    """Both have looked, and seen no compression, before either goes on."""
    inputs, before = inputs_for(*ROWS), fingerprint(model)
    looked, told = threading.Barrier(2, timeout=WAIT), threading.Event()
    usual = pipeline.adapter_for

    def meets(model):
        looked.wait()
        return usual(model)

    def tries():
        try:
            with sparsezip.compress(model, FASTV) as trace:
                assert told.wait(WAIT)
                answers(model, inputs)
                return trace.tokens_per_layer
        except AlreadyCompressedError as error:
            told.set()
            return str(error)

    monkeypatch.setattr(pipeline, "adapter_for", meets)
    futures = [pool.submit(tries) for _ in range(2)]
    counts, message = sorted((future.result(WAIT) for future in futures), key=lambda its: isinstance(its, str))
    assert "under compression already" in message
    assert counts == [16.0, 8.0, 8.0]
    assert fingerprint(model) == before


# -- the tower alone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [frozenset(), frozenset({"cls_attention"})], ids=["features", "attention"])
def test_a_second_pass_of_one_tower_is_refused(pool, model, wanted):
    """What compress_images does, which no compression of the model stands behind."""
    adapter, before = Llava(model), fingerprint(model)
    pixels = inputs_for(ROWS[1])["pixel_values"]
    with torch.no_grad():
        expected = captured(adapter, pixels, wanted)
    held = Held(pool, places_of(model)["tower"], torch.no_grad()(lambda: captured(adapter, pixels, wanted)))
    with pytest.raises(UnsupportedCallError, match="serves one call at a time"):
        captured(adapter, pixels[:1], wanted)
    captures = held.go()
    assert torch.equal(captures.features, expected.features)
    assert captures.delivered == wanted
    if wanted:
        assert torch.equal(captures.cls_attention, expected.cls_attention)
    assert fingerprint(model) == before
    captured(adapter, pixels[:1], wanted)
