"""`sparsezip data get | check`: the benchmarks' files."""

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError

app = typer.Typer(help="Fetch the benchmarks' files, and say which are there.", no_args_is_help=True)
ALIASES = {"coco": "coco_caption", "vqa": "vqav2"}


@app.command("get")
def get_(
    name: Annotated[str, typer.Argument(help="A name of `sparsezip list benchmarks`.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the files go; benchmarks share it.")] = Path(
        "data"
    ),
    from_: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            help="official, hub, or an archive that you have (may be given several times). Official addresses, "
            "or the Hub where there are none.",
        ),
    ] = None,
) -> None:
    """Fetch the files of a benchmark; stopped and started again, it goes on where it was."""
    from rich.console import Console

    from ..measure.benchmarks import benchmark
    from ..measure.data.check import check
    from ..measure.data.get import get

    made = benchmark(ALIASES.get(name, name))
    if made.name == "scenes":
        raise UsageError(f"The scenes are drawn here: sparsezip testbed data {folder}.")
    found = check(made, folder)
    if found is None or found.missing:
        get(made, folder, from_ or [], console=Console(stderr=True))
    _show([check(made, folder)], folder)


@app.command("check")
def check_(folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of the benchmarks' files.")]) -> None:
    """Say what is there, what is missing, and how to get it; exit code 2 where a benchmark is incomplete."""
    from ..measure.benchmarks import benchmark, names
    from ..measure.data.check import check

    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.")
    _show([check(benchmark(name), folder) for name in names()], folder)


def _show(all_found: list, folder: Path) -> None:  # of Found or None
    """What was found, one benchmark after the other. Exits with 2 where something is missing."""
    from ..measure.data.check import cure

    found = [one for one in all_found if one is not None]
    for one in found:
        if one.missing:
            typer.echo(f"{one.name}: incomplete. {one.missing}")
            if advice := cure(one, folder):
                typer.echo(f"    {advice}")
            continue
        groups = ", ".join(f"{group} {count:,}" for group, count in one.questions.items())
        remark = f"; {one.remark}" if one.remark else ""
        typer.echo(
            f"{one.name}: ready. {sum(one.questions.values()):,} questions on {one.images:,} images ({groups}){remark}"
        )
        typer.echo(f"    sparsezip eval --benchmark {one.name} --data {folder} --out RUN")
    if not found:
        raise UsageError(f"{folder} holds no benchmark that is known. Get one: sparsezip data get pope {folder}.")
    if any(one.missing for one in found):
        raise typer.Exit(2)
