"""The benchmarks: one file each, named as on the command line. Nothing here needs torch."""

from pathlib import Path

from ...errors import UsageError
from ...registry import Registry, from_file
from .base import Benchmark

registry = Registry("sparsezip.measure.benchmarks", "benchmark")


def names() -> list[str]:
    """Every benchmark's name."""
    return registry.names()


def benchmark(spec: str) -> Benchmark:
    """The benchmark of that name, or the one in a user's own file, named by its path: "my_bench.py".

    Raises UnknownNameError with the nearest name, UsageError for a file without exactly one benchmark that is whole.
    """
    if not spec.endswith(".py"):
        made: Benchmark = registry.get(spec)()
        return made
    module = from_file(spec)
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Benchmark) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        listed = ", ".join(sorted(value.__name__ for value in found)) or "none"
        raise UsageError(f"{spec} has to hold one class that derives from Benchmark, but holds {listed}.")
    lacking = [key for key in ("title", "columns", "headline") if not hasattr(found[0], key)]
    lacking += sorted(found[0].__abstractmethods__)
    if lacking:
        raise UsageError(f"{spec}: {found[0].__name__} lacks {', '.join(lacking)}.")
    if not hasattr(found[0], "name"):
        found[0].name = Path(spec).stem
    own: Benchmark = found[0]()
    return own
