"""Drops inside an LLM, against unmodified transformers modules put together by hand."""

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from tiny_vlm import fingerprint
from transformers import DynamicCache, LlamaConfig, LlamaModel, MistralConfig, MistralModel

from sparsezip.errors import UnsupportedCallError, UnsupportedModelError
from sparsezip.methods.base import LayerMethod
from sparsezip.plumbing.drop import Drop
from sparsezip.plumbing.layout import masked
from sparsezip.tensors import Decoder, Kept

LAYERS, WIDTH, HEADS = 5, 48, 4
BEFORE, AFTER = 3, 4  # text tokens around the image


@dataclass(frozen=True, kw_only=True)
class Halves(LayerMethod):
    """Behind two layers, the half that the last token attends to most; more of them where the tokens are larger."""

    name: ClassVar[str] = "halves"
    merges: bool = False
    weighs: bool = False
    rewrites: bool = False
    recounts: bool = False
    behind: tuple[int, ...] = (0, 2)

    def after(self, layers):
        return list(self.behind)

    @property
    def compact(self):
        return self.recounts

    def drop(self, view):
        visual = view.visual[0]
        scores = (view.q[0, :, -1:] @ view.k[0].mT)[:, 0, visual].mean(0)
        count = max(1, len(visual) // 2 - int(view.hidden[0, visual].norm() > view.hidden[0, visual].norm().round()))
        return self.chosen(view, scores.topk(count).indices.sort().values)

    def chosen(self, view, kept):
        hidden, count = view.hidden[0, view.visual[0]], len(kept)
        made = Kept.selection([kept], [len(hidden)])
        source = made.source[0]
        if self.merges and count < len(hidden):
            rest = (source < 0).nonzero()[:, 0]
            source[rest] = count + torch.arange(len(rest)) % min(2, len(rest))
        places = int(source.max()) + 1
        members = torch.stack([(source == place).float() for place in range(places)])
        means = members @ hidden / members.sum(1, keepdim=True)
        return Kept(
            indices=[kept],
            source=[source],
            merged=[means[count:]] if self.merges else None,
            hidden=[means[:count] * 2] if self.rewrites else None,
            sizes=[1 + torch.arange(places).float()] if self.weighs else None,
        )


@dataclass(frozen=True, kw_only=True)
class Ahead(Halves):
    name: ClassVar[str] = "ahead"
    looks_ahead: ClassVar[bool] = True


def make_llm(attention="sdpa", seed=0):
    torch.manual_seed(seed)
    llm = LlamaModel(
        LlamaConfig(
            vocab_size=32,
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=2,
            attn_implementation=attention,
        )
    ).eval()
    with torch.no_grad():
        for weight in llm.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.15)
    return llm


@pytest.fixture(scope="module")
def llm():
    return make_llm()


def prompt(*counts, seed=0):
    """A row with one image per count: embeddings [token, width] and where its visual tokens are."""
    torch.manual_seed(seed)
    visual = torch.cat(
        [torch.cat([torch.zeros(BEFORE), torch.ones(count)]) for count in counts] + [torch.zeros(AFTER)]
    ).bool()
    return torch.randn(len(visual), WIDTH), visual


def batch(rows, right=False):
    """Rows padded to one length: embeddings, visual, mask."""
    width = max(len(embeds) for embeds, _ in rows)
    embeds, visual, mask = torch.zeros(len(rows), width, WIDTH), torch.zeros(len(rows), width).bool(), []
    for i, (row, its) in enumerate(rows):
        at = slice(0, len(row)) if right else slice(width - len(row), width)
        embeds[i, at], visual[i, at] = row, its
        mask.append(torch.zeros(width).long())
        mask[-1][at] = 1
    return embeds, visual, torch.stack(mask)


class Run:
    """One prefill under a Drop, and what is decoded behind it."""

    def __init__(self, llm, method, rows, counts, right=False, repeat=1):
        self.images = []
        self.drop = Drop(llm, method, self.images.extend, nullcontext)
        try:
            embeds, visual, mask = batch(rows, right)
            mask_ = None if mask.all() else mask
            if counts is not None:  # None: an announced prompt would be dropped from, this one is not
                self.drop.expect(visual, mask_, counts, lambda text: Decoder(layers=LAYERS, text=text))
            self.cache = DynamicCache()
            position_ids = (mask.cumsum(1) - 1).clamp(min=0)
            self.mask = None if mask_ is None else mask.repeat_interleave(repeat, 0)
            self.next = position_ids.max(1, keepdim=True).values.repeat_interleave(repeat, 0) + 1
            with torch.no_grad():
                self.hidden = llm(
                    inputs_embeds=embeds.repeat_interleave(repeat, 0),
                    attention_mask=self.mask,
                    position_ids=position_ids.repeat_interleave(repeat, 0),
                    past_key_values=self.cache,
                    use_cache=True,
                ).last_hidden_state
                self.steps = []
                for embedded in new(3):
                    if self.mask is not None:
                        self.mask = torch.cat([self.mask, torch.ones(len(self.mask), 1).long()], 1)
                    out = llm(
                        inputs_embeds=embedded.expand(len(self.hidden), 1, -1),
                        attention_mask=self.mask,
                        position_ids=self.next,
                        past_key_values=self.cache,
                        use_cache=True,
                    )
                    self.steps.append(out.last_hidden_state[:, 0])
                    self.next = self.next + 1
        finally:
            self.drop.restore()


def new(count):
    torch.manual_seed(99)
    return torch.randn(count, WIDTH)


@torch.no_grad()
def by_hand(llm, row, method, choices, decoded=0):
    """The final hidden states of one row with one image and `decoded` further tokens, and what entered each layer.

    Then, for every place behind the last drop, the set of the tokens in it.
    `choices`: the indices each drop keeps. Every layer is run on its own sequence, with a mask made here.
    """
    embeds, visual = row
    hidden = torch.cat([embeds, new(decoded)])[None]
    tail = hidden.shape[1] - int(visual.nonzero()[-1]) - 1
    start, count = int(visual.nonzero()[0]), int(visual.sum())
    column = torch.arange(hidden.shape[1])
    position, size = column.clone(), torch.ones(hidden.shape[1])
    entering, own, held = [], column.clone(), [{token} for token in range(count)]
    choices = list(choices)
    for index, layer in enumerate(llm.layers):
        entering.append(count)
        length = hidden.shape[1]
        mask = torch.full((length, length), torch.finfo(hidden.dtype).min).triu(1) + size.log()
        positions = torch.arange(length)[None] if method.compact else position[None]
        tables = llm.rotary_emb(hidden, position_ids=positions)
        hidden = layer(hidden, attention_mask=mask[None, None], position_embeddings=tables, position_ids=positions)
        if index not in method.behind:
            continue
        kept = choices.pop(0)
        view = type("View", (), {"hidden": hidden, "visual": [torch.arange(start, start + count)]})
        made = method.chosen(view, kept)
        inside = kept + start
        middle = []
        if method.merges:
            for place in range(len(kept), int(made.source[0].max()) + 1):
                members = (made.source[0] == place).nonzero()[:, 0]
                middle.append(int(members[len(members) // 2]) + start)
        take = torch.cat(
            [torch.arange(start), inside, torch.tensor(middle, dtype=torch.long), torch.arange(length - tail, length)]
        )
        hidden, position, own, size = hidden[:, take], position[take], own[take], size[take]
        end = start + len(kept)
        if method.rewrites:
            hidden[:, start:end] = made.hidden[0]
        if method.merges:
            hidden[:, end : end + len(middle)] = made.merged[0]
            own[end : end + len(middle)] = -1
        if method.weighs:
            size[start : end + len(middle)] = made.sizes[0]
        count = len(kept) + len(middle)
        went = made.source[0].tolist()
        held = [
            set().union(*(old for old, to in zip(held, went, strict=True) if to == place)) for place in range(count)
        ]
    whole = torch.zeros(len(embeds) + decoded, hidden.shape[2])
    whole[own[own >= 0]] = llm.norm(hidden)[0, own >= 0]
    return whole, entering, held


class Watched:
    """A method that notes what its drops kept."""

    def __init__(self, method):
        self.method, self.choices = method, []

    def __getattr__(self, name):
        return getattr(self.method, name)

    def keep(self, view):
        kept = self.method.keep(view)
        self.choices.append(kept.indices[0])
        return kept


def close(actual, expected, atol=2e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


FORMS = pytest.mark.parametrize(
    "settings",
    [
        {},
        {"recounts": True},
        {"merges": True},
        {"merges": True, "recounts": True},
        {"rewrites": True},
        {"weighs": True},
        {"merges": True, "weighs": True},
        {"behind": (1,)},
        {"behind": (0, 1, 2, 3)},
    ],
    ids=lambda settings: ",".join(settings) or "plain",
)


@FORMS
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", [Halves, Ahead])
def test_equals_layers_put_together_by_hand(settings, attention, kind):
    llm, row = make_llm(attention), prompt(16)
    method = Watched(kind(**settings))
    run = Run(llm, method, [row], [[16]])
    expected, entering, held = by_hand(llm, row, method, method.choices)
    close(run.hidden[0], expected)
    assert expected.abs().max() > 1
    assert run.images[0].entering == entering
    assert entering[-1] < 16
    image = run.images[0]
    assert [set((image.source == place).nonzero()[:, 0].tolist()) for place in range(len(held))] == held
    assert set(image.source.tolist()) <= {-1, *range(len(held))}
    assert all(own in tokens for own, tokens in zip(image.own.tolist(), held, strict=True) if own >= 0)
    assert (image.own[len(method.choices[-1]) :] == -1).all()  # a merged token is none of those that came in
    whole, _, _ = by_hand(llm, row, method, method.choices, decoded=3)
    for step, hidden in enumerate(run.steps):
        close(hidden[0], whole[len(row[0]) + step])
    # Each layer's cache is as long as what the layer saw.
    lengths = [run.cache.get_seq_length(layer) for layer in range(LAYERS)]
    assert lengths == [count + BEFORE + AFTER + 3 for count in entering]


@pytest.mark.parametrize("kind", [Halves, Ahead])
def test_the_method_is_shown_what_the_layer_sees(llm, kind):
    heard, seen = [], []

    class Shown(Watched):
        def keep(self, view):
            seen.append(view)
            return super().keep(view)

    def note(module, args, kwargs, output):
        heard.append((kwargs["hidden_states"], kwargs["position_embeddings"]))

    method = Shown(kind())
    layers = [behind + (kind is Ahead) for behind in method.behind]
    hooks = [llm.layers[layer].self_attn.register_forward_hook(note, with_kwargs=True) for layer in layers]
    row = prompt(16)
    run = Run(llm, method, [row], [[16]])
    for hook in hooks:
        hook.remove()
    (first, second) = seen
    assert [view.stage for view in seen] == [0, 1]
    assert [view.depth for view in seen] == list(method.behind)
    assert first.visual[0].tolist() == list(range(BEFORE, BEFORE + 16))
    assert first.text[0].tolist() == list(range(BEFORE + 16, BEFORE + 16 + AFTER))
    assert len(second.visual[0]) == run.images[0].entering[1]
    torch.testing.assert_close(first.embeds[0], row[0])
    torch.testing.assert_close(second.first_embeds[0], row[0][row[1]])
    torch.testing.assert_close(second.text_embeds[0], row[0][-AFTER:])
    if (
        kind is Halves
    ):  # what a layer computes of its input; the next layer's input is shorter than what it was asked about
        for view, (hidden, (cos, sin)), layer in zip(seen, heard[:2], layers, strict=True):
            q = llm.layers[layer].self_attn.q_proj(hidden).view(1, -1, HEADS, WIDTH // HEADS).transpose(1, 2)
            k = llm.layers[layer].self_attn.k_proj(hidden).view(1, -1, 2, WIDTH // HEADS).transpose(1, 2)
            turned = [torch.cat([-x[..., 6:], x[..., :6]], -1) for x in (q, k)]
            close(view.q, q * cos[:, None] + turned[0] * sin[:, None])
            close(view.k, (k * cos[:, None] + turned[1] * sin[:, None]).repeat_interleave(2, 1))
            close(view.rope[0], cos)


def test_an_unusual_attention_scale_is_in_the_queries(llm):
    seen = []

    class Shown(Watched):
        def keep(self, view):
            seen.append(view.q)
            return super().keep(view)

    llm, row = copy.deepcopy(llm), prompt(16)
    Run(llm, Shown(Halves()), [row], [[16]])
    llm.layers[0].self_attn.scaling *= 3
    Run(llm, Shown(Halves()), [row], [[16]])
    close(seen[2], 3 * seen[0])


def test_looking_ahead_shows_the_next_layers_queries(llm):
    seen = []

    class Shown(Watched):
        def keep(self, view):
            seen.append(view)
            return super().keep(view)

    row = prompt(16)
    run = Run(llm, Shown(Ahead(behind=(1,))), [row], [[16]])
    view = seen[0]
    normed = llm.layers[2].input_layernorm(view.hidden)
    q = llm.layers[2].self_attn.q_proj(normed).view(1, -1, HEADS, 12).transpose(1, 2)
    cos, sin = llm.rotary_emb(view.hidden, position_ids=torch.arange(len(row[0]))[None])
    close(view.q, q * cos[:, None] + torch.cat([-q[..., 6:], q[..., :6]], -1) * sin[:, None])
    assert run.cache.get_seq_length(2) == run.images[0].entering[2] + BEFORE + AFTER + 3


ROWS = [prompt(16, seed=1), prompt(9, seed=2), prompt(6, 12, seed=3), prompt(seed=4), prompt(1, seed=5)]
COUNTS = [[16], [9], [6, 12], [], [1]]


@FORMS
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("right", [False, True], ids=["left", "right"])
def test_rows_equal_the_rows_run_alone(settings, attention, right):
    llm, method = make_llm(attention), Halves(**settings)
    together = Run(llm, method, ROWS, COUNTS, right=right)
    assert len({tuple(image.entering) for image in together.images}) > 3
    images = iter(together.images)
    for number, (row, counts) in enumerate(zip(ROWS, COUNTS, strict=True)):
        alone = Run(llm, method, [row], [counts])
        length = len(row[0])
        own = together.hidden[number, :length] if right else together.hidden[number, -length:]
        close(own, alone.hidden[0], 5e-5)
        for mine, single in zip(together.steps, alone.steps, strict=True):
            close(mine[number], single[0], 5e-5)
        for image in alone.images:
            other = next(images)
            assert torch.equal(other.source, image.source)
            assert torch.equal(other.own, image.own)
            assert other.entering == image.entering


def test_rows_of_different_length_without_padding_before(llm):
    """Nothing is padded until the first drop leaves rows of different lengths."""
    rows = [prompt(16, seed=seed) for seed in (1, 2, 3, 6)]
    together = Run(llm, Halves(merges=True), rows, [[16]] * 4)
    assert len({image.entering[-1] for image in together.images}) > 1
    for number, row in enumerate(rows):
        alone = Run(llm, Halves(merges=True), [row], [[16]])
        close(together.hidden[number], alone.hidden[0])
        for mine, single in zip(together.steps, alone.steps, strict=True):
            close(mine[number], single[0])


@FORMS
def test_copies_of_a_row_are_alike(llm, settings):
    """Beams and samples are rows that generate has repeated."""
    once, twice = (Run(llm, Halves(**settings), ROWS[:3], COUNTS[:3], repeat=repeat) for repeat in (1, 2))
    for copies in (twice.hidden[::2], twice.hidden[1::2]):
        close(copies, once.hidden)
    close(twice.steps[-1][::2], once.steps[-1])
    assert len(twice.images) == 4


@FORMS
@pytest.mark.parametrize("refused", [1, 2])
@torch.no_grad()
def test_guessed_tokens_behind_the_prompt_are_no_part_of_it(llm, settings, refused):
    """An assistant's guesses come along with the prompt; what is not accepted is cut out of every cache again."""
    rows, counts = ROWS[:2], COUNTS[:2]
    method, images = Halves(**settings), []
    stepwise = Run(llm, method, rows, counts)
    drop = Drop(llm, method, images.extend, nullcontext)
    embeds, visual, mask = batch(rows)
    drop.expect(visual, mask, counts, lambda text: Decoder(layers=LAYERS, text=text))
    longer = torch.cat([mask, torch.ones(2, 2).long()], 1)
    positions, cache = (longer.cumsum(1) - 1).clamp(min=0), DynamicCache()
    guesses = new(3)
    hidden = llm(
        inputs_embeds=torch.cat([embeds, guesses[:2].expand(2, -1, -1)], 1),
        attention_mask=longer,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    close(hidden[:, :-2], stepwise.hidden)
    for step in range(2):
        close(hidden[:, step - 2], stepwise.steps[step])
    assert [image.entering for image in images] == [image.entering for image in stepwise.images]
    cache.crop(-refused)  # guesses are refused, and what was meant all along comes in their place
    for step in range(2 - refused, 3):
        out = llm(
            inputs_embeds=guesses[step].expand(2, 1, -1),
            attention_mask=torch.cat([mask, torch.ones(2, step + 1).long()], 1),
            position_ids=positions[:, -2:-1] + step,
            past_key_values=cache,
            use_cache=True,
        )
        close(out.last_hidden_state[:, 0], stepwise.steps[step])
    drop.restore()


def test_an_image_that_loses_nothing_moves_with_those_in_front_of_it(llm):
    class Planned(Halves):
        def plan(self, visual, llm):
            return {6: [3, 3], 12: [12, 4]}[visual]

        def drop(self, view):
            shown.append(view.visual[0].tolist())
            return self.chosen(view, torch.arange(view.count))

    shown = []
    run = Run(llm, Planned(), [ROWS[2]], [COUNTS[2]])
    assert shown == [list(range(3, 9)), list(range(9, 21))]
    first, second = run.images
    assert first.visual.tolist() == [3, 4, 5]
    assert second.visual.tolist() == [9, 10, 11, 12]
    assert first.entering == [6, 3, 3, 3, 3]
    assert second.entering == [12, 12, 12, 4, 4]


@torch.no_grad()
def test_another_conversation_is_decoded_as_it_was_begun(llm):
    """Its cache is another one: nothing was dropped from that."""
    row, step = ROWS[0], new(1)[None]
    plain = DynamicCache()
    llm(inputs_embeds=row[0][None], past_key_values=plain, use_cache=True)
    expected = llm(inputs_embeds=step, past_key_values=copy.deepcopy(plain), use_cache=True).last_hidden_state
    drop = Drop(llm, Halves(merges=True, recounts=True), [].extend, nullcontext)
    drop.expect(row[1][None], None, [[16]], lambda text: Decoder(layers=LAYERS, text=text))
    llm(inputs_embeds=row[0][None], past_key_values=DynamicCache(), use_cache=True)
    assert torch.equal(llm(inputs_embeds=step, past_key_values=plain, use_cache=True).last_hidden_state, expected)
    drop.restore()


@FORMS
@torch.no_grad()
def test_conversations_may_take_turns(llm, settings):
    """What was dropped from each is known by its cache."""
    rows, step = [prompt(16, seed=7), prompt(9, seed=8)], new(1)[None]
    expected = [
        Run(llm, Halves(**settings), [row], [[count]]).steps[0] for row, count in zip(rows, (16, 9), strict=True)
    ]
    drop, caches = Drop(llm, Halves(**settings), [].extend, nullcontext), []
    for (embeds, visual), count in zip(rows, (16, 9), strict=True):
        drop.expect(visual[None], None, [[count]], lambda text: Decoder(layers=LAYERS, text=text))
        caches.append(DynamicCache())
        llm(inputs_embeds=embeds[None], past_key_values=caches[-1], use_cache=True)
    llm(inputs_embeds=rows[0][0][None])
    copied = copy.deepcopy(caches[0])
    for cache, known, (embeds, _) in zip(caches, expected, rows, strict=True):
        position = torch.tensor([[len(embeds)]])
        first = llm(inputs_embeds=step * 0 + new(3)[0], position_ids=position, past_key_values=cache, use_cache=True)
        close(first.last_hidden_state[:, 0], known)
    with pytest.raises(UnsupportedCallError, match="Go on with the cache itself"):
        llm(inputs_embeds=step, past_key_values=copied, use_cache=True)
    caches[0].reset()  # emptied, it holds another prompt, of which nothing is dropped
    plain = llm(inputs_embeds=rows[1][0][None], past_key_values=DynamicCache(), use_cache=True).last_hidden_state
    again = llm(inputs_embeds=rows[1][0][None], past_key_values=caches[0], use_cache=True).last_hidden_state
    assert torch.equal(again, plain)
    drop.restore()


def test_masks_for_flash_attention_are_cut_to_what_is_left():
    """One value per token, and none where nothing is masked; it is causal by itself."""
    real = torch.tensor([[False, True, True], [True, True, True]])
    order, given = torch.ones(3, 3).bool().tril(), torch.tensor([[1, 1, 1], [0, 1, 1]])

    def cut(mask, real, size=1.0):
        return masked(mask, real, torch.full((2, 3), size), order, torch.float32, flash=True)

    assert cut(None, real).tolist() == real.tolist()
    assert cut(given, real).tolist() == (given.bool() & real).tolist()
    assert cut(given, real | True).tolist() == given.bool().tolist()
    assert cut(given | 1, real | True) is None
    with pytest.raises(UnsupportedCallError, match="sdpa or eager"):
        cut(given, real, 2.0)


@FORMS
def test_flash_attention_is_told_of_no_gaps(llm, settings):
    """It takes gaps in position_ids for the bounds of packed sequences; where tokens are is in the rotary tables."""
    handed = []
    hooks = [
        layer.self_attn.register_forward_pre_hook(lambda _, __, given: handed.append(given), with_kwargs=True)
        for layer in llm.layers
    ]
    Run(llm, Halves(**settings), ROWS[:1], COUNTS[:1])
    for hook in hooks:
        hook.remove()
    for given in handed[:LAYERS]:
        assert given["attention_mask"] is None or settings.get("weighs")
        assert (given["position_ids"].diff() == 1).all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("right", [False, True], ids=["left", "right"])
def test_where_nothing_is_dropped_every_bit_is_the_same(attention, right):
    llm = make_llm(attention)
    plain = Run(llm, Halves(), ROWS, None, right=right)
    run = Run(llm, Halves(budget=16, merges=True, recounts=True), ROWS, COUNTS, right=right)
    assert torch.equal(run.hidden, plain.hidden)
    assert all(torch.equal(a, b) for a, b in zip(run.steps, plain.steps, strict=True))
    assert [image.entering for image in run.images] == [[n] * LAYERS for n in (16, 9, 6, 12, 1)]


def test_a_plan_is_handed_on(llm):
    counts = []

    class Shown(Watched):
        def keep(self, view):
            counts.append(view.count)
            return super().keep(view)

    class Planned(Halves):
        def plan(self, visual, llm):
            planned.append((visual, llm.layers, llm.text))
            return [16, 5]

    planned = []
    Run(llm, Shown(Planned()), [ROWS[0]], [[16]])
    assert counts == [5]  # the first drop leaves everything, so nothing is asked
    assert planned == [(16, LAYERS, BEFORE + AFTER)]


def test_the_first_view_may_decide_about_the_rest(llm):
    class Settles(Halves):
        adapts: ClassVar[bool] = True

        def plan(self, visual, llm):
            return [16, 9]

        def settled(self, view):
            assert view.stage == 0
            return Settled()

    class Settled(Halves):
        def plan(self, visual, llm):
            return [7, 3]

        def drop(self, view):
            return self.chosen(view, torch.arange(view.count))

    run = Run(llm, Settles(), [ROWS[0]], [[16]])
    assert run.images[0].entering == [16, 7, 7, 3, 3]


def test_the_llm_is_left_as_it_was(llm):
    before = fingerprint(llm)
    Run(llm, Halves(), [ROWS[0]], [[16]])
    assert fingerprint(llm) == before

    class Fails(Watched):
        def keep(self, view):
            raise KeyError("method")

    for kind in (Halves, Ahead):
        with pytest.raises(KeyError, match="method"):
            Run(llm, Fails(kind()), [ROWS[0]], [[16]])
        assert fingerprint(llm) == before


def test_a_failing_layer_is_not_listened_to_afterwards(llm):
    llm, calls = copy.deepcopy(llm), []

    def fail(module, args):
        raise KeyError("layer")

    drop = Drop(llm, Halves(), calls.extend, nullcontext)
    before = {name: part.config for name, part in llm.named_modules() if hasattr(part, "config")}
    hook = llm.layers[0].mlp.register_forward_pre_hook(fail)
    embeds, visual, _ = batch([ROWS[0]])
    drop.expect(visual, None, [[16]], lambda text: Decoder(layers=LAYERS, text=text))
    with pytest.raises(KeyError, match="layer"):
        llm(inputs_embeds=embeds)
    hook.remove()
    llm(inputs_embeds=embeds)  # another prompt, of which nothing was announced
    assert calls == []
    assert all(part.config is before[name] for name, part in llm.named_modules() if name in before)
    drop.restore()


def test_another_prompt_is_left_alone(llm):
    plain = Run(llm, Halves(), [ROWS[0]], None)
    drop = Drop(llm, Halves(), [].extend, nullcontext)
    embeds, visual, _ = batch([ROWS[0]])
    drop.expect(visual, None, [[16]], lambda text: Decoder(layers=LAYERS, text=text))
    drop.forget()
    with torch.no_grad():
        assert torch.equal(llm(inputs_embeds=embeds).last_hidden_state, plain.hidden)
    drop.restore()


def test_what_cannot_work_is_refused():
    windows = MistralModel(
        MistralConfig(
            vocab_size=8,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
            sliding_window=4,
        )
    )
    windows.config.layer_types = ["sliding_attention"] * 3
    with pytest.raises(UnsupportedModelError, match="sliding_attention"):
        Drop(windows, Halves(), [].extend, nullcontext)
    with pytest.raises(UnsupportedModelError, match="has 5, and behind the last one"):
        Drop(make_llm(), Halves(behind=(2, 4)), [].extend, nullcontext)
