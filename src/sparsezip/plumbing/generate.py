"""Intercept `generate` and plain calls of ONE model instance, rewrite their arguments, give the caller's prompt back.

`generate` is covered by an instance attribute, `model(...)` by a forward pre-hook; the class and every other instance
stay as they are, and `restore` removes both. Both hand their arguments, by name, to one function `splice`, which
returns the arguments for the untouched transformers code: image features (`mm_encoder_outputs`) in place of pixels, and
a prompt with fewer placeholders.

A model serves the calls of one thread at a time: what is known of a call lies with the model until the call has ended.
"""

import copy
import functools
import inspect
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria, MaxTimeCriteria
from transformers.generation.streamers import BaseStreamer

from ..errors import AlreadyCompressedError, UnsupportedCallError

Call = dict[str, Any]  # the arguments of one call, by name
Setting = Callable[[str], Any]  # what a call of generate has for a name: given, in its config or the model's

# Arguments that place tokens by the caller's own count, which the shorter prompt does not follow.
_PLACING = ("position_ids", "cache_position")

_attaching = threading.Lock()  # two threads that attach to one model at once both see that nothing is there yet


class Interception:
    """What stands between the callers of one model and its code, until `restore`."""

    def __init__(self, model: Any, splice: Callable[..., Call], undo: Callable[[], None] = lambda: None) -> None:
        """`splice` gets the arguments of every outer call, with or without images, and returns those to go on with.

        For a call of generate it gets a Setting besides. `undo` is called by `restore`.
        Raises AlreadyCompressedError, after an `undo`, for a model that is under an interception.
        """
        self.model, self.splice, self.undo = model, splice, undo
        self._active, self._generating = True, False  # generate's own forward calls are not spliced again
        self._thread: int | None = None  # that called last
        self._taking = threading.Lock()  # while a thread looks whether it may call
        with _attaching:
            try:
                Interception.refuse_second(model)
            except AlreadyCompressedError:
                undo()
                raise
            self._attach()

    def _attach(self) -> None:
        model = self.model
        self._previous = vars(model).get("generate")
        # torch.compile is kept out: what is decided here depends on the data.
        hook = torch.compiler.disable(self._forward)
        self._hook = model.register_forward_pre_hook(hook, with_kwargs=True)
        original = model.generate

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            # A reference kept from inside the block must not go on compressing after it.
            return self._generate(original, *args, **kwargs) if self._active else original(*args, **kwargs)

        # The mark on the function is how a second attach finds the first: no global table keeps the model alive.
        vars(generate)["interception"] = self
        model.generate = generate
        self._forwards = _own_forwards(model)

    @staticmethod
    def of(model: nn.Module) -> "Interception | None":
        """The interception that `model` is under, if any."""
        return getattr(vars(model).get("generate"), "interception", None)

    @staticmethod
    def refuse_second(model: nn.Module) -> None:
        """Raise AlreadyCompressedError if `model` is under an interception."""
        if Interception.of(model) is not None:
            raise AlreadyCompressedError(
                "This model is under compression already. Leave the block it was compressed in, or detach() it, first."
            )

    def restore(self) -> None:
        """Leave the model exactly as it was. Doing it twice does no harm."""
        if not self._active:
            return
        self._active = False
        self._hook.remove()
        self.undo()
        for module, own in self._forwards:
            if vars(module).get("forward") is own:
                del module.forward
        if self._previous is None:
            vars(self.model).pop("generate", None)
        else:
            self.model.generate = self._previous

    def _forward(self, model: Any, args: tuple[Any, ...], kwargs: Call) -> tuple[tuple[Any, ...], Call] | None:
        if not self._active:  # a compiled graph may have kept the hook
            return None
        self._take()
        if self._generating:
            return None
        return (), self.splice(by_name(model.forward, args, kwargs))

    def _take(self) -> None:
        """Make the model this thread's. Raises UnsupportedCallError while a call of another thread is running.

        Nothing has to be given back, so nothing can be left behind: no hook sees the end of a forward pass that a
        KeyboardInterrupt ends, but what has ended is no longer on its thread's stack.
        """
        thread = threading.get_ident()
        with self._taking:
            if self._thread not in (None, thread) and self._running(self._thread):
                its = next((each.name for each in threading.enumerate() if each.ident == self._thread), self._thread)
                raise UnsupportedCallError(
                    f"Thread {threading.current_thread().name} called a model under compression while a call of thread "
                    f"{its} is running, but such a model serves one call at a time. Put a lock around the calls, or "
                    "give every thread a model of its own."
                )
            self._thread = thread

    def _running(self, thread: int | None) -> bool:
        """Whether a method of the model, or one of this object, is on the stack of a thread."""
        frame = sys._current_frames().get(thread or 0)
        while frame is not None:
            if any(frame.f_locals.get("self") is each for each in (self, self.model)):
                return True
            frame = frame.f_back
        return False

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._take()
        call = by_name(original, args, kwargs)
        if call.get("inputs") is not None and call.get("input_ids") is None:
            call["input_ids"] = call.pop("inputs")
        prompt: Tensor | None = call.get("input_ids")
        with torch.no_grad():
            if has_pixels(call) and prompt is not None and call.get("attention_mask") is None:
                call["attention_mask"] = self._inferred_mask(call)
            spliced = self.splice(call, functools.partial(self._setting, call))
        shorter = spliced.get("input_ids")
        if prompt is None or shorter is None or shorter is prompt:
            return self._run(original, spliced)
        width = shorter.shape[1]
        self._shorten_lengths(spliced, prompt.shape[1] - width)
        self._show_prompt(spliced, prompt, width)
        return with_prompt(self._run(original, spliced), prompt, width)

    def _run(self, original: Callable[..., Any], call: Call) -> Any:
        self._generating = True
        try:
            return original(**call)
        finally:
            self._generating = False

    def _inferred_mask(self, call: Call) -> Int[Tensor, "row token"]:
        # The rule of generate itself: pad tokens are padding unless the pad token also ends a sequence.
        pad, eos = self._setting(call, "pad_token_id"), self._setting(call, "eos_token_id")
        ids = call["input_ids"]
        ends = eos if isinstance(eos, list | tuple) else [eos]
        return torch.ones_like(ids) if pad is None or pad in ends else ids.ne(pad).to(ids.dtype)

    def _setting(self, call: Call, name: str) -> Any:
        sources = (call.get("generation_config"), self.model.generation_config)
        values = [call.get(name), *(getattr(source, name, None) for source in sources)]
        return next((value for value in values if value is not None), None)

    def _shorten_lengths(self, call: Call, cut: int) -> None:
        # max_length and min_length count the prompt. Where a generation_config was given the change goes into a copy
        # of it: transformers deprecates giving both that and single settings.
        target = copy.deepcopy(call.get("generation_config"))
        for name in ("max_length", "min_length"):
            length = self._setting(call, name)
            if not length:
                continue
            if target is None or call.get(name) is not None:
                call[name] = max(length - cut, 0)
            else:
                setattr(target, name, max(length - cut, 0))
        if target is not None:
            call["generation_config"] = target

    def _show_prompt(self, call: Call, prompt: Int[Tensor, "row token"], width: int) -> None:
        # What the caller hands in to watch the ids sees its own prompt in front of the new ones.
        if call.get("streamer") is not None:
            call["streamer"] = _FirstPut(call["streamer"], prompt)
        if call.get("logits_processor"):
            call["logits_processor"] = [_Watching(each, prompt, width) for each in call["logits_processor"]]
        if call.get("stopping_criteria"):
            call["stopping_criteria"] = [_criterion(each, prompt, width) for each in call["stopping_criteria"]]
        allowed = call.get("prefix_allowed_tokens_fn")
        if allowed is not None:
            # generate counts beams as one prompt, but the copies it samples as prompts of their own.
            beams, copies = (self._setting(call, name) or 1 for name in ("num_beams", "num_return_sequences"))
            prompts = prompt if beams > 1 else prompt.repeat_interleave(copies, 0)
            call["prefix_allowed_tokens_fn"] = lambda batch_id, ids: allowed(
                batch_id, in_front(prompts[batch_id : batch_id + 1], ids[None], width)[0]
            )


def _own_forwards(model: nn.Module) -> list[tuple[nn.Module, Any]]:
    """Give every module with hooks a `forward` of its own, the one of its class; returned is what was given to which.

    Graphs that torch.compile made before do not look for hooks that came later, but for this they do.
    """
    given = []
    for module in model.modules():
        if (module._forward_hooks or module._forward_pre_hooks) and "forward" not in vars(module):
            own: Any = module.forward
            module.forward = own
            given.append((module, own))
    return given


def by_name(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Call) -> Call:
    """All arguments of a call by their names, so that positional ones are seen as well."""
    signature = inspect.signature(function)
    arguments = signature.bind_partial(*args, **kwargs).arguments
    rest = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")
    return arguments | arguments.pop(rest, {})


def with_prompt(output: Any, prompt: Int[Tensor, "row token"], width: int) -> Any:
    """What `generate` returned, its first `width` ids of every sequence replaced by the caller's own prompt."""
    if isinstance(output, Tensor):
        return in_front(prompt, output, width)
    output.sequences = in_front(prompt, output.sequences, width)
    return output


def in_front(
    prompt: Int[Tensor, "row token"], ids: Int[Tensor, "sequence shorter"], width: int
) -> Int[Tensor, "sequence longer"]:
    """`prompt` in place of the first `width` ids, repeated for the sequences that were made of one row."""
    prompts = prompt.repeat_interleave(len(ids) // len(prompt), 0).to(ids)
    return torch.cat([prompts, ids[:, width:]], 1)


def has_pixels(call: Call) -> bool:
    """Whether a call shows images or videos."""
    return any(call.get(name) is not None for name in ("pixel_values", "pixel_values_videos"))


def refuse_unsupported(call: Call, placeholder: int) -> None:
    """Raise UnsupportedCallError for a call whose arguments do not fit a prompt with fewer placeholders."""
    cached = _cached(call.get("past_key_values"))
    ids, mask = call.get("input_ids"), call.get("attention_mask")
    if cached and mask is not None and ids is not None and mask.shape[-1] > cached + ids.shape[1]:
        raise UnsupportedCallError(
            f"The attention mask covers {mask.shape[-1]} tokens, but the cache holds {cached} and {ids.shape[1]} are "
            "new: visual tokens were left out of the cache. Leave the mask out, or let generate() do the decoding."
        )
    if call.get("mm_encoder_outputs") is not None:
        raise UnsupportedCallError(
            "mm_encoder_outputs holds image features made elsewhere, so nothing of them can be compressed. Give "
            "pixel_values."
        )
    placeholders = ids is not None and bool(ids.eq(placeholder).any())
    if cached and (placeholders or has_pixels(call)):
        raise UnsupportedCallError(
            f"The prompt shows images, but past_key_values already holds {cached} tokens: compressed images are "
            "shorter in the cache than in input_ids. Start such a turn without past_key_values."
        )
    if not has_pixels(call):
        return
    if call.get("inputs_embeds") is not None or ids is None:
        raise UnsupportedCallError(
            "Images came with inputs_embeds instead of input_ids, so the placeholders cannot be found. Give input_ids."
        )
    if mask is not None and mask.shape != ids.shape:
        raise UnsupportedCallError(
            f"The attention mask has shape {tuple(mask.shape)}, the prompt {tuple(ids.shape)}. Give one value a token."
        )
    if isinstance(call.get("logits_to_keep"), Tensor):
        raise UnsupportedCallError(
            "logits_to_keep names columns of the prompt, but these move where visual tokens are not sent. Give the "
            "number of columns to keep at the end, or leave it out and choose from the logits."
        )
    for name in _PLACING:
        if call.get(name) is not None:
            raise UnsupportedCallError(
                f"{name} was given, but it counts visual tokens that are not sent. Leave it out: positions are counted "
                "over the tokens that are sent."
            )


def refuse_inside(method: str, call: Call, setting: Setting | None) -> None:
    """Raise UnsupportedCallError for a call in whose middle `method` cannot drop tokens. `setting`: generate's."""
    refused = []
    if setting is not None:
        if setting("use_cache") is False:
            refused.append(("use_cache=False", "the tokens would be chosen anew at every step"))
        if setting("prefill_chunk_size"):
            refused.append(("prefill_chunk_size", "the whole prompt has to be seen at once"))
        if setting("cache_implementation") not in (None, "dynamic", "offloaded"):
            refused.append((f'cache_implementation="{setting("cache_implementation")}"', _GROWS))
    if getattr(call.get("past_key_values"), "is_compileable", False):
        refused.append((f"past_key_values={type(call['past_key_values']).__name__}", _GROWS))
    for name, why in refused:
        raise UnsupportedCallError(f"{method} drops tokens inside the LLM, which does not go with {name}: {why}.")


_GROWS = "a layer that gets fewer tokens has a shorter cache, so it has to be one that grows"


def _cached(past_key_values: Any) -> int:
    return int(past_key_values.get_seq_length()) if past_key_values is not None else 0


class _FirstPut(BaseStreamer):
    """A streamer is first given the prompt: give it the caller's own."""

    def __init__(self, streamer: Any, prompt: Int[Tensor, "row token"]) -> None:
        self.streamer = streamer
        self.prompt: Tensor | None = prompt

    def put(self, value: Tensor) -> None:
        self.streamer.put(value if self.prompt is None else self.prompt.cpu())
        self.prompt = None

    def end(self) -> None:
        self.streamer.end()


class _Watching:
    """A stopping criterion or logits processor, given the caller's own prompt in front of the new ids."""

    def __init__(self, watcher: Any, prompt: Int[Tensor, "row token"], width: int) -> None:
        self.watcher, self.prompt, self.width = watcher, prompt, width
        if hasattr(watcher, "eos_token_id"):  # how generate finds out that a criterion ends single rows
            self.eos_token_id = watcher.eos_token_id

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:
        return self.watcher(in_front(self.prompt, input_ids, self.width), scores)


def _criterion(criterion: Any, prompt: Int[Tensor, "row token"], width: int) -> Any:
    # These three take the place of generate's own, which it tells by their type.
    if type(criterion) in (EosTokenCriteria, MaxTimeCriteria):  # which do not look at the prompt
        return criterion
    if type(criterion) is MaxLengthCriteria:
        criterion = copy.copy(criterion)
        criterion.max_length += width - prompt.shape[1]
        return criterion
    return _Watching(criterion, prompt, width)
