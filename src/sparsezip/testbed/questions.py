"""Questions about scenes, with their answers and the things or glyphs that bear the answer."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from .scenes import COLORS, FIELDS, SHAPES, Scene, Text, Thing, glyph_patches, patch_labels

YES_NO = " Please answer yes or no."
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
PLURALS = {s: "crosses" if s == "cross" else s + "s" for s in SHAPES}


@dataclass(frozen=True)
class Asked:
    """One question. `noun`: the words to look for in the image. `patches`: raster indices that bear the answer."""

    type: str
    text: str
    answer: str
    patches: tuple[int, ...] = ()


Asker = Callable[[Scene, random.Random, bool, bool | None], Asked | None]


def ask(
    scene: Scene, type_: str, rng: random.Random, *, truth: bool | None = None, hard: bool | None = None
) -> Asked | None:
    """A question of that type about the scene, or None where the scene does not allow one.

    `truth` fixes the answer of a yes/no question (otherwise a fair coin). `hard` asks a false existence question
    about a thing that shares its colour or its shape with one in the scene (otherwise half of them do).
    """
    if bool(scene.form) != (type_ == "field") or not (scene.form or scene.things):
        return None
    return _ASK[type_](scene, rng, rng.random() < 0.5 if truth is None else truth, hard)


def article(words: str) -> str:
    """'a red star', 'an orange star'."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def pairs(scene: Scene) -> set[tuple[str, str]]:
    """The (colour, shape) pairs that stand in the scene."""
    return {(t.color, t.shape) for t in scene.things}


def absent(scene: Scene, rng: random.Random, hard: bool | None) -> tuple[str, str]:
    """A (colour, shape) pair that is not in the scene; a hard one shares one of the two with a thing that is."""
    here = pairs(scene)
    while True:
        color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
        if rng.random() < 0.5 if hard is None else hard:
            thing = rng.choice(scene.things)
            color, shape = (thing.color, shape) if rng.random() < 0.5 else (color, thing.shape)
        if (color, shape) not in here:
            return color, shape


_labels = lru_cache(maxsize=8)(patch_labels)


def _where(scene: Scene, *things: Thing) -> tuple[int, ...]:
    shown, _ = _labels(scene)
    wanted = {scene.things.index(t) for t in things}
    return tuple(i for i, thing in enumerate(shown.flatten().tolist()) if thing in wanted)


def _unique(scene: Scene, key: Callable[[Thing], str], rng: random.Random) -> Thing | None:
    count = Counter(map(key, scene.things))
    single = [t for t in scene.things if count[key(t)] == 1]
    return rng.choice(single) if single else None


def _color(scene: Scene, rng: random.Random, truth: bool, hard: bool | None) -> Asked | None:
    thing = _unique(scene, lambda t: t.shape, rng)
    return Asked("color", f"What color is the {thing.shape}?", thing.color, _where(scene, thing)) if thing else None


def _shape(scene: Scene, rng: random.Random, truth: bool, hard: bool | None) -> Asked | None:
    thing = _unique(scene, lambda t: t.color, rng)
    if not thing:
        return None
    return Asked("shape", f"What shape is the {thing.color} object?", thing.shape, _where(scene, thing))


def _exist(scene: Scene, rng: random.Random, truth: bool, hard: bool | None) -> Asked | None:
    color, shape = rng.choice(sorted(pairs(scene))) if truth else absent(scene, rng, hard)
    things = [t for t in scene.things if (t.color, t.shape) == (color, shape)]
    return Asked(
        "exist",
        f"Is there {article(f'{color} {shape}')} in the image?",
        "yes" if truth else "no",
        _where(scene, *things),
    )


def _exist_one(type_: str, key: Callable[[Thing], str], known: tuple[str, ...], noun: str) -> Asker:
    def asked(scene: Scene, rng: random.Random, truth: bool, hard: bool | None) -> Asked | None:
        here = {key(t) for t in scene.things}
        choices = sorted(here) if truth else [k for k in known if k not in here]
        if not choices:
            return None
        word = rng.choice(choices)
        things = [t for t in scene.things if key(t) == word]
        return Asked(
            type_,
            f"Is there {article(noun.format(word))} in the image?",
            "yes" if truth else "no",
            _where(scene, *things),
        )

    return asked


def _color_yn(scene: Scene, rng: random.Random, truth: bool, hard: bool | None) -> Asked | None:
    thing = _unique(scene, lambda t: t.shape, rng)
    if not thing:
        return None
    color = thing.color if truth else rng.choice([c for c in COLORS if c != thing.color])
    return Asked("color_yn", f"Is the {thing.shape} {color}?", "yes" if truth else "no", _where(scene, thing))


def _count(scene: Scene, rng: random.Random, truth: bool, hard: bool | None) -> Asked | None:
    shape = rng.choice([t.shape for t in scene.things] if rng.random() < 0.8 else SHAPES)
    things = [t for t in scene.things if t.shape == shape]
    return Asked("count", f"How many {PLURALS[shape]} are there?", str(len(things)), _where(scene, *things))


def _count_yn(scene: Scene, rng: random.Random, truth: bool, hard: bool | None) -> Asked | None:
    by_shape = Counter(t.shape for t in scene.things)
    numbers = sorted(set(by_shape.values()))
    if len(numbers) < 2:  # the number asked about must not give the answer away
        return None
    number, asked = rng.sample(numbers, 2)
    n = number if truth else asked
    shape = rng.choice(sorted(s for s, count in by_shape.items() if count == number))
    things = [t for t in scene.things if t.shape == shape]
    phrase = f"Is there one {shape}" if n == 1 else f"Are there {NUMBERS[n]} {PLURALS[shape]}"
    return Asked("count_yn", f"{phrase} in the image?", "yes" if truth else "no", _where(scene, *things))


def _side(scene: Scene, thing: Thing) -> str:
    return "left" if thing.x < scene.size // 2 else "right"


def _position(scene: Scene, rng: random.Random, truth: bool, hard: bool | None) -> Asked | None:
    thing = _unique(scene, lambda t: t.shape, rng)
    if not thing:
        return None
    text = f"Is the {thing.shape} on the left or on the right?"
    return Asked("position", text, _side(scene, thing), _where(scene, thing))


def _position_yn(scene: Scene, rng: random.Random, truth: bool, hard: bool | None) -> Asked | None:
    thing = _unique(scene, lambda t: t.shape, rng)
    if not thing:
        return None
    side = _side(scene, thing) if truth else {"left": "right", "right": "left"}[_side(scene, thing)]
    return Asked("position_yn", f"Is the {thing.shape} on the {side}?", "yes" if truth else "no", _where(scene, thing))


def _glyphs(scene: Scene, line: Text) -> tuple[int, ...]:
    spots = [spot for spot in glyph_patches(line) if spot[0] not in ": "]
    return tuple(sorted({row * scene.grid + column for _, row, column in spots}))


def _read(scene: Scene, rng: random.Random, truth: bool, hard: bool | None) -> Asked | None:
    sign = scene.sign
    return Asked("read", "What does the sign say?", sign.text, _glyphs(scene, sign)) if sign else None


def _read_yn(scene: Scene, rng: random.Random, truth: bool, hard: bool | None) -> Asked | None:
    if not scene.sign:
        return None
    word = scene.sign.text
    if not truth:
        i = rng.randrange(len(word))
        word = word[:i] + rng.choice([c for c in "ACEHKLMRTX0347" if c != word[i]]) + word[i + 1 :]
    return Asked("read_yn", f'Does the sign say "{word}"?', "yes" if truth else "no", _glyphs(scene, scene.sign))


def _field(scene: Scene, rng: random.Random, truth: bool, hard: bool | None) -> Asked | None:
    name, value, line = rng.choice(scene.form)
    return Asked("field", f"What is the {name}?", value, _glyphs(scene, line))


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
    "read": _read,
    "read_yn": _read_yn,
    "field": _field,
}
TYPES = tuple(_ASK)


def corpus() -> list[str]:
    """Every sentence form with every word, for the tokenizer to learn its words from."""
    lines = [
        *(f"What color is the {s}?" for s in SHAPES),
        *(f"What shape is the {c} object?" for c in COLORS),
        *(f"Is there {article(f'{c} {s}')} in the image?{YES_NO}" for c in COLORS for s in SHAPES),
        *(f"Is there {article(f'{c} object')} in the image? Is the {s} {c}?" for c in COLORS for s in SHAPES),
        *(f"How many {PLURALS[s]} are there? Is there one {s} in the image?" for s in SHAPES),
        *(f"Are there {n} {PLURALS[s]} in the image?{YES_NO}" for n in NUMBERS for s in SHAPES),
        *(f"Is the {s} on the left or on the right?" for s in SHAPES),
        *(f"Is the {s} on the {side}?" for s in SHAPES for side in ("left", "right", "top", "bottom")),
        'What does the sign say? Does the sign say "A"? yes no left right',
        *(f"What is the {name}?" for name in FIELDS),
    ]
    return lines + [line[0].lower() + line[1:] for line in lines]
