"""Models under torch.compile: what a compression does to them is what it does to the others.

A graph that torch.compile made before a block was entered knows nothing of the hooks that came with it, and does not
look for them unless something else has changed. Most of the time here is Dynamo's, so the calls are few.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_compress import ROWS, answers
from test_threads import FASTV, Held
from tiny_vlm import fingerprint, inputs_for, make_model

import sparsezip
from sparsezip.errors import UnsupportedCallError

# The runtime checks of the tests draw at random, which Dynamo cannot trace.
pytestmark = pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning")

PAIR = sparsezip.methods.VisionZip(budget=12) | sparsezip.methods.PyramidDrop(layers=(1, 2), ratios=(0.5, 0.2))
METHODS = {"none": None, "keep_all": "keep_all", "fastv": FASTV, "pair": PAIR}
INPUTS = inputs_for(ROWS[0], ROWS[2])
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
    if how == "method":
        model.compile(backend=backend)
    elif how == "forward":
        model.forward = torch.compile(model.forward, backend=backend)
    elif how == "llm":
        model.model.language_model.compile(backend=backend)
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
def results(call, name, inside=lambda: None):
    """Logits, tokens and what the trace tells, of calls under a method; `inside` is run in the block."""
    if METHODS[name] is None:
        return call(**INPUTS).logits, answers(call, INPUTS, max_new_tokens=2)
    with sparsezip.compress(call, METHODS[name]) as trace:
        inside()
        logits = call(**INPUTS).logits
        seen = trace.images[0].source.tolist(), trace.tokens_per_layer
        return logits, answers(call, INPUTS, max_new_tokens=2), *seen


@pytest.fixture(scope="module")
def expected():
    made = {name: results(make_model(), name) for name in METHODS}
    assert made["fastv"][3] == [16.0, 8.0, 8.0]
    assert made["pair"][3] == [12.0, 6.0, 2.0]
    return made


def same(ones, others):
    torch.testing.assert_close(ones[0], others[0], atol=1e-4, rtol=0)
    assert torch.equal(ones[1], others[1])
    assert ones[2:] == others[2:]


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ("object", ["keep_all", "fastv"]),
        ("llm", ["keep_all", "fastv", "fastv"]),
        ("layers", ["none", "keep_all", "fastv", "pair", "fastv", "none"]),
    ],
)
def test_compiled_before_the_block(expected, how, names):
    """What keep_all sends has the shape of what FastV gets, so the graphs of one block would do for the next."""
    model = make_model()
    results(model, "none")  # which is when transformers hooks itself in
    call, before = compiled(model, how), fingerprint(model)
    for name in names:
        runs.clear()
        same(results(call, name), expected[name])
        assert runs or how == "layers"  # in graphs; of layers that share their code Dynamo gives up in the end
    assert fingerprint(model) == before


@pytest.mark.parametrize("how", ["method", "layers"])
def test_compiled_in_the_block(expected, how):
    model = make_model()
    same(results(model, "fastv", lambda: compiled(model, how)), expected["fastv"])
    assert runs
    if how == "layers":  # the others take Dynamo as long again
        same(results(model, "none"), expected["none"])


def test_a_forward_that_was_compiled_in_the_block_stays(expected):
    model = make_model()
    same(results(model, "fastv", lambda: compiled(model, "forward")), expected["fastv"])
    assert runs
    assert [name for name, part in model.named_modules() if "forward" in vars(part)] == [""]
    same(results(model, "none"), expected["none"])


def test_a_second_call_of_a_compiled_model_is_refused(expected):
    model = make_model()
    call = compiled(model, "layers", "eager")
    with sparsezip.compress(call, FASTV), ThreadPoolExecutor(1) as pool:
        held = Held(pool, model.model.language_model.layers[1], torch.no_grad()(lambda: call(**INPUTS).logits))
        with pytest.raises(UnsupportedCallError, match="is running"):
            call(**INPUTS)
        torch.testing.assert_close(held.go(), expected["fastv"][0], atol=1e-4, rtol=0)


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a compiler")
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # inside of torch, at its first import
def test_inductor(expected):
    model = make_model()
    model.model.language_model.layers[1].compile()
    same(results(model, "fastv"), expected["fastv"])
