"""The methods: one file per paper. `methods.SparseZip` is the class, `method("sparsezip", ...)` builds one by name."""

from dataclasses import fields
from typing import Any

from ..errors import UnknownNameError
from ..registry import Registry, nearest

registry = Registry("sparsezip.methods", "method")


def method(name: str, /, **settings: Any) -> Any:
    """Build the method registered as `name`, its settings checked.

    Raises UnknownNameError for an unknown method or setting (with the nearest name), SettingError for a value the
    method cannot work with, BudgetError for a budget below one token.
    """
    kind = registry.get(name)
    known = [field.name for field in fields(kind)]
    for setting in settings:
        if setting not in known:
            raise UnknownNameError(
                f'{name} has no setting "{setting}".{nearest(setting, known)} Settings: {", ".join(known)}.'
            )
    return kind(**settings)


def __getattr__(name: str) -> Any:
    """The class called `name`, its file imported only now."""
    for entry in registry.names():
        if entry.replace("_", "") == name.lower() and name != entry:
            return registry.get(entry)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
