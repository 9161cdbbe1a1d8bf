"""What a compression method must offer. A method is one file of this folder; its name is the file's name.

It knows tensors only, and never imports transformers or another method. There are two kinds. A `Method` sees one tower
pass (`Captures`), maybe a question, and says what is sent to the LLM (`Compressed`). A `LayerMethod` lets everything
in, sees the tokens behind some of the LLM's layers (`LayerView`) and says which of them go on (`Kept`). One of each
make a pair: `VisionZip(budget=128) | FastV(budget=64)`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from inspect import get_annotations
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from ..errors import BudgetError, SettingError, UnknownNameError, UnsupportedModelError
from ..ops.budget import schedule
from ..registry import nearest
from ..tensors import Captures, Compressed, Decoder, Kept, LayerView, Question

Questions = list[Question | None]
Match = Literal["mean_tokens_per_layer", "tokens", "flops"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A training-free way to send fewer visual tokens; the fields are the settings and their defaults the paper's.

    `budget` counts EVERY token sent for an image (CLS and merged ones included); `keep_ratio` says it as a share of the
    patches. All patches or more means the unmodified model: every patch, bit for bit. Where tokens are dropped inside
    the LLM, `match` says what the budget is the measure of: the mean number of visual tokens that its layers process,
    the tokens left behind the last drop, or the prefill's FLOPs (as many as with `budget` tokens in every layer). For
    tokens that are sent once and for all these are the same. `budget_scope`: whether the budget is one for each image,
    for all images of a prompt together, or for each tile of a tiled image and each frame of a video. `saliency`: what
    speaks for the whole image where a method reads CLS, the tower's CLS token or all its patches ("received": the mean
    attention that a patch receives, for towers without CLS). `positions`: whether the LLM counts what is sent anew, or
    each token keeps the position of its patch. `paper=True` reproduces the published formulas, defaults
    and quirks; the default corrects what the file's header lists under Differs. Groups of settings are dataclasses
    too; a mapping given for one overrides it in part.

    Raises SettingError for a value of the wrong type or out of range and for budget and keep_ratio together,
    BudgetError for a budget below one token, UnknownNameError for an unknown setting inside a group.
    """

    name: ClassVar[str]
    __no_type_check__: ClassVar[bool] = True  # settings are checked below, with errors made for users
    takes_budget: ClassVar[bool] = True  # False: the method cannot be told how many tokens to send
    blends: ClassVar[bool] = False  # True: kept patches take in others, so their features are not sent as they were
    sizing: ClassVar[frozenset[str]] = frozenset()  # its own settings that say how many tokens, as "merging.size"

    budget: int | None = None
    keep_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    match: Match = "mean_tokens_per_layer"
    budget_scope: Literal["image", "prompt", "tile"] = "image"
    saliency: Literal["cls", "received"] = "cls"
    positions: Literal["compact", "original"] = "compact"
    paper: bool = False

    def __post_init__(self) -> None:
        for name, value in _checked(type(self), vars(self), self._title).items():
            object.__setattr__(self, name, value)
        if self.budget is not None and self.keep_ratio is not None:
            raise SettingError(
                f"{self._title} got both budget={self.budget} and keep_ratio={self.keep_ratio}. Give one of them."
            )
        if self.budget is not None and self.budget < 1:
            raise BudgetError(f"{self._title} got budget={self.budget}, but an image needs at least one token.")

    @property
    def _title(self) -> str:
        return type(self).__name__

    # -- what a method offers ------------------------------------------------------------------------------------

    @property
    def needs(self) -> frozenset[str]:
        """What it reads besides the features: names of optional fields of Captures, and "question"."""
        return frozenset()

    @property
    def uses(self) -> frozenset[str]:
        """What it reads where there is such a thing: further names as in `needs`."""
        return frozenset()

    def resized(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The grid (rows, cols) that the tower is run at, for a method that scales the image down."""
        return grid

    @property
    def low_layer(self) -> float:
        """Where in the tower its `low_attention` is from, as a share of the depth; 0 is the first layer."""
        return 0.0

    def tokens(self, patches: int) -> int:
        """The number of tokens these settings ask for (the least, where the image decides): the budget, or 64."""
        return self.asked(patches) or 64

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Send fewer tokens than patches. The answer for one image must not depend on the others."""
        raise NotImplementedError  # not abstract: methods inside the LLM, and pairs, have none

    # -- what every method has -----------------------------------------------------------------------------------

    def compress(self, captures: Captures, question: Question | Sequence[Question | None] | None = None) -> Compressed:
        """What is sent to the LLM in place of the patches. `question`: one for all images, or one per image.

        Raises BudgetError when more is asked for than the image has, UnsupportedModelError when the captures lack
        something in `needs`, SettingError when the questions do not match the images.
        """
        self.check(captures.patches)
        if question is None or isinstance(question, Question):
            questions: Questions = [question] * captures.images
        else:
            questions = list(question)
        if len(questions) != captures.images:
            raise SettingError(f"{len(questions)} questions for {captures.images} images. Give one per image, or one.")
        if self.sends_everything(captures.patches):
            return Compressed.everything(captures)
        lacking = self.needs - captures.delivered - {"question"}
        if lacking:
            raise UnsupportedModelError(
                f"{self._title} needs {', '.join(sorted(lacking))}, which this vision tower does not deliver."
            )
        return self.reduce(captures, questions)

    def check(self, patches: int) -> None:
        """Raise BudgetError if these settings cannot be met on an image of `patches` patches."""

    def sends_everything(self, patches: int) -> bool:
        """Whether an image of `patches` patches is sent unchanged."""
        asked = self.asked(patches)
        return asked >= patches if asked is not None else not self.paper and self.tokens(patches) >= patches

    def asked(self, patches: int) -> int | None:
        """Tokens that `budget` or `keep_ratio` grant an image of `patches` patches; None if neither is set."""
        return self.budget if self.keep_ratio is None else max(1, round(self.keep_ratio * patches))

    @property
    def parts(self) -> tuple["Method", "LayerMethod | None"]:
        """What is done in front of the LLM and what inside it."""
        return self, None

    def __or__(self, inner: "LayerMethod") -> "Pair":
        """The pair of this method, in front of the LLM, and `inner`, inside it."""
        return Pair(outer=self, inner=inner)


@dataclass(frozen=True, kw_only=True)
class LayerMethod(Method, ABC):
    """A method inside the LLM: every patch is sent, and dropped behind some of the layers, in the prefill.

    Without a budget the settings say how many tokens each drop leaves. With one, `match` says what has to equal it; the
    result is at most the budget and less than one token below it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _of_images(self)

    looks_ahead: ClassVar[bool] = False  # True: the view's q and k are those of the layer to come
    adapts: ClassVar[bool] = False  # True: an image's view at stage 0 settles how its budget is spent

    # -- what a method inside the LLM offers ---------------------------------------------------------------------

    @abstractmethod
    def after(self, layers: int) -> list[int]:
        """The layers (counted from 0) behind which tokens are dropped, in an LLM of `layers` layers. Ascending."""

    def left(self, share: float, visual: int, stages: int) -> list[float]:
        """How many of `visual` tokens each drop leaves; from nearly none at share 0 to all at 1, never falling."""
        return [visual * share] * stages

    @abstractmethod
    def drop(self, view: LayerView) -> Kept:
        """What goes on of a view of ONE row; with `view.count`, exactly that many tokens."""

    def settled(self, view: LayerView) -> "LayerMethod":
        """The method whose plan an image gets instead, its view at stage 0 (ONE row) being this; the budget stays."""
        return self

    @property
    def compact(self) -> bool:
        """Whether the tokens behind a drop are counted anew. Otherwise each keeps the position it had."""
        return False

    # -- what every such method has ------------------------------------------------------------------------------

    def _placed(self, asked: Sequence[int] | None, of_32: Sequence[int], layers: int) -> dict[int, int]:
        """The layers behind which tokens are dropped, each with its number in the list it comes from.

        Both lists name the first layers that see fewer tokens: `asked` by the user or, if None, the paper's `of_32`,
        scaled unless `paper`; of two that fall together the later one counts. Raises SettingError for one that is not
        there.
        """
        chosen = asked or (of_32 if self.paper else [depth for layer in of_32 for depth in at_depth([layer], layers)])
        for layer in chosen:
            if not 0 < layer < layers:
                raise SettingError(
                    f"{self._title} drops tokens between the layers {layer - 1} and {layer}, but this LLM's {layers} "
                    f"layers are 0 to {layers - 1}. Name layers that it has or, without paper=True, none: then the "
                    "paper's are scaled to its depth."
                )
        return {layer - 1: number for number, layer in enumerate(chosen)}

    def _at(self, values: Sequence[Any], stage: int) -> Any:
        """What the settings name for drop number `stage`. Raises SettingError where they name fewer."""
        if stage >= len(values):
            raise SettingError(f"{self._title} names {values} for its drops, but this is number {stage + 1}.")
        return values[stage]

    def keep(self, view: LayerView) -> Kept:
        """What goes on of each row of the view; the answer for one row does not depend on the others.

        A budget becomes `view.count` where the LLM's depth is known. Where it is not, a method that drops once leaves
        the budget itself; raises SettingError for one that drops several times.
        """
        if view.count is None and (self.budget, self.keep_ratio) != (None, None):
            if len(self.after(32)) > 1:
                raise SettingError(
                    f"{self._title} drops tokens several times, so what a budget leaves each time depends on the LLM. "
                    "Give view.count, or no budget."
                )
            view = replace(view, count=min(self.asked(len(embeds)) or 1 for embeds in view.first_embeds))
        rows = [self.drop(view.row(row)) for row in range(view.rows)]

        def column(name: str) -> Any:
            values = [getattr(row, name) for row in rows]
            return None if values[0] is None else [value for (value,) in values]

        return Kept(**{field.name: column(field.name) for field in fields(Kept)})

    def plan(self, visual: int, llm: Decoder) -> list[int] | None:
        """The tokens that each drop leaves of `visual` ones, where a budget is set; None where the settings say.

        Raises BudgetError for a budget that cannot be met.
        """
        asked, stages = self.asked(visual), self.after(llm.layers)
        if asked is None:
            return None
        if asked >= visual:
            return [visual] * len(stages)
        return schedule(
            self._title,
            lambda share: self.left(share, visual, len(stages)),
            stages,
            asked,
            self.match,
            visual,
            llm,
            self.looks_ahead,
        )

    def tokens(self, patches: int) -> int:
        """All of them enter the LLM."""
        return patches

    def sends_everything(self, patches: int) -> bool:
        """Always."""
        return True

    @property
    def parts(self) -> tuple[Method, "LayerMethod | None"]:
        """Nothing is done in front of the LLM."""
        return self, self

    def __or__(self, inner: "LayerMethod") -> "Pair":
        """Raises SettingError: only one method works inside the LLM."""
        raise SettingError(f"{self._title} works inside the LLM, where there is room for one. Write it last.")


def _of_images(method: Method) -> None:
    """Raise SettingError where tokens are dropped inside the LLM by a budget of another scope."""
    if method.budget_scope != "image":
        raise SettingError(
            f'{method._title} got budget_scope="{method.budget_scope}", but inside the LLM a budget is for each image. '
            "Leave it out."
        )


def _ascending(layers: tuple[int, ...]) -> tuple[int, ...]:
    if list(layers) != sorted(set(layers)):
        raise PydanticCustomError("ascending", "Layers are named once each, in ascending order")
    return layers


Layers = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(_ascending)]


def at_depth(of_32: Sequence[int], layers: int) -> list[int]:
    """Layers that a paper chose for an LLM of 32, scaled to one of `layers`: at least one in front, none twice."""
    scaled = {min(max(1, round(layer * layers / 32)), layers - 1) for layer in of_32}
    return sorted(scaled)


@dataclass(frozen=True, kw_only=True)
class Pair(Method):
    """Two methods after each other: `outer` chooses what is sent to the LLM, `inner` drops some of that inside it.

    A budget of the pair is one for both: it is what `match` measures of the LLM's layers, and `outer` sends twice as
    many tokens (all where there are fewer). Without one the two keep their settings; a budget of the inner method
    counts what enters each layer, so it is the pair's as well.

    Raises SettingError for an inner method that does not work inside an LLM, an outer one that does, or a part with a
    budget other than its share of the pair's.
    """

    outer: Any
    inner: Any

    def __post_init__(self) -> None:
        outer, inner = self.outer, self.inner
        if not isinstance(inner, LayerMethod) or not isinstance(outer, Method) or outer.parts[1] is not None:
            names = " | ".join(str(getattr(part, "name", part)) for part in (outer, inner))
            raise SettingError(f"{names} is no pair. Write a method in front of the LLM, then one inside it.")
        super().__post_init__()
        _of_images(self)
        sent: dict[str, Any] = {}
        left: dict[str, Any] = {}
        if self.budget is not None:
            sent, left = {"budget": 2 * self.budget}, {"budget": self.budget}
        elif self.keep_ratio is not None:
            most = min(1.0, 2 * self.keep_ratio) if outer.takes_budget else 1.0
            sent, left = {"keep_ratio": most}, {"keep_ratio": self.keep_ratio / most}
        outer = _granted(outer, sent) if outer.takes_budget else outer
        inner = _granted(inner, left)
        if self.match != "mean_tokens_per_layer":
            inner = replace(inner, match=self.match)
        for name in ("budget_scope", "saliency", "positions"):
            if getattr(self, name) != getattr(Method, name):
                outer = replace(outer, **{name: getattr(self, name)})
        if self.paper:
            outer, inner = replace(outer, paper=True), replace(inner, paper=True)
        for name, value in (("outer", outer), ("inner", inner), ("name", f"{outer.name}|{inner.name}")):
            object.__setattr__(self, name, value)

    @property
    def parts(self) -> tuple[Method, LayerMethod | None]:
        """The two."""
        return self.outer, self.inner

    @property
    def needs(self) -> frozenset[str]:
        """What the outer one needs: the LLM has what the inner one reads."""
        needs: frozenset[str] = self.outer.needs
        return needs

    @property
    def uses(self) -> frozenset[str]:
        """What the outer one uses."""
        uses: frozenset[str] = self.outer.uses
        return uses

    def compress(self, captures: Captures, question: Question | Sequence[Question | None] | None = None) -> Compressed:
        """What the outer one sends to the LLM."""
        compressed: Compressed = self.outer.compress(captures, question)
        return compressed

    def keep(self, view: LayerView) -> Kept:
        """What the inner one lets go on inside the LLM."""
        kept: Kept = self.inner.keep(view)
        return kept

    def check(self, patches: int) -> None:
        """Raise BudgetError if the outer one cannot send what it is to send."""
        self.outer.check(patches)

    def tokens(self, patches: int) -> int:
        """What the outer one sends."""
        sent: int = patches if self.outer.sends_everything(patches) else self.outer.tokens(patches)
        return sent


def _granted(part: Any, share: dict[str, Any]) -> Any:
    """A part of a pair with its share of the pair's budget. Raises SettingError where it has another one."""
    own = {name: getattr(part, name) for name in ("budget", "keep_ratio") if getattr(part, name) is not None}
    if share and own and own != share:
        raise SettingError(
            f"The pair's budget gives {part.name} {share}, but it has {own}. Give the pair a budget, or its parts."
        )
    return replace(part, **share) if share else part


def _checked(kind: type, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The given settings of the dataclass `kind`, each checked against its annotation."""
    hints = {name: hint for base in kind.__mro__[::-1] for name, hint in get_annotations(base, eval_str=True).items()}
    known = [field.name for field in fields(kind)]
    for key in given:
        if key not in known:
            raise UnknownNameError(f'{where} has no setting "{key}".{nearest(key, known)} Known: {", ".join(known)}.')
    return {name: _value(hints[name], value, f"{where}: {name}") for name, value in given.items()}


def _value(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        value = vars(value) if isinstance(value, hint) else value
        if not isinstance(value, Mapping):
            raise SettingError(f"{where} = {value!r}. Give its settings by name.")
        return hint(**_checked(hint, value, where))
    value = tuple(value) if isinstance(value, list) else value  # YAML has no tuples
    try:
        return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False)).validate_python(value, strict=True)
    except ValidationError as error:
        message = error.errors()[0]["msg"].replace("Input", "It", 1)
        raise SettingError(f"{where} = {value!r}. {message}.") from None
