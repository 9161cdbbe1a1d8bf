"""Models under torch.compile: what a compression does to them is what it does to the others.

A graph that torch.compile made before a block was entered knows nothing of the hooks that came with it, and does not
look for them unless something else has changed, so every test here has run the model before.
"""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_compress import ROWS, answers
from test_threads import FASTV, WAIT, Held
from tiny_vlm import fingerprint, inputs_for, make_model

import sparsezip
from sparsezip.errors import UnsupportedCallError

PAIR = sparsezip.methods.VisionZip(budget=12) | sparsezip.methods.PyramidDrop(layers=(1, 2), ratios=(0.5, 0.2))
BATCHES = [inputs_for(ROWS[0], ROWS[2]), inputs_for(ROWS[3], ROWS[2])]  # of one shape
runs = []  # one entry for every graph that was run


def counted(graph, inputs):
    def run(*args):
        runs.append(graph)
        return graph.forward(*args)

    return run


def compiled(model, how, backend=counted):
    """`model`, or what is called in its place."""
    if how == "object":
        return torch.compile(model, backend=backend)
    if how == "function":
        function = torch.compile(lambda **inputs: model(**inputs), backend=backend)
        return type("Called", (), {"__call__": lambda self, **inputs: function(**inputs), "generate": model.generate})()
    if how == "method":
        model.compile(backend=backend)
    elif how == "forward":
        model.forward = torch.compile(model.forward, backend=backend)
    elif how == "parts":
        model.model.language_model.compile(backend=backend)
        model.model.vision_tower.compile(backend=backend)
    else:
        for layer in (*model.model.language_model.layers, *model.model.vision_tower.encoder.layers):
            layer.compile(backend=backend)
    return model


@pytest.fixture(autouse=True)
def forgotten():
    torch.compiler.reset()
    runs.clear()
    yield
    torch.compiler.reset()


@torch.no_grad()
def results(call, model, method):
    """Logits, tokens and traces of calls under a method; None: under no compression."""
    if method is None:
        return [(call(**inputs).logits, answers(model, inputs, max_new_tokens=3)) for inputs in BATCHES]
    made = []
    with sparsezip.compress(model, method) as trace:
        for inputs in BATCHES:
            logits = call(**inputs).logits
            kept = [image.source.tolist() for image in trace.images]
            made.append((logits, answers(model, inputs, max_new_tokens=3), kept, trace.tokens_per_layer))
    return made


METHODS = [None, "keep_all", FASTV, PAIR]


@pytest.fixture(scope="module")
def expected():
    model = make_model()
    made = [results(model, model, method) for method in METHODS]
    assert made[2][0][3] == [16.0, 8.0, 8.0]
    assert made[3][0][3] == [12.0, 6.0, 2.0]
    assert made[2][0][2] != made[2][1][2]  # the images differ
    return made


def same(ones, others):
    for one, other in zip(ones, others, strict=True):
        torch.testing.assert_close(one[0], other[0], atol=1e-4, rtol=0)
        assert torch.equal(one[1], other[1])
        assert one[2:] == other[2:]


@pytest.mark.parametrize("how", ["object", "function", "method", "forward", "parts", "layers"])
def test_compiled_before_the_block(expected, how):
    """What keep_all sends has the shape of what FastV gets, so the graphs of one block would do for the next."""
    model = make_model()
    call = compiled(model, how)
    before = fingerprint(model)
    for method, those in zip([*METHODS, FASTV, None], [*expected, expected[2], expected[0]], strict=True):
        runs.clear()
        same(results(call, model, method), those)
        assert runs  # in graphs, that is
    assert fingerprint(model) == before


@pytest.mark.parametrize("how", ["object", "method", "parts", "layers"])
def test_compiled_in_the_block(expected, how):
    model = make_model()
    with torch.no_grad(), sparsezip.compress(model, FASTV) as trace:
        call = compiled(model, how)
        made = []
        for inputs in BATCHES:
            logits = call(**inputs).logits
            kept = [image.source.tolist() for image in trace.images]
            made.append((logits, answers(model, inputs, max_new_tokens=3), kept, trace.tokens_per_layer))
    assert runs
    same(made, expected[2])
    same(results(call, model, None), expected[0])
    same(results(call, model, PAIR), expected[3])


def test_a_forward_that_was_compiled_in_the_block_stays(expected):
    model = make_model()
    with torch.no_grad(), sparsezip.compress(model, FASTV):
        model.forward = own = torch.compile(model.forward, backend=counted)
        torch.testing.assert_close(model(**BATCHES[0]).logits, expected[2][0][0], atol=1e-4, rtol=0)
    assert vars(model)["forward"] is own
    same(results(model, model, None), expected[0])


def test_a_second_call_of_a_compiled_model_is_refused():
    model = make_model()
    call = torch.compile(model, backend="eager")
    with torch.no_grad(), sparsezip.compress(call, FASTV):
        expected = call(**BATCHES[0]).logits
        with ThreadPoolExecutor(1) as pool:
            place = model.model.language_model.layers[1]
            held = Held(pool, place, torch.no_grad()(lambda: call(**BATCHES[0]).logits))
            with pytest.raises(UnsupportedCallError, match="is running"):
                call(**BATCHES[1])
            torch.testing.assert_close(held.go(), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(call(**BATCHES[0]).logits, expected, atol=1e-4, rtol=0)


def test_two_compiled_models_in_two_threads(expected):
    models = [make_model(), make_model()]
    calls = [torch.compile(model, backend="eager") for model in models]
    start = threading.Barrier(2, timeout=WAIT)

    def run(number):
        start.wait()
        return [results(calls[number], models[number], METHODS[2 + number]) for _ in range(2)]

    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(run, range(2)))
    for number in range(2):
        for each in made[number]:
            same(each, expected[2 + number])


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a compiler")
def test_inductor(expected):
    model = make_model()
    compiled(model, "layers", "inductor")
    same(results(model, model, FASTV), expected[2])
