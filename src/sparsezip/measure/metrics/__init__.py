"""The metrics, one file each, with a named option per official scorer where they differ. Nothing here needs torch."""

from importlib import import_module
from types import ModuleType

__all__ = ["anls", "caption", "exact_match", "interval", "mme", "vqa", "yes_no"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
