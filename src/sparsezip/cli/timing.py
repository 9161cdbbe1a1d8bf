"""`sparsezip time`: what methods take."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import request
from ..errors import SettingError
from .options import BUDGET, ConfigFile, Match, Ratio, Sets, gather, quiet

METHODS = ["sparsezip", "visionzip", "divprune", "sparsevlm"]
BUDGETS = (192, 128, 64)


class Device(StrEnum):
    """Where models are timed."""

    cpu = "cpu"
    cuda = "cuda"


class Dtype(StrEnum):
    """What tensors are timed in."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def time_(
    arch: Annotated[
        str, typer.Option(help="The shape of the model: llava-1.5-7b, llava-1.5-13b, llava-next-7b, qwen2.5-vl-7b.")
    ] = "llava-1.5-7b",
    share_layers: Annotated[
        bool,
        typer.Option("--share-layers", help="Layers of the LLM share weights, four and four."),
    ] = False,
    method: Annotated[
        str | None, typer.Option(help=f"Names of `sparsezip list methods` and pairs, by comma ({', '.join(METHODS)}).")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help=f"Tokens per image, one or several by comma ({', '.join(map(str, BUDGETS))}).")
    ] = None,
    keep_ratio: Ratio = None,
    match: Match = None,
    batch: Annotated[str, typer.Option(help="Images at a time, one number or several by comma.")] = "1",
    answer_tokens: Annotated[int, typer.Option(min=1, help="Length of each answer.")] = 2,
    rivals: Annotated[bool, typer.Option(help="Models of what official implementations pay, too.")] = True,
    stages: Annotated[
        bool, typer.Option("--stages", help="Only the own stages of all methods, beside the vision tower.")
    ] = False,
    device: Annotated[Device | None, typer.Option(help="CUDA if there is one.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads that torch computes with.")] = 1,
    dtype: Annotated[Dtype, typer.Option()] = Dtype.bf16,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="How often each is run, in turn; once more before that (3; --stages: 9).")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Where to write a picture of the stages, as SVG.")] = None,
    json_: Annotated[
        Path | None, typer.Option("--json", help="Where to write the numbers and what they rest on.")
    ] = None,
    set_: Sets = None,
    config_: ConfigFile = None,
) -> None:
    """Time every stage of a call on a model of a published shape with random weights; nothing is downloaded.

    The last line is one JSON object, but for --stages.
    """
    from .. import methods

    for name, file in (("--json", json_), ("--picture", picture)):
        if file is not None and not file.absolute().parent.is_dir():
            raise SettingError(f"{name} {file}: name a file in a folder that exists.")
    whole = {"--picture": picture, "--device": device, "--share-layers": share_layers, "--no-rivals": not rivals}
    if stages and (given := [name for name, value in whole.items() if value]):
        raise SettingError(
            f"{given[0]} has no meaning with --stages, which times no whole call. Leave one of them out."
        )
    options = {"--method": method, "--budget": budget, "--keep-ratio": keep_ratio, "--match": match}
    document, settings = gather(config_, options, set_, methods.registry.names() if stages else METHODS)
    if stages:
        request.one(document, "budget", "budget", settings.model.budget)
    _, chosen = request.methods(document, settings, () if config_ else (BUDGET,) if stages else BUDGETS, inside=True)
    rounds = rounds or (9 if stages else 3)
    batches = _numbers("--batch", batch)
    quiet()
    from rich.console import Console

    from ..measure import latency
    from ..measure.evaluate import labelled
    from ..measure.report import table
    from ..measure.store import write_json

    rows, cols = latency.Shape().grid
    for made in chosen:
        made.check(rows * cols)
    measured: dict[str, Any]
    if stages:
        if len(batches) > 1:
            raise SettingError("--stages takes one number of images at a time. Give one --batch.")
        measured = latency.stages(labelled(chosen), threads=threads, batch=batches[0], dtype=dtype.value, rounds=rounds)
        table.draw(latency.sheet(measured), Console())
        typer.echo(latency.remark(measured))
    else:
        import torch

        from ..measure.speed import run
        from ..measure.speed import table as shown

        cuda = torch.cuda.is_available()
        if device == "cuda" and not cuda:
            raise SettingError("--device cuda: PyTorch finds no CUDA device here. Use --device cpu.")
        asked = run.Asked(
            arch=arch,
            dtype=dtype.value,
            device=device.value if device else "cuda" if cuda else "cpu",
            share_layers=share_layers,
            batches=tuple(batches),
            answer_tokens=answer_tokens,
            rounds=rounds,
            threads=threads,
            rivals=rivals,
        )
        measured = run.measure(asked, labelled([made for made in chosen if made.name != "keep_all"]))
        for sheet in shown.sheets(measured):
            table.draw(sheet, Console())
        for line in shown.remarks(measured):
            typer.echo(line)
        if picture is not None:
            picture.write_text(shown.picture(measured), encoding="utf-8")
    if json_ is not None:
        write_json(json_, measured)
    if not stages:
        typer.echo(json.dumps(measured))


def _numbers(option: str, text: str) -> list[int]:
    """Numbers by comma, each at least 1."""
    if not all(part.strip().isdecimal() and int(part) for part in text.split(",")):
        raise SettingError(f"{option} {text}: give a number, or several as in 1,8.")
    return [int(part) for part in text.split(",")]
