"""A picture of what a method sends: kept patches, the patches merged into each token, and what is dropped."""

import colorsys
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

CELL = 24  # pixels per patch
GOLDEN = 0.618034  # steps of this share of the colour circle keep neighbours in number apart in hue


def draw(image: Image.Image, kept: Iterable[Any], source: Iterable[Any], grid: tuple[int, int]) -> Image.Image:
    """`image` with its patches marked and a line below that counts them; arguments and errors as for `marked`."""
    drawn, counts = marked(image, kept, source, grid)
    return _captioned(drawn, counts)


def marked(
    image: Image.Image, kept: Iterable[Any], source: Iterable[Any], grid: tuple[int, int]
) -> tuple[Image.Image, str]:
    """`image` with its patches marked: kept ones as they are, merged ones tinted by their token, dropped ones dark.

    The text counts them.

    kept: indices of the patches sent on their own. source: for each patch the token that holds it, -1 for none. grid:
    (rows, columns) of patches. A frame in a token's tint marks a kept patch that others are merged into.
    The image is cropped around its centre to the shape of the grid, as CLIP's preprocessing crops it.
    Raises ValueError when `source` does not cover the grid.
    """
    rows, columns = grid
    own = {int(patch) for patch in kept}
    tokens = [int(token) for token in source]
    if len(tokens) != rows * columns:
        raise ValueError(f"source has {len(tokens)} patches, but the grid has {rows} x {columns}.")
    merged = {token for patch, token in enumerate(tokens) if token >= 0 and patch not in own}
    pixels = np.asarray(ImageOps.fit(image.convert("RGB"), (columns * CELL, rows * CELL)), dtype=np.float32)
    cells = pixels.reshape(rows, CELL, columns, CELL, 3).copy()
    for patch, token in enumerate(tokens):
        cell = cells[patch // columns, :, patch % columns]
        if patch not in own:
            grey = cell.mean(-1, keepdims=True)
            cell[:] = 0.25 * grey if token < 0 else 0.45 * grey + 0.55 * _tint(token)
        elif token in merged:
            framed = cell[2:-2, 2:-2].copy()
            cell[:] = _tint(token)
            cell[2:-2, 2:-2] = framed
    drawn = Image.fromarray(cells.reshape(pixels.shape).astype(np.uint8))
    dropped = sum(token < 0 for patch, token in enumerate(tokens) if patch not in own)
    gone = len(tokens) - len(own) - dropped
    return (
        drawn,
        f"{len(own)} patches kept, {gone} merged into {len(merged)} tokens (by tint), {dropped} dropped (dark)",
    )


def _tint(token: int) -> Any:
    return 255 * np.array(colorsys.hsv_to_rgb(token * GOLDEN % 1, 0.75, 1.0), dtype=np.float32)


def _captioned(drawn: Image.Image, text: str) -> Image.Image:
    """`drawn` with one line of text below it."""
    sheet = Image.new("RGB", (drawn.width, drawn.height + CELL), "white")
    sheet.paste(drawn)
    ImageDraw.Draw(sheet).text((4, drawn.height + 5), text, fill="black")
    return sheet
