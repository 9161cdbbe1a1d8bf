"""Where the patches of an image went, as a short text: it stands in every row, so that a report can draw it later.

The text is base64 of zlib of: rows and columns, one bit per patch (kept or not), then the token that holds each patch.
Kept patches and the tokens that hold them both ascend, so a kept patch tells by how much its token is ahead of its
place among them, which is nearly always the same number.
"""

import base64
import zlib
from array import array
from collections.abc import Iterable
from typing import Any

MAX_PATCHES = 1 << 16  # of a text that nobody vouches for


def pack(kept: Iterable[Any], source: Iterable[Any], grid: tuple[int, int]) -> str:
    """The text for one image: under 1 kB for 576 patches.

    kept: ascending indices of the patches sent on their own. source: for each patch the token that holds it, -1 for
    none. grid: (rows, columns) of patches. Raises ValueError for a source that does not cover the grid.
    """
    rows, columns = grid
    own, tokens = {int(patch) for patch in kept}, [int(token) for token in source]
    if len(tokens) != rows * columns or not own <= set(range(len(tokens))):
        raise ValueError(
            f"{len(tokens)} patches, of which {len(own)} are kept, do not fit a grid of {rows} x {columns}."
        )
    flags = [patch in own for patch in range(len(tokens))]
    held = [token - ahead for token, ahead in zip(tokens, _places(flags), strict=True)]
    low, high = bytes(value & 255 for value in held), bytes(value >> 8 & 255 for value in held)
    bits = sum(flag << patch for patch, flag in enumerate(flags)).to_bytes((len(flags) + 7) // 8, "little")
    head = rows.to_bytes(2, "little") + columns.to_bytes(2, "little")
    return base64.b64encode(zlib.compress(head + bits + low + high, 9)).decode()


def unpack(text: str) -> tuple[list[int], list[int], tuple[int, int]]:
    """(kept, source, grid) of a text that `pack` made. Raises ValueError for any other."""
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(text, validate=True), 4 + 3 * MAX_PATCHES)
        complete = inflate.eof
    except (ValueError, zlib.error) as error:
        raise ValueError(f"The token map is damaged ({error}).") from None
    rows, columns = int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little")
    patches, end = rows * columns, 4 + (rows * columns + 7) // 8
    if not complete or len(data) != end + 2 * patches:
        raise ValueError(f"The token map is damaged ({rows} x {columns} patches in {len(data)} bytes).")
    bits = int.from_bytes(data[4:end], "little")
    flags = [bool(bits >> patch & 1) for patch in range(patches)]
    low, high = array("B", data[end : end + patches]), array("b", data[end + patches :])  # the high byte has the sign
    held = zip(low, high, _places(flags), strict=True)
    source = [lower + 256 * upper + ahead for lower, upper, ahead in held]
    return [patch for patch, flag in enumerate(flags) if flag], source, (rows, columns)


def _places(flags: Iterable[bool]) -> list[int]:
    """For a kept patch its place among the kept ones, 0 for others."""
    places, place = [], 0
    for flag in flags:
        places.append(place if flag else 0)
        place += flag
    return places
