"""The training's curves: what each stage reported, kept as JSON lines beside its weights and drawn as one picture."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..measure.report.axes import (
    COLOURS,
    FAINT,
    GRID,
    LINE,
    document,
    line,
    scale,
    spread,
    steps,
    text,
    ticks,
)

FILE = "curves.jsonl"
LEFT, RIGHT, TOP, HEIGHT = 56, 720, 34, 260


def record(folder: Path, figures: Mapping[str, float]) -> None:
    """Add a report of one stage."""
    with (folder / FILE).open("a") as file:
        file.write(json.dumps(dict(figures)) + "\n")


def read(folder: Path) -> list[dict[str, float]]:
    """The reports of one stage in order; of steps taken again after a kill, the later ones."""
    by_step = dict[int, dict[str, float]]()
    for report in (folder / FILE).read_text().splitlines() if (folder / FILE).exists() else []:
        try:
            row = json.loads(report)
        except ValueError:  # a kill broke it off, and the next report was written behind it
            continue
        by_step[int(row["step"])] = row
    return [by_step[step] for step in sorted(by_step)]


def draw(stages: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """An SVG of each stage's shares (accuracies, attention) and, below them, its losses, over minutes."""
    panels = []
    for stage, rows in stages.items():
        names = {name for row in rows for name in row} - {"step", "minutes"}
        losses = {name for name in names if name.startswith("loss")}
        for title, shown in ((f"{stage}: shares", names - losses), (f"{stage}: losses", losses)):
            if shown:
                panels.append((_panel(title, sorted(shown), rows), TOP + HEIGHT + max(48, LINE * (len(shown) - 14))))
    return document(panels, "Training of the testbed's model")


def _panel(title: str, names: Sequence[str], rows: Sequence[Mapping[str, float]]) -> str:
    series = {name: [(row["minutes"], row[name]) for row in rows if name in row] for name in names}
    points = [point for its in series.values() for point in its]
    low, high, step = ticks([value for _, value in points])
    x, y = scale([0.0, *(minutes for minutes, _ in points)], LEFT, RIGHT), scale([low, high], TOP + HEIGHT, TOP)
    parts = [text(LEFT, 20, f"{title} by minutes", weight="bold")]
    for value in steps(low, high, step):
        parts += [line(LEFT, y(value), RIGHT, y(value), GRID), text(LEFT - 8, y(value) + 4, f"{value:g}", anchor="end")]
    first, last, step = ticks([0.0, *(minutes for minutes, _ in points)])
    for value in steps(first, last, step):
        if x(value) <= RIGHT:
            parts.append(text(x(value), TOP + HEIGHT + 18, f"{value:g}", anchor="middle", colour=FAINT))
    places = spread({name: y(its[-1][1]) for name, its in series.items()}, TOP, TOP + HEIGHT)
    for i, (name, its) in enumerate(series.items()):
        colour, path = COLOURS[i % len(COLOURS)], " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in its)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
        parts.append(line(RIGHT, y(its[-1][1]), RIGHT + 24, places[name], colour, 0.35))
        parts.append(text(RIGHT + 28, places[name] + 4, f"{name} {its[-1][1]:.3g}", colour=colour))
    return "\n".join(parts)
