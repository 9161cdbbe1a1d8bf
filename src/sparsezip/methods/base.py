"""What a compression method must offer. A method is one file of this folder; its name is the file's name.

It knows tensors only: it sees one tower pass (`Captures`), maybe a question, and says what is sent (`Compressed`).
It never imports transformers and never another method.
"""

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ..errors import BudgetError, SettingError, UnknownNameError, UnsupportedModelError
from ..registry import nearest
from ..tensors import Captures, Compressed, Question

Questions = list[Question | None]
_FINITE = ConfigDict(allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A frozen group of settings that checks its values; a mapping given for a nested group overrides it in part.

    Raises SettingError for a value of the wrong type or outside its range, UnknownNameError for an unknown nested key.
    """

    def __post_init__(self) -> None:
        _check(self, type(self).__name__)


def _check(group: Any, title: str) -> None:
    """Every value fits its annotation; mappings become the groups they stand for."""
    hints = typing.get_type_hints(type(group), include_extras=True)
    for field in fields(group):
        value, hint = getattr(group, field.name), hints[field.name]
        where = f"{title}: {field.name}"
        if isinstance(hint, type) and is_dataclass(hint):
            if isinstance(value, Mapping):
                value = _group(hint, value, where)
                object.__setattr__(group, field.name, value)
            elif not isinstance(value, hint):
                raise SettingError(f"{where} = {value!r}. Give a mapping of its settings.")
            _check(value, where)
            continue
        try:
            TypeAdapter(hint, config=_FINITE).validate_python(value, strict=True)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise SettingError(f"{where} = {value!r}. {message.replace('Input', 'It', 1)}.") from None


def _group(kind: type, given: Mapping[str, Any], where: str) -> Any:
    known = [field.name for field in fields(kind)]
    for key in given:
        if key not in known:
            raise UnknownNameError(f'{where} has no setting "{key}".{nearest(key, known)} Known: {", ".join(known)}.')
    return kind(**given)


@dataclass(frozen=True, kw_only=True)
class Method(Settings):
    """A training-free way to send fewer visual tokens; the fields are the settings and their defaults the paper's.

    `budget` counts EVERY token sent for an image (CLS and merged ones included); `keep_ratio` says it as a share of the
    patches. All patches or more means the unmodified model: every patch, bit for bit. `paper=True` reproduces the
    published formulas, defaults and quirks; the default corrects what the file's header lists under Differs.

    Raises BudgetError for a budget below one token, SettingError for budget and keep_ratio together.
    """

    name: ClassVar[str]
    takes_budget: ClassVar[bool] = True  # False: the method cannot be told how many tokens to send

    budget: int | None = None
    keep_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    paper: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
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
