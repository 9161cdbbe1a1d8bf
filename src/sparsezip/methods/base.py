"""What a compression method must offer. A method is one file of this folder; its name is the file's name.

It knows tensors only: it sees one tower pass (`Captures`), maybe a question, and says what is sent (`Compressed`).
It never imports transformers and never another method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from inspect import get_annotations
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..errors import BudgetError, SettingError, UnknownNameError, UnsupportedModelError
from ..registry import nearest
from ..tensors import Captures, Compressed, Question

Questions = list[Question | None]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A training-free way to send fewer visual tokens; the fields are the settings and their defaults the paper's.

    `budget` counts EVERY token sent for an image (CLS and merged ones included); `keep_ratio` says it as a share of the
    patches. All patches or more means the unmodified model: every patch, bit for bit. `paper=True` reproduces the
    published formulas, defaults and quirks; the default corrects what the file's header lists under Differs. Groups of
    settings are dataclasses too; a mapping given for one overrides it in part.

    Raises SettingError for a value of the wrong type or out of range and for budget and keep_ratio together,
    BudgetError for a budget below one token, UnknownNameError for an unknown setting inside a group.
    """

    name: ClassVar[str]
    __no_type_check__: ClassVar[bool] = True  # settings are checked below, with errors made for users
    takes_budget: ClassVar[bool] = True  # False: the method cannot be told how many tokens to send

    budget: int | None = None
    keep_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
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

    def tokens(self, patches: int) -> int:
        """The number of tokens these settings ask for (the least, where the image decides) for `patches` patches."""
        raise NotImplementedError

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Send fewer tokens than patches. The answer for one image must not depend on the others."""
        raise NotImplementedError

    # -- what every method has -----------------------------------------------------------------------------------

    def compress(self, captures: Captures, question: Question | Sequence[Question | None] | None = None) -> Compressed:
        """What is sent to the LLM in place of the patches. `question`: one for all images, or one per image.

        Raises BudgetError when more is asked for than the image has, UnsupportedModelError when the captures lack
        something in `needs`, SettingError when the questions do not match the images.
        """
        self.check(captures.patches)
        lacking = self.needs - captures.delivered - {"question"}
        if lacking:
            raise UnsupportedModelError(
                f"{self._title} needs {', '.join(sorted(lacking))}, which this vision tower does not deliver."
            )
        if question is None or isinstance(question, Question):
            questions: Questions = [question] * captures.images
        else:
            questions = list(question)
        if len(questions) != captures.images:
            raise SettingError(f"{len(questions)} questions for {captures.images} images. Give one per image, or one.")
        if self.sends_everything(captures.patches):
            return Compressed.everything(captures)
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
    try:
        TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False)).validate_python(value, strict=True)
    except ValidationError as error:
        message = error.errors()[0]["msg"].replace("Input", "It", 1)
        raise SettingError(f"{where} = {value!r}. {message}.") from None
    return value
