"""The methods: one file per paper. `methods.SparseZip` is the class, `method("sparsezip", ...)` builds one by name.

A pair of methods has a name too, "visionzip|fastv": what is done in front of the LLM, then what is done inside it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any

from ..errors import SettingError, UnknownNameError
from ..registry import Registry, nearest

registry = Registry("sparsezip.methods", "method")


def method(name: str, /, **settings: Any) -> Any:
    """Build the method registered as `name`, or the pair of two names with "|" between them, its settings checked.

    A pair has the settings that are common to all methods, and those of its two under their names:
    `method("visionzip|fastv", budget=64, fastv={"k": 3})`.

    Raises UnknownNameError for an unknown method or setting (with the nearest name), SettingError for a value the
    method cannot work with and for two methods that make no pair, BudgetError for a budget below one token.
    """
    names = parts(name)
    if len(names) > 1:
        return _pair(names, settings)
    kind = registry.get(name)
    _check(name, settings, [field.name for field in fields(kind)])
    return kind(**settings)


def parts(name: str) -> list[str]:
    """The names in the name of a pair, or the one name."""
    return [part.strip() for part in name.split("|")]


def settings(method: Any) -> dict[str, Any]:
    """Every setting of `method`, in plain values: `method(made.name, **settings(made))` builds it again."""
    plain = asdict(method)
    for role in ("outer", "inner"):
        if role in plain:
            plain[getattr(method, role).name] = plain.pop(role)
    return plain


def _pair(names: list[str], settings: dict[str, Any]) -> Any:
    from .base import LayerMethod, Pair  # only now: names can be listed without torch

    if "" in names:
        raise SettingError(f'"{"|".join(names)}" names one method. A pair has two, as visionzip|fastv.')
    inside = [issubclass(registry.get(name), LayerMethod) for name in names]
    if inside != [False, True]:
        raise SettingError(
            f'"{"|".join(names)}" is no pair. Write a method in front of the LLM, then one inside it, as in '
            "visionzip|fastv."
        )
    common = [field.name for field in fields(Pair) if field.name not in ("outer", "inner")]
    _check("|".join(names), settings, [*common, *names])
    outer, inner = (method(name, **_mapping(name, settings.pop(name, {}))) for name in names)
    return Pair(outer=outer, inner=inner, **settings)


def _mapping(name: str, given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise SettingError(f"{name} = {given!r}. Give its settings by name.")
    return given


def _check(name: str, settings: Iterable[str], known: list[str]) -> None:
    for setting in settings:
        if setting not in known:
            raise UnknownNameError(
                f'{name} has no setting "{setting}".{nearest(setting, known)} Settings: {", ".join(known)}.'
            )


def __getattr__(name: str) -> Any:
    """The class called `name`, its file imported only now."""
    for entry in registry.names():
        if entry.replace("_", "") == name.lower() and name != entry:
            return registry.get(entry)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
