"""Pixels of scenes, by integers and by fractions that round alike everywhere: one image of a scene on all machines."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .scenes import PATCH, SIGN_MARGIN, Scene, Text

# A 5 x 7 bitmap font: five columns a glyph, the lowest bit at the top.
_COLUMNS = {
    "0": "3E5149453E", "1": "00427F4000", "2": "4261514946", "3": "2141454B31", "4": "1814127F10", "5": "2745454539",
    "6": "3C4A494930", "7": "0171090503", "8": "3649494936", "9": "064949291E", "A": "7E1111117E", "B": "7F49494936",
    "C": "3E41414122", "D": "7F4141221C", "E": "7F49494941", "F": "7F09090901", "G": "3E4149497A", "H": "7F0808087F",
    "I": "00417F4100", "J": "2040413F01", "K": "7F08142241", "L": "7F40404040", "M": "7F020C027F", "N": "7F0408107F",
    "O": "3E4141413E", "P": "7F09090906", "Q": "3E4151215E", "R": "7F09192946", "S": "4649494931", "T": "01017F0101",
    "U": "3F4040403F", "V": "1F2040201F", "W": "3F4038403F", "X": "6314081463", "Y": "0708700807", "Z": "6151494543",
    ":": "0036360000", " ": "0000000000",
}  # fmt: skip

Pixels = NDArray[np.uint8]
Plane = NDArray[np.float64]


def draw(scene: Scene) -> Pixels:
    """The scene's pixels, [height, width, 3] uint8."""
    height, width = scene.height, scene.width
    red, green, blue, across, down, texture, ox, oy = scene.ground
    slope_across, slope_down = np.arange(width) * 2 // PATCH * across, np.arange(height) * 2 // PATCH * down
    shade = slope_across[None, :] + slope_down[:, None] + _textures()[texture][oy : oy + height, ox : ox + width]
    if scene.form:  # paper: nearly white, almost plain
        image = np.clip(np.full(3, 236) + shade[..., None] // 6, 0, 255).astype(np.uint8)
    else:
        image = np.clip(np.array([red, green, blue]) + shade[..., None], 0, 255).astype(np.uint8)
    for x, y, w, h, *rgb in scene.clutter:
        image[y : y + h, x : x + w] = rgb
    for kind, x, y, radius, *rgb in scene.distractors:
        box = image[y - radius : y + radius, x - radius : x + radius]
        _blend(box, mask("circle", radius), np.where(_pattern(kind, radius)[..., None], rgb[:3], rgb[3:]))
    for thing in scene.things:
        r = thing.radius
        _blend(image[thing.y - r : thing.y + r, thing.x - r : thing.x + r], mask(thing.shape, r), np.array(thing.rgb))
    if scene.sign:
        s, m = scene.sign, SIGN_MARGIN
        image[s.y - m : s.y + s.height + m, s.x - m : s.x + s.width + m] = 250
        _write(image, s)
    for _, _, line in scene.form:
        _write(image, line)
    return image


def _blend(box: Pixels, alpha: Pixels, color: NDArray[np.int64]) -> None:
    a = alpha[..., None].astype(np.int32)
    box[:] = (box * (255 - a) + color * a + 127) // 255


def _write(image: Pixels, line: Text) -> None:
    for i, char in enumerate(line.text):
        glyph, x = _glyph(char, line.height), line.x + line.pitch * i
        image[line.y : line.y + line.height, x : x + glyph.shape[1]][glyph] = 20


@cache
def _glyph(char: str, height: int) -> NDArray[np.bool_]:
    columns = np.frombuffer(bytes.fromhex(_COLUMNS[char]), np.uint8)
    small = (columns[None, :] >> np.arange(7)[:, None] & 1).astype(bool)
    width = height * 5 // 7
    return small[np.arange(height) * 7 // height][:, np.arange(width) * 5 // width]


@cache
def _textures() -> list[NDArray[np.int64]]:
    """Four grounds of 512 x 512 offsets around zero: fine grain, blotches, stripes, weave."""
    grain = np.random.RandomState(7).randint(-10, 11, (512, 512))  # RandomState's stream is frozen for good
    blotches = np.repeat(np.repeat(np.random.RandomState(8).randint(-9, 10, (64, 64)), 8, 0), 8, 1)
    line = np.arange(512)
    stripes = np.broadcast_to((line // 6 % 2 * 10 - 5)[None, :], (512, 512))
    weave = (line[:, None] // 9 + line[None, :] // 9) % 2 * 8 - 4
    return [grain, blotches + grain // 4, stripes + grain // 3, weave + grain // 3]


@cache
def mask(shape: str, radius: int) -> Pixels:
    """Coverage 0..255 of a shape in its box of [2 radius, 2 radius] pixels, from 4 x 4 samples a pixel."""
    n = 8 * radius
    axis = (np.arange(n) * 2 + 1 - n) / n
    x, y = np.meshgrid(axis, -axis)
    inside = _inside(shape, x, y)
    return (inside.reshape(2 * radius, 4, 2 * radius, 4).sum((1, 3)) * 255 // 16).astype(np.uint8)


def _inside(shape: str, x: Plane, y: Plane) -> NDArray[np.bool_]:
    square = x * x + y * y
    if shape == "circle":
        return square < 0.9
    if shape == "ring":
        return (square < 0.9) & (square > 0.3)
    if shape == "moon":
        return (square < 0.9) & ((x - 0.45) ** 2 + (y - 0.15) ** 2 > 0.56)
    if shape == "square":
        return (abs(x) < 0.82) & (abs(y) < 0.82)
    if shape == "cross":
        return (abs(x) < 0.3) & (abs(y) < 0.95) | (abs(y) < 0.3) & (abs(x) < 0.95)
    if shape == "heart":
        lobes = (abs(x) - 0.44) ** 2 + (y - 0.32) ** 2 < 0.25
        return lobes | _polygon(((-0.87, 0.07), (0.0, 0.5), (0.87, 0.07), (0.0, -0.95)), x, y)
    if shape == "triangle":
        return _polygon(((0.0, 0.95), (0.98, -0.8), (-0.98, -0.8)), x, y)
    outer = ((0.0, 1.0), (0.951, 0.309), (0.588, -0.809), (-0.588, -0.809), (-0.951, 0.309))
    inner = ((0.235, 0.324), (0.38, -0.124), (0.0, -0.4), (-0.38, -0.124), (-0.235, 0.324))
    return _polygon([point for pair in zip(outer, inner, strict=True) for point in pair], x, y)  # star


def _polygon(points: Sequence[tuple[float, float]], x: Plane, y: Plane) -> NDArray[np.bool_]:
    """Even-odd rule."""
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    return inside


@cache
def _pattern(kind: int, radius: int) -> NDArray[np.bool_]:
    """Which of a distractor's two colours a pixel has: stripes, checks or a target."""
    line = np.arange(2 * radius)
    if kind == 0:
        return np.broadcast_to(line // 5 % 2 == 0, (2 * radius, 2 * radius))
    if kind == 1:
        return (line[:, None] // 7 + line[None, :] // 7) % 2 == 0
    far = (line[:, None] - radius) ** 2 + (line[None, :] - radius) ** 2
    return far * 9 // (radius * radius) % 2 == 0
