"""Gradients under compression: none in the tower and the method, the caller's mode for projector and language model."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from test_compress import ROWS, Varied
from tiny_vlm import inputs_for, make_model, make_processor

import sparsezip

METHODS = [
    pytest.param(Varied(), id="varied"),
    pytest.param(sparsezip.method("sparsezip", budget=6), id="sparsezip"),
    pytest.param(sparsezip.methods.FastV(k=1, r=0.5), id="fastv"),
    pytest.param(sparsezip.methods.SparseVLM(layers=(0, 1), budget=10), id="sparsevlm"),
    pytest.param(sparsezip.methods.VisionZip(budget=12) | sparsezip.methods.FastV(k=1, r=0.5), id="pair"),
]
every = pytest.mark.parametrize("method", METHODS)
INPUTS = inputs_for(*ROWS[:2])
LABELS = INPUTS["input_ids"].masked_fill(INPUTS["input_ids"].le(3), -100)


def leaves(tensor):
    """The parameters that a tensor's graph leads to."""
    found, seen, todo = set(), set(), [tensor.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        todo += [next_ for next_, _ in node.next_functions]
    return found


def names(model, tensor):
    found = leaves(tensor)
    return {name for name, weight in model.named_parameters() if id(weight) in found}


@every
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_plain_call_follows_the_callers_mode(method, mode):
    model = make_model()
    with sparsezip.compress(model, method, processor=make_processor()), mode():
        logits = model(**INPUTS).logits
        assert torch.is_grad_enabled() is (mode is torch.enable_grad)
    assert logits.requires_grad is (mode is torch.enable_grad)
    assert logits.is_inference() is (mode is torch.inference_mode)


@every
def test_no_graph_is_kept_through_the_tower(method):
    """And one through all of the rest, as long as anything of it is to be trained."""
    model = make_model()
    rest = {name for name, _ in model.named_parameters() if "vision_tower" not in name}
    with sparsezip.compress(model, method, processor=make_processor()):
        assert names(model, model(**INPUTS).logits) == rest
        for name, weight in model.named_parameters():
            weight.requires_grad_("multi_modal_projector" in name or "vision_tower" in name)
        assert all("multi_modal_projector" in name for name in names(model, model(**INPUTS).logits))
        for name, weight in model.named_parameters():
            weight.requires_grad_("vision_tower" in name)
        assert not model(**INPUTS).logits.requires_grad


@dataclass(frozen=True, kw_only=True)
class Looks(Varied):
    """Varied that looks at what of its inputs has a gradient."""

    name: ClassVar[str] = "looks"
    heard: ClassVar[list] = []

    @property
    def uses(self):
        return frozenset({"projected", "question"})

    def reduce(self, captures, questions):
        self.heard[:] = [captures.features, captures.projected, captures.cls_attention, questions[0].words]
        assert not torch.is_grad_enabled()
        return super().reduce(captures, questions)


def test_a_method_is_given_nothing_that_has_a_gradient():
    model = make_model()
    with sparsezip.compress(model, Looks()):
        model(**INPUTS)
    assert [tensor.requires_grad for tensor in Looks.heard] == [False] * 4


@every
def test_the_trace_keeps_no_graph(method):
    with sparsezip.compress(model := make_model(), method, processor=make_processor()) as trace:
        model(**INPUTS)
    assert not any(value.requires_grad for image in trace.images for value in (image.kept, image.source))


def trained(model, method, **settings):
    """The gradients of a step of training."""
    model.train()
    with sparsezip.compress(model, method, processor=make_processor()) as trace:
        loss = model(**INPUTS, labels=LABELS, use_cache=False).loss
    loss.backward()
    return loss, {name: weight.grad for name, weight in model.named_parameters()}, trace


@every
def test_a_step_of_training_reaches_all_but_the_tower(method):
    model = make_model()
    before, grads, _ = trained(model, method)
    assert {name for name, grad in grads.items() if grad is None} == {name for name in grads if "vision_tower" in name}
    norms = {name: float(grad.norm()) for name, grad in grads.items() if grad is not None}
    assert all(norm > 1e-6 for name, norm in norms.items() if "k_proj.bias" not in name)
    torch.optim.SGD(model.parameters(), lr=1e-4).step()
    assert trained(model, method)[0] < before


def test_the_gradients_are_those_of_the_tokens_put_together_by_hand():
    """What is chosen is taken as given: the gradient is the one of a model that is handed these tokens."""
    model, other = make_model(), make_model()
    loss, grads, trace = trained(model, Varied())
    outer = other.model
    with torch.no_grad():
        hidden = outer.vision_tower(INPUTS["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
    losses, image = [], 0
    for ids, labels, mask in zip(INPUTS["input_ids"], LABELS, INPUTS["attention_mask"].bool(), strict=True):
        pieces, targets, words = [], [], outer.get_input_embeddings()(ids[mask])
        for column, id_ in enumerate(ids[mask].tolist()):
            if id_ != 3:
                pieces.append(words[column : column + 1])
                targets.append(labels[mask][column : column + 1])
            elif column == 0 or ids[mask][column - 1] != 3:
                pieces.append(outer.multi_modal_projector(hidden[image, trace.images[image].kept]))
                targets.append(labels.new_full((len(pieces[-1]),), -100))
                image += 1
        logits = other.lm_head(outer.language_model(inputs_embeds=torch.cat(pieces)[None]).last_hidden_state)[0, :-1]
        own = torch.cat(targets)[1:]
        losses.append(torch.nn.functional.cross_entropy(logits, own, reduction="none")[own >= 0])
    expected = torch.cat(losses).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    for name, weight in other.named_parameters():
        if "vision_tower" not in name:
            torch.testing.assert_close(grads[name], weight.grad, atol=1e-4, rtol=1e-4)


@every
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")  # not in 5.18
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # those of the tower
def test_checkpointing_changes_no_gradient(method, reentrant):
    """transformers' own way, which runs layers again in the backward pass."""
    expected, model = trained(make_model(), method)[1], make_model()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    ran = []
    model.model.language_model.layers[2].self_attn.q_proj.register_forward_hook(lambda *_: ran.append(1))
    for name, grad in trained(model, method)[1].items():
        assert (grad is None) is ("vision_tower" in name)
        torch.testing.assert_close(grad, expected[name], atol=1e-5, rtol=0)
    assert len(ran) == 2
