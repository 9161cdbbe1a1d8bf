"""Questions about scenes, with their answers and the patches that bear them."""

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from .labels import PatchLabels, glyph_patches, patch_labels
from .scenes import CHARS, COLORS, FIELDS, PATCH, SHAPES, Scene, Text, Thing

YES_NO = " Please answer yes or no."
DESCRIBE = "Describe the image."
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
PLURALS = {s: "crosses" if s == "cross" else s + "s" for s in SHAPES}
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Span:
    """A part of a text, [start, end) in characters, and the raster indices of the patches that bear it."""

    start: int
    end: int
    patches: tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """One question about a scene and its answer. `spans` are parts of the answer.

    For the training: `nouns` are parts of the question that are about a part of the image, `counted` the patches of
    which one each stands for a thing to count.
    """

    type: str
    text: str
    answer: str
    spans: tuple[Span, ...] = ()
    nouns: tuple[Span, ...] = ()
    counted: tuple[int, ...] = ()

    @property
    def patches(self) -> tuple[int, ...]:
        """Raster indices of all patches that bear the answer; none for what is not there."""
        return tuple(sorted({patch for span in self.spans for patch in span.patches}))


# Orders of the things in a sentence: left to right, right to left, top to bottom, bottom to top, largest first.
ORDERS: tuple[Callable[[Thing], int], ...] = (
    lambda thing: thing.x,
    lambda thing: -thing.x,
    lambda thing: thing.y,
    lambda thing: -thing.y,
    lambda thing: -thing.radius,
)
Asker = Callable[[Scene, random.Random, bool], Asked | None]


def ask(
    scene: Scene, type_: str, rng: random.Random, *, truth: bool | None = None, number: int | None = None
) -> Asked | None:
    """A question of that type about the scene, or None where the scene does not allow one.

    `truth` fixes the answer of a yes/no question (otherwise a fair coin), `number` that of a question of type "count".
    Otherwise a number is drawn, more often one that few scenes hold, so that all are about equally frequent answers.
    """
    if bool(scene.form) != (type_ == "field") or not (scene.form or scene.things):
        return None
    if number is not None:
        return _count(scene, rng, True, number)
    return _ASK[type_](scene, rng, rng.random() < 0.5 if truth is None else truth)


def article(words: str) -> str:
    """'a red star', 'an orange star'."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def pairs(scene: Scene) -> set[tuple[str, str]]:
    """The (colour, shape) pairs that stand in the scene."""
    return {(t.color, t.shape) for t in scene.things}


def absent(scene: Scene, rng: random.Random, hard: bool | None = None) -> tuple[str, str]:
    """A (colour, shape) pair that is not in the scene.

    hard: it shares one of the two with a thing that is there (False: only by chance; None: a fair coin decides).
    """
    here = pairs(scene)
    while True:
        color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
        if rng.random() < 0.5 if hard is None else hard:
            thing = rng.choice(scene.things)
            color, shape = (thing.color, shape) if rng.random() < 0.5 else (color, thing.shape)
        if (color, shape) not in here:
            return color, shape


def describe(scene: Scene, order: Callable[[Thing], int] = ORDERS[0]) -> Asked:
    """A sentence that lists the things, left to right or in another order."""
    text, spans = "", list[Span]()
    things = sorted(scene.things, key=order)
    for i, thing in enumerate(things):
        text += "" if not i else " and " if i == len(things) - 1 else ", "
        phrase = article(f"{thing.color} {thing.shape}")
        spans.append(Span(len(text), len(text) + len(phrase), patches_of(scene, thing)))
        text += phrase
    return Asked("caption", DESCRIBE, text, tuple(spans))


_labels: Callable[[Scene], PatchLabels] = lru_cache(maxsize=8)(patch_labels)


def patches_of(scene: Scene, *things: Thing) -> tuple[int, ...]:
    """Raster indices of the patches that show one of the things."""
    wanted = {i for i, thing in enumerate(scene.things) if thing in things}
    return tuple(i for i, thing in enumerate(_labels(scene).thing.flatten().tolist()) if thing in wanted)


def _asked(type_: str, text: str, answer: str, scene: Scene, things: Iterable[Thing]) -> Asked:
    return Asked(type_, text, answer, (Span(0, len(answer), patches_of(scene, *things)),))


def _unique(
    scene: Scene, key: Callable[[Thing], str], rng: random.Random, fits: Callable[[Thing], bool] = lambda thing: True
) -> Thing | None:
    count = Counter(map(key, scene.things))
    single = [t for t in scene.things if count[key(t)] == 1 and fits(t)]
    return rng.choice(single) if single else None


def _color(scene: Scene, rng: random.Random, truth: bool) -> Asked | None:
    thing = _unique(scene, lambda t: t.shape, rng)
    return _asked("color", f"What color is the {thing.shape}?", thing.color, scene, [thing]) if thing else None


def _shape(scene: Scene, rng: random.Random, truth: bool) -> Asked | None:
    thing = _unique(scene, lambda t: t.color, rng)
    return _asked("shape", f"What shape is the {thing.color} object?", thing.shape, scene, [thing]) if thing else None


def _exist(scene: Scene, rng: random.Random, truth: bool) -> Asked | None:
    color, shape = rng.choice(sorted(pairs(scene))) if truth else absent(scene, rng)
    things = [t for t in scene.things if (t.color, t.shape) == (color, shape)]
    text = f"Is there {article(f'{color} {shape}')} in the image?"
    return _asked("exist", text, "yes" if truth else "no", scene, things)


def _exist_one(type_: str, key: Callable[[Thing], str], known: tuple[str, ...], noun: str) -> Asker:
    def asked(scene: Scene, rng: random.Random, truth: bool) -> Asked | None:
        here = {key(t) for t in scene.things}
        choices = sorted(here) if truth else [k for k in known if k not in here]
        if not choices:
            return None
        word = rng.choice(choices)
        text = f"Is there {article(noun.format(word))} in the image?"
        return _asked(type_, text, "yes" if truth else "no", scene, [t for t in scene.things if key(t) == word])

    return asked


def _color_yn(scene: Scene, rng: random.Random, truth: bool) -> Asked | None:
    thing = _unique(scene, lambda t: t.shape, rng)
    if not thing:
        return None
    color = thing.color if truth else rng.choice([c for c in COLORS if c != thing.color])
    return _asked("color_yn", f"Is the {thing.shape} {color}?", "yes" if truth else "no", scene, [thing])


def _kinds(scene: Scene) -> dict[int, list[tuple[str, list[Thing]]]]:
    """By number: the kinds of things, as the words that name several, of which so many stand in the scene."""
    kinds = [(PLURALS[s], [t for t in scene.things if t.shape == s]) for s in SHAPES]
    kinds += [(f"{c} objects", [t for t in scene.things if t.color == c]) for c in COLORS]
    found: dict[int, list[tuple[str, list[Thing]]]] = {}
    for words, things in kinds:
        if 1 <= len(things) < len(NUMBERS):
            found.setdefault(len(things), []).append((words, things))
    return found


def _centers(scene: Scene, things: Iterable[Thing]) -> tuple[int, ...]:
    return tuple(thing.y // PATCH * scene.columns + thing.x // PATCH for thing in things)


def _count(scene: Scene, rng: random.Random, truth: bool, number: int | None = None) -> Asked | None:
    kinds = _kinds(scene).get(number or rng.choices(range(1, len(NUMBERS)), (5, 6, 12, 24, 40, 60))[0])
    if not kinds:
        return None
    words, things = rng.choice(kinds)
    asked = _asked("count", f"How many {words} are there?", str(len(things)), scene, things)
    return replace(asked, counted=_centers(scene, things))


def _count_yn(scene: Scene, rng: random.Random, truth: bool) -> Asked | None:
    kinds = _kinds(scene)
    if len(kinds) < 2:  # the number asked about must not give the answer away
        return None
    number, other = rng.sample(sorted(kinds), 2)
    words, things = rng.choice(kinds[number])
    n = number if truth else other
    one = words.removesuffix("s") if words != "crosses" else "cross"
    phrase = f"Is there one {one}" if n == 1 else f"Are there {NUMBERS[n]} {words}"
    asked = _asked("count_yn", f"{phrase} in the image?", "yes" if truth else "no", scene, things)
    return replace(asked, counted=_centers(scene, things))


def _quadrant(scene: Scene, thing: Thing) -> str:
    return QUADRANTS[2 * (2 * thing.y >= scene.height) + (2 * thing.x >= scene.width)]


def _placed(scene: Scene, rng: random.Random) -> Thing | None:
    """A thing with a shape of its own, at least a patch away from the canvas's middle lines."""

    def clear(thing: Thing) -> bool:
        return abs(2 * thing.x - scene.width) >= 2 * PATCH and abs(2 * thing.y - scene.height) >= 2 * PATCH

    return _unique(scene, lambda t: t.shape, rng, clear)


def _position(scene: Scene, rng: random.Random, truth: bool) -> Asked | None:
    thing = _placed(scene, rng)
    return (
        _asked("position", f"Where is the {thing.shape}?", _quadrant(scene, thing), scene, [thing]) if thing else None
    )


def _position_yn(scene: Scene, rng: random.Random, truth: bool) -> Asked | None:
    thing = _placed(scene, rng)
    if not thing:
        return None
    at = _quadrant(scene, thing)
    at = at if truth else rng.choice([q for q in QUADRANTS if q != at])
    return _asked("position_yn", f"Is the {thing.shape} at the {at}?", "yes" if truth else "no", scene, [thing])


def _pair(scene: Scene, rng: random.Random) -> tuple[Thing, Thing, str] | None:
    """Two things with shapes of their own, at least two patches apart across or down, and how the first one lies."""
    count = Counter(t.shape for t in scene.things)
    single = [t for t in scene.things if count[t.shape] == 1]
    found = []
    for one in single:
        for other in single:
            if abs(one.x - other.x) >= 2 * PATCH:
                found.append((one, other, "left" if one.x < other.x else "right"))
            if abs(one.y - other.y) >= 2 * PATCH:
                found.append((one, other, "above" if one.y < other.y else "below"))
    return rng.choice(found) if found else None


def _relation(scene: Scene, rng: random.Random, truth: bool) -> Asked | None:
    found = _pair(scene, rng)
    if not found:
        return None
    one, other, side = found
    where = "above or below" if side in ("above", "below") else "left or right of"
    text = f"Is the {one.shape} {where} the {other.shape}?"
    return _compared(_asked("relation", text, side, scene, [one, other]), scene, one, other)


def _relation_yn(scene: Scene, rng: random.Random, truth: bool) -> Asked | None:
    found = _pair(scene, rng)
    if not found:
        return None
    one, other, side = found
    side = side if truth else OPPOSITE[side]
    where = side if side in ("above", "below") else f"{side} of"
    text = f"Is the {one.shape} {where} the {other.shape}?"
    return _compared(_asked("relation_yn", text, "yes" if truth else "no", scene, [one, other]), scene, one, other)


def _compared(asked: Asked, scene: Scene, *things: Thing) -> Asked:
    """With its nouns: the name of each thing in the question."""
    starts = [asked.text.index(f"the {thing.shape}") + len("the ") for thing in things]
    spans = (Span(a, a + len(t.shape), patches_of(scene, t)) for a, t in zip(starts, things, strict=True))
    return replace(asked, nouns=tuple(spans))


def _glyphs(scene: Scene, line: Text, skip: int = 0) -> list[int]:
    """The patches of a line's glyphs after the first `skip`."""
    return [row * scene.columns + column for _, row, column in glyph_patches(line)[skip:]]


def _text(type_: str, text: str, value: str, patches: list[int]) -> Asked:
    return Asked(type_, text, value, tuple(Span(i, i + 1, (patch,)) for i, patch in enumerate(patches)))


def _read(scene: Scene, rng: random.Random, truth: bool) -> Asked | None:
    sign = scene.sign
    return _text("read", "What does the sign say?", sign.text, _glyphs(scene, sign)) if sign else None


def _read_yn(scene: Scene, rng: random.Random, truth: bool) -> Asked | None:
    if not scene.sign:
        return None
    word = scene.sign.text
    if not truth:
        i = rng.randrange(len(word))
        word = word[:i] + rng.choice([c for c in CHARS if c != word[i]]) + word[i + 1 :]
    answer, patches, text = "yes" if truth else "no", _glyphs(scene, scene.sign), f'Does the sign say "{word}"?'
    first = text.index(word)
    nouns = tuple(Span(first + i, first + i + 1, (patch,)) for i, patch in enumerate(patches))
    return Asked("read_yn", text, answer, (Span(0, len(answer), tuple(patches)),), nouns)


def fields(form: Scene) -> list[Asked]:
    """The question about each line of a form, from top to bottom."""
    return [
        _text("field", f"What is the {name}?", value, _glyphs(form, line, len(line.text) - len(value)))
        for name, value, line in form.form
    ]


def _field(scene: Scene, rng: random.Random, truth: bool) -> Asked | None:
    return rng.choice(fields(scene))


_ASK: dict[str, Asker] = {
    "color": _color,
    "shape": _shape,
    "exist": _exist,
    "exist_shape": _exist_one("exist_shape", lambda t: t.shape, SHAPES, "{}"),
    "exist_color": _exist_one("exist_color", lambda t: t.color, tuple(COLORS), "{} object"),
    "color_yn": _color_yn,
    "count": _count,
    "count_yn": _count_yn,
    "position": _position,
    "position_yn": _position_yn,
    "relation": _relation,
    "relation_yn": _relation_yn,
    "read": _read,
    "read_yn": _read_yn,
    "field": _field,
    "caption": lambda scene, rng, truth: describe(scene),
}
TYPES = tuple(_ASK)


def corpus() -> list[str]:
    """Every sentence form with every word, for the tokenizer to learn its words from."""
    sides = ("left or right of", "above or below", "left of", "right of", "above", "below")
    lines = [
        *(f"What color is the {s}?" for s in SHAPES),
        *(f"What shape is the {c} object?" for c in COLORS),
        *(f"Is there {article(f'{c} {s}')} in the image?{YES_NO}" for c in COLORS for s in SHAPES),
        *(f"Is there {article(f'{c} object')} in the image? Is the {s} {c}?" for c in COLORS for s in SHAPES),
        *(f"How many {PLURALS[s]} are there? Is there one {s} in the image?" for s in SHAPES),
        *(f"How many {c} objects are there?" for c in COLORS),
        *(f"Are there {n} {PLURALS[s]} in the image?{YES_NO}" for n in NUMBERS for s in SHAPES),
        *(f"Where is the {s}? Is the {s} at the {q}? {q}" for s in SHAPES for q in QUADRANTS),
        *(f"Is the {s} {side} the {s}? {side}" for s in SHAPES for side in sides),
        'What does the sign say? Does the sign say "A"? yes no left right',
        *(f"What is the {name}?" for name in FIELDS),
        f"{DESCRIBE} a red star, a red star and a red star",
    ]
    return lines + [line[0].lower() + line[1:] for line in lines]
