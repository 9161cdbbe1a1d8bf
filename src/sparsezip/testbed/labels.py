"""What each patch of a scene shows, for the losses of the training and for the patches that bear an answer."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .drawing import mask
from .scenes import CHARS, FIELDS, PATCH, Scene, Text, Thing

SIGN = len(FIELDS)  # the line number of a sign's glyphs, after the fields of a form
Grid = NDArray[np.int64]


@dataclass(frozen=True)
class PatchLabels:
    """Arrays [rows, columns], -1 for none.

    thing: which thing of the scene shows: at least a fifth of the patch, or of the thing, or its centre, lies in it.
    center: which thing has its centre here. char: which of CHARS has its centre here. line, index: of which FIELDS'
    value (or the sign) this character is a part, and its place in it; a field's own name has neither.
    """

    thing: Grid
    center: Grid
    char: Grid
    line: Grid
    index: Grid


def patch_labels(scene: Scene) -> PatchLabels:
    """The labels of every patch."""
    empty = np.full((scene.rows, scene.columns), -1)
    labels = PatchLabels(*(empty.copy() for _ in range(5)))
    best = np.zeros(empty.shape)
    for i, thing in enumerate(scene.things):
        row, column, area = _coverage(thing)
        box = (slice(row, row + len(area)), slice(column, column + area.shape[1]))
        shown = (area >= min(PATCH * PATCH, area.sum()) / 5) & (area > best[box])
        labels.thing[box][shown], best[box][shown] = i, area[shown]
    for i, thing in enumerate(scene.things):  # after all coverage: a ring's centre shows nothing of it
        labels.center[thing.y // PATCH, thing.x // PATCH] = labels.thing[thing.y // PATCH, thing.x // PATCH] = i
    if scene.sign:
        _label(labels, scene.sign, SIGN, 0)
    for name, value, line in scene.form:
        _label(labels, line, FIELDS.index(name), len(line.text) - len(value))
    return labels


def _label(labels: PatchLabels, text: Text, line: int, first: int) -> None:
    for i, (char, row, column) in enumerate(glyph_patches(text)):
        if char in CHARS:
            labels.char[row, column] = CHARS.index(char)
            if i >= first:
                labels.line[row, column], labels.index[row, column] = line, i - first


def _coverage(thing: Thing) -> tuple[int, int, NDArray[np.float64]]:
    """First row, first column and the pixels that a thing covers in each patch from there."""
    r = thing.radius
    row, column = (thing.y - r) // PATCH, (thing.x - r) // PATCH
    rows, columns = (thing.y + r - 1) // PATCH + 1 - row, (thing.x + r - 1) // PATCH + 1 - column
    canvas = np.zeros((rows * PATCH, columns * PATCH))
    top, left = thing.y - r - row * PATCH, thing.x - r - column * PATCH
    canvas[top : top + 2 * r, left : left + 2 * r] = mask(thing.shape, r) / 255
    return row, column, canvas.reshape(rows, PATCH, columns, PATCH).sum((1, 3))


def glyph_patches(line: Text) -> list[tuple[str, int, int]]:
    """(character, patch row, patch column) of every glyph's centre."""
    row, half = (line.y + line.height // 2) // PATCH, line.height * 5 // 14
    return [(char, row, (line.x + line.pitch * i + half) // PATCH) for i, char in enumerate(line.text)]
