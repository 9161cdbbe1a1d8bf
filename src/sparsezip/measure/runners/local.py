"""Answer in this process, one cell after the other."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from ..records import Row

Cell = TypeVar("Cell")


def run(cells: Iterable[Cell], answer: Callable[[Cell], list[Row]]) -> Iterator[list[Row]]:
    """The rows of each cell, in the order of `cells`."""
    return map(answer, cells)
