"""`sparsezip time`: what methods take."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .. import request
from ..errors import ConfigError, SettingError
from .options import BUDGET, Budget, ConfigFile, Match, Ratio, Sets, gather, quiet


class Dtype(StrEnum):
    """What tensors are timed in."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def time_(
    stages: Annotated[
        bool, typer.Option("--stages", help="The methods' own stages, beside the vision tower; all there is as yet.")
    ] = False,
    method: Annotated[
        str | None, typer.Option(help="Names of `sparsezip list methods` and pairs, by comma (all methods).")
    ] = None,
    budget: Budget = None,
    keep_ratio: Ratio = None,
    match: Match = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads that torch computes with.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 1,
    dtype: Annotated[Dtype, typer.Option()] = Dtype.fp32,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is run, in turn; once more before that.")] = 9,
    json_: Annotated[
        Path | None, typer.Option("--json", help="Where to write the numbers and what they rest on.")
    ] = None,
    set_: Sets = None,
    config_: ConfigFile = None,
) -> None:
    """Time the methods' own stages at the shape of LLaVA-1.5-7B, with random weights; nothing is downloaded."""
    from .. import methods

    if not stages:
        raise ConfigError("Say what is timed: --stages.")
    if json_ is not None and not json_.absolute().parent.is_dir():
        raise SettingError(f"--json {json_}: name a file in a folder that exists.")
    options = {"--method": method, "--budget": budget, "--keep-ratio": keep_ratio, "--match": match}
    document, settings = gather(config_, options, set_, methods.registry.names())
    request.one(document, "budget", "budget", settings.model.budget)
    _, chosen = request.methods(document, settings, None if config_ else BUDGET, inside=True)
    quiet()
    from rich.console import Console

    from ..measure import latency
    from ..measure.evaluate import labelled
    from ..measure.report import table
    from ..measure.store import write_json

    rows, cols = latency.Shape().grid
    for made in chosen:
        made.check(rows * cols)
    measured = latency.stages(labelled(chosen), threads=threads, batch=batch, dtype=dtype.value, rounds=rounds)
    table.draw(latency.sheet(measured), Console())
    typer.echo(latency.remark(measured))
    if json_ is not None:
        write_json(json_, measured)
