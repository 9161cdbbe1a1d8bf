"""`sparsezip testbed`: the small model that ships with the package."""

from pathlib import Path
from typing import Annotated

import typer

from ..registry import unknown
from .options import quiet

app = typer.Typer(
    help="The small model that ships with the package: its scenes, sets and training.", no_args_is_help=True
)


@app.command("data")
def make_data(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new or empty folder.")],
    seed: Annotated[int, typer.Option(min=0, help="One seed gives the same files everywhere.")] = 0,
    scenes: Annotated[int, typer.Option(min=1, help="Images with open questions; the other sets are smaller.")] = 200,
    split: Annotated[str, typer.Option(help="held-out or train: the two never share a scene.")] = "held-out",
    level: Annotated[str, typer.Option(help="How much stands in a scene: easy, standard or hard.")] = "standard",
) -> None:
    """Write scenes as image files, in the layouts of POPE, MME, DocVQA, COCO captions and VQAv2."""
    from ..testbed import sets

    sets.write(out, seed, scenes, split, level)
    typer.echo(f"pope, mme, docvqa, coco_caption, vqav2 and scenes are in {out}.")


@app.command()
def train(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The run's folder: a new one, or that of a run to go on.")],
    minutes: Annotated[
        float, typer.Option(min=0.1, help="Of all four stages, whichever are run: each takes its share.")
    ] = 180,
    threads: Annotated[int, typer.Option(min=1, help="Of the CPU.")] = 2,
    stages: Annotated[
        str | None,
        typer.Option(help="Some of tower, oracle, align, tune, by comma (all). The first two may run side by side."),
    ] = None,
) -> None:
    """Train the small model from nothing; it ends in OUT/checkpoint. After a kill the same command goes on."""
    from ..testbed.train import STAGES, train

    names = list(STAGES) if stages is None else [name.strip() for name in stages.split(",")]
    for name in names:
        if name not in STAGES:
            raise unknown("stage", name, STAGES)
    typer.echo(f"Done: {train(out, minutes, names, threads, report=typer.echo)}")


@app.command()
def report(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(metavar="CHECKPOINT", help="OUT/checkpoint of a training; none: the shipped one."),
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="Of each type.")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Of the held-out scenes.")] = 1,
    level: Annotated[str, typer.Option(help="How much stands in a scene: easy, standard or hard.")] = "standard",
) -> None:
    """Held-out scores of a checkpoint by question type, with noise for the image as a control; takes minutes."""
    quiet()
    from ..testbed.score import score, table

    def progress(line: str) -> None:
        typer.echo(line, err=True)

    typer.echo(table(score(checkpoint or "testbed", questions, seed, level=level, progress=progress)))
