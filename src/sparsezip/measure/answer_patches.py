"""Which patches bear an answer, where a data set says so, and how many of them a method kept.

A made data set knows where the answer shows. It then has a file answer_patches.jsonl in the folder of the benchmark,
with a line for each question whose answer shows somewhere:

    {"image": "7.png", "question": "what color is the star?", "grid": [24, 24], "patches": [100, 101, 124, 125]}

"image" and "question" are those of the annotation, without the words of a prompt preset (`Entry` in benchmarks/base.py
has them). "grid": rows and columns of equal cells over the whole image. "patches": the cells whose pixels bear the
answer, counted row by row from 0. A question without a line ("no" about what is not there, a caption) has none.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .annotations import image_of, json_lines, text_of
from .maps import MAX_PATCHES

FILE = "answer_patches.jsonl"


@dataclass(frozen=True)
class AnswerPatches:
    """The cells of a grid over the image that bear the answer."""

    grid: tuple[int, int]  # rows, columns
    cells: tuple[int, ...]  # counted row by row, at least one

    def recall(self, kept: Iterable[int], grid: tuple[int, int]) -> float:
        """The share of the cells, 0 to 1, whose centre lies in one of the patches `kept` of a model's own `grid`.

        kept: patches with a token of their own. Both grids have to cover the same image, so it is to be square where a
        model's processor crops. A centre on the edge of two patches counts for the lower or the right one.
        """
        own = set(kept)
        return sum(self._patch(cell, grid) in own for cell in self.cells) / len(self.cells)

    def _patch(self, cell: int, grid: tuple[int, int]) -> int:
        row, column = (
            (2 * at + 1) * patches // (2 * cells)
            for at, patches, cells in zip(divmod(cell, self.grid[1]), grid, self.grid, strict=True)
        )
        return row * grid[1] + column


def read(path: Path) -> dict[tuple[str, str], tuple[str, AnswerPatches]]:
    """By image and question: the place of the line, for messages, and what it says. Raises DataError."""
    found: dict[tuple[str, str], tuple[str, AnswerPatches]] = {}
    for place, row in json_lines(path):
        key = image_of(row, "image", place), text_of(row, "question", place)
        grid, cells = _numbers(row, "grid", place), _numbers(row, "patches", place)
        if len(grid) != 2 or min(grid) < 1 or grid[0] * grid[1] > MAX_PATCHES:
            raise DataError(f'{place} has a "grid" that is not rows and columns of at most {MAX_PATCHES:,} patches.')
        if min(cells) < 0 or max(cells) >= grid[0] * grid[1] or len(set(cells)) < len(cells):
            raise DataError(f'{place} has "patches" that are not different ones of its {grid[0]} x {grid[1]} grid.')
        said = AnswerPatches((grid[0], grid[1]), tuple(sorted(cells)))
        if found.setdefault(key, (place, said))[1] != said:
            raise DataError(f"{place} has other patches than {found[key][0]} for the same question on the same image.")
    return found


def _numbers(row: dict[str, Any], key: str, place: str) -> list[int]:
    values = row.get(key)
    if not isinstance(values, list) or not values or not all(type(value) is int for value in values):
        raise DataError(f'{place} has no "{key}" that lists whole numbers.')
    return values
