"""`sparsezip report`: what a run measured."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import SettingError


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, finished or not.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write methods by budgets instead: a table (.md), a picture (.svg) or their numbers (.json)."
        ),
    ] = None,
) -> None:
    """Show the tables of a run, or write what every method scored at every budget."""
    from rich.console import Console

    from ..measure.report import budgets, chart, summary, table
    from ..measure.store import write_json

    if out is not None and (out.suffix not in (".md", ".svg", ".json") or not out.absolute().parent.is_dir()):
        raise SettingError(f"--out {out}: name a .md, .svg or .json file in a folder that exists.")
    if not (run / "run.json").is_file():
        raise SettingError(f"{run} holds no run. Give the folder that `sparsezip eval --out` made.")
    results = summary.read(run)
    if out is None:
        table.show(results, Console())
        return
    compared = budgets.compare(results, table.measured(results))
    if out.suffix == ".json":
        write_json(out, compared)
    else:
        out.write_text(chart.svg(compared) if out.suffix == ".svg" else table.budgets_markdown(compared), "utf-8")
