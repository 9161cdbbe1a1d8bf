"""Pixels in, text out, with fewer visual tokens on the way. The page to read to see how the parts play together.

    pixels -> tower, tapped (capture) -> method (compress) -> projector -> shorter prompt (splice) -> transformers
                                                          a method inside the LLM drops tokens on the way (Drop) ^

    with compress(model, method) as trace:
        model.generate(**inputs)          # unmodified transformers, here and in pipelines and plain model(**inputs)
    trace.images[0].kept

`Splice` is that line in code: it gets the arguments of one call and returns those the model goes on with. Tower and
method run without gradients, the projector under the caller's gradient mode. One model serves one call at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers.modeling_outputs import BaseModelOutputWithPooling

from . import methods
from .errors import AlreadyCompressedError, SettingError, UnsupportedCallError, UnsupportedModelError
from .images import opened
from .methods.base import LayerMethod, Method
from .models.base import Adapter
from .models.clip import ClipText
from .models.load import Checkpoint, adapter_for
from .plumbing.drop import Drop
from .plumbing.generate import Call, Interception, Setting, refuse_inside, refuse_unsupported
from .plumbing.layout import Image as Dropped
from .plumbing.placeholders import PER_TOKEN, images_per_row, shortening
from .plumbing.tap import Tap
from .reader import Asked, Reader
from .tensors import Captures, Compressed, Question
from .trace import ImageTrace, Trace

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
    if Interception.of(model) is not None:
        raise AlreadyCompressedError(
            "This model is under compression already. Leave the block it was compressed in, or detach() it, first."
        )
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


def _wanted(adapter: Adapter, method: Method) -> frozenset[str]:
    """What is read of the tower and the question: all that the method needs, and what else it uses where offered."""
    outer = method.parts[0]
    return outer.needs | (outer.uses & adapter.offers)


def _check_offers(adapter: Adapter, method: Method, needs: frozenset[str]) -> None:
    lacking = needs - adapter.offers
    if lacking:
        hint = ""
        if "image_embeds" in lacking:
            hint = (
                ' It comes with clip=, the CLIP of the tower: sparsezip.load_clip("openai/clip-vit-large-patch14-336").'
            )
        works = [name for name in methods.registry.names() if methods.method(name).needs <= adapter.offers]
        raise UnsupportedModelError(
            f"{method.name} needs {', '.join(sorted(lacking))}, which {adapter.name} models do not offer.{hint} "
            f"Methods that work here: {', '.join(works)}."
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
        self.reader = Reader(adapter, _wanted(adapter, method), processor, question)
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
        adapter, trace = self.adapter, self.trace
        trace.clear()
        refuse_unsupported(call, adapter.placeholder)
        if self.drop:
            self.drop.forget()  # of a call that failed
        pixel_values = call.get("pixel_values")
        if pixel_values is None:
            return call
        adapter.check_call(call)
        if self.drop:
            refuse_inside(self.method.name, call, setting)
        ids, mask = call["input_ids"], call.get("attention_mask")
        rows, cols = adapter.grid(pixel_values)
        shown = call.pop("shown", range(len(pixel_values)))
        per_row = images_per_row(ids, adapter.placeholder, patches=rows * cols, images=len(shown))

        self.method.check(rows * cols)

        read = partial(self.reader, ids, mask, per_row)
        captures, compressed, shown = reduce(adapter, self.method, pixel_values, read, trace, shown)
        with trace.timed("project"):
            projected = project(adapter, captures, compressed)
        tokens, counts = [projected[image] for image in shown], [compressed.tokens[image] for image in shown]

        call = {name: value for name, value in call.items() if name != "pixel_values"}
        call["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=cast(Any, tokens))}
        shorter = shortening(ids, mask, adapter.placeholder, patches=rows * cols, tokens=counts)
        if shorter is not None:
            call |= {name: shorter(call[name], fill) for name, fill in PER_TOKEN.items() if call.get(name) is not None}
            call["input_ids"] = shorter(ids, self._padding())
            if mask is not None or not shorter.placed.all():
                call["attention_mask"] = shorter(torch.ones_like(ids) if mask is None else mask, 0)
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

    def _dropped(self, images: list[Dropped]) -> None:
        self.trace.images = [
            image.inside(dropped.source, dropped.own, dropped.entering)
            for image, dropped in zip(self.trace.images, images, strict=True)
        ]
        layers = zip(*(image.tokens_per_layer for image in self.trace.images), strict=True)
        self.trace.tokens_per_layer = [sum(layer) / len(images) for layer in layers]

    def _padding(self) -> int:
        # Masked, so any id would do for the model; logits processors see the ids and know the pad token.
        config = self.adapter.model.generation_config
        eos = config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id
        return int(next((token for token in (config.pad_token_id, eos) if token is not None), 0))


# -- the stages ----------------------------------------------------------------------------------------------------


def reduce(
    adapter: Adapter,
    method: Method,
    pixel_values: Float[Tensor, "image channel height width"],
    read: Callable[[], list[Question | None]] | None,
    trace: Trace,
    shown: Sequence[int] | None = None,
) -> tuple[Captures, Compressed, Sequence[int]]:
    """What the tower makes of the images, and the method in front of the LLM of that; noted in the trace.

    `read` gives the questions, if there are any, and is called if the method wants them. `shown`: which image each
    question is about; None: every image has its own. Returned is besides which entry of the result each of them gets:
    one per image where no question was read, else one per question.
    """
    outer, own = method.parts[0], adapter.grid(pixel_values)
    patches, grid, questions, wanted = own[0] * own[1], own, None, frozenset[str]()
    shown = range(len(pixel_values)) if shown is None else shown
    if not outer.sends_everything(patches):
        grid, wanted = outer.resized(own), _wanted(adapter, method)
        if grid != own and outer.keep_ratio is not None:  # it is a share of all patches, not of those that are left
            outer = replace(outer, budget=outer.asked(patches), keep_ratio=None)
    with torch.no_grad():
        captures = capture(adapter, pixel_values, wanted, low_layer=outer.low_layer, grid=grid, trace=trace)
        if read is not None and "question" in wanted:
            with trace.timed("question"):
                questions = read()
        with trace.timed("compress"):
            if questions is not None and len(shown) > len(pixel_values):
                captures, shown = captures.of(shown), range(len(shown))
            compressed = outer.compress(captures, questions)
    _check_counts(method, compressed, patches)
    images = ImageTrace.of(own, captures, compressed)
    trace.images = [images[image] for image in shown]
    return captures, compressed, shown


def capture(
    adapter: Adapter,
    pixel_values: Float[Tensor, "image channel height width"],
    wanted: frozenset[str],
    *,
    low_layer: float = 0.0,
    grid: tuple[int, int] | None = None,
    trace: Trace | None = None,
) -> Captures:
    """Run the tower once, listening to what `wanted` names.

    `low_layer`: where low_attention is from, as a share of the tower's depth. `grid`: scale the images down so that
    this is their grid.
    """
    trace = Trace() if trace is None else trace
    own, heard_from = adapter.grid(pixel_values), adapter.heard_from(low_layer)
    grid = own if grid is None else grid
    with (
        trace.timed("tower"),
        Tap(
            adapter.layer, {name: heard_from[name] for name in heard_from.keys() & wanted}, has_cls=adapter.has_cls
        ) as tap,
    ):
        if grid == own:
            adapter.tower(pixel_values)
        else:
            adapter.tower(scaled(pixel_values, own, grid), interpolate_pos_encoding=True)
    captures = Captures(features=tap.features, grid=grid, **cast(Any, tap.heard))
    if "projected" in wanted:
        with trace.timed("project"):
            captures = replace(captures, projected=adapter.project(captures.patch_features))
    if "image_embeds" in wanted and adapter.clip is not None:
        with trace.timed("clip"):
            captures = replace(captures, image_embeds=adapter.clip.patches(captures.patch_features))
    return captures


def scaled(
    pixel_values: Float[Tensor, "image channel height width"], grid: tuple[int, int], smaller: tuple[int, int]
) -> Float[Tensor, "image channel lower narrower"]:
    """Images of `grid` patches made so small that they have `smaller` patches, each of as many pixels as before."""
    height, width = (
        pixels // count * fewer for pixels, count, fewer in zip(pixel_values.shape[-2:], grid, smaller, strict=True)
    )
    small = interpolate(pixel_values.float(), (height, width), mode="bicubic", antialias=True)
    return small.to(pixel_values.dtype)


def project(adapter: Adapter, captures: Captures, compressed: Compressed) -> list[Tensor]:
    """One [token, dim] per image through the projector to one [token, width] per image."""
    lengths, patches = compressed.tokens, captures.patch_features
    sent = zip(compressed.features, patches, strict=True)
    if all(len(own) == len(all_) and own.data_ptr() == all_.data_ptr() for own, all_ in sent):
        return list(adapter.project(patches))  # laid out as in the unmodified model: the same kernel, the same bits
    if len(set(lengths)) == 1:
        return list(adapter.project(torch.stack(compressed.features)))
    return list(adapter.project(torch.cat(compressed.features)).split(lengths))


def _check_counts(method: Method, compressed: Compressed, patches: int) -> None:
    for number, tokens in enumerate(compressed.tokens):
        if not 1 <= tokens <= patches:
            raise UnsupportedCallError(
                f"{method.name} sends {tokens} tokens for image {number}, but its {patches} patches have a place for 1 "
                f"to {patches} in the prompt. Choose settings that stay within that."
            )


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
    wanted = _wanted(adapter, method)
    if question is not None and "question" in wanted - adapter.offers:
        raise UnsupportedCallError("This tower was opened without what a question needs. Open it with question=True.")
    read = None
    if question is not None:
        texts = [question] * len(images) if isinstance(question, str) else question
        read = partial(_asked, checkpoint, Reader(adapter, wanted, checkpoint.processor, None), texts)
    pixel_values = checkpoint.pixels([opened(image) for image in images])
    reduce(adapter, method, pixel_values, read, trace)
    return trace


def _asked(checkpoint: Checkpoint, reader: Reader, questions: Sequence[str]) -> list[Question | None]:
    """The questions' own words as they stand in the prompts."""
    prompts = [checkpoint.processor.tokenizer(checkpoint.prompt(question)) for question in questions]
    return [reader(torch.tensor([prompt["input_ids"]]), None, [1])[0] for prompt in prompts]
