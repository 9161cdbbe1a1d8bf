"""The benchmarks: one file each, named as on the command line. Nothing here needs torch."""

from ...registry import Registry
from .base import Benchmark

registry = Registry("sparsezip.measure.benchmarks", "benchmark")


def names() -> list[str]:
    """Every benchmark's name."""
    return registry.names()


def benchmark(name: str) -> Benchmark:
    """The benchmark of that name. Raises UnknownNameError with the nearest name."""
    made: Benchmark = registry.get(name)()
    return made
