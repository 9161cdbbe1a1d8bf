"""Compression of a model in place, against unmodified transformers."""

import inspect
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from tiny_vlm import (
    NoAttentionMatrix,
    fingerprint,
    inputs_for,
    make_config,
    make_model,
    make_processor,
    picture,
    prompt,
)
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    MaxLengthCriteria,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
    pipeline,
)
from transformers.generation.stopping_criteria import EosTokenCriteria

import sparsezip
from sparsezip.errors import (
    AlreadyCompressedError,
    UnknownNameError,
    UnsupportedCallError,
    UnsupportedModelError,
)
from sparsezip.methods.base import Method
from sparsezip.tensors import Compressed

NEW = 10


@dataclass(frozen=True, kw_only=True)
class Varied(Method):
    """Some of the best-attended patches; how many follows from where they are: another number for every image."""

    name: ClassVar[str] = "varied"

    @property
    def needs(self):
        return frozenset({"cls_attention"})

    def tokens(self, patches):
        return 1

    def reduce(self, captures, questions):
        score = captures.cls_attention.mean(1)
        counts = [1 + int((row.topk(3).indices * torch.tensor([3, 5, 1])).sum()) % 14 for row in score]
        kept = [row.topk(count).indices.sort().values for row, count in zip(score, counts, strict=True)]
        return Compressed.selection(captures, kept)


@dataclass(frozen=True, kw_only=True)
class Sends(Method):
    """As many tokens as told, sensible or not; optionally needs what it is told to need."""

    name: ClassVar[str] = "sends"
    count: int = 1
    lacks: str = ""

    @property
    def needs(self):
        return frozenset({self.lacks} - {""})

    def tokens(self, patches):
        return 1

    def sends_everything(self, patches):
        return False

    def reduce(self, captures, questions):
        features = [row[torch.arange(self.count) % len(row)] for row in captures.patch_features]
        nowhere = torch.full((captures.patches,), -1)
        return Compressed(
            features=features, kept=[torch.arange(0)] * captures.images, source=[nowhere] * captures.images
        )


@dataclass(frozen=True, kw_only=True)
class Shrinks(Method):
    """Every token of the image scaled down to 3 x 2 patches."""

    name: ClassVar[str] = "shrinks"

    def tokens(self, patches):
        return self.asked(patches) or 6

    def resized(self, grid):
        return 3, 2

    def reduce(self, captures, questions):
        return Compressed.everything(captures)


ROWS = [
    ("What color is the star?", [1]),
    ("Is there a red circle in it, and is it red?", [2, 3]),
    ("hello", []),
    ("What is there?", [4]),
]


@pytest.fixture(scope="module")
def model():
    return make_model()


def answers(model, inputs, **settings):
    """The new tokens of every row."""
    settings = {"max_new_tokens": NEW, "do_sample": False} | settings
    return model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :]


def alone(row, **settings):
    return inputs_for(row, **settings)


@torch.no_grad()
def by_hand(model, ids, pixel_values, kept):
    """Logits and greedy answer of one unpadded row, from unmodified modules and embeddings put together here."""
    outer = model.model
    hidden = outer.vision_tower(pixel_values, output_hidden_states=True).hidden_states[-2][:, 1:]
    pieces, image, column = [], 0, 0
    embeddings = outer.get_input_embeddings()(ids[0])
    while column < len(embeddings):
        if ids[0, column] == 3:
            pieces.append(outer.multi_modal_projector(hidden[image, kept[image]]))
            image, column = image + 1, column + hidden.shape[1]
        else:
            pieces.append(embeddings[column : column + 1])
            column += 1
    embedded = torch.cat(pieces)[None]
    prompt_logits, new = None, []
    for _ in range(NEW):
        logits = model.lm_head(outer.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state)
        prompt_logits = logits if prompt_logits is None else prompt_logits
        new.append(int(logits[0, -1].argmax()))
        embedded = torch.cat([embedded, outer.get_input_embeddings()(torch.tensor([[new[-1]]]))], 1)
    return prompt_logits, new


# -- the right answers ---------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("method", ["keep_all", "visionzip", "sparsezip", "grid", "random"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_all_patches_are_the_unmodified_model_bit_for_bit(model, method, padding_side):
    inputs = inputs_for(*ROWS, padding_side=padding_side)
    expected, tokens = model(**inputs).logits, answers(model, inputs)
    settings = {} if method == "keep_all" else {"budget": 16}
    with sparsezip.compress(model, sparsezip.method(method, **settings)) as trace:
        assert torch.equal(model(**inputs).logits, expected)
        assert torch.equal(answers(model, inputs), tokens)
    assert [image.tokens for image in trace.images] == [16] * 4
    assert len({tuple(row) for row in tokens.tolist()}) == 4  # the rows do differ


@torch.no_grad()
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{len(row[1])}-images")
def test_equals_embeddings_put_together_by_hand(model, row):
    inputs = alone(row)
    with sparsezip.compress(model, Varied()) as trace:
        logits, tokens = model(**inputs).logits, answers(model, inputs)
    kept = [image.kept for image in trace.images]
    assert all(len(indices) < 16 for indices in kept)
    expected, new = by_hand(model, inputs["input_ids"], inputs.get("pixel_values"), kept) if row[1] else (None, None)
    if not row[1]:
        expected, new = model(**inputs).logits, answers(model, inputs)[0].tolist()
    torch.testing.assert_close(logits, expected, atol=2e-4, rtol=0)
    assert expected.abs().max() > 5
    assert tokens[0].tolist() == new


@pytest.mark.parametrize("method", ["varied", "visionzip", "sparsezip"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_rows_equal_the_rows_run_alone(model, method, padding_side):
    made = Varied() if method == "varied" else sparsezip.method(method, budget=5)
    inputs = inputs_for(*ROWS, padding_side=padding_side)
    assert not inputs["attention_mask"].all()
    with sparsezip.compress(model, made, processor=make_processor()) as trace:
        together = answers(model, inputs) if padding_side == "left" else None
        logits = model(**inputs).logits
        counts = [image.tokens for image in trace.images]
        for number, row in enumerate(ROWS):
            single = alone(row)
            if together is not None:
                assert together[number].tolist() == answers(model, single)[0].tolist()
            expected = model(**single).logits[0]
            length = len(expected)
            own = logits[number, -length:] if padding_side == "left" else logits[number, :length]
            torch.testing.assert_close(own, expected, atol=1e-3, rtol=0)
    if method == "varied":
        assert len(set(counts)) == 3
    else:
        assert counts == [5] * 4


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
        {"use_cache": False},
        {"cache_implementation": "static"},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_rows_equal_the_rows_run_alone_in_every_way_of_decoding(model, settings):
    inputs, copies = inputs_for(*ROWS), settings.get("num_return_sequences", 1)
    with sparsezip.compress(model, Varied()):
        greedy, together = answers(model, inputs), answers(model, inputs, **settings)
        for number, row in enumerate(ROWS):
            own = together[number * copies : (number + 1) * copies]
            assert torch.equal(own, answers(model, alone(row), **settings))
    if "num_beams" not in settings:
        assert torch.equal(together, greedy)


def test_sampling_draws_what_the_rewritten_prompt_draws(model):
    inputs = inputs_for(*ROWS)
    settings = {"do_sample": True, "temperature": 3.0, "num_return_sequences": 2}
    draws = []
    for _ in range(2):
        torch.manual_seed(5)
        with sparsezip.compress(model, Varied()):
            draws.append(answers(model, inputs, **settings))
    assert torch.equal(*draws)
    assert len({tuple(row) for row in draws[0].tolist()}) == 8
    torch.manual_seed(5)
    plain = answers(model, inputs, **settings)
    torch.manual_seed(5)
    with sparsezip.compress(model, "keep_all"):
        assert torch.equal(answers(model, inputs, **settings), plain)


@pytest.mark.parametrize("draft", ["assistant", "prompt"])
def test_drafted_tokens_change_nothing(model, draft):
    # A prompt without a repetition in front of the image: transformers itself cannot look up a draft with placeholders.
    inputs = make_processor()(images=picture(1), text="<image>\nstar star star star", return_tensors="pt")
    settings = {"assistant_model": make_model(seed=3)} if draft == "assistant" else {"prompt_lookup_num_tokens": 3}
    with sparsezip.compress(model, Varied()) as trace:
        assert torch.equal(answers(model, inputs, **settings), answers(model, inputs))
    assert trace.images[0].tokens < 16


@torch.no_grad()
def test_a_prompt_at_336_pixels():
    """576 patches, as LLaVA-1.5 has them."""
    model, row = make_model(side=336), ("What color is the star?", [1])
    inputs = alone(row, side=336)
    with sparsezip.compress(model, sparsezip.method("visionzip", dominant=54, contextual=10)) as trace:
        tokens = answers(model, inputs)
    assert tokens.shape == (1, NEW)
    assert (trace.images[0].tokens, trace.images[0].patches, trace.images[0].grid) == (64, 576, (24, 24))
    expected = answers(model, inputs)
    with sparsezip.compress(model, "keep_all"):
        assert torch.equal(answers(model, inputs), expected)


def test_bfloat16():
    model = make_model(dtype=torch.bfloat16)
    inputs = inputs_for(*ROWS).to(torch.bfloat16)
    expected = answers(model, inputs)
    with sparsezip.compress(model, "keep_all"):
        assert torch.equal(answers(model, inputs), expected)
    with sparsezip.compress(model, sparsezip.method("sparsezip", budget=5)) as trace:
        assert answers(model, inputs).shape == (4, NEW)
    assert [image.tokens for image in trace.images] == [5] * 4


# -- images scaled down --------------------------------------------------------------------------------------------


def scaled_by_hand(model, pixel_values):
    """Tower features of images scaled to 3 x 2 patches, by transformers' own tower."""
    small = torch.nn.functional.interpolate(pixel_values, (42, 28), mode="bicubic", antialias=True)
    tower = model.model.vision_tower
    return tower(small, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-2][:, 1:]


@torch.no_grad()
def test_a_method_may_scale_the_image_down(model):
    inputs = inputs_for(*ROWS)
    sent = {}
    with sparsezip.compress(model, Shrinks()) as trace:
        hook = model.register_forward_pre_hook(lambda module, args, kwargs: sent.update(kwargs), with_kwargs=True)
        logits = model(**inputs).logits
        hook.remove()
    expected = model.model.multi_modal_projector(scaled_by_hand(model, inputs["pixel_values"]))
    tokens = torch.cat(sent["mm_encoder_outputs"]["image"].pooler_output).view(expected.shape)
    torch.testing.assert_close(tokens, expected, atol=1e-4, rtol=1e-5)
    assert sent["input_ids"].eq(3).sum(1).tolist() == [6, 12, 0, 6]
    assert logits.isfinite().all()
    for image in trace.images:
        assert (image.tokens, image.patches, image.grid, image.K) == (6, 16, (4, 4), 0)
        # Rows 0, 1, 2, 3 of 4 have their centres at 1/8, 3/8, 5/8, 7/8: in thirds 0, 1, 1, 2; the columns in halves.
        assert image.source.view(4, 4).tolist() == [[0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3], [4, 4, 5, 5]]


@torch.no_grad()
def test_an_image_is_not_scaled_where_all_of_it_is_sent(model):
    inputs = inputs_for(*ROWS)
    expected = model(**inputs).logits
    for method in (Shrinks(budget=16), Shrinks(keep_ratio=1.0), sparsezip.method("downsample", budget=16)):
        with sparsezip.compress(model, method) as trace:
            assert torch.equal(model(**inputs).logits, expected)
        assert [image.K for image in trace.images] == [16] * 4


@torch.no_grad()
@pytest.mark.parametrize("settings", [{"budget": 4}, {"keep_ratio": 0.25}, {"budget": 5}])
def test_the_budget_of_a_scaled_image_is_a_share_of_all_its_patches(model, settings):
    with sparsezip.compress(model, sparsezip.method("downsample", **settings)) as trace:
        model(**inputs_for(*ROWS))
    assert [image.tokens for image in trace.images] == [settings.get("budget", 4)] * 4
    for image in trace.images:
        assert set(image.source.tolist()) <= set(range(image.tokens))


# -- signals -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Uses(Method):
    """Sends one token and notes what it was given."""

    name: ClassVar[str] = "uses"
    seen: ClassVar[list] = []

    @property
    def needs(self):
        return frozenset({"keys"})

    @property
    def uses(self):
        return frozenset({"low_attention", "tiles", "image_embeds", "question"})

    @property
    def low_layer(self):
        return 0.5

    def tokens(self, patches):
        return 1

    def reduce(self, captures, questions):
        self.seen[:] = [captures, questions]
        return Compressed.selection(captures, [torch.tensor([0])] * captures.images)


@torch.no_grad()
def test_a_method_gets_what_it_needs_and_what_there_is_of_what_it_uses(model):
    inputs = inputs_for(ROWS[0])
    with sparsezip.compress(model, Uses() | sparsezip.method("fastv", budget=1)):
        model(**inputs)
    captures, (question,) = Uses.seen
    assert captures.delivered == {"keys", "low_attention"}
    assert question.words is not None
    eager = make_model()
    eager.set_attn_implementation("eager")
    attentions = eager.model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions
    torch.testing.assert_close(captures.low_attention, attentions[2][:, :, 0, 1:], atol=1e-5, rtol=0)


# -- what callers see ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2, "num_return_sequences": 2}], ids=["greedy", "beams"])
@pytest.mark.parametrize("as_dict", [False, True])
def test_sequences_begin_with_the_callers_own_prompt(model, settings, as_dict):
    inputs = inputs_for(*ROWS)
    settings = {"max_new_tokens": NEW, "do_sample": False, **settings}
    with sparsezip.compress(model, Varied()):
        output = model.generate(**inputs, return_dict_in_generate=as_dict, output_scores=as_dict, **settings)
    sequences = output.sequences if as_dict else output
    width = inputs["input_ids"].shape[1]
    assert sequences.shape == (4 * settings.get("num_return_sequences", 1), width + NEW)
    expected = inputs["input_ids"].repeat_interleave(len(sequences) // 4, 0)
    assert torch.equal(sequences[:, :width], expected)
    if as_dict:
        assert len(output.scores) == NEW


@pytest.mark.parametrize("how", ["argument", "config", "model", "inputs", "positional"])
def test_max_length_counts_the_callers_prompt(model, how):
    inputs = dict(inputs_for(*ROWS))
    width = inputs["input_ids"].shape[1]
    args, settings = (), {"do_sample": False}
    if how == "config":
        settings = {"generation_config": GenerationConfig(max_length=width + 4, do_sample=False)}
    elif how != "model":
        settings["max_length"] = width + 4
    if how == "inputs":
        inputs["inputs"] = inputs.pop("input_ids")
    if how == "positional":
        args = (inputs.pop("input_ids"),)
    model.generation_config.max_length = width + 4 if how == "model" else None
    try:
        expected = model.generate(*args, **inputs, **settings)
        with sparsezip.compress(model, "keep_all"):
            assert torch.equal(model.generate(*args, **inputs, **settings), expected)
        with sparsezip.compress(model, Varied()):
            assert model.generate(*args, **inputs, **settings).shape == (4, width + 4) == expected.shape
    finally:
        model.generation_config.max_length = None
    if how == "config":
        assert settings["generation_config"].max_length == width + 4


def test_min_length_counts_the_callers_prompt(model):
    inputs = alone(ROWS[0])
    width = inputs["input_ids"].shape[1]
    with sparsezip.compress(model, Varied()):
        ends = int(answers(model, inputs)[0, 0])
        model.generation_config.eos_token_id = ends
        try:
            assert answers(model, inputs).shape[1] == 1
            assert answers(model, inputs, min_length=width + 5).shape[1] >= 5
        finally:
            model.generation_config.eos_token_id = 2


def test_the_default_length_is_transformers_own(model):
    inputs = alone(ROWS[0])
    with sparsezip.compress(model, Varied()), pytest.warns(UserWarning, match="model-agnostic default"):
        assert model.generate(**inputs, do_sample=False).shape[1] == inputs["input_ids"].shape[1] + 20


def test_without_an_attention_mask_padding_is_found_as_transformers_finds_it(model):
    inputs = inputs_for(*ROWS)
    bare = {name: value for name, value in inputs.items() if name != "attention_mask"}
    with sparsezip.compress(model, Varied()):
        assert torch.equal(answers(model, bare), answers(model, inputs))
    with sparsezip.compress(model, "keep_all"):
        kept = answers(model, bare)
    assert torch.equal(kept, answers(model, bare))


class Recorder:
    """A streamer that keeps what it is given."""

    def __init__(self):
        self.puts, self.ended = [], False

    def put(self, value):
        self.puts.append(value)

    def end(self):
        self.ended = True


def test_a_streamer_is_given_the_callers_prompt_first(model, capsys):
    inputs, recorder = alone(ROWS[0]), Recorder()
    with sparsezip.compress(model, Varied()):
        tokens = answers(model, inputs, streamer=recorder)
        model.generate(
            **inputs,
            max_new_tokens=NEW,
            do_sample=False,
            streamer=TextStreamer(make_processor().tokenizer, skip_prompt=True),
        )
    assert torch.equal(recorder.puts[0], inputs["input_ids"])
    assert [int(put) for put in recorder.puts[1:]] == tokens[0].tolist()
    assert recorder.ended
    assert capsys.readouterr().out.strip() == make_processor().tokenizer.decode(tokens[0]).strip()


class Watcher(StoppingCriteria):
    """Keeps the ids it is given; ends after three new ones, as criterion; changes nothing, as processor."""

    def __init__(self, width):
        self.seen, self.width = [], width

    def __call__(self, input_ids, scores):
        self.seen.append(input_ids)
        stop = torch.full((len(input_ids),), input_ids.shape[1] >= self.width + 3)
        return scores if isinstance(scores, torch.Tensor) else stop


DECODING = [
    {},
    {"num_beams": 3},
    {"num_beams": 3, "num_return_sequences": 2},
    {"do_sample": True, "num_return_sequences": 2},
]


@pytest.mark.parametrize("settings", DECODING, ids=lambda settings: "-".join(settings) or "greedy")
@pytest.mark.parametrize("kind", [list, StoppingCriteriaList])
def test_stopping_criteria_see_the_callers_prompt(model, settings, kind):
    prompts = (inputs := inputs_for(*ROWS))["input_ids"]
    watcher = Watcher(prompts.shape[1])
    with sparsezip.compress(model, Varied()):
        new = answers(model, inputs, stopping_criteria=kind([watcher]), **settings)
    assert new.shape[1] == 3
    for step, ids in enumerate(watcher.seen, 1):
        assert torch.equal(ids[:, : watcher.width], prompts.repeat_interleave(len(ids) // 4, 0))
        assert ids.shape[1] == watcher.width + step
    if not settings:
        assert torch.equal(watcher.seen[-1][:, watcher.width :], new)


@pytest.mark.parametrize("settings", DECODING, ids=lambda settings: "-".join(settings) or "greedy")
def test_logits_processors_see_the_callers_prompt(model, settings):
    prompts = (inputs := inputs_for(*ROWS))["input_ids"]
    watcher = Watcher(prompts.shape[1])
    with sparsezip.compress(model, Varied()):
        answers(model, inputs, logits_processor=[watcher], **settings)
    assert len(watcher.seen) == NEW
    for step, ids in enumerate(watcher.seen):
        assert torch.equal(ids[:, : watcher.width], prompts.repeat_interleave(len(ids) // 4, 0))
        assert ids.shape[1] == watcher.width + step


@pytest.mark.parametrize("settings", DECODING, ids=lambda settings: "-".join(settings) or "greedy")
def test_the_allowed_tokens_follow_from_the_callers_prompt(model, settings):
    prompts = (inputs := inputs_for(*ROWS))["input_ids"]
    width, seen = prompts.shape[1], []

    def allowed(batch_id, ids):
        row = next(number for number, prompt in enumerate(prompts) if torch.equal(ids[:width], prompt))
        seen.append((batch_id, row, len(ids) - width))
        return [20 + row, 30 + row]

    with sparsezip.compress(model, Varied()):
        new = answers(model, inputs, prefix_allowed_tokens_fn=allowed, **settings)
    copies = 2 if "do_sample" in settings else 1
    assert all(row == batch_id // copies for batch_id, row, _ in seen)
    assert {step for *_, step in seen} == set(range(NEW))
    for number, tokens in enumerate(new.tolist()):
        row = number // (len(new) // 4)
        assert set(tokens) <= {20 + row, 30 + row}


@pytest.mark.parametrize("more", [3, NEW + 3])
def test_a_criterion_of_length_counts_the_callers_prompt(model, more):
    inputs = inputs_for(*ROWS)
    width = inputs["input_ids"].shape[1]
    criteria = StoppingCriteriaList([MaxLengthCriteria(width + more)])
    expected = answers(model, inputs, stopping_criteria=criteria).shape
    assert expected == (4, more)  # transformers lets the criterion come before max_new_tokens
    with sparsezip.compress(model, Varied()):
        assert answers(model, inputs, stopping_criteria=criteria).shape == expected
    assert criteria.max_length == width + more


def test_a_criterion_that_ends_rows_takes_the_place_of_generates_own(model):
    inputs = inputs_for(*ROWS)
    with sparsezip.compress(model, Varied()):
        first, second = answers(model, inputs)[0, :2].tolist()
        criteria = [EosTokenCriteria(torch.tensor([second]))]
        tokens = answers(model, inputs, stopping_criteria=criteria, eos_token_id=first, pad_token_id=0)[0].tolist()
    assert first != second
    assert tokens == [first, second] + [0] * (len(tokens) - 2)


def test_the_callers_prompt_comes_back_where_a_row_of_text_is_the_longest(model):
    rows = [ROWS[0], ("star " * 20, [])]
    inputs = inputs_for(*rows)
    width = inputs["input_ids"].shape[1]
    assert inputs["attention_mask"][1].all()
    with sparsezip.compress(model, Varied()):
        output = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(output[:, :width], inputs["input_ids"])


def test_the_pipeline_of_transformers(model):
    processor = make_processor()
    task = pipeline("image-text-to-text", model=model, processor=processor)
    single = {"max_new_tokens": NEW, "do_sample": False}

    def asked():
        return task(picture(1), text=prompt("What color is the star?"), generate_kwargs=single, return_full_text=False)

    plain = asked()[0]["generated_text"]
    with sparsezip.compress(model, "keep_all"):
        assert asked()[0]["generated_text"] == plain
    with sparsezip.compress(model, Varied()) as trace:
        text = asked()[0]["generated_text"]
        tokens = answers(model, alone(ROWS[0]))
    assert text == processor.tokenizer.decode(tokens[0], skip_special_tokens=True) != plain
    assert trace.images[0].tokens < 16


@torch.no_grad()
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_plain_call_returns_a_loss_over_the_shortened_labels(model, padding_side):
    def labelled(inputs):
        """Labels on " ASSISTANT:", the end of every row."""
        behind = inputs["attention_mask"].flip(1).cumsum(1).flip(1) <= 5
        return inputs["input_ids"].masked_fill(inputs["attention_mask"].eq(0) | ~behind, -100)

    inputs = inputs_for(*ROWS, padding_side=padding_side)
    plain = model(**inputs, labels=labelled(inputs)).loss
    with sparsezip.compress(model, "keep_all"):
        assert torch.equal(model(**inputs, labels=labelled(inputs)).loss, plain)
    with sparsezip.compress(model, Varied()):
        output = model(**inputs, labels=labelled(inputs))
        own = [model(**(row := alone(given)), labels=labelled(row)).loss for given in ROWS]
    assert output.logits.shape[1] < inputs["input_ids"].shape[1]
    torch.testing.assert_close(output.loss, torch.stack(own).mean(), atol=1e-4, rtol=0)
    assert abs(output.loss - plain) > 0.01


def test_gradients_reach_projector_and_language_model_but_not_the_tower():
    model = make_model()
    inputs = alone(ROWS[0])
    with sparsezip.compress(model, Varied()):
        model(**inputs, labels=inputs["input_ids"].masked_fill(inputs["input_ids"].eq(3), -100)).loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0
    assert model.model.language_model.layers[0].mlp.up_proj.weight.grad is not None
    assert all(weight.grad is None for weight in model.model.vision_tower.parameters())


@torch.no_grad()
def test_arguments_of_a_plain_call_are_found_by_position(model):
    inputs = alone(ROWS[0])
    with sparsezip.compress(model, Varied()) as trace:
        by_name = model(**inputs).logits
        assert torch.equal(model(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"]).logits, by_name)
    assert trace.images[0].tokens < 16


@torch.no_grad()
def test_token_types_are_shortened(model):
    inputs, seen = inputs_for(*ROWS), {}
    with sparsezip.compress(model, Varied()):
        hook = model.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
        model(**inputs, mm_token_type_ids=inputs["attention_mask"] * 2)
    hook.remove()
    assert torch.equal(seen["mm_token_type_ids"], seen["attention_mask"] * 2)
    assert seen["input_ids"].shape == seen["attention_mask"].shape < inputs["input_ids"].shape


# -- the trace -----------------------------------------------------------------------------------------------------


def test_the_trace_describes_the_last_call(model):
    with sparsezip.compress(model, Varied()) as trace:
        answers(model, inputs_for(*ROWS))
        assert len(trace.images) == 4
        first = trace.images
        answers(model, inputs_for(ROWS[0]))
        assert len(trace.images) == 1
        assert torch.equal(trace.images[0].kept, first[0].kept)
        answers(model, inputs_for(ROWS[2]))
        assert (trace.images, trace.tokens_per_layer, trace.stages) == ([], [], {})


def test_the_trace_counts_what_enters_every_layer(model):
    inputs, widths = inputs_for(*ROWS), []
    layers = model.model.language_model.layers
    hooks = [layer.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1])) for layer in layers]
    with torch.no_grad(), sparsezip.compress(model, Varied()) as trace:
        model(**inputs)
    for hook in hooks:
        hook.remove()
    tokens = [image.tokens for image in trace.images]
    assert trace.tokens_per_layer == [sum(tokens) / 4] * 3
    text = [int((row.ne(3) & mask.bool()).sum()) for row, mask in zip(*list(inputs.values())[:2], strict=True)]
    rows = [text[0] + tokens[0], text[1] + tokens[1] + tokens[2], text[2], text[3] + tokens[3]]
    assert widths == [max(rows)] * 3
    assert set(trace.stages) == {"tower", "compress", "project"}
    assert all(took > 0 for took in trace.stages.values())
    for image in trace.images:
        assert (image.patches, image.grid, image.K) == (16, (4, 4), len(image.kept))
        assert image.source.shape == (16,)
        assert image.source[image.kept].tolist() == list(range(image.tokens))


# -- the question --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Listens(Method):
    """Sends one token and notes the questions."""

    name: ClassVar[str] = "listens"
    heard: ClassVar[list] = []

    @property
    def needs(self):
        return frozenset({"question"})

    def tokens(self, patches):
        return 1

    def reduce(self, captures, questions):
        self.heard[:] = questions
        return Compressed.selection(captures, [torch.tensor([0])] * captures.images)


def embedded(model, text):
    """The embeddings of a text's tokens, as the prompt has them (behind a line break or a space)."""
    ids = make_processor().tokenizer(text, add_special_tokens=False)["input_ids"]
    return model.get_input_embeddings()(torch.tensor(ids))


def test_every_image_gets_the_words_of_its_own_row(model):
    with torch.no_grad(), sparsezip.compress(model, Listens(), processor=make_processor()):
        answers(model, inputs_for(*ROWS))
        heard = list(Listens.heard)
    assert len(heard) == 4
    for image, row in enumerate([0, 1, 1, 3]):
        assert torch.equal(heard[image].words, embedded(model, ROWS[row][0]))


def test_the_words_are_carried_into_the_towers_space(model):
    with torch.no_grad(), sparsezip.compress(model, Listens(), processor=make_processor()):
        answers(model, inputs_for(ROWS[0]))
    projector, question = model.model.multi_modal_projector, Listens.heard[0]
    first, second = projector.linear_1.weight, projector.linear_2.weight
    torch.testing.assert_close(question.tower, first.T @ (second.T @ question.words.mean(0)), atol=1e-4, rtol=1e-5)
    # Without its activation and biases the projector is a matrix P with <P x, t> = <x, P' t>.
    patch = torch.randn(32)
    torch.testing.assert_close(
        question.tower @ patch, (second @ (first @ patch)) @ question.words.mean(0), atol=1e-3, rtol=1e-4
    )


def test_without_a_processor_all_text_behind_the_image_counts(model):
    inputs = inputs_for(*ROWS[:1])
    with torch.no_grad(), sparsezip.compress(model, Listens()):
        answers(model, inputs)
    ids = inputs["input_ids"][0]
    behind = ids[int(ids.eq(3).nonzero().max()) + 1 :]
    assert torch.equal(Listens.heard[0].words, model.get_input_embeddings()(behind))


def test_a_question_may_be_given(model):
    processor, inputs = make_processor(), inputs_for(*ROWS)
    own = sparsezip.Question(words=torch.ones(2, 48), tower=torch.ones(32))
    with torch.no_grad():
        with sparsezip.compress(model, Listens(), processor=processor, question="Is it red?"):
            answers(model, inputs)
            assert all(torch.equal(heard.words, embedded(model, "Is it red?")) for heard in Listens.heard)
        with sparsezip.compress(model, Listens(), processor=processor, question=["a", own, None, "b"]):
            answers(model, inputs)
            assert [type(heard).__name__ for heard in Listens.heard] == ["Question", "Question", "NoneType", "Question"]
            assert Listens.heard[1] is own
            assert torch.equal(Listens.heard[3].words, embedded(model, "b"))
        with sparsezip.compress(model, Listens(), question=own):
            answers(model, inputs)
            assert Listens.heard == [own] * 4


def test_a_question_of_words_alone_is_the_question_made_of_these_words(model):
    inputs, method = inputs_for(*ROWS), sparsezip.method("sparsezip", budget=5, cross_beta=5.0)
    text = "Is it red?"
    words = sparsezip.Question(words=embedded(model, text).detach())
    kept, heard = [], []
    with torch.no_grad():
        for question in (text, words, sparsezip.Question()):
            with sparsezip.compress(model, method, processor=make_processor(), question=question) as trace:
                answers(model, inputs)
            kept.append([image.kept.tolist() for image in trace.images])
            with sparsezip.compress(model, Listens(), processor=make_processor(), question=[question] * 4):
                answers(model, inputs)
            heard.append(Listens.heard[3])
    assert torch.equal(heard[0].tower, heard[1].tower)
    assert torch.equal(heard[0].words, heard[1].words)
    assert heard[2].tower is None
    assert kept[0] == kept[1] != kept[2]


def test_a_question_as_text_needs_the_processor(model):
    with pytest.raises(UnsupportedCallError, match="processor="):
        sparsezip.attach(model, Listens(), question="Is it red?")
    for empty in ("", sparsezip.Question(words=torch.zeros(0, 48))):
        with (
            sparsezip.compress(model, Listens(), processor=make_processor(), question=empty),
            pytest.raises(UnsupportedCallError, match="no words"),
        ):
            answers(model, inputs_for(ROWS[0]))


# -- what is refused -----------------------------------------------------------------------------------------------


def cache_of(model):
    with torch.no_grad():
        return model(torch.tensor([[1, 9, 10]]), use_cache=True).past_key_values


@pytest.mark.parametrize("call", ["generate", "forward"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("past_key_values", cache_of, "past_key_values already holds 3 tokens"),
        ("position_ids", lambda model: torch.arange(26)[None], "position_ids was given"),
        ("inputs_embeds", lambda model: torch.zeros(1, 26, 48), "inputs_embeds instead of input_ids|inputs_embeds"),
        ("mm_encoder_outputs", lambda model: {"image": object()}, "Give pixel_values"),
        ("vision_feature_layer", lambda model: -1, "vision_feature_layer=-1"),
        ("vision_feature_select_strategy", lambda model: "full", "vision_feature_select_strategy='full'"),
        ("image_sizes", lambda model: torch.tensor([[56, 56]]), "image_sizes"),
        ("attention_mask", lambda model: torch.ones(1, 1, 4, 4), r"shape \(1, 1, 4, 4\)"),
    ],
)
def test_refuses_calls_that_do_not_go_with_fewer_tokens(model, call, name, value, message):
    inputs = dict(alone(ROWS[0])) | {name: value(model)}
    before = fingerprint(model)
    with pytest.raises(UnsupportedCallError, match=message), sparsezip.compress(model, Varied()):
        model.generate(**inputs, max_new_tokens=1) if call == "generate" else model(**inputs)
    assert fingerprint(model) == before


@torch.no_grad()
def test_refuses_to_keep_logits_by_their_columns(model):
    inputs = alone(ROWS[0])
    with sparsezip.compress(model, Varied()):
        for columns in ([0, 5], [inputs["input_ids"].shape[1] - 1]):
            with pytest.raises(UnsupportedCallError, match="logits_to_keep names columns"):
                model(**inputs, logits_to_keep=torch.tensor(columns))
        last = model(**inputs, logits_to_keep=2).logits
        torch.testing.assert_close(last, model(**inputs).logits[:, -2:], atol=1e-4, rtol=0)


def test_settings_that_only_repeat_the_configuration_are_fine(model):
    inputs = alone(ROWS[0])
    with sparsezip.compress(model, Varied()):
        expected = answers(model, inputs)
        assert torch.equal(answers(model, inputs, vision_feature_layer=-2), expected)


def test_refuses_embeddings_in_place_of_ids(model):
    inputs = alone(ROWS[0])
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with sparsezip.compress(model, Varied()), pytest.raises(UnsupportedCallError, match="inputs_embeds"):
        model(inputs_embeds=embeds, pixel_values=inputs["pixel_values"])


@torch.no_grad()
def test_refuses_to_go_on_from_a_cache_that_holds_fewer_tokens_than_the_prompt(model):
    inputs = alone(ROWS[0])
    width = inputs["input_ids"].shape[1]
    with sparsezip.compress(model, Varied()):
        output = model(**inputs, use_cache=True)
        word = output.logits[:, -1:].argmax(-1)
        with pytest.raises(UnsupportedCallError, match="left out of the cache"):
            model(word, attention_mask=torch.ones(1, width + 1), past_key_values=output.past_key_values)
        with pytest.raises(UnsupportedCallError, match="past_key_values already holds"):
            model(torch.cat([inputs["input_ids"], word], 1), past_key_values=output.past_key_values)
        new = [int(word)]
        for _ in range(NEW - 1):  # a decoding loop of one's own, without a mask, goes on rightly
            output = model(word, past_key_values=output.past_key_values)
            word = output.logits[:, -1:].argmax(-1)
            new.append(int(word))
        assert new == answers(model, inputs)[0].tolist()


def test_an_empty_cache_is_fine(model):
    inputs = alone(ROWS[0])
    with sparsezip.compress(model, Varied()):
        expected = answers(model, inputs)
        cache = StaticCache(config=model.config.text_config, max_cache_len=64)
        assert torch.equal(answers(model, inputs, past_key_values=cache), expected)


@pytest.mark.parametrize("count", [0, 17])
def test_refuses_methods_that_send_no_token_or_more_than_there_is_room_for(model, count):
    with (
        sparsezip.compress(model, Sends(count=count)) as trace,
        pytest.raises(UnsupportedCallError, match=f"sends sends {count} tokens for image 0, whose prompt has"),
    ):
        answers(model, inputs_for(*ROWS))
    assert trace.images == []


def test_refuses_prompts_whose_placeholders_do_not_match_the_images(model):
    inputs = alone(ROWS[1])
    with sparsezip.compress(model, Varied()), pytest.raises(UnsupportedCallError, match="which need 16"):
        answers(model, {**inputs, "pixel_values": inputs["pixel_values"][:1]})


def test_refuses_a_method_that_needs_what_the_tower_does_not_offer(model):
    with pytest.raises(UnsupportedModelError, match="image_embeds") as caught:
        sparsezip.attach(model, Sends(lacks="image_embeds"))
    works = str(caught.value).partition("Methods that work here: ")[2].rstrip(".").split(", ")
    assert {"visionzip", "fastv", "keep_all"} <= set(works) <= set(sparsezip.list_methods())
    assert "clip=" in str(caught.value)
    assert "generate" not in vars(model)
    with pytest.raises(UnsupportedModelError, match="sends needs tiles") as caught:
        sparsezip.attach(model, Sends(lacks="tiles"))
    assert "clip=" not in str(caught.value)
    with pytest.raises(UnsupportedModelError, match="needs image_embeds"):
        sparsezip.attach(model, Sends(lacks="image_embeds") | sparsezip.methods.FastV())


def test_refuses_other_models():
    config = LlamaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    with pytest.raises(
        UnsupportedModelError, match=r"LlamaForCausalLM is not supported.*LlavaForConditionalGeneration"
    ):
        sparsezip.attach(LlamaForCausalLM(config), "keep_all")


def test_refuses_an_unknown_method(model):
    with pytest.raises(UnknownNameError, match="visionzip"):
        sparsezip.attach(model, "visonzip")


# -- attaching and restoring ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("again", [lambda model: sparsezip.attach(model, "keep_all"), lambda model: enter(model)])
def test_one_compression_at_a_time(model, again):
    inputs = alone(ROWS[0])
    with sparsezip.compress(model, Varied()):
        expected = answers(model, inputs)
        with pytest.raises(AlreadyCompressedError, match="detach"):
            again(model)
        assert torch.equal(answers(model, inputs), expected)  # the first one is still in force


def enter(model):
    with sparsezip.compress(model, Varied()):
        pass


def test_attach_and_detach(model):
    inputs, before = alone(ROWS[0]), fingerprint(model)
    plain = answers(model, inputs)
    with sparsezip.compress(model, Varied()):
        expected = answers(model, inputs)
    trace = sparsezip.attach(model, Varied())
    assert torch.equal(answers(model, inputs), expected)
    assert not torch.equal(expected, plain)
    assert trace.images[0].tokens < 16
    sparsezip.detach(model)
    assert fingerprint(model) == before
    assert torch.equal(answers(model, inputs), plain)
    with pytest.raises(UnsupportedCallError, match="not under compression"):
        sparsezip.detach(model)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["block", "tower", "llm", "method"])
def test_everything_is_restored_after_an_error(model, error, where):
    inputs, before = inputs_for(*ROWS), fingerprint(model)
    expected = answers(model, inputs)

    def fail(*_):
        raise error

    @dataclass(frozen=True, kw_only=True)
    class Fails(Varied):
        name: ClassVar[str] = "fails"

        def reduce(self, captures, questions):
            fail()

    places = {
        "tower": model.model.vision_tower.encoder.layers[2].self_attn.out_proj,
        "llm": model.model.language_model.layers[1],
    }
    hook = places[where].register_forward_hook(fail) if where in places else None
    with pytest.raises(error), sparsezip.compress(model, Fails() if where == "method" else Varied()):
        fail() if where == "block" else answers(model, inputs)
    if hook:
        hook.remove()
    assert fingerprint(model) == before
    assert torch.equal(answers(model, inputs), expected)


def test_a_failed_call_leaves_the_compression_in_force(model):
    inputs = inputs_for(*ROWS)
    with sparsezip.compress(model, Varied()) as trace:
        expected = answers(model, inputs)
        hook = model.model.language_model.layers[1].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            answers(model, inputs)
        hook.remove()
        assert torch.equal(answers(model, inputs), expected)
        with torch.no_grad():  # and plain calls are seen again
            model(**alone(ROWS[0]))
        assert len(trace.images) == 1


def test_a_generate_of_ones_own_is_kept(model):
    inputs = alone(ROWS[0])
    calls = []

    def generate(*args, **kwargs):
        calls.append(1)
        return type(model).generate(model, *args, **kwargs)

    model.generate = generate
    try:
        with sparsezip.compress(model, Varied()) as trace:
            answers(model, inputs)
        assert model.generate is generate
        assert calls == [1]
        assert trace.images[0].tokens < 16
    finally:
        del model.generate


def test_other_instances_are_not_touched(model):
    other, inputs = make_model(), alone(ROWS[0])
    with sparsezip.compress(model, Varied()):
        assert fingerprint(other) == fingerprint(other)
        assert "generate" not in vars(other)
        compressed = answers(model, inputs)
        plain = answers(other, inputs)
    assert torch.equal(answers(model, inputs), plain)
    assert not torch.equal(compressed, plain)


def test_generate_keeps_its_signature(model):
    expected = inspect.signature(model.generate)
    with sparsezip.compress(model, "keep_all"):
        assert inspect.signature(model.generate) == expected
        assert model.generate.__doc__ == type(model).generate.__doc__


@torch.no_grad()
def test_a_compiled_model(model):
    inputs = alone(ROWS[0])
    with sparsezip.compress(model, Varied()):
        logits, tokens = model(**inputs).logits, answers(model, inputs)
    compiled = torch.compile(model, backend="eager")
    with sparsezip.compress(compiled, Varied()) as trace:
        assert torch.equal(compiled(**inputs).logits, logits)
        assert trace.images[0].tokens < 16
        assert torch.equal(answers(compiled, inputs), tokens)
    assert "generate" not in vars(model)
    torch._dynamo.reset()


def test_a_function_kept_from_inside_the_block_compresses_no_longer(model):
    inputs = alone(ROWS[0])
    with sparsezip.compress(model, Varied()) as trace:
        kept = model.generate
    settings = {"max_new_tokens": NEW, "do_sample": False}
    assert torch.equal(kept(**inputs, **settings), model.generate(**inputs, **settings))
    assert trace.images == []


def test_detaching_inside_the_block_is_fine(model):
    before = fingerprint(model)
    with sparsezip.compress(model, Varied()):
        sparsezip.detach(model)
        assert fingerprint(model) == before
        sparsezip.attach(model, "keep_all")
    assert "generate" in vars(model)  # the block restores what it made, not what came later
    sparsezip.detach(model)
    assert fingerprint(model) == before


def test_an_attached_model_can_be_forgotten():
    import gc
    import weakref

    model = make_model()
    sparsezip.attach(model, Varied())
    answers(model, alone(ROWS[0]))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# -- the hot path --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sparsezip.list_methods())
def test_no_method_makes_an_attention_matrix(model, method):
    inputs = inputs_for(ROWS[0])
    made = sparsezip.method(method)
    if made.takes_budget:
        made = sparsezip.method(method, budget=10)
    with NoAttentionMatrix(rows=17), sparsezip.compress(model, made, processor=make_processor()):
        answers(model, inputs)


def test_eager_attention_in_the_tower_would_be_noticed():
    model = LlavaForConditionalGeneration(make_config()).eval()
    model.set_attn_implementation({"vision_config": "eager"})
    with (
        pytest.raises(AssertionError, match="attention matrix"),
        NoAttentionMatrix(rows=17),
        sparsezip.compress(model, sparsezip.methods.VisionZip(dominant=4, contextual=2)),
    ):
        answers(model, inputs_for(ROWS[0]))
