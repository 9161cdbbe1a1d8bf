"""Pixels in, text out, with fewer visual tokens on the way. The page to read to see how the parts play together.

    pixels -> tower, tapped (capture) -> method (compress) -> projector -> shorter prompt (splice) -> transformers

    with compress(model, method) as trace:
        model.generate(**inputs)          # unmodified transformers, here and in pipelines and plain model(**inputs)
    trace.images[0].kept

`Splice` is that line in code: it gets the arguments of one call and returns those the model goes on with. Tower and
method run without gradients, the projector under the caller's gradient mode. One model serves one call at a time.
"""

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import StoppingCriteria
from transformers.modeling_outputs import BaseModelOutputWithPooling

from . import methods
from .errors import AlreadyCompressedError, UnsupportedCallError, UnsupportedModelError
from .images import open_image
from .methods.base import Method
from .models import load as checkpoints
from .models.base import Adapter
from .models.clip import ClipText
from .models.load import Checkpoint, adapter_for
from .plumbing.drop import Drop
from .plumbing.drop import Image as Dropped
from .plumbing.generate import Call, Interception, Setting, refuse_inside, refuse_unsupported
from .plumbing.placeholders import PER_TOKEN, images_per_row, shortening
from .plumbing.tap import Tap
from .plumbing.words import Template, question_words, text_after_images
from .tensors import Captures, Compressed, Question

Asked = str | Question | Sequence[str | Question | None] | None  # one for all images, or one per image


# -- what a call leaves behind -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ImageTrace:
    """What became of the patches of one image, in the grid that the tower makes of it.

    Where tokens were dropped inside the LLM, `kept` and `source` tell of those that went through its last layer. Of an
    image that a method scaled down no patch is kept; each is held by the token of the larger one at its centre.
    """

    kept: Tensor  # [kept] patch indices of the dominant tokens, raster order, CLS not counted
    tokens: int  # visual tokens that reach the LLM
    source: Tensor  # [patch] output token that holds the patch, -1: dropped
    patches: int
    grid: tuple[int, int]  # (rows, cols)
    tokens_per_layer: list[int] = field(default_factory=list)  # that entered each LLM layer

    @property
    def K(self) -> int:  # noqa: N802  # the paper's name
        """Number of dominant tokens, CLS not counted."""
        return len(self.kept)


@dataclass
class Trace:
    """What happened in the last call under compression."""

    images: list[ImageTrace] = field(default_factory=list)  # in reading order, over all rows of the batch
    # visual tokens entering each LLM layer, mean over images
    tokens_per_layer: list[float] = field(default_factory=list)
    # ms of the whole batch: tower, question, compress, project; clip, where patches are taken into CLIP's space
    stages: dict[str, float] = field(default_factory=dict)

    def clear(self) -> None:
        """Forget the call before."""
        self.images, self.tokens_per_layer, self.stages = [], [], {}


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
    splice = Splice(adapter, method, Reader(adapter, _wanted(adapter, method), processor, question))
    return Interception(model, splice, splice.restore), splice.trace


def _method(method: Method | str) -> Method:
    return methods.method(method) if isinstance(method, str) else method


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

    def __init__(self, adapter: Adapter, method: Method, reader: "Reader") -> None:
        """`trace` tells of the last call."""
        self.adapter, self.method, self.reader, self.trace = adapter, method, reader, Trace()
        inner = method.parts[1]
        dropping = partial(_timed, self.trace, "drop")
        self.drop = Drop(adapter.decoder, inner, self._dropped, dropping) if inner else None

    def restore(self) -> None:
        """Leave the LLM as it was."""
        if self.drop:
            self.drop.restore()

    def __call__(self, call: Call, setting: Setting | None = None) -> Call:
        """The arguments to go on with; `setting` reads those of generate, where it is called.

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
        per_row = images_per_row(ids, adapter.placeholder, patches=rows * cols, images=len(pixel_values))

        self.method.check(rows * cols)

        read = partial(self.reader, ids, mask, per_row)
        compressed = reduce(adapter, self.method, pixel_values, read, trace)
        with _timed(trace, "project"):
            tokens = project(adapter, compressed.features)

        call = {name: value for name, value in call.items() if name != "pixel_values"}
        call["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=cast(Any, tokens))}
        shorter = shortening(ids, mask, adapter.placeholder, patches=rows * cols, tokens=compressed.tokens)
        if shorter is not None:
            call |= {name: shorter(call[name], fill) for name, fill in PER_TOKEN.items() if call.get(name) is not None}
            call["input_ids"] = shorter(ids, self._padding())
            if mask is not None or not shorter.placed.all():
                call["attention_mask"] = shorter(torch.ones_like(ids) if mask is None else mask, 0)
        visual = call["input_ids"].eq(adapter.placeholder)
        if self.drop:
            counts = iter(compressed.tokens)
            images = [[next(counts) for _ in range(count)] for count in per_row]
            self.drop.expect(visual, call.get("attention_mask"), images, adapter.size)
        else:
            trace.images = [
                replace(image, tokens_per_layer=[image.tokens] * adapter.llm_layers) for image in trace.images
            ]
            trace.tokens_per_layer = [int(visual.sum()) / len(trace.images)] * adapter.llm_layers
        return call

    def _dropped(self, images: list[Dropped]) -> None:
        self.trace.images = [_through(*pair) for pair in zip(self.trace.images, images, strict=True)]
        self.trace.tokens_per_layer = _mean_per_layer(self.trace.images)

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
) -> Compressed:
    """What the method in front of the LLM makes of [image, channel, height, width]; noted in the trace.

    `read` gives the questions, if there are any, and is called if the method wants them.
    """
    outer, own, wanted = method.parts[0], adapter.grid(pixel_values), _wanted(adapter, method)
    patches, grid, questions = own[0] * own[1], own, None
    if not outer.sends_everything(patches):
        grid = outer.resized(own)
        if grid != own and outer.keep_ratio is not None:  # it is a share of all patches, not of those that are left
            outer = replace(outer, budget=outer.asked(patches), keep_ratio=None)
    with torch.no_grad():
        captures = capture(adapter, pixel_values, wanted, low_layer=outer.low_layer, grid=grid, trace=trace)
        if read is not None and "question" in wanted:
            with _timed(trace, "question"):
                questions = read()
        with _timed(trace, "compress"):
            compressed = outer.compress(captures, questions)
    _check_counts(method, compressed, patches)
    trace.images = _image_traces(own, captures, compressed)
    return compressed


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
        _timed(trace, "tower"),
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
        with _timed(trace, "project"):
            captures = replace(captures, projected=adapter.project(captures.patch_features))
    if "image_embeds" in wanted and adapter.clip is not None:
        with _timed(trace, "clip"):
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


def project(adapter: Adapter, features: list[Tensor]) -> list[Tensor]:
    """One [token, dim] per image through the projector to one [token, width] per image."""
    lengths = [len(tokens) for tokens in features]
    if len(set(lengths)) == 1:  # in the shape the unmodified model uses: the same kernel, the same bits
        return list(adapter.project(torch.stack(features)))
    return list(adapter.project(torch.cat(features)).split(lengths))


def _check_counts(method: Method, compressed: Compressed, patches: int) -> None:
    for number, tokens in enumerate(compressed.tokens):
        if not 1 <= tokens <= patches:
            raise UnsupportedCallError(
                f"{method.name} sends {tokens} tokens for image {number}, but its {patches} patches have a place for 1 "
                f"to {patches} in the prompt. Choose settings that stay within that."
            )


def _image_traces(own: tuple[int, int], captures: Captures, compressed: Compressed) -> list[ImageTrace]:
    kept, source = compressed.kept, compressed.source
    if captures.grid != own:
        covering = covered_by(own, captures.grid).to(captures.features.device)
        kept, source = [indices[:0] for indices in kept], [places[covering] for places in source]
    return [
        ImageTrace(kept=indices, tokens=tokens, source=places, patches=own[0] * own[1], grid=own)
        for indices, tokens, places in zip(kept, compressed.tokens, source, strict=True)
    ]


def _through(image: ImageTrace, dropped: Dropped) -> ImageTrace:
    """What became of an image in front of the LLM, and then inside it."""
    tokens = image.source[image.kept]
    place = dropped.source[tokens]
    stays = (place >= 0) & (dropped.own[place.clamp(min=0)] == tokens)
    source = torch.where(image.source < 0, -1, dropped.source[image.source.clamp(min=0)])
    return replace(image, kept=image.kept[stays], source=source, tokens_per_layer=dropped.entering)


def _mean_per_layer(images: list[ImageTrace]) -> list[float]:
    return [sum(layer) / len(images) for layer in zip(*(image.tokens_per_layer for image in images), strict=True)]


def covered_by(grid: tuple[int, int], other: tuple[int, int]) -> Int[Tensor, "patch"]:
    """For each patch of `grid` the one of `other`, laid over the same image, that covers its centre."""
    rows, cols = (
        (2 * torch.arange(count) + 1) * across // (2 * count) for count, across in zip(grid, other, strict=True)
    )
    return (rows[:, None] * other[1] + cols).flatten()


class Reader:
    """Makes the Question of every image of a call."""

    def __init__(self, adapter: Adapter, wanted: frozenset[str], processor: Any, question: Asked) -> None:
        """`question`: given by the user for all images or per image; None: read from the prompts.

        With image_embeds among the `wanted` captures it is embedded by CLIP as well.
        """
        self.adapter, self.processor, self.given = adapter, processor, question
        self.clip = adapter.clip if "image_embeds" in wanted else None
        self.tokenizer = getattr(processor, "tokenizer", processor)
        texts = [question] if isinstance(question, str | Question) else question or []
        if processor is None and any(isinstance(text, str) for text in texts):
            raise UnsupportedCallError("A question given as text has to be tokenised. Give processor= as well.")
        if processor is None and question is None and self.clip is not None and "question" in wanted:
            raise UnsupportedCallError("CLIP reads the question as text. Give processor=, or a Question of your own.")

    def __call__(self, ids: Tensor, mask: Tensor | None, per_row: list[int]) -> list[Question | None]:
        """One question per image, of prompts [row, token] that hold `per_row` images each."""
        if self.given is None:
            mask = torch.ones_like(ids) if mask is None else mask
            read = [self._from_prompt(*row) if count else None for *row, count in zip(ids, mask, per_row, strict=True)]
            return [question for question, count in zip(read, per_row, strict=True) for _ in range(count)]
        if isinstance(self.given, str | Question):
            return [self._from_user(self.given)] * sum(per_row)
        return [self._from_user(question) for question in self.given]

    def _from_prompt(self, row: Tensor, mask: Tensor) -> Question:
        placeholder = self.adapter.placeholder
        if self.processor is None:
            return self._of(text_after_images(row, mask, placeholder))
        return self._of(question_words(row, mask, placeholder, self.tokenizer, self._template))

    @cached_property
    def _template(self) -> Template:
        return Template.of(self.processor, self.adapter.prompt)

    def _from_user(self, question: str | Question | None) -> Question | None:
        if isinstance(question, Question) and question.words is not None and question.tower is None:
            return replace(question, tower=self.adapter.carry_back(_some(question.words)))
        if not isinstance(question, str):
            return question
        ids = self.tokenizer(question, add_special_tokens=False)["input_ids"]
        return self._of(torch.tensor(ids, dtype=torch.long), question)

    def _of(self, words: Tensor, text: str | None = None) -> Question:
        question = self.adapter.question(_some(words))
        if self.clip is None:
            return question
        if text is None:
            text = self.tokenizer.decode(words, clean_up_tokenization_spaces=False).strip()
        return replace(question, clip=self.clip.text(text))


def _some(words: Tensor) -> Tensor:
    if not len(words):
        raise UnsupportedCallError(
            "The method reads the question, but there are no words in it. Ask something, or give question=."
        )
    return words


@contextmanager
def _timed(trace: Trace, stage: str) -> Iterator[None]:
    start = _now()
    yield
    trace.stages[stage] = trace.stages.get(stage, 0.0) + _now() - start


def _now() -> float:
    """Milliseconds, once the GPU has caught up."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() * 1000


# -- a model that answers ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Answer:
    """One answer and what it cost."""

    text: str
    maps: ImageTrace  # where the patches went
    tokens: int  # visual tokens that entered the LLM
    tokens_before: int  # patches the tower made of the image
    tokens_per_layer: list[float]
    timing: dict[str, float]  # ms by stage, this answer's share of its batch


class VLM(Checkpoint):
    """A checkpoint with its processor, ready to be asked."""

    def ask(
        self,
        image: Image.Image | str | Path,
        question: str,
        method: Method | str = "keep_all",
        max_new_tokens: int = 16,
        **generation: Any,
    ) -> Answer:
        """The answer to one question about one image. Arguments and errors as for `answer`."""
        return self.answer([image], [question], method, max_new_tokens, **generation)[0]

    def answer(
        self,
        images: Sequence[Image.Image | str | Path],
        questions: Sequence[str],
        method: Method | str = "keep_all",
        max_new_tokens: int = 16,
        **generation: Any,
    ) -> list[Answer]:
        """One answer per pair of image and question, decoded greedily in one batch.

        `generation` goes to transformers' generate (do_sample=True, num_beams=4, ...). The timing's stages: prepare
        (image and text processing), tower, question, compress, project, prefill (the rest up to the first token),
        decode; "ttft" is the time to the first token and "total" everything.

        Raises ImageError for an image that cannot be read, UnsupportedCallError for a question that holds an image
        placeholder, for images and questions that do not pair up and for settings that do not return one text each,
        and what `compress` raises.
        """
        _check_pairs(images, questions, generation)
        if not len(images):
            return []
        start = _now()
        inputs = self._prepare([_opened(image) for image in images], questions)
        prepared = _now()
        first = _FirstToken()
        settings = {"do_sample": False, "num_beams": 1, "pad_token_id": self._pad_token} | generation
        settings["stopping_criteria"] = [first, *(generation.get("stopping_criteria") or [])]
        with compress(self.model, method, processor=self.processor, clip=self.adapter.clip) as trace:
            sequences = self.model.generate(**inputs, max_new_tokens=max_new_tokens, **settings)
        end = _now()
        texts = self.processor.batch_decode(sequences[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        ends = {"prepare": prepared - start, **trace.stages}
        ends |= {"prefill": first.moment - start - sum(ends.values()), "decode": end - first.moment}
        ends |= {"ttft": first.moment - start, "total": end - start}
        timing = {stage: took / len(texts) for stage, took in ends.items()}
        return [
            Answer(
                text=text.strip(),
                maps=_on_cpu(image),
                tokens=image.tokens,
                tokens_before=image.patches,
                tokens_per_layer=[float(tokens) for tokens in image.tokens_per_layer],
                timing=dict(timing),
            )
            for text, image in zip(texts, trace.images, strict=True)
        ]

    def _prepare(self, images: list[Image.Image], questions: Sequence[str]) -> dict[str, Any]:
        for question in questions:
            if self.processor.image_token in question:
                raise UnsupportedCallError(
                    f'The question "{question}" contains {self.processor.image_token}, which stands for an image. '
                    "Leave it out: every question is asked about one image, which is put in front of it."
                )
        prompts = [self.prompt(question) for question in questions]
        inputs = self.processor(images=images, text=prompts, padding=True, padding_side="left", return_tensors="pt")
        if "token_type_ids" not in inspect.signature(self.model.forward).parameters:  # some tokenizers add them unasked
            inputs.pop("token_type_ids", None)
        return dict(inputs.to(self.model.device, self.model.dtype))

    @property
    def _pad_token(self) -> int:
        tokenizer = self.processor.tokenizer
        return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def load(name_or_path: str | Path, **options: Any) -> VLM:
    """Open "testbed", a folder or a Hub id (device=, dtype=, ...) as a model that answers; see models/load.py."""
    return VLM(**vars(checkpoints.load(name_or_path, **options)))


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
    _check_offers(adapter, method, method.needs - {"question"})
    wanted = _wanted(adapter, method)
    if question is not None and "question" in wanted - adapter.offers:
        raise UnsupportedCallError("This tower was opened without what a question needs. Open it with question=True.")
    read = None
    if question is not None:
        texts = [question] * len(images) if isinstance(question, str) else question
        read = partial(_asked, checkpoint, Reader(adapter, wanted, checkpoint.processor, None), texts)
    pixel_values = checkpoint.pixels([_opened(image) for image in images])
    reduce(adapter, method, pixel_values, read, trace)
    return trace


def _asked(checkpoint: Checkpoint, reader: Reader, questions: Sequence[str]) -> list[Question | None]:
    """The questions' own words as they stand in the prompts."""
    prompts = [checkpoint.processor.tokenizer(checkpoint.prompt(question)) for question in questions]
    return [reader(torch.tensor([prompt["input_ids"]]), None, [1])[0] for prompt in prompts]


def _check_pairs(images: Sequence[Any], questions: Sequence[str], generation: dict[str, Any]) -> None:
    if len(images) != len(questions):
        raise UnsupportedCallError(
            f"{len(images)} images came with {len(questions)} questions. Give one image per question; an image that is "
            "asked about twice is given twice."
        )
    for name, usual in (("num_return_sequences", 1), ("return_dict_in_generate", False)):
        if generation.get(name) not in (None, usual):
            raise UnsupportedCallError(
                f"The call asks for {name}={generation[name]!r}, but every question gets one answer, as text. Leave it "
                "out, or call model.generate under compress()."
            )


def _opened(image: Image.Image | str | Path) -> Image.Image:
    return image.convert("RGB") if isinstance(image, Image.Image) else open_image(image)


def _on_cpu(image: ImageTrace) -> ImageTrace:
    return replace(image, kept=image.kept.cpu(), source=image.source.cpu())


class _FirstToken(StoppingCriteria):
    """Stops nothing; notes when the first token was there."""

    def __init__(self) -> None:
        self.moment = float("nan")

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if math.isnan(self.moment):
            self.moment = _now()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
