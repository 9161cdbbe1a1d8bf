"""Seeded scenes for the testbed: coloured shapes among clutter, salient distractors, signs and small forms.

A scene is data (what stands where); `draw` turns it into pixels with integer arithmetic only, so that one seed
gives the same image on every machine. Train and held-out scenes come from different seed strings and cannot overlap.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

PATCH = 14
GRID = 24
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "moon", "ring")
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (45, 80, 220),
    "yellow": (240, 215, 40),
    "purple": (150, 60, 190),
    "orange": (245, 140, 30),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
CHARS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
FIELDS = {
    "name": ("ANN", "BEN", "EVA", "IDA", "JON", "KIM", "LEO", "MAX", "PAM", "TOM"),
    "city": ("BERN", "CORK", "KIEV", "LIMA", "NICE", "OSLO", "RIGA", "ROME"),
    "date": ("MAY 4", "MAY 9", "JUN 2", "JUN 7", "JUL 3", "JUL 8"),
    "total": (),  # the rest are numbers of two to four digits
    "code": (),
    "room": (),
}

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


@dataclass(frozen=True)
class Thing:
    """A coloured shape that questions may ask about. Centre and radius in pixels."""

    shape: str
    color: str
    x: int
    y: int
    radius: int
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Text:
    """A line of glyphs, 5 x 7 cells of `scale` pixels; (x, y) is its top left corner in pixels."""

    text: str
    x: int
    y: int
    scale: int


@dataclass(frozen=True)
class Scene:
    """What stands where on a canvas of `grid` x `grid` patches of 14 px."""

    grid: int
    ground: tuple[int, ...]  # red, green, blue, slope across, slope down, texture, texture offset across, down
    things: tuple[Thing, ...] = ()
    distractors: tuple[tuple[int, ...], ...] = ()  # kind, x, y, radius, two colours
    clutter: tuple[tuple[int, ...], ...] = ()  # x, y, width, height, colour
    sign: Text | None = None
    form: tuple[tuple[str, str, Text], ...] = ()  # field, value, the printed line

    @property
    def size(self) -> int:
        """Side of the canvas in pixels."""
        return self.grid * PATCH


@dataclass(frozen=True)
class Difficulty:
    """The dial: how much stands in a scene. Ranges are inclusive."""

    objects: tuple[int, int] = (4, 8)
    radius: tuple[int, int] = (15, 22)
    distractors: tuple[int, int] = (1, 2)
    clutter: tuple[int, int] = (20, 60)
    sign: float = 0.25  # share of scenes with a sign
    form: float = 0.0  # share of scenes that are a form and nothing else
    glyphs: tuple[int, ...] = (3, 4)  # pixels per font cell: 21 and 28 px high
    lines: tuple[int, int] = field(default=(3, 5))


def make(split: str, seed: int | str, grid: int = GRID, difficulty: Difficulty | None = None) -> Scene:
    """The scene of that split ("train", "held-out", ...) and seed, on a canvas of `grid` x `grid` patches."""
    d, rng = difficulty or Difficulty(), random.Random(f"{split}/{seed}")
    base = rng.randint(95, 175)
    tint = [max(0, min(255, base + rng.randint(-18, 18))) for _ in range(3)]
    ground = (*tint, rng.randint(-1, 1), rng.randint(-1, 1), rng.randrange(4), rng.randrange(128), rng.randrange(128))
    if rng.random() < d.form:
        return Scene(grid, ground, form=_form(rng, grid, d))
    size = grid * PATCH
    taken: list[tuple[int, int, int, int]] = []  # x, y, half width, half height

    def place(half_width: int, half_height: int) -> tuple[int, int] | None:
        for _ in range(40):
            x, y = rng.randint(half_width, size - half_width), rng.randint(half_height, size - half_height)
            if all(abs(x - a) > half_width + w + 2 or abs(y - b) > half_height + h + 2 for a, b, w, h in taken):
                taken.append((x, y, half_width, half_height))
                return x, y
        return None

    sign = None
    if rng.random() < d.sign:
        text = "".join(rng.choice(CHARS) for _ in range(rng.randint(3, 5)))
        scale = rng.choice(d.glyphs)
        width, height = 6 * scale * len(text) - scale, 7 * scale
        if width + 12 <= size and (spot := place(width // 2 + 6, height // 2 + 6)):
            sign = Text(text, spot[0] - width // 2, spot[1] - height // 2, scale)
    things = []
    for _ in range(rng.randint(*d.objects)):
        radius = rng.randint(*d.radius)
        if spot := place(radius, radius):
            color = rng.choice(list(COLORS))
            rgb = tuple(max(0, min(255, c + rng.randint(-12, 12))) for c in COLORS[color])
            things.append(Thing(rng.choice(SHAPES), color, *spot, radius, rgb))  # type: ignore[arg-type]  # three values
    distractors = []
    for _ in range(rng.randint(*d.distractors)):
        radius = rng.randint(14, 24)
        if spot := place(radius, radius):
            two = rng.sample(list(COLORS.values()), 2)
            distractors.append((rng.randrange(3), *spot, radius, *two[0], *two[1]))
    clutter = []
    for _ in range(rng.randint(*d.clutter) * grid * grid // (GRID * GRID)):
        clutter.append((rng.randrange(size), rng.randrange(size), rng.randint(1, 5), rng.randint(1, 5), *_color(rng)))
    return Scene(grid, ground, tuple(things), tuple(distractors), tuple(clutter), sign)


def _color(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randrange(256) for _ in range(3))


def _form(rng: random.Random, grid: int, d: Difficulty) -> tuple[tuple[str, str, Text], ...]:
    lines: list[tuple[str, str, Text]] = []
    y, wanted = 12, rng.randint(*d.lines)
    for name in rng.sample(list(FIELDS), len(FIELDS)):
        value = rng.choice(FIELDS[name]) if FIELDS[name] else str(rng.randint(10, 9999))
        text, x, scale = f"{name.upper()}: {value}", rng.randint(6, 14), min(d.glyphs)
        if len(lines) == wanted or y + 7 * scale > grid * PATCH:
            break
        if x + 6 * scale * len(text) <= grid * PATCH:  # a narrow window has no room for a long line
            lines.append((name, value, Text(text, x, y, scale)))
            y += 7 * scale + rng.randint(10, 24)
    return tuple(lines)


def draw(scene: Scene) -> Pixels:
    """The scene's pixels, [size, size, 3] uint8."""
    size = scene.size
    red, green, blue, across, down, texture, ox, oy = scene.ground
    ramp = np.arange(size) * 2 // PATCH
    shade = (ramp * across)[None, :] + (ramp * down)[:, None] + _textures()[texture][oy : oy + size, ox : ox + size]
    if scene.form:  # paper: nearly white, almost plain
        image = np.clip(np.full(3, 236) + shade[..., None] // 6, 0, 255).astype(np.uint8)
    else:
        image = np.clip(np.array([red, green, blue]) + shade[..., None], 0, 255).astype(np.uint8)
    for x, y, width, height, *rgb in scene.clutter:
        image[y : y + height, x : x + width] = rgb
    for kind, x, y, radius, *rgb in scene.distractors:
        box = image[y - radius : y + radius, x - radius : x + radius]
        _blend(box, _disc(radius), np.where(_pattern(kind, radius)[..., None], rgb[:3], rgb[3:]))
    for thing in scene.things:
        r = thing.radius
        _blend(image[thing.y - r : thing.y + r, thing.x - r : thing.x + r], mask(thing.shape, r), np.array(thing.rgb))
    if scene.sign:
        s = scene.sign
        image[s.y - 6 : s.y + 7 * s.scale + 6, s.x - 6 : s.x + 6 * s.scale * len(s.text) - s.scale + 6] = 250
        _write(image, s)
    for _, _, line in scene.form:
        _write(image, line)
    return image


def _blend(box: Pixels, alpha: Pixels, color: NDArray[np.int64]) -> None:
    a = alpha[..., None].astype(np.int32)
    box[:] = (box * (255 - a) + color * a + 127) // 255


def _write(image: Pixels, line: Text) -> None:
    for i, char in enumerate(line.text):
        glyph = np.kron(_glyph(char), np.ones((line.scale, line.scale), bool))
        x = line.x + 6 * line.scale * i
        image[line.y : line.y + 7 * line.scale, x : x + 5 * line.scale][glyph] = 20


@cache
def _glyph(char: str) -> NDArray[np.bool_]:
    columns = np.frombuffer(bytes.fromhex(_COLUMNS[char]), np.uint8)
    return (columns[None, :] >> np.arange(7)[:, None] & 1).astype(bool)


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


def _polygon(
    points: Sequence[tuple[float, float]], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Even-odd rule."""
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]], strict=True):
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    return inside


@cache
def _disc(radius: int) -> Pixels:
    return mask("circle", radius)


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


def patch_labels(scene: Scene) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which thing, and which character of `CHARS`, each patch shows: two arrays [grid, grid], -1 for none.

    A patch shows a thing when at least a fifth of the patch, or of the thing, lies in it; a glyph belongs to the
    patch its centre lies in.
    """
    grid = scene.grid
    thing_of, best = np.full((grid, grid), -1), np.zeros((grid, grid))
    for i, thing in enumerate(scene.things):
        rows, columns, area = _coverage(thing, grid)
        box = (slice(rows, rows + len(area)), slice(columns, columns + area.shape[1]))
        shown = (area >= PATCH * PATCH / 5) & (area > best[box])
        thing_of[box][shown], best[box][shown] = i, area[shown]
    char_of = np.full((grid, grid), -1)
    for line in [line for _, _, line in scene.form] + ([scene.sign] if scene.sign else []):
        for char, row, column in glyph_patches(line):
            if char in CHARS and row < grid and column < grid:
                char_of[row, column] = CHARS.index(char)
    return thing_of, char_of


def _coverage(thing: Thing, grid: int) -> tuple[int, int, NDArray[np.float64]]:
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
    row = (line.y + 7 * line.scale // 2) // PATCH
    return [(c, row, (line.x + 6 * line.scale * i + 5 * line.scale // 2) // PATCH) for i, c in enumerate(line.text)]
