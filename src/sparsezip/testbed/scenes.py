"""Seeded scenes for the testbed: coloured shapes among clutter, salient distractors, signs and small forms.

A scene is data (what stands where); drawing.py turns it into pixels and labels.py tells what each patch shows. Train
and held-out scenes come from different seed strings and cannot overlap.
"""

import random
from dataclasses import dataclass

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
FIELDS = ("age", "bus", "city", "date", "exit", "fee", "gate", "hour", "item", "key", "lot", "name", "plan", "room",
          "seat", "tax")  # fmt: skip
WORDS = {  # values of two fields; those of the others are numbers and codes of two to four characters
    "city": ("BERN", "CORK", "KIEV", "LIMA", "NICE", "OSLO", "RIGA", "ROME"),
    "name": ("ANN", "BEN", "EVA", "IDA", "JON", "KIM", "LEO", "MAX", "PAM", "TOM"),
}
SIGN_MARGIN = 6  # white pixels around a sign's glyphs


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
    """A line of glyphs of `height` pixels; (x, y) is its top left corner in pixels."""

    text: str
    x: int
    y: int
    height: int

    @property
    def pitch(self) -> int:
        """Pixels from one glyph to the next, more than a patch: each glyph's centre has a patch of its own."""
        return self.height * 6 // 7

    @property
    def width(self) -> int:
        """Pixels from the first glyph's left to the last one's right."""
        return self.pitch * (len(self.text) - 1) + self.height * 5 // 7


@dataclass(frozen=True)
class Scene:
    """What stands where on a canvas of `rows` x `columns` patches of 14 px."""

    rows: int
    columns: int
    ground: tuple[int, ...]  # red, green, blue, slope across, slope down, texture, texture offset across, down
    things: tuple[Thing, ...] = ()
    distractors: tuple[tuple[int, ...], ...] = ()  # kind, x, y, radius, two colours
    clutter: tuple[tuple[int, ...], ...] = ()  # x, y, width, height, colour
    sign: Text | None = None
    form: tuple[tuple[str, str, Text], ...] = ()  # field, value, the printed line

    @property
    def width(self) -> int:
        """In pixels."""
        return self.columns * PATCH

    @property
    def height(self) -> int:
        """In pixels."""
        return self.rows * PATCH


@dataclass(frozen=True)
class Difficulty:
    """The dial: how much stands in a scene. Ranges are inclusive; shares are of scenes."""

    objects: tuple[int, int] = (4, 8)
    radius: tuple[int, int] = (15, 22)  # pixels
    alike: float = 0.5  # share in which three to six things have one shape or one colour in common
    giant: float = 0.1  # share with a thing of 34 to 48 px radius, beside which the sign then stands
    distractors: tuple[int, int] = (1, 2)
    clutter: tuple[int, int] = (20, 60)
    sign: float = 0.25
    form: float = 0.0  # share of scenes that are a form and nothing else
    glyphs: tuple[int, ...] = (20,)  # heights in pixels
    lines: tuple[int, int] = (3, 5)  # of a form; as many as have room


LEVELS = {
    "easy": Difficulty((1, 3), alike=0.0, giant=0.0, distractors=(0, 0), clutter=(0, 10), glyphs=(28,), lines=(3, 3)),
    "standard": Difficulty(),
    "hard": Difficulty((9, 20), (12, 22), alike=0.8, giant=0.3, distractors=(3, 6), clutter=(60, 140), lines=(6, 16)),
}


def make(
    split: str, seed: int | str, rows: int = GRID, columns: int = GRID, difficulty: Difficulty | None = None
) -> Scene:
    """The scene of that split ("train", "held-out", ...) and seed, on a canvas of `rows` x `columns` patches."""
    d, rng = difficulty or Difficulty(), random.Random(f"{split}/{seed}")
    base = rng.randint(95, 175)
    tint = [max(0, min(255, base + rng.randint(-18, 18))) for _ in range(3)]
    ground = (*tint, rng.randint(-1, 1), rng.randint(-1, 1), rng.randrange(4), rng.randrange(128), rng.randrange(128))
    if rng.random() < d.form:
        return Scene(rows, columns, ground, form=_form(rng, rows, columns, d))
    place = _Places(rng, rows, columns)
    things = []
    looks = _looks(rng, rng.randint(*d.objects), d.alike)
    giant = rng.random() < d.giant
    for i, (shape, color) in enumerate(looks):
        radius = rng.randint(34, 48) if giant and i == 0 else rng.randint(*d.radius)
        spot = place.thing(radius)
        if spot is None:  # crowded: the smallest may still fit
            radius = d.radius[0]
            spot = place.thing(radius)
        if spot:
            red, green, blue = (max(0, min(255, c + rng.randint(-12, 12))) for c in COLORS[color])
            things.append(Thing(shape, color, *spot, radius, (red, green, blue)))
        if i == 0:  # text goes where there is still room, beside the giant if there is one
            sign = _sign(rng, d, place, things[0] if giant and things else None)
    if not looks:
        sign = _sign(rng, d, place, None)
    distractors = []
    for _ in range(rng.randint(*d.distractors)):
        radius = rng.randint(14, 24)
        if spot := place.anywhere(radius, radius):
            two = rng.sample(list(COLORS.values()), 2)
            distractors.append((rng.randrange(3), *spot, radius, *two[0], *two[1]))
    clutter = []
    for _ in range(rng.randint(*d.clutter) * rows * columns // (GRID * GRID)):
        spot = rng.randrange(columns * PATCH), rng.randrange(rows * PATCH)
        clutter.append((*spot, rng.randint(1, 5), rng.randint(1, 5), *(rng.randrange(256) for _ in range(3))))
    return Scene(rows, columns, ground, tuple(things), tuple(distractors), tuple(clutter), sign)


class _Places:
    """Free boxes on a canvas."""

    def __init__(self, rng: random.Random, rows: int, columns: int) -> None:
        self.rng, self.width, self.height = rng, columns * PATCH, rows * PATCH
        self.taken: list[tuple[int, int, int, int]] = []  # x, y, half width, half height

    def free(self, x: int, y: int, half_width: int, half_height: int) -> bool:
        """Take that box if it lies on the canvas and is free."""
        inside = half_width <= x <= self.width - half_width and half_height <= y <= self.height - half_height
        if not inside or any(
            abs(x - a) <= half_width + w + 2 and abs(y - b) <= half_height + h + 2 for a, b, w, h in self.taken
        ):
            return False
        self.taken.append((x, y, half_width, half_height))
        return True

    def anywhere(self, half_width: int, half_height: int) -> tuple[int, int] | None:
        """The centre of a free box, or None after forty tries."""
        if 2 * half_width > self.width or 2 * half_height > self.height:
            return None
        for _ in range(40):
            x = self.rng.randint(half_width, self.width - half_width)
            y = self.rng.randint(half_height, self.height - half_height)
            if self.free(x, y, half_width, half_height):
                return x, y
        return None

    def thing(self, radius: int) -> tuple[int, int] | None:
        """As `anywhere`, the centre at least three pixels inside a patch: which one it is must show in the pixels."""
        if 2 * radius > min(self.width, self.height):
            return None
        for _ in range(40):
            x, y = (
                self.rng.randrange(side // PATCH) * PATCH + self.rng.randint(3, PATCH - 4)
                for side in (self.width, self.height)
            )
            if self.free(x, y, radius, radius):
                return x, y
        return None

    def beside(self, thing: Thing, half_width: int, half_height: int) -> tuple[int, int] | None:
        """The centre of a free box that touches the thing's, or None."""
        away = thing.radius + 4
        spots = [
            (thing.x - away - half_width, thing.y),
            (thing.x + away + half_width, thing.y),
            (thing.x, thing.y - away - half_height),
            (thing.x, thing.y + away + half_height),
        ]
        self.rng.shuffle(spots)
        return next((spot for spot in spots if self.free(*spot, half_width, half_height)), None)


def _looks(rng: random.Random, count: int, alike: float) -> list[tuple[str, str]]:
    """Shape and colour of every thing; in a share of scenes three to six have one of the two in common."""
    looks = [(rng.choice(SHAPES), rng.choice(list(COLORS))) for _ in range(count)]
    if count > 1 and rng.random() < alike:
        many, by_shape = min(count, rng.randint(3, 6)), rng.random() < 0.5
        looks[:many] = [(looks[0][0], color) if by_shape else (shape, looks[0][1]) for shape, color in looks[:many]]
        rng.shuffle(looks)
    return looks


def _sign(rng: random.Random, d: Difficulty, place: _Places, giant: Thing | None) -> Text | None:
    if rng.random() >= d.sign:
        return None
    text, height = "".join(rng.choice(CHARS) for _ in range(rng.randint(3, 5))), rng.choice(d.glyphs)
    line = Text(text, 0, 0, height)
    half_width, half_height = line.width // 2 + SIGN_MARGIN + 1, height // 2 + SIGN_MARGIN
    spot = place.beside(giant, half_width, half_height) if giant else None
    spot = spot or place.anywhere(half_width, half_height)
    return spot and Text(text, spot[0] - line.width // 2, spot[1] - height // 2, height)


def _form(rng: random.Random, rows: int, columns: int, d: Difficulty) -> tuple[tuple[str, str, Text], ...]:
    """Lines of "FIELD: VALUE" from top to bottom, as many of the wanted number as have room."""
    height = rng.choice(d.glyphs)
    wanted = min(rng.randint(*d.lines), (rows * PATCH + 1) // (height + 1))
    gap = (rows * PATCH - wanted * height) // (wanted + 1)
    y, lines = rng.randint(0, gap), []
    for name in rng.sample(FIELDS, wanted):
        value = rng.choice(WORDS[name]) if name in WORDS else _value(rng)
        line = Text(f"{name.upper()}: {value}", rng.randint(4, 12), y, height)
        if line.x + line.width < columns * PATCH:  # a narrow window has no room for a long line
            lines.append((name, value, line))
        y += height + rng.randint(1, max(1, gap))
    return tuple(lines)


def _value(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return str(rng.randint(10, 9999))
    return "".join(rng.choice(CHARS) for _ in range(rng.randint(2, 4)))
