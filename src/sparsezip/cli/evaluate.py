"""`sparsezip eval`: methods on benchmarks."""

from pathlib import Path
from typing import Annotated

import typer

from .. import config, request
from ..errors import ConfigError, RunMismatchError
from .options import (
    BUDGET,
    COMPARED,
    Clip,
    ConfigFile,
    Match,
    Methods,
    Model,
    Ratio,
    Sets,
    Tokens,
    check_tokens,
    gather,
    loading,
    quiet,
)


def evaluate(
    model: Model = None,
    benchmark: Annotated[
        str | None,
        typer.Option(help=f"Names of `sparsezip list benchmarks`, by comma ({', '.join(config.Runner().dataset)})."),
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
    out: Annotated[Path | None, typer.Option(help="The folder of the run; the same command goes on with it.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="The benchmarks' files. Without it, sets of the testbed's scenes.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="The folder of the images, where it lies elsewhere.")] = None,
    only: Annotated[str | None, typer.Option(help="Splits, subtasks or types, by comma: pope.random (all).")] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Questions per benchmark, spread over its splits; POPE, MME: whole pairs, one or more (all)."
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="How questions are worded: llava, or bare for the testbed.")
    ] = None,
    max_new_tokens: Tokens = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Questions answered together (1, which measures latency).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of methods that draw, and of the testbed's own sets (0).")] = None,
    scenes: Annotated[int | None, typer.Option(help="Size of the testbed's own sets (200).")] = None,
    set_: Sets = None,
    config_: ConfigFile = None,
) -> None:
    """Ask every method every question; show accuracy and latency side by side."""
    options = {
        "--model": model, "--benchmark": benchmark, "--method": method, "--budget": budget,
        "--keep-ratio": keep_ratio, "--match": match, "--clip": clip, "--out": out,
        "--data": data, "--images": images, "--only": only, "--limit": limit, "--prompt": prompt,
        "--max-new-tokens": max_new_tokens, "--batch-size": batch_size, "--seed": seed, "--scenes": scenes,
    }  # fmt: skip
    document, settings = gather(config_, options, set_, COMPARED)
    runner = settings.runner
    groups = request.groups(document, settings)
    if runner.output_dir is None:
        raise ConfigError("Say where the run is kept: --out DIR. The same command on the same folder goes on with it.")
    folder = Path(runner.output_dir)
    asked, methods = request.methods(document, settings, None if config_ else BUDGET)
    quiet()
    from rich.console import Console

    from ..measure.evaluate import evaluate
    from ..measure.report import table

    check_tokens(settings, methods)
    files = Path(runner.ann_path) if runner.ann_path else _own_sets(folder, runner.seed, runner.scenes)
    results = evaluate(
        settings.model.model_path,
        runner.dataset,
        methods,
        folder,
        data=files,
        images=Path(runner.images) if runner.images else None,
        only=groups,
        limit=runner.limit,
        prompt=runner.prompt,
        max_new_tokens=settings.model.max_new_tokens,
        batch_size=runner.batch_size,
        config={"seed": runner.seed},
        asked=config.dump(settings, asked),
        console=Console(stderr=True),
        **loading(settings),
    )
    table.show(results, Console())
    typer.echo(f"Record, answers and results are in {folder}.")
    raise typer.Exit(1 if results["failed"] else 0)


def _own_sets(folder: Path, seed: int, scenes: int) -> Path:
    """The testbed's own sets, made once per run folder. Raises RunMismatchError where a run has others."""
    from ..measure.store import refuse_different
    from ..testbed import sets

    refuse_different(folder, {})
    made = folder / f"sets-seed{seed}-scenes{scenes}"
    if not made.exists():
        if (folder / "run.json").exists():
            raise RunMismatchError(f"{folder} holds a different run: it has no {made.name}. Choose another folder.")
        typer.echo(f"Making the testbed's own sets in {made}.", err=True)
        sets.write(made, seed, scenes)
    return made
