"""What an answer says its prompt cost, against PyTorch's own count of FLOPs and the real cache."""

import pytest
import torch
from test_answers import make_vlm
from tiny_vlm import make_processor, picture
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import sparsezip
from sparsezip.models.llava import Llava
from sparsezip.vlm import VLM

METHODS = {
    "keep_all": sparsezip.method("keep_all"),
    "visionzip": sparsezip.method("visionzip", budget=64),
    "downsample": sparsezip.method("downsample", budget=64),
    "fastv": sparsezip.method("fastv", budget=128),
    "sparsevlm": sparsezip.method("sparsevlm", budget=260),
    "autoprune": sparsezip.method("autoprune", budget=128),
    "pyramiddrop": sparsezip.method("pyramiddrop", budget=260),
    "pact": sparsezip.method("pact", budget=260),
    "visionzip|fastv": sparsezip.method("visionzip|fastv", budget=64),
}
QUESTIONS = ["Is there a red circle in the image? Please answer yes or no.", "What?"]


@pytest.fixture(scope="module")
def testbed():
    return sparsezip.load("testbed", device="cpu")


@pytest.fixture(scope="module")
def grouped():
    """Four heads that share two for their keys."""
    made = make_vlm(side=336)
    return VLM("tiny", made.folder, made.model, make_processor(336), Llava(made.model))


def answered(vlm, method, seed=1):
    """An answer whose prefill is the only pass, and the FLOPs that were counted inside the LLM's layers."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it knows no fused kernel of the CPU
        answer = vlm.ask(picture(seed, 336), QUESTIONS[0], method, max_new_tokens=1)
    layers = [f"language_model.layers.{layer}" for layer in range(vlm.adapter.llm_layers)]
    counts = counter.get_flop_counts()
    return answer, sum(
        sum(its.values()) for part, its in counts.items() if any(part.endswith(layer) for layer in layers)
    )


@pytest.mark.parametrize("name", METHODS)
def test_flops_are_those_of_the_layers(testbed, name):
    """What a method computes for itself, inside a layer, is no part of them: 5 % of PACT's here."""
    answer, counted = answered(testbed, METHODS[name])
    assert answer.prefill_flops <= counted
    assert answer.prefill_flops == pytest.approx(counted, rel={"pact": 0.06, "pyramiddrop": 1e-3}.get(name, 1e-9))


@pytest.mark.parametrize("name", ["keep_all", "visionzip|fastv"])
def test_flops_of_grouped_heads(grouped, name):
    answer, counted = answered(grouped, METHODS[name])
    assert answer.prefill_flops == pytest.approx(counted, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["keep_all", "visionzip", "sparsevlm", "visionzip|fastv"])
def test_bytes_are_those_of_the_cache(grouped, name, dtype):
    model = grouped.model.to(dtype)
    try:
        answer = grouped.ask(picture(1, 336), QUESTIONS[0], METHODS[name], max_new_tokens=1)
        inputs = grouped.processor(
            images=picture(1, 336), text=grouped.prompt(QUESTIONS[0]), return_tensors="pt", return_token_type_ids=False
        ).to(dtype)
        with sparsezip.compress(model, METHODS[name]):
            cache = model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True).past_key_values
    finally:
        model.to(torch.float32)
    assert answer.kv_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def test_padding_costs_nothing(testbed):
    images = [picture(1, 336), picture(2, 336)]
    for name in ("visionzip", "sparsevlm"):
        together = testbed.answer(images, QUESTIONS, METHODS[name], max_new_tokens=1)
        for image, question, answer in zip(images, QUESTIONS, together, strict=True):
            alone = testbed.ask(image, question, METHODS[name], max_new_tokens=1)
            assert (answer.prefill_flops, answer.kv_bytes) == (alone.prefill_flops, alone.kv_bytes)
        assert together[0].kv_bytes > together[1].kv_bytes
