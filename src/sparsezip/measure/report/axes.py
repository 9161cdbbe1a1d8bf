"""What pictures are drawn with: SVG elements, scales and labels that keep apart, on a light ground or a dark one."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

WIDTH = 960
LINE = 15  # pixels between labels
LETTER = 6.8  # pixels of a letter of the size 12: few words are wider
INK, FAINT, RULE, GRID, GROUND = "#222222", "#6a6a6a", "#8a8a8a", "#e4e4e4", "#ffffff"
WORSE, BETTER = "#c0392b", "#1e7d46"
COLOURS = ("#1f77b4", "#d1495b", "#2e8b57", "#8e5ea2", "#c77b00", "#008b9a", "#a0522d", "#4b5fc4", "#b83280", "#5f7a1f")
ON_DARK = (  # the same on a dark ground, in the same order
    *("#e8e8e8", "#a3a8ae", "#7d8288", "#30353b", "#15181c"),
    *("#ff8a7a", "#63d494"),
    *("#6bb3e8", "#f08a97", "#6fcf97", "#c79bdc", "#f0b24d", "#4fd0dc", "#dd9a74", "#96a5f5", "#ec7fbd", "#b0cf65"),
)
DARK = dict(zip((INK, FAINT, RULE, GRID, GROUND, WORSE, BETTER, *COLOURS), ON_DARK, strict=True))


def document(panels: Iterable[tuple[str, int]], what: str) -> str:
    """An SVG of panels one below the other, each with its height. what: said to those who cannot see it."""
    placed, height = [], 0
    for drawn, taken in panels:
        placed.append(f'<g transform="translate(0 {height})">\n{drawn}\n</g>')
        height += taken
    dark = "".join(
        f'[fill="{light}"]{{fill:{dark}}}[stroke="{light}"]{{stroke:{dark}}}' for light, dark in DARK.items()
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" font-family="Helvetica, Arial, sans-serif" font-size="12" fill="{INK}">\n'
        f"<title>{escape(what)}</title>\n<style>@media (prefers-color-scheme: dark){{{dark}}}</style>\n"
        f'<rect width="{WIDTH}" height="{height}" fill="{GROUND}"/>\n' + "\n".join(placed) + "\n</svg>\n"
    )


def text(
    x: float,
    y: float,
    words: str,
    anchor: str = "start",
    weight: str = "normal",
    colour: str = INK,
    room: float = WIDTH,
) -> str:
    """Words that take at most `room` pixels; where they are shortened, the whole of them is said on pointing."""
    shown = shortened(words, room)
    look = f'text-anchor="{anchor}" font-weight="{weight}" fill="{colour}"'
    whole = f"<title>{escape(_xml(words))}</title>" if shown != words else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(_xml(shown))}{whole}</text>'


def shortened(words: str, room: float) -> str:
    """Words that fit: of a label the beginning and the end are what tells."""
    most = max(int(room / LETTER), 5)
    if len(words) <= most:
        return words
    tail = min(12, most // 2)
    return f"{words[: most - tail - 1]}…{words[-tail:]}"


def _xml(words: str) -> str:
    """Words without what XML cannot hold: they come from files."""
    return "".join(letter if letter.isprintable() else " " for letter in words)


def line(x1: float, y1: float, x2: float, y2: float, colour: str, opacity: float = 1.0, width: float = 1.0) -> str:
    """A straight line."""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-opacity="{opacity:g}" stroke-width="{width:g}"/>'


def dot(x: float, y: float, colour: str) -> str:
    """A point that was measured."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'


def bar(x: float, y: float, width: float, height: float, colour: str) -> str:
    """A filled rectangle."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" fill="{colour}"/>'


def scale(values: Iterable[float], least: float, most: float) -> Any:
    """From values to pixels: the smallest at `least`, the largest at `most`."""
    known = list(values)
    low, span = min(known), max(known) - min(known) or 1.0
    return lambda value: least + (value - low) / span * (most - least)


def ticks(values: Sequence[float], lines: int = 9) -> tuple[float, float, float]:
    """The ends of an axis around `values` and a round step for about that many lines."""
    low, high = min(values), max(values)
    span = high - low or float(lines)
    step = next(
        step for power in range(-9, 16) for step in (10.0**power * part for part in (1, 2, 5)) if span <= lines * step
    )
    return math.floor(low / step) * step, max(math.ceil(high / step), math.floor(low / step) + 1) * step, step


def steps(low: float, high: float, step: float) -> list[float]:
    """The values at the lines of an axis."""
    return [low + number * step for number in range(round((high - low) / step) + 1)]


def spread(wanted: Mapping[str, float], top: float, bottom: float) -> dict[str, float]:
    """Heights for labels near those wanted, in their order, none on another."""
    places: dict[str, float] = {}
    names = sorted(wanted, key=lambda name: wanted[name])
    last = top - LINE
    for number, name in enumerate(names):
        latest = bottom - LINE * (len(names) - 1 - number)
        last = places[name] = min(max(wanted[name], last + LINE), latest)
    return places
