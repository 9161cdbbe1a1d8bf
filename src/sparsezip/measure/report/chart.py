"""Pictures of what accuracy is left when fewer visual tokens are processed, or when answers come sooner, as SVG."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .axes import (
    COLOURS,
    FAINT,
    GRID,
    INK,
    LETTER,
    LINE,
    RULE,
    WIDTH,
    document,
    dot,
    line,
    scale,
    spread,
    steps,
    text,
    ticks,
)
from .fairness import FLOOR, REFERENCE, marked

LEFT, TOP, BOTTOM = 56, 44, 48
MOST_LABEL, LEAD = 230, 22  # pixels of a method's label, and of the line that leads to it
DASHES = {"before": "", "inside": "6 3", "both": "2 3"}  # where tokens are dropped
TOKENS, TIME = "per_layer", "ms"  # what of a point lies along the picture
SAID = {TOKENS: "mean visual tokens per LLM layer", TIME: "median time of an answer, ms"}
FEWER = {TOKENS: "fewer tokens to the right", TIME: "faster to the right"}
NEAR = 34  # pixels from the middle of one number to that of the next


def svg(compared: Mapping[str, Any], against: str = TOKENS) -> str:
    """One panel below the other for each benchmark of what budgets.compare picked."""
    panels = [_panel(benchmark, against, compared.get("unequal", [])) for benchmark in compared["benchmarks"]]
    return document(panels, f"Scores by {SAID[against]}")


def _panel(benchmark: Mapping[str, Any], against: str, unequal: Sequence[str]) -> tuple[str, int]:
    """The elements of one panel, and its height."""
    series = {
        name: points
        for name, points in (
            (name, [point for point in points if point["value"] is not None and point.get(against)])
            for name, points in benchmark["methods"].items()
        )
        if points
    }
    height = TOP + BOTTOM + max(300, LINE * (len(series) + 1))
    of = f" ({', '.join(benchmark['groups'])})" if benchmark["groups"] else ""
    title = f"{benchmark['title']}{of}: {benchmark['score']} by {SAID[against]}"
    parts = [text(LEFT, 20, marked(title, unequal), weight="bold", room=WIDTH - LEFT)]
    points = [point for its in series.values() for point in its]
    if not points:
        return "\n".join([*parts, text(LEFT, TOP, "Not measured.", colour=FAINT)]), TOP + LINE
    digits = benchmark.get("digits", 1)
    labels = {
        name: f"{name} {its[-1]['value']:.{digits}f} at {round(its[-1][against], 1):g}" for name, its in series.items()
    }
    right = WIDTH - LEAD - 8 - min(LETTER * max(map(len, labels.values())), MOST_LABEL)
    x = scale([math.log(point[against]) for point in points], right, LEFT + 10)
    low, high, step = ticks([point["value"] for point in points])
    y = scale([low, high], height - BOTTOM, TOP)
    for value in steps(low, high, step):
        parts.append(line(LEFT, y(value), right, y(value), GRID))
        parts.append(text(LEFT - 8, y(value) + 4, f"{value:g}", anchor="end"))
    last = math.inf
    for number in sorted(_numbers(points, against)):
        if last - x(math.log(number)) >= NEAR:
            last = x(math.log(number))
            parts.append(line(last, height - BOTTOM, last, height - BOTTOM + 5, RULE))
            parts.append(text(last, height - BOTTOM + 19, f"{number:g}", anchor="middle"))
    legend = f"solid: in front of the LLM; dashed: inside it; dotted: both; {FEWER[against]} (log scale)"
    parts.append(text(LEFT, height - 10, legend, colour=FAINT))
    places = spread({name: y(its[-1]["value"]) for name, its in series.items()}, TOP, height - BOTTOM)
    fixed = {REFERENCE: INK, FLOOR: RULE}
    coloured = [name for name in series if name.partition(" [")[0] not in fixed]
    for name, its in series.items():
        colour = fixed.get(name.partition(" [")[0]) or COLOURS[coloured.index(name) % len(COLOURS)]
        dots = [(x(math.log(point[against])), y(point["value"])) for point in its]
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in dots)
        dash = DASHES[_where(name, its)]
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dash}"/>'
        )
        parts += [dot(across, down, colour) for across, down in dots]
        edge = right + LEAD
        parts.append(line(dots[-1][0] + 4, dots[-1][1], edge - 4, places[name], colour, 0.35))
        parts.append(text(edge, places[name] + 4, labels[name], colour=colour, room=MOST_LABEL))
    return "\n".join(parts), height


def _numbers(points: Sequence[Mapping[str, Any]], against: str) -> Iterator[float]:
    """What is written below the picture: budgets and what is sent where nothing is compressed, or round times."""
    if against == TOKENS:
        # Budgets are told as they were asked for, but a share of the patches is no number of tokens.
        whole = [point for point in points if (point["budget"] or 0) >= 1 or point["sent"] == point["per_layer"]]
        yield from {round(point["budget"] if (point["budget"] or 0) >= 1 else point["per_layer"]) for point in whole}
    else:
        least, most = (best(point[against] for point in points) for best in (min, max))
        for power in range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1):
            yield from (10.0**power * part for part in (1, 1.5, 2, 3, 5, 7) if least <= 10.0**power * part <= most)


def _where(name: str, points: Sequence[Mapping[str, Any]]) -> str:
    """Where the tokens of a method are dropped: in front of the LLM if each layer gets as many as are sent."""
    if "|" in name:
        return "both"
    apart = (abs((point["sent"] or 0) - (point["per_layer"] or 0)) for point in points)
    return "inside" if any(tokens > 0.05 for tokens in apart) else "before"
