"""Drop visual tokens between the layers of an LLM, by hooks alone: no class and no weight of the model is touched.

transformers hands every decoder layer the hidden states of the layer before and the same mask, positions and rotary
table as all others. Behind a layer where tokens are dropped, a hook passes the shorter sequence on; a hook in front of
each later layer hands over mask, positions and table for that sequence; a hook in front of the final norm puts the
tokens back into their columns (zeros where one was dropped), so that logits and labels keep the caller's shape. The
cache of each layer is as long as what the layer saw. While decoding only the masks of the later layers are cut.

Every row is dropped from on its own, without its padding, and padded anew on the left: a row of a batch gets what it
would get alone. Where nothing is dropped the hooks change nothing. Source of the idea: FastV and its successors.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import FailureError, UnsupportedCallError, UnsupportedModelError
from ..tensors import Decoder, Kept, LayerView
from .generate import by_name
from .layout import Image, Layout, after, gathered, masked, padded, text_behind
from .tap import Listener


class _Heard(Exception):  # noqa: N818 - no error
    """Ends a layer's forward pass once its queries and keys are known."""


@dataclass(eq=False)
class _Prompt:
    """A prompt on its way through the layers, and what decoding has to know of it later."""

    start: Layout
    images: list[Image]
    width: int
    layout: Layout  # of what enters the next layer
    stage: int = 0
    repeat: int = 1  # rows of the model per row of the prompt (beams, samples)
    embeds: Any = None
    positions: Any = None  # of its columns, as the model counts them
    behind: dict[int, Layout] = field(default_factory=dict)  # by number of drops, once something was dropped
    given: dict[int, dict[str, Any]] = field(default_factory=dict)  # what the layers behind so many drops are given
    cache: Any = None


@dataclass(frozen=True, eq=False)
class _Decoding:
    """What is left of a prompt in the caches behind some drops, by row of the model."""

    layout: Layout
    width: int  # of the prompt
    plain: bool  # no padding, and no token counts for several
    gone: Int[Tensor, "row"]  # tokens that have left

    @classmethod
    def of(cls, prompt: _Prompt, layout: Layout) -> "_Decoding":
        """Once the prompt is through."""
        start, layout = (each.until(prompt.width).repeated(prompt.repeat) for each in (prompt.start, layout))
        plain = bool(layout.real.all()) and not layout.sized
        return cls(layout=layout, width=prompt.width, plain=plain, gone=start.real.sum(1) - layout.real.sum(1))


class Drop:
    """Drops tokens in every prefill that was announced with `expect`, until `restore`.

    `method` offers what methods.base.LayerMethod does. `finished` is called with the images when a prefill is through;
    `timed` makes a context manager to put around the method's work.

    Raises UnsupportedModelError for an LLM with sliding windows, whose layers keep caches of their own, or too shallow.
    """

    def __init__(
        self,
        llm: Any,
        method: Any,
        finished: Callable[[list[Image]], None],
        timed: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """`llm`: the decoder, with `layers` and `norm`."""
        types = sorted(set(getattr(llm.config, "layer_types", None) or ()) - {"full_attention"})
        if types:
            raise UnsupportedModelError(
                f"{method.name} drops tokens between layers of full attention, but this LLM has {', '.join(types)}. "
                "Use a method that works in front of the LLM."
            )
        self.llm, self.method, self.finished, self.timed = llm, method, finished, timed
        self.flash = "flash" in str(llm.config._attn_implementation)
        self.layers: Sequence[Any] = list(llm.layers)
        self._arguments = list(signature(self.layers[0].forward).parameters)
        self.stages = method.after(len(self.layers))
        if not all(0 <= layer < len(self.layers) - 1 for layer in self.stages):
            raise UnsupportedModelError(
                f"{method.name} drops tokens behind the layers {', '.join(map(str, self.stages))}, counted from 0, but "
                f"this LLM has {len(self.layers)}, and behind the last one there is nothing to save."
            )
        self._expected: _Prompt | None = None
        self._prompt: _Prompt | None = None  # under way
        self._through: WeakKeyDictionary[Any, dict[int, _Decoding]] = WeakKeyDictionary()  # by cache, number of drops
        self._listener: Listener | None = None
        self._heard: list[Tensor] = []
        self._peeking = False
        eager = torch.compiler.disable  # what is decided here depends on the data
        hooks = [llm.register_forward_pre_hook(eager(self._begin), with_kwargs=True)]
        hooks += [llm.norm.register_forward_pre_hook(eager(self._put_back))]
        for index, layer in enumerate(self.layers):
            hooks += [layer.register_forward_pre_hook(eager(self._in_front_of(index)), with_kwargs=True)]
        for index in self.stages:
            hooks += [self.layers[index].register_forward_hook(eager(self._behind(index)), with_kwargs=True)]
        self._hooks = hooks

    def restore(self) -> None:
        """Leave the LLM as it was."""
        self.forget()
        self._prompt = None
        self._through.clear()
        for hook in self._hooks:
            hook.remove()

    def forget(self) -> None:
        """Expect no prompt; what is being decoded goes on."""
        self._stop_listening()
        self._expected = None

    def expect(
        self,
        visual: Bool[Tensor, "row token"],
        mask: Int[Tensor, "row token"] | Bool[Tensor, "row token"] | None,
        images: list[list[int]],
        size: Callable[[int], Decoder],
    ) -> None:
        """Announce a prompt: its visual tokens, its padding, the tokens of each row's images, the LLM beside n others.

        Raises BudgetError for a budget that cannot be met.
        """
        self.forget()
        real = torch.ones_like(visual) if mask is None else mask.bool()
        made: list[Image] = []
        for row, counts in enumerate(images):
            is_visual = visual[row][real[row]]
            llm, places = size(int((~is_visual).sum())), is_visual.nonzero()[:, 0]
            made += [Image.of(row, its, self.method, llm) for its in places.split(counts)]
        start = Layout.of(real)
        self._expected = _Prompt(start=start, layout=start, images=made, width=real.shape[1])

    # -- hooks ---------------------------------------------------------------------------------------------------

    def _begin(self, llm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._stop_listening()  # in a pass that failed
        call = by_name(llm.forward, args, kwargs)
        embeds, cache = call.get("inputs_embeds"), call.get("past_key_values")
        self._prompt = None
        if embeds is None:
            return
        if cache is not None and cache.get_seq_length():
            lengths = {cache.get_seq_length(layer) for layer in range(len(self.layers))}
            if len(lengths) > 1 and cache not in self._through:
                raise UnsupportedCallError(
                    f"{self.method.name} has dropped tokens from this cache, whose layers hold {min(lengths)} to "
                    f"{max(lengths)}, but it is a copy or of another session. Go on with the cache itself."
                )
            return
        if cache is not None:
            self._through.pop(cache, None)  # it was emptied
        self._prompt, self._expected = self._expected, None
        prompt = self._prompt
        if prompt is None:
            return
        (rows, width), (own_rows, own_width) = embeds.shape[:2], prompt.start.real.shape
        if rows % own_rows or width < own_width:
            raise UnsupportedCallError(
                f"The LLM was given {rows} x {width} tokens of a prompt of {own_rows} x {own_width}, but "
                f"{self.method.name} has to see the whole of it at once."
            )
        if width > own_width:  # tokens that an assistant has guessed; they are no part of the prompt
            real = torch.nn.functional.pad(prompt.start.real, (0, width - own_width), value=True)
            prompt.start = prompt.layout = Layout.of(real)
        prompt.repeat, prompt.embeds = rows // own_rows, embeds

    def _in_front_of(self, index: int) -> Callable[..., Any]:
        drops = sum(stage < index for stage in self.stages)

        def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            prompt = self._prompt
            if self._peeking or (prompt is None and not self._through):
                return None
            call = dict(zip(self._arguments, args, strict=False)) | kwargs
            cache = call.get("past_key_values")
            if prompt is None:
                left = None if cache is None else self._through.get(cache, {}).get(drops)
                return None if left is None else ((), call | self._decoding(left, call, index))
            prompt.cache = cache
            for image in prompt.images:
                image.entering.append(len(image.visual))
            if index in self.stages and self._concerns(prompt) and not self.method.looks_ahead:
                self._listen(index)
            given, expected = call["hidden_states"].shape[1], prompt.layout.real.shape[1]
            if given != expected:
                raise FailureError(f"Layer {index} was given {given} tokens, but {expected} are left.")
            if drops not in prompt.behind:
                return None
            if drops not in prompt.given:  # the same for every layer up to the next drop
                prompt.given = {drops: self._prefilling(prompt, prompt.behind[drops], call)}
            # In its place: reentrant checkpointing lets gradients through positional arguments alone.
            return (call.pop("hidden_states"),), call | prompt.given[drops]

        return hook

    def _behind(self, index: int) -> Callable[..., Any]:
        def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            prompt = self._prompt
            if prompt is None or self._peeking:
                return None
            self._stop_listening()
            hidden = output[0] if isinstance(output, tuple) else output
            if self._concerns(prompt):
                call = dict(zip(self._arguments, args, strict=False)) | kwargs
                if self.method.looks_ahead:
                    self._peek(index + 1, call | {"hidden_states": hidden})
                with torch.no_grad(), self.timed():
                    kept = self._kept(prompt, index, hidden.detach(), call)
                if any(drop is not None for drop in kept):
                    hidden = self._shorten(prompt, hidden, kept)
            prompt.stage += 1
            if prompt.layout is not prompt.start:
                prompt.behind[prompt.stage] = prompt.layout
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook

    def _put_back(self, norm: Any, args: tuple[Any, ...]) -> Any:
        prompt = self._prompt
        if prompt is None or self._peeking:
            return None
        if prompt.stage != len(self.stages):
            raise FailureError(f"{prompt.stage} of the {len(self.stages)} drops of {self.method.name} took place.")
        self._prompt = None
        if prompt.cache is not None and prompt.behind:
            later = {drops: _Decoding.of(prompt, layout) for drops, layout in prompt.behind.items()}
            self._through[prompt.cache] = later
        self.finished(prompt.images)
        if prompt.layout is prompt.start:
            return None
        layout, (hidden,) = prompt.layout.repeated(prompt.repeat), args
        whole = hidden.new_zeros(len(hidden), prompt.start.real.shape[1], hidden.shape[2])
        whole[layout.own.nonzero()[:, 0], layout.column[layout.own]] = hidden[layout.own]
        return (whole,)

    # -- listening -----------------------------------------------------------------------------------------------

    def _hear(self, query: Tensor, key: Tensor, scale: float) -> None:
        usual = query.shape[-1] ** -0.5  # which methods go by
        query = query if scale == usual else query * (scale / usual)
        self._heard = [query, key.repeat_interleave(query.shape[1] // key.shape[1], 1)]
        if self._peeking:
            raise _Heard

    def _listen(self, index: int) -> None:
        self._listener = Listener(self.layers[index].self_attn, self._hear)
        self._listener.start()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.stop()
            self._listener = None

    def _peek(self, index: int, call: dict[str, Any]) -> None:
        """Hear the queries and keys of a layer to come: it is run up to its attention, and its cache not touched."""
        self._peeking = True
        self._listen(index)
        try:
            self.layers[index](**(call | {"past_key_values": None}))
        except _Heard:
            pass
        finally:
            self._stop_listening()
            self._peeking = False

    # -- dropping ------------------------------------------------------------------------------------------------

    def _concerns(self, prompt: _Prompt) -> bool:
        return any(image.concerns(prompt.stage) for image in prompt.images)

    def _kept(self, prompt: _Prompt, index: int, hidden: Tensor, call: dict[str, Any]) -> list[Kept | None]:
        """What goes on of each image; None: everything."""
        kept: list[Kept | None] = []
        query, key = self._heard
        self._heard = []
        of_prompt = prompt.layout.real & (prompt.layout.column < prompt.width)
        began = prompt.start.real & (prompt.start.column < prompt.width)
        if prompt.positions is None:
            given = call.get("position_ids")  # some models give their layers the rotary table alone
            prompt.positions = prompt.start.count if given is None else given
        tables = (self._positions(prompt), *call["position_embeddings"])
        for image in prompt.images:
            if not image.concerns(prompt.stage):
                kept.append(None)
                continue
            row, columns = image.row * prompt.repeat, of_prompt[image.row].nonzero()[:, 0]
            position_ids, cos, sin = (table[row if len(table) > 1 else 0, columns][None] for table in tables)
            view = LayerView(
                q=query[row : row + 1, :, columns],
                k=key[row : row + 1, :, columns],
                hidden=hidden[row : row + 1, columns],
                embeds=prompt.embeds[row : row + 1, began[image.row]],
                position_ids=position_ids,
                visual=[image.visual],
                text=[text_behind(prompt.images, image.row, len(columns))],
                stage=prompt.stage,
                depth=index,
                began=[image.began],
                rope=(cos, sin),
                norm=self.llm.norm.forward,  # as a call it would be taken for the end of the pass
            )
            if self.method.adapts and prompt.stage == 0:
                image.settle(view)
            drop = None
            if image.loses(prompt.stage):
                count = None if image.plan is None else image.plan[prompt.stage]
                drop = image.method.keep(replace(view, count=count))
                if len(drop.indices[0]) == len(image.visual) and drop.hidden is drop.sizes is None:
                    drop = None
            kept.append(drop)
        return kept

    def _positions(self, prompt: _Prompt) -> Tensor:
        if prompt.layout is prompt.start:
            return prompt.positions
        layout = prompt.layout.repeated(prompt.repeat)
        return layout.count if self.method.compact else gathered(prompt.positions, layout.place)

    def _shorten(self, prompt: _Prompt, hidden: Tensor, kept: list[Kept | None]) -> Tensor:
        """The sequence that goes on; the layout and the images follow."""
        made: list[dict[str, Tensor]] = []
        changed: list[tuple[int, Tensor, Tensor]] = []  # row, places from its end, what they hold
        for number, real in enumerate(prompt.layout.real):
            columns = real.nonzero()[:, 0]
            row = {name: value[number, columns] for name, value in vars(prompt.layout).items()}
            row["take"] = columns
            its = [(image, drop) for image, drop in zip(prompt.images, kept, strict=True) if image.row == number]
            row, values = after(row, its)
            changed += [(number, places - len(row["take"]), value) for places, value in values]
            made.append(row)
        stacked = padded(made)
        take = stacked.pop("take").repeat_interleave(prompt.repeat, 0)
        prompt.layout = Layout(**stacked)
        real = prompt.layout.real.repeat_interleave(prompt.repeat, 0)
        hidden = hidden.gather(1, take[..., None].expand(-1, -1, hidden.shape[2])).masked_fill(~real[..., None], 0)
        for number, places, value in changed:
            hidden[number * prompt.repeat : (number + 1) * prompt.repeat, places] = value.to(hidden.dtype)
        return hidden

    # -- what the later layers are given -------------------------------------------------------------------------

    def _prefilling(self, prompt: _Prompt, layout: Layout, call: dict[str, Any]) -> dict[str, Any]:
        layout, hidden, mask = layout.repeated(prompt.repeat), call["hidden_states"], call["attention_mask"]
        if self.method.compact:
            tables = self._tables(hidden, layout.count)
        else:
            tables = tuple(gathered(table, layout.place) for table in call["position_embeddings"])
        width = layout.real.shape[1]
        order = torch.ones(width, width, dtype=torch.bool, device=hidden.device).tril()
        if mask is not None and mask.ndim == 4:
            mask = gathered(mask[:, 0], layout.column)
            mask = mask.gather(2, layout.column[:, None].expand(-1, mask.shape[1], -1))[:, None]
            # Tokens of one column are merged ones and the last of their image: they follow each other.
            order = order | (layout.column[:, :, None] != layout.column[:, None])
        plain = bool(layout.real.all()) and not layout.sized
        if mask is not None or not plain:
            mask = masked(mask, layout.real, layout.size, order, hidden.dtype, self.flash)
        # Where tokens are is in the tables. Gaps in position_ids would tell FlashAttention of several packed sequences.
        return {"attention_mask": mask, "position_ids": layout.count, "position_embeddings": tables}

    def _tables(self, hidden: Tensor, positions: Int[Tensor, "row token"]) -> Any:
        """The rotary table of tokens that are counted anew, as text is where positions have several axes."""
        rope = getattr(self.llm.config, "rope_parameters", None) or {}
        if "mrope_section" in rope:
            positions = positions.expand(3, *positions.shape)
        return self.llm.rotary_emb(hidden, position_ids=positions)

    def _decoding(self, left: _Decoding, call: dict[str, Any], index: int) -> dict[str, Any]:
        hidden, mask = call["hidden_states"], call["attention_mask"]
        given: dict[str, Any] = {}
        if self.method.compact:
            given["position_ids"] = call["position_ids"] - left.gone[:, None]
            given["position_embeddings"] = self._tables(hidden, given["position_ids"])
        if mask is None and left.plain:
            return given
        layout, queries = left.layout, hidden.shape[1]
        later = call["past_key_values"].get_seq_length(index) + queries - layout.real.shape[1]
        if mask is not None:
            behind = torch.arange(left.width, left.width + later, device=hidden.device)
            columns = torch.cat([layout.column, behind.expand(len(hidden), -1)], 1)
            mask = mask.expand(len(columns), *mask.shape[1:])
            columns = columns.view(len(columns), *[1] * (mask.ndim - 2), -1)
            mask = mask.gather(-1, columns.expand(*mask.shape[:-1], -1))
        real, size = (torch.nn.functional.pad(value, (0, later), value=1) for value in (layout.real, layout.size))
        order = torch.ones(queries, real.shape[1], dtype=torch.bool, device=hidden.device)  # several come with a mask
        return given | {"attention_mask": masked(mask, real, size, order, hidden.dtype, self.flash)}
