"""`sparsezip eval`: methods on benchmarks."""

from pathlib import Path
from typing import Annotated

import typer

from .. import config, request
from ..errors import ConfigError
from .files import data as files
from .options import (
    BUDGET,
    COMPARED,
    Clip,
    ConfigFile,
    Match,
    Methods,
    Ratio,
    Sets,
    Tokens,
    check_tokens,
    gather,
    loading,
    quiet,
)

ASKED, MEASURED = "What is asked", "How it runs"


def evaluate(
    model: Annotated[
        str | None,
        typer.Option(help="testbed, a folder, a Hub id in transformers format, or a .py file with your own."),
    ] = None,
    method: Methods = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help=f"Tokens per image, every one counted; several by comma run every method at each ({BUDGET})."
        ),
    ] = None,
    keep_ratio: Ratio = None,
    match: Match = None,
    clip: Clip = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            help="Names of `sparsezip list benchmarks` and .py files with your own, by comma "
            f"({', '.join(config.Runner().dataset)}).",
            rich_help_panel=ASKED,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="The benchmarks' files; hub: those of the Hub, kept in your cache. Without it, sets of the testbed's "
            "scenes.",
            rich_help_panel=ASKED,
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="The folder of the images, where it lies elsewhere.", rich_help_panel=ASKED)
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GROUP...",
            help="Splits, subtasks or types: OCR color, or pope.random (all).",
            rich_help_panel=ASKED,
        ),
    ] = None,
    more: Annotated[list[str] | None, typer.Argument(hidden=True, metavar="GROUP")] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Questions per benchmark, spread over its splits; POPE, MME: whole pairs, one or more (all).",
            rich_help_panel=ASKED,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="How questions are worded: llava, lmms-eval, or bare for the testbed.", rich_help_panel=ASKED
        ),
    ] = None,
    max_new_tokens: Tokens = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of methods that draw, and of the testbed's own sets (0).", rich_help_panel=ASKED),
    ] = None,
    scenes: Annotated[
        int | None, typer.Option(help="Size of the testbed's own sets (200).", rich_help_panel=ASKED)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The folder of the run; the same command goes on with it.", rich_help_panel=MEASURED),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Questions answered together (1, which measures latency).", rich_help_panel=MEASURED),
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(
            help="Questions of each benchmark answered before any counts (a batch).", rich_help_panel=MEASURED
        ),
    ] = None,
    runner: Annotated[
        str | None,
        typer.Option(help="local, or ray for many GPUs or machines (local).", rich_help_panel=MEASURED),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Ray's, each with the model loaded once (1).", rich_help_panel=MEASURED)
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster (this machine alone).", rich_help_panel=MEASURED)
    ] = None,
    set_: Sets = None,
    config_: ConfigFile = None,
) -> None:
    """Ask every method every question; show accuracy and latency side by side."""
    if more and not only:
        raise ConfigError(f'"{more[0]}" belongs to no option. See --help.')
    options = {
        "--model": model, "--benchmark": benchmark, "--method": method, "--budget": budget,
        "--keep-ratio": keep_ratio, "--match": match, "--clip": clip, "--out": out,
        "--data": data, "--images": images, "--only": " ".join([*only, *(more or [])]) if only else None,
        "--limit": limit, "--prompt": prompt, "--max-new-tokens": max_new_tokens, "--batch-size": batch_size,
        "--seed": seed, "--scenes": scenes, "--warmup": warmup, "--runner": runner, "--workers": workers,
        "--address": address,
    }  # fmt: skip
    document, settings = gather(config_, options, set_, COMPARED)
    run = settings.runner
    groups = request.groups(document, settings)
    if run.output_dir is None:
        raise ConfigError("Say where the run is kept: --out DIR. The same command on the same folder goes on with it.")
    folder = Path(run.output_dir)
    asked, methods = request.methods(document, settings, () if config_ else (BUDGET,))
    quiet()
    from rich.console import Console

    from ..measure.evaluate import evaluate
    from ..measure.report import table

    check_tokens(settings, methods)
    results = evaluate(
        settings.model.model_path,
        run.dataset,
        methods,
        folder,
        data=files(run, folder),
        images=Path(run.images) if run.images else None,
        only=groups,
        limit=run.limit,
        prompt=run.prompt,
        max_new_tokens=settings.model.max_new_tokens,
        batch_size=run.batch_size,
        warmup=run.warmup,
        runner=run.runner,
        workers=run.workers,
        address=run.address,
        config={"seed": run.seed},
        asked=config.dump(settings, asked),
        console=Console(stderr=True),
        **loading(settings),
    )
    table.show(results, Console())
    typer.echo(f"Record, answers and results are in {folder}.")
    raise typer.Exit(1 if results["failed"] else 0)
