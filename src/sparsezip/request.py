"""What a command is asked for, checked before a model is opened: methods with their settings, benchmarks' groups."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any

from . import config, strict_yaml
from . import methods as registered
from .config import Document, Settings
from .errors import ConfigError, UsageError
from .registry import nearest

SETTING = re.compile(r"\w+(?:: ([\w: ]+) = | got (\w+)=)")  # the one that a method's message is about


def method(document: Document, settings: Settings, default: Sequence[int]) -> Any:
    """The one method of a command that takes one."""
    one(document, "model_type", "method", settings.model.model_type)
    one(document, "budget", "budget", settings.model.budget)
    _, (chosen, *more) = methods(document, settings, default)
    if more:
        raise ConfigError(f"This command takes one value of every setting of {chosen.name}; a sweep is for eval.")
    return chosen


def one(document: Document, key: str, noun: str, values: Sequence[object]) -> None:
    """Raise ConfigError for several `values` of a key of section "model" where a command takes one."""
    if len(values) > 1:
        raise ConfigError(
            f"{document.origin(('model', key))}: this command takes one {noun}, not {', '.join(map(str, values))}."
        )


def methods(
    document: Document, settings: Settings, default: Sequence[int], inside: bool = False
) -> tuple[dict[str, dict[str, Any]], list[Any]]:
    """The methods that run, each at all its settings and budgets, and by name the settings that say this in a file.

    `default`: the budgets where nothing says how many tokens are sent. `inside`: of methods inside the LLM, too; there
    it depends on the LLM's depth what can be met.
    """
    names, chosen_by = settings.model.model_type, document.origin(("model", "model_type"))
    with _at(chosen_by):
        kinds = [type(registered.method(name)) for name in names]
    for name in settings.model.settings:
        where = document.origin(("model", name))
        if name not in (*registered.registry.names(), *names):
            hint = nearest(name, [*config.Model.model_fields, *registered.registry.names()])
            raise ConfigError(f'{where}: "{name}" is neither a key of section "model" nor a method.{hint}')
        if name not in (*names, *settings.parts) and chosen_by != "--method":
            raise ConfigError(f"{where}: settings of {name}, but what runs is {', '.join(names)}.")
    for key in ("budget", "keep_ratio"):
        if getattr(settings.model, key) and not any(kind.takes_budget for kind in kinds):
            raise ConfigError(f"{document.origin(('model', key))}: {', '.join(names)} takes no budget.")
    asked, made = {}, []
    for name in names:
        given = settings.of(name)
        plain = [_built(document, settings, name, point) for point in _points(given, document.origin(("model", name)))]
        sized = [one for each in plain for one in _sized(settings, each, default, inside)]
        made += sized
        told = registered.settings(sized[0] if len(sized) == 1 else plain[0])
        asked[name] = told if len(plain) == 1 else config.over(told, given)
    return asked, made


def _points(given: dict[str, Any], origin: str) -> Iterator[dict[str, Any]]:
    """The settings that are `given`, once for every combination where some have several values by comma."""
    ways: list[Iterable[Any]] = []
    for value in given.values():
        if isinstance(value, dict):
            ways.append(_points(value, origin))
        elif isinstance(value, str) and "," in value:
            ways.append([strict_yaml.parse(part, origin, {}) for part in value.split(",")])
        else:
            ways.append([value])
    return (dict(zip(given, point, strict=True)) for point in product(*ways))


def _built(document: Document, settings: Settings, name: str, given: dict[str, Any]) -> Any:
    """A method with the settings that are `given`, checked; of a pair first the one, then the other."""
    known = registered.settings(registered.method(name))
    document.check(("model", name), known, name)
    sections = [(known, given)]
    for part in config.parts(name) if "|" in name else []:
        if isinstance(given[part], dict):
            _built(document, settings, part, given[part])
        sections.append((known[part], given[part]))
    usual = {"seed": settings.runner.seed, "match": settings.model.match}
    for known, section in sections:
        for key, value in usual.items() if isinstance(section, dict) else ():
            if key in known and value is not None:
                section.setdefault(key, value)
    try:
        return registered.method(name, **given)
    except UsageError as error:
        named = SETTING.match(str(error))
        setting = tuple((named[1] or named[2]).split(": ")) if named else ()
        raise ConfigError(f"{document.origin_of(name, setting)}: {error}") from error


def _sized(settings: Settings, plain: Any, default: Sequence[int], inside: bool) -> list[Any]:
    """The method at every budget that is asked for, unless its own settings name one."""
    from .methods.base import LayerMethod

    both = {part.name: part for part in (plain, *plain.parts) if part is not None}.values()
    if not plain.takes_budget or any((part.budget, part.keep_ratio) != (None, None) for part in both):
        return [plain]
    if settings.model.keep_ratio is not None:
        return [replace(plain, keep_ratio=settings.model.keep_ratio)]
    given = settings.of(plain.name)
    if (isinstance(plain, LayerMethod) and not inside) or any(
        part.sizing & _named(given.get(part.name, given)) for part in both
    ):
        default = ()
    budgets: list[Any] = [*settings.model.budget] or [*default] or [None]
    return [replace(plain, budget=budget) for budget in budgets]


def _named(given: dict[str, Any], section: str = "") -> set[str]:
    """The settings that are given: "merging.contextual_num" is one inside a section."""
    names = set()
    for key, value in given.items():
        names |= {section + key} | (_named(value, f"{section}{key}.") if isinstance(value, dict) else set())
    return names


def groups(document: Document, settings: Settings) -> dict[str, list[str]]:
    """The benchmarks that run, each with the groups it is limited to.

    That they can be worded and scored here is checked now, before gigabytes are fetched for them.
    """
    from .measure.benchmarks import benchmark

    names, prompt = settings.runner.dataset, settings.runner.prompt
    for name in names:
        with _at(document.origin(("runner", "dataset"))):
            made = benchmark(name)
            made.ready()
        if prompt is not None:
            with _at(document.origin(("runner", "prompt"))):
                made.longest_answer(prompt)
    groups: dict[str, list[str]] = {name: [] for name in names}
    for wanted in settings.runner.only:
        name, _, group = wanted.rpartition(".")
        name = name or (names[0] if len(names) == 1 else "")
        if name not in names:
            raise ConfigError(
                f"{document.origin(('runner', 'only'))}: {wanted} is no group of {', '.join(names)}. "
                f"Write BENCHMARK.GROUP, as in {names[0]}.{group}."
            )
        groups[name].append(group)
    return groups


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Say where the request that cannot be met was made."""
    try:
        yield
    except UsageError as error:
        raise ConfigError(f"{place}: {error}") from error
