"""Pixels in, text out, with fewer visual tokens on the way. The page to read to see how the parts play together.

    pixels -> tower, tapped (capture) -> method (reduce) -> projector -> shorter prompt (splice) -> transformers
                                                          a method inside the LLM drops tokens on the way (Drop) ^

    with compress(model, method) as trace:
        model.generate(**inputs)          # unmodified transformers, here and in pipelines and plain model(**inputs)
    trace.images[0].kept

`Splice` is that line in code: it gets the arguments of one call and returns those the model goes on with. Tower and
method run without gradients, so tokens merged inside the LLM carry none; the projector follows the caller's gradient
mode. One model serves one call at a time: a call from a second thread is refused while another runs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from . import methods
from .errors import SettingError, UnsupportedCallError, UnsupportedModelError
from .images import opened
from .methods.base import LayerMethod, Method
from .models.base import Adapter
from .models.clip import ClipText
from .models.load import Checkpoint, adapter_for
from .plumbing.drop import Drop
from .plumbing.generate import Call, Interception, Setting, has_pixels, refuse_inside, refuse_unsupported
from .plumbing.layout import Image as Dropped
from .plumbing.placeholders import PER_TOKEN, images_per_row, origins, shortening
from .reader import Asked, Reader
from .stages import offered, project, reduce, tiled, wanted
from .tensors import Question
from .trace import Trace

# -- compression of a model in place -------------------------------------------------------------------------------


@contextmanager
def compress(
    model: nn.Module,
    method: Method | str,
    *,
    processor: Any = None,
    question: Asked = None,
    clip: ClipText | None = None,
) -> Iterator[Trace]:
    """Inside the block every call of `model` with images sends fewer visual tokens; the trace tells about the last one.

    `model.generate` returns sequences that begin with the caller's own input_ids, so slicing and decoding work as ever.
    A plain `model(**inputs)` returns logits for the tokens that were sent: fewer columns than input_ids has, the text
    behind the image still at the end. Labels, token_type_ids and the attention mask are shortened alike; position_ids
    are counted over what is sent.

    A method that reads the question gets the question's own words, found in each prompt with the `processor`; without
    one, all text behind the last image. `question` overrides both: text (needs the processor) or a Question (of `words`
    alone its `tower` is made as well), one for all images or one per image. A method that compares patches with text in
    CLIP's space gets both from `clip`, the CLIP that the model's tower was taken from (`load_clip` opens it).

    On exit, also through an exception, the model is exactly as before. Raises UnsupportedModelError for a model or
    method that does not fit, AlreadyCompressedError for a model under compression, and, from the calls,
    UnsupportedCallError for arguments that do not go with fewer tokens.
    """
    interception, trace = _intercept(model, method, processor, question, clip)
    try:
        yield trace
    finally:
        interception.restore()


def attach(
    model: nn.Module,
    method: Method | str,
    *,
    processor: Any = None,
    question: Asked = None,
    clip: ClipText | None = None,
) -> Trace:
    """Compress every call of `model` until `detach`; arguments, trace and errors as for `compress`."""
    return _intercept(model, method, processor, question, clip)[1]


def _intercept(
    model: nn.Module, method: Method | str, processor: Any, question: Asked, clip: ClipText | None
) -> tuple[Interception, Trace]:
    model = _inner(model)
    Interception.refuse_second(model)
    adapter, method = adapter_for(model), _method(method)
    adapter.lend(clip)
    _check_offers(adapter, method, method.needs)
    splice = Splice(adapter, method, processor, question)
    return Interception(model, splice, splice.restore), splice.trace


def _method(method: Any) -> Method:
    made = methods.method(method) if isinstance(method, str) else method
    if not isinstance(made, Method):
        raise SettingError(f'Give a method, as VisionZip(budget=64), or its name, as "visionzip"; not {method!r}.')
    return made


def detach(model: nn.Module) -> None:
    """Leave `model` exactly as it was before `attach`. Raises UnsupportedCallError if it is not under compression."""
    interception = Interception.of(_inner(model))
    if interception is None:
        raise UnsupportedCallError("This model is not under compression, so there is nothing to detach.")
    interception.restore()


def _inner(model: nn.Module) -> nn.Module:
    return getattr(model, "_orig_mod", model)  # torch.compile's wrapper forwards generate to the module within


def _works(adapter: Adapter, method: Method) -> bool:
    outer, inner = method.parts
    behind = [] if inner is None else inner.after(adapter.llm_layers)
    inside = not behind or (not adapter.refuses_inside and min(behind) >= adapter.deepstack)
    return method.needs <= adapter.offers and inside and (adapter.resizes or type(outer).resized is Method.resized)


def _check_offers(adapter: Adapter, method: Method, needs: frozenset[str]) -> None:
    lacking = needs - offered(adapter, method)
    if lacking:
        hint = ""
        if lacking <= adapter.received:
            hint = (
                ' Its vision tower has no CLS token; saliency="received" (--set method.saliency=received) ranks by the '
                "attention that patches receive from all others instead."
            )
        elif "image_embeds" in lacking:
            hint = (
                ' It comes with clip=, the CLIP of the tower: sparsezip.load_clip("openai/clip-vit-large-patch14-336").'
            )
        works = [name for name in methods.registry.names() if _works(adapter, methods.method(name))]
        raise UnsupportedModelError(
            f"{method.name} needs {', '.join(sorted(lacking))}, which {adapter.name} models do not offer.{hint} "
            f"Methods that work here: {', '.join(works)}."
        )
    inner = method.parts[1]
    if inner is not None and adapter.refuses_inside:
        raise UnsupportedModelError(f"{method.name} drops tokens inside the LLM. {adapter.refuses_inside}")
    if inner is not None and min(inner.after(adapter.llm_layers)) < adapter.deepstack:
        raise UnsupportedModelError(
            f"{method.name} drops tokens behind layer {min(inner.after(adapter.llm_layers))} of the LLM, but "
            f"{adapter.name} models add visual features behind the first {adapter.deepstack} layers. "
            "Name later layers in its settings."
        )


class Splice:
    """One call's arguments in, those the model goes on with out: features in place of pixels, a shorter prompt."""

    def __init__(
        self,
        adapter: Adapter,
        method: Method,
        processor: Any = None,
        question: Asked = None,
        trace: Trace | None = None,
    ) -> None:
        """`processor` and `question`: as for `compress`. `trace` tells of the last call."""
        self.adapter, self.method, self.trace = adapter, method, trace or Trace()
        self.reader = Reader(adapter, wanted(adapter, method), processor, question)
        inner = method.parts[1]
        dropping = partial(self.trace.timed, "drop")
        self.drop = Drop(adapter.decoder, inner, self._dropped, dropping) if inner else None

    def restore(self) -> None:
        """Leave the LLM as it was."""
        if self.drop:
            self.drop.restore()

    def __call__(self, call: Call, setting: Setting | None = None) -> Call:
        """The arguments to go on with; `setting` reads those of generate, where it is called.

        The images of the prompts are the pixel_values in their order, unless the call says which of these each one
        is: `shown`. What comes several times goes through the tower once.

        Raises UnsupportedCallError for what fewer tokens cannot serve, BudgetError for a budget that cannot be met.
        """
        adapter, method, trace, reader = self.adapter, self.method, self.trace, self.reader
        trace.clear()
        if adapter.video_arguments and call.get("pixel_values") is None and has_pixels(call):
            adapter = adapter.of_videos()
            reader = reader.of(adapter)
        refuse_unsupported(call, adapter.placeholder)
        if self.drop:
            self.drop.forget()  # of a call that failed
        if not has_pixels(call):
            return call
        adapter.check_call(call)
        if self.drop:
            refuse_inside(method.name, call, setting)
        seen = adapter.seen(call, tiled=tiled(method))
        shown = list(call.pop("shown", range(len(seen))))
        ids, mask = call["input_ids"], call.get("attention_mask")
        lengths = [len(seen[image].patch) for image in shown]
        per_row = images_per_row(ids, adapter.placeholder, lengths)

        read = partial(reader, ids, mask, per_row)
        encoded, reduced, entries = reduce(adapter, method, call, seen, read, trace, shown, per_row)
        with trace.timed("project"):
            projected = project(adapter, encoded, reduced)
        tokens = [projected[entry] for entry in entries]
        counts = [len(its) for its in tokens]
        held = [None if reduced.whole[entry] else reduced.held[entry] for entry in entries]

        positions = None if counts == lengths else self._positions(adapter, call, setting)
        spent = {"pixel_values", "pixel_values_videos"} if counts == lengths else adapter.arguments
        call = {name: value for name, value in call.items() if name not in spent}
        ends = [*accumulate(per_row, initial=0)]
        rows = [torch.cat(tokens[first:last]) for first, last in pairwise(ends) if first < last]
        call["mm_encoder_outputs"] = {adapter.modality: adapter.outputs(encoded, rows, held)}
        places = None
        if positions is not None or adapter.interrupts:
            places = [
                torch.arange(count) if its is None else reduced.seen[entry].places(count, *its)
                for entry, count, its in zip(entries, counts, held, strict=True)
            ]
        call |= self._shorter(adapter, call, lengths, counts, places, positions)
        visual = call["input_ids"].eq(adapter.placeholder)
        if self.drop:
            each = iter(counts)
            images = [[next(each) for _ in range(count)] for count in per_row]
            self.drop.expect(visual, call.get("attention_mask"), images, adapter.size)
        else:
            trace.images = [
                replace(image, tokens_per_layer=[image.tokens] * adapter.llm_layers) for image in trace.images
            ]
            trace.tokens_per_layer = [int(visual.sum()) / len(trace.images)] * adapter.llm_layers
        return call

    def _shorter(
        self,
        adapter: Adapter,
        call: Call,
        lengths: list[int],
        counts: list[int],
        places: list[Tensor] | None,
        positions: Tensor | None,
    ) -> Call:
        """The per-token arguments of the shorter prompt. `places`: the placeholder of each token of each image."""
        ids, mask, placeholder = call["input_ids"], call.get("attention_mask"), adapter.placeholder
        shorter = shortening(ids, mask, placeholder, lengths, counts, places if adapter.interrupts else None)
        if shorter is None:
            return {}
        made = {name: shorter(call[name], fill) for name, fill in PER_TOKEN.items() if call.get(name) is not None}
        made["input_ids"] = shorter(ids, self._padding())
        if mask is not None or positions is not None or not shorter.placed.all():
            made["attention_mask"] = shorter(torch.ones_like(ids) if mask is None else mask, 0)
        if positions is not None:
            own = None if adapter.interrupts else places  # else every placeholder that stays is its token's own
            origin = shorter(origins(ids, placeholder, lengths, own), 0)
            made["position_ids"] = adapter.placed(positions, origin, made["attention_mask"])
        return made

    def _dropped(self, images: list[Dropped]) -> None:
        self.trace.images = [
            image.inside(dropped.source, dropped.own, dropped.entering)
            for image, dropped in zip(self.trace.images, images, strict=True)
        ]
        layers = zip(*(image.tokens_per_layer for image in self.trace.images), strict=True)
        self.trace.tokens_per_layer = [sum(layer) / len(images) for layer in layers]

    def _positions(self, adapter: Adapter, call: Call, setting: Setting | None) -> Tensor | None:
        """[axis, row, token] positions of the whole prompt, of which each token sent is to keep its own; None: anew."""
        own = adapter.positions(call)
        if own is not None or self.method.parts[0].positions == "compact":
            return own
        if setting is not None and setting("use_cache") is False:  # generate leaves a mask of ones out
            raise UnsupportedCallError(
                'positions="original" leaves gaps between positions, which transformers takes for several prompts in '
                'one row where there is neither cache nor mask. Leave use_cache=False out, or take positions="compact".'
            )
        ids, mask = call["input_ids"], call.get("attention_mask")
        return ((torch.ones_like(ids) if mask is None else mask).long().cumsum(1) - 1).clamp(min=0)[None]

    def _padding(self) -> int:
        # Masked, so any id would do for the model; logits processors see the ids and know the pad token.
        config = self.adapter.model.generation_config
        eos = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
        return int(next((token for token in (config.pad_token_id, eos) if token is not None), 0))


# -- images alone -----------------------------------------------------------------------------------------------


def compress_images(
    checkpoint: Checkpoint,
    images: Sequence[Image.Image | str | Path],
    method: Method | str,
    question: str | Sequence[str] | None = None,
) -> Trace:
    """What `method` does to `images`: tower and method alone, without the language model.

    `checkpoint`: a VLM, or what `load_tower` reads (with question=True where a question is asked). `question`: one for
    all images or one per image; read by the methods that take words into account.

    Raises ImageError, UnsupportedModelError as `compress` does, UnsupportedCallError for a question to a checkpoint
    that was opened without the weights for it.
    """
    adapter, method, trace = checkpoint.adapter, _method(method), Trace()
    if isinstance(method, LayerMethod):
        raise UnsupportedCallError(f"{method.name} works inside the language model, which is not run here. Use ask.")
    _check_offers(adapter, method, method.needs - {"question"})
    reads = wanted(adapter, method)
    if question is not None and "question" in reads - adapter.offers:
        raise UnsupportedCallError("This tower was opened without what a question needs. Open it with question=True.")
    read = None
    if question is not None:
        texts = [question] * len(images) if isinstance(question, str) else question
        read = partial(_asked, checkpoint, Reader(adapter, reads, checkpoint.processor, None), texts)
    call = checkpoint.pixels([opened(image) for image in images])
    reduce(adapter, method, call, adapter.seen(call, tiled=tiled(method)), read, trace)
    return trace


def _asked(checkpoint: Checkpoint, reader: Reader, questions: Sequence[str]) -> list[Question | None]:
    """The questions' own words as they stand in the prompts."""
    prompts = [checkpoint.processor.tokenizer(checkpoint.prompt(question)) for question in questions]
    return [reader(torch.tensor([prompt["input_ids"]]), None, [1])[0] for prompt in prompts]
