"""Two pictures with a line for each method, as SVG: where its time goes, and what it loses in every group."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .axes import (
    BETTER,
    COLOURS,
    FAINT,
    GRID,
    LETTER,
    RULE,
    WIDTH,
    WORSE,
    bar,
    document,
    dot,
    line,
    scale,
    steps,
    text,
    ticks,
)
from .budgets import form_of
from .fairness import REFERENCE, marked

ROW, TOP, BOTTOM, GAP = 18, 64, 34, 18
MOST_LABEL = 250  # pixels of the methods' names
ABREAST = 4  # groups beside each other


def stages(results: Mapping[str, Any]) -> str:
    """A bar for each method: the median milliseconds of its stages, one after the other."""
    return document(_stage_panels(results), "Milliseconds of a question by stage")


def differences(results: Mapping[str, Any]) -> str:
    """For each method the headline minus that of keep_all, with its 95 % interval: of all questions and by group."""
    return document(_difference_panels(results), "Differences to keep_all by group, with 95 % intervals")


def _stage_panels(results: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for benchmark in results["benchmarks"].values():
        timed = {label: method for label, method in benchmark["methods"].items() if method["stages_ms"]}
        title = f"{benchmark['title']}: milliseconds of a question by stage (medians), and end to end"
        if not timed:
            yield _nothing(marked(title, results["unequal"]))
            continue
        fullest_first = sorted((method["stages_ms"] for method in timed.values()), key=len, reverse=True)
        names = list(dict.fromkeys(stage for its in fullest_first for stage in its))
        colours = {stage: COLOURS[number % len(COLOURS)] for number, stage in enumerate(names)}
        parts = [text(8, 20, marked(title, results["unequal"]), weight="bold"), *_legend(colours)]
        left = _label_width(timed)
        longest = max(sum(spread["median"] for spread in method["stages_ms"].values()) for method in timed.values())
        low, high, step = ticks([0.0, longest], 6)
        x = scale([low, high], left, WIDTH - 60)
        bottom = TOP + ROW * len(timed)
        for value in steps(low, high, step):
            parts.append(line(x(value), TOP - 4, x(value), bottom, GRID))
            parts.append(text(x(value), bottom + 15, f"{value:g}", anchor="middle", colour=FAINT))
        for number, (label, method) in enumerate(timed.items()):
            y, taken = TOP + ROW * number, 0.0
            parts.append(text(left - 8, y + 12, label, anchor="end", room=left - 8))
            for stage in names:
                spent = method["stages_ms"].get(stage, {"median": 0.0})["median"]
                parts.append(bar(x(taken), y + 2, x(taken + spent) - x(taken), ROW - 5, colours[stage]))
                taken += spent
            if method["latency_ms"]:
                parts.append(text(x(taken) + 5, y + 12, f"{method['latency_ms']['median']:.1f}", colour=FAINT))
        yield "\n".join(parts), bottom + BOTTOM


def _legend(colours: Mapping[str, str]) -> Iterator[str]:
    across = 8.0
    for name, colour in colours.items():
        yield bar(across, 34, 10, 10, colour)
        yield text(across + 14, 43, name, colour=FAINT)
        across += 14 + LETTER * len(name) + GAP


def _difference_panels(results: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for benchmark in results["benchmarks"].values():
        headline = benchmark["headline"]
        heading = benchmark["columns"][headline]
        factor, _ = form_of(benchmark, headline)
        title = f"{benchmark['title']}: {heading} minus {REFERENCE}, with 95 % intervals"
        columns = {"all": _differences(benchmark["methods"], headline, factor)}
        columns |= {
            group: _differences(part["methods"], headline, factor) for group, part in benchmark["groups"].items()
        }
        labels = list(columns["all"])
        known = [value for its in columns.values() for values in its.values() for value in values]
        if not known:
            yield _nothing(marked(title, results["unequal"]))
            continue
        title += f", by {benchmark['group_noun']}" if benchmark["groups"] else ""
        parts, height = [text(8, 20, marked(title, results["unequal"]), weight="bold")], 30
        low, high, step = ticks([*known, 0.0], 4)
        names = list(columns)
        for start in range(0, len(names), ABREAST):
            band = {name: columns[name] for name in names[start : start + ABREAST]}
            parts += _band(band, labels, (low, high, step), height, min(ABREAST, len(names)))
            height += 22 + ROW * len(labels) + BOTTOM
        yield "\n".join(parts), height


def _band(
    columns: Mapping[str, Mapping[str, Sequence[float]]],
    labels: Sequence[str],
    axis: tuple[float, float, float],
    top: int,
    abreast: int,
) -> Iterator[str]:
    """Groups beside each other, the methods' names to the left."""
    left = _label_width(labels)
    width = (WIDTH - left - 8) / abreast
    first = top + 22
    bottom = first + ROW * len(labels)
    for number, label in enumerate(labels):
        yield text(left - 8, first + ROW * number + 13, label, anchor="end", room=left - 8)
    for place, (name, differences) in enumerate(columns.items()):
        x = scale(axis[:2], left + place * width + GAP, left + (place + 1) * width - GAP)
        yield text((x(axis[0]) + x(axis[1])) / 2, top + 12, name, anchor="middle", weight="bold", room=width - GAP)
        shown = -1e9
        for value in steps(*axis):
            yield line(x(value), first, x(value), bottom, RULE if abs(value) < axis[2] / 2 else GRID)
            if x(value) - shown >= LETTER * 6:
                shown = x(value)
                yield text(
                    shown, bottom + 15, f"{value:+g}" if abs(value) > 1e-9 else "0", anchor="middle", colour=FAINT
                )
        for number, label in enumerate(labels):
            if label in differences:
                value, low, high = differences[label]
                y, colour = first + ROW * number + 9, WORSE if high < 0 else BETTER if low > 0 else FAINT
                yield line(x(low), y, x(high), y, colour, width=2)
                yield dot(x(value), y, colour)


def _differences(methods: Mapping[str, Any], headline: str, factor: int) -> dict[str, tuple[float, float, float]]:
    """Value, low and high by method, where they were measured."""
    found = {
        label: method["differences"][REFERENCE][headline]
        for label, method in methods.items()
        if REFERENCE in method["differences"]
    }
    return {
        label: (factor * score["value"], factor * score["low"], factor * score["high"])
        for label, score in found.items()
        if score["low"] is not None
    }


def _label_width(labels: Sequence[str] | Mapping[str, Any]) -> float:
    return min(MOST_LABEL, 16 + LETTER * max(map(len, labels)))


def _nothing(title: str) -> tuple[str, int]:
    return f"{text(8, 20, title, weight='bold')}\n{text(8, 42, 'Not measured.', colour=FAINT)}", 60
