"""What a report is written to: one file, or a folder that gets everything."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import SettingError
from ..records import Row
from ..store import write_json
from . import bars, budgets, changes, chart, page, table, tidy

SUFFIXES = (".md", ".svg", ".json", ".csv", ".html")


def check(out: Path) -> None:
    """Raise SettingError for a place that cannot be written to or that says nothing of what is wanted."""
    known = out.suffix in SUFFIXES and not out.is_dir()
    if (
        (out.suffix and not known and not out.is_dir())
        or not out.absolute().parent.is_dir()
        or (not known and out.is_file())
    ):
        raise SettingError(
            f"--out {out}: name a .md, .svg or .json file (methods by budget), a .csv or .html file, or a folder for "
            "everything, in a folder that exists."
        )


def write(out: Path, results: Mapping[str, Any], rows: Sequence[Row], data: Path | None = None) -> None:
    """Write a report of `results`, and of the `rows` they are made of, to `out`; see `check`.

    data: where the images of the questions lie; None: where the runs found them.
    """
    compared = budgets.compare(results, table.measured(results))
    if out.suffix in SUFFIXES and not out.is_dir():
        _one(out, compared, results, rows, data)
        return
    out.mkdir(exist_ok=True)
    for name, (_, drawn) in _pictures(compared, results).items():
        (out / f"{name}.svg").write_text(drawn, "utf-8")
    (out / "report.md").write_text(table.markdown(results) + _linked(compared, results), "utf-8")
    write_json(out / "report.json", results)
    for suffix in (".csv", ".html"):
        _one(out / f"report{suffix}", compared, results, rows, data)


def _one(
    out: Path, compared: Mapping[str, Any], results: Mapping[str, Any], rows: Sequence[Row], data: Path | None
) -> None:
    if out.suffix == ".json":
        write_json(out, compared)
    elif out.suffix == ".md":
        out.write_text(table.budgets_markdown(compared), "utf-8")
    elif out.suffix == ".svg":
        out.write_text(chart.svg(compared), "utf-8")
    elif out.suffix == ".csv":
        out.write_text(tidy.text(results), "utf-8")
    else:
        found, missing = changes.images(results["record"], data)
        pictures = dict(_pictures(compared, results).values())
        out.write_text(page.page(results, rows, pictures, found, missing), "utf-8")


def _pictures(compared: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Heading and SVG by the file's name."""
    return {
        "accuracy_by_tokens": ("Accuracy by tokens", chart.svg(compared)),
        "accuracy_by_time": ("Accuracy by latency", chart.svg(compared, chart.TIME)),
        "stages": ("Where the time goes", bars.stages(results)),
        "differences": ("What each group loses", bars.differences(results)),
    }


def _linked(compared: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    pictures = _pictures(compared, results).items()
    return "\n" + "\n\n".join(f"![{heading}]({name}.svg)" for name, (heading, _) in pictures) + "\n"
