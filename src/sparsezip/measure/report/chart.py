"""A picture of what accuracy is left when fewer visual tokens are processed, as SVG."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from .summary import FLOOR, REFERENCE

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 960, 56, 240, 44, 48
LINE = 15  # pixels between labels
COLOURS = ("#1f77b4", "#d1495b", "#2e8b57", "#8e5ea2", "#c77b00", "#008b9a", "#a0522d", "#4b5fc4", "#b83280", "#5f7a1f")
DASHES = {"before": "", "inside": "6 3", "both": "2 3"}  # where tokens are dropped


def svg(compared: Mapping[str, Any]) -> str:
    """One panel below the other for each benchmark of what budgets.compare picked."""
    panels, height = [], 0
    for benchmark in compared["benchmarks"]:
        drawn, taken = _panel(benchmark)
        panels.append(f'<g transform="translate(0 {height})">\n{drawn}\n</g>')
        height += taken
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#222">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>\n' + "\n".join(panels) + "\n</svg>\n"
    )


def _panel(benchmark: Mapping[str, Any]) -> tuple[str, int]:
    """The elements of one panel, and its height."""
    series = {
        name: points
        for name, points in (
            (name, [point for point in points if point["value"] is not None and point["per_layer"]])
            for name, points in benchmark["methods"].items()
        )
        if points
    }
    height = TOP + BOTTOM + max(300, LINE * (len(series) + 1))
    of = f" ({', '.join(benchmark['groups'])})" if benchmark["groups"] else ""
    title = f"{benchmark['title']}{of}: {benchmark['score']} by mean visual tokens per LLM layer"
    parts = [_text(LEFT, 20, title, weight="bold")]
    points = [point for its in series.values() for point in its]
    if not points:
        return "\n".join(parts), height
    x = _scale([math.log(point["per_layer"]) for point in points], WIDTH - RIGHT, LEFT + 10)
    low, high, step = _ticks([point["value"] for point in points])
    y = _scale([low, high], height - BOTTOM, TOP)
    for number in range(round((high - low) / step) + 1):
        at = y(low + number * step)
        parts.append(_line(LEFT, at, WIDTH - RIGHT, at, "#e4e4e4"))
        parts.append(_text(LEFT - 8, at + 4, f"{low + number * step:g}", anchor="end"))
    for tokens in sorted({round(point["budget"] or point["per_layer"]) for point in points if _is_tick(point)}):
        at = x(math.log(tokens))
        parts.append(_line(at, height - BOTTOM, at, height - BOTTOM + 5, "#888"))
        parts.append(_text(at, height - BOTTOM + 19, str(tokens), anchor="middle"))
    legend = "solid: in front of the LLM; dashed: inside it; dotted: both; fewer tokens to the right (log scale)"
    parts.append(_text(LEFT, height - 10, legend, colour="#666"))
    ends = {name: y(its[-1]["value"]) for name, its in series.items()}
    places = _spread(ends, TOP, height - BOTTOM)
    coloured = [name for name in series if name not in (REFERENCE, FLOOR)]
    for name, its in series.items():
        fixed = {REFERENCE: "#222", FLOOR: "#888"}
        colour = fixed.get(name) or COLOURS[coloured.index(name) % len(COLOURS)]
        dots = [(x(math.log(point["per_layer"])), y(point["value"])) for point in its]
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in dots)
        dash = DASHES[_where(name, its)]
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dash}"/>'
        )
        parts += [f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{colour}"/>' for across, down in dots]
        edge = WIDTH - RIGHT + 22
        parts.append(_line(dots[-1][0] + 4, dots[-1][1], edge - 4, places[name], colour, 0.35))
        label = f"{name} {its[-1]['value']:.1f} at {round(its[-1]['per_layer'], 1):g}"
        parts.append(_text(edge, places[name] + 4, label, colour=colour))
    return "\n".join(parts), height


def _where(name: str, points: Sequence[Mapping[str, Any]]) -> str:
    """Where the tokens of a method are dropped: in front of the LLM if each layer gets as many as are sent."""
    if "|" in name:
        return "both"
    return "inside" if any(abs((point["sent"] or 0) - point["per_layer"]) > 0.05 for point in points) else "before"


def _is_tick(point: Mapping[str, Any]) -> bool:
    """Budgets, and what is sent where nothing is compressed."""
    return point["budget"] is not None or point["sent"] == point["per_layer"]


def _spread(wanted: Mapping[str, float], top: float, bottom: float) -> dict[str, float]:
    """Heights for labels near those wanted, in their order, none on another."""
    places: dict[str, float] = {}
    names = sorted(wanted, key=lambda name: wanted[name])
    last = top - LINE
    for number, name in enumerate(names):
        latest = bottom - LINE * (len(names) - 1 - number)
        last = places[name] = min(max(wanted[name], last + LINE), latest)
    return places


def _ticks(values: Sequence[float]) -> tuple[float, float, float]:
    """The ends of an axis around `values` and a round step for at most ten lines."""
    low, high = min(values), max(values)
    span = high - low or 9.0
    step = next(
        step for power in range(-2, 9) for step in (10.0**power * part for part in (1, 2, 5)) if span <= 9 * step
    )
    return math.floor(low / step) * step, max(math.ceil(high / step), math.floor(low / step) + 1) * step, step


def _scale(values: Iterable[float], least: float, most: float) -> Any:
    """From values to pixels: the smallest at `least`, the largest at `most`."""
    known = list(values)
    low, span = min(known), max(known) - min(known) or 1.0
    return lambda value: least + (value - low) / span * (most - least)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, opacity: float = 1.0) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-opacity="{opacity:g}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", weight: str = "normal", colour: str = "#222") -> str:
    look = f'text-anchor="{anchor}" font-weight="{weight}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(text)}</text>'
