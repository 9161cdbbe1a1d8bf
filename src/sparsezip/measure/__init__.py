"""What a researcher runs: benchmarks, metrics, runs that can be killed and resumed, and reports of them."""

from importlib import import_module
from types import ModuleType

__all__ = ["benchmarks", "evaluate", "latency", "metrics", "records", "report", "runners", "store"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
