"""`sparsezip report`: what runs measured."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import SettingError, UsageError


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUNS", help="Folders of runs, finished or not.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE",
            help="Write to a folder, with pictures and an HTML page; or to one .html, .csv, .md, .json or .svg file.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the images of the HTML page lie, if not where the run found them."),
    ] = None,
    allow_unequal_budgets: Annotated[
        bool,
        typer.Option(
            "--allow-unequal-budgets", help="Put methods of different budgets side by side; every table then says so."
        ),
    ] = False,
) -> None:
    """Show the tables of one run or of several side by side, or write them with pictures and examples."""
    from rich.console import Console

    from ..measure.report import files, summary, table
    from ..measure.report import runs as reading

    if out is not None:
        files.check(out)
    if data is not None and not data.is_dir():
        raise SettingError(f"--data {data} is no folder. Name the one that the benchmark's images lie in.")
    record, rows = reading.joined(reading.read(runs))
    results = summary.summarise(record, rows)
    if results["unequal"] and not allow_unequal_budgets:
        raise UsageError(
            f"{results['unequal'][0]} Give all methods one --budget, or add --allow-unequal-budgets to this report."
        )
    if out is None:
        table.show(results, Console())
    else:
        files.write(out, results, rows, data)
        typer.echo(f"The report is in {out}.")
