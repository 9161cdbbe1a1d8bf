"""Every method on the model that ships: what the laws say of tensors holds for a whole LLaVA, too."""

import pytest
import torch
from PIL import Image

import sparsezip
from sparsezip.testbed.drawing import draw
from sparsezip.testbed.scenes import make

NAMES = sparsezip.list_methods()
QUESTIONS = ["What color is the star?", "Is there a red circle in the image, or is there none at all?", "Count"]
BUDGET = 200  # which every method can meet: inside 6 layers the image is seen whole by two at most
each = pytest.mark.parametrize("name", NAMES)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(scope="module")
def models():
    return {name: sparsezip.load("testbed", dtype=dtype) for name, dtype in DTYPES.items()}


@pytest.fixture(scope="module")
def inputs(models):
    """By dtype: the ragged batch of all questions, and each of them alone."""
    pictures = [Image.fromarray(draw(make("test", seed))) for seed in range(3)]

    def of(vlm, *rows):
        made = vlm.processor(
            images=[pictures[row] for row in rows],
            text=[vlm.prompt(QUESTIONS[row]) for row in rows],
            padding=True,
            padding_side="left",
            return_tensors="pt",
            return_token_type_ids=False,
        )
        return dict(made.to("cpu", vlm.model.dtype))

    return {name: {"batch": of(vlm, 0, 1, 2)} | {row: of(vlm, row) for row in range(3)} for name, vlm in models.items()}


@pytest.fixture(scope="module")
def plain(models, inputs):
    """What the unmodified model makes of the batch."""
    with torch.no_grad():
        return {name: vlm.model(**inputs[name]["batch"]).logits for name, vlm in models.items()}


def settings(name, budget):
    return {"budget": budget} if sparsezip.methods.registry.get(name).takes_budget else {}


@torch.no_grad()
@each
@each_dtype
def test_all_patches_are_the_unmodified_model_bit_for_bit(models, inputs, plain, name, dtype):
    vlm, method = models[dtype], sparsezip.method(name, **settings(name, 576))
    assert not inputs[dtype]["batch"]["attention_mask"].all()
    with sparsezip.compress(vlm.model, method, processor=vlm.processor) as trace:
        assert torch.equal(vlm.model(**inputs[dtype]["batch"]).logits, plain[dtype])
    assert trace.tokens_per_layer == [576.0] * 6


@each
@each_dtype
def test_the_budget_is_met_and_a_row_of_a_batch_is_the_row_alone(models, inputs, plain, name, dtype):
    vlm, method = models[dtype], sparsezip.method(name, **settings(name, BUDGET))

    def first_token(inputs):
        made = vlm.model.generate(
            **inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        return made.logits[0]

    with sparsezip.compress(vlm.model, method, processor=vlm.processor) as trace:
        batch, images = first_token(inputs[dtype]["batch"]), trace.images
        if name != "keep_all":
            assert all(BUDGET - 1 < sum(image.tokens_per_layer) / 6 <= BUDGET for image in images)
            assert not torch.equal(batch, plain[dtype][:, -1].float())
        for row in range(3):
            alone = first_token(inputs[dtype][row])[0]
            # In bfloat16 the tower itself rounds differently in a batch, and in VisPruner one near-tie decides of all.
            if dtype == "fp32" and name != "vispruner":
                assert trace.images[0].tokens_per_layer == images[row].tokens_per_layer
                assert torch.equal(trace.images[0].kept, images[row].kept)
                assert torch.equal(trace.images[0].source, images[row].source)
                torch.testing.assert_close(batch[row], alone, atol=2e-3, rtol=0)
    with torch.no_grad():
        assert torch.equal(vlm.model(**inputs[dtype]["batch"]).logits, plain[dtype])  # and it is as before
