"""The command line: `sparsezip ask | compress | eval | report | time | list | testbed`.

A command first gathers what it is asked for (file, options, --set) and checks it; only then is a model loaded. What
cannot be met is one line on stderr and exit code 2, what fails on the way is one line and 1, an interrupt is 130.
SPARSEZIP_DEBUG=1 shows tracebacks and what other libraries have to say.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from enum import StrEnum
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from . import config, request
from .config import Document, Settings
from .errors import ConfigError, RunMismatchError, SettingError, SparsezipError, UnknownNameError, UsageError
from .registry import Registry, nearest

BUDGET = 64  # tokens per image where no file, option or setting says how many
COMPARED = ["keep_all", "sparsezip", "visionzip", "random", "grid"]
KEPT_SHOWN = 20
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
DEBUG = bool(os.environ.get("SPARSEZIP_DEBUG"))

app = typer.Typer(
    name="sparsezip",
    help="Send fewer visual tokens to a vision-language model, and see what that costs and saves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
testbed = typer.Typer(
    help="The small model that ships with the package: its scenes, sets and training.", no_args_is_help=True
)
app.add_typer(testbed, name="testbed")


class Dtype(StrEnum):
    """What tensors are timed in."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


ImageFile = Annotated[Path, typer.Argument(metavar="IMAGE", help="PNG, JPEG, WebP, GIF or BMP.")]
Model = Annotated[str | None, typer.Option(help="testbed, a folder, or a Hub id in transformers format.")]
Method = Annotated[
    str | None, typer.Option(help="A name of `sparsezip list methods`, or a pair of them: visionzip|fastv.")
]
Methods = Annotated[
    str | None, typer.Option(help=f"Names of `sparsezip list methods` and pairs, by comma ({', '.join(COMPARED)}).")
]
Budget = Annotated[
    int | None,
    typer.Option(
        help=f"Tokens per image, every one counted. {BUDGET} unless said otherwise; inside the LLM none, so that the "
        "method's own settings count."
    ),
]
Ratio = Annotated[float | None, typer.Option(help="The same as a share of the patches, in place of --budget.")]
Match = Annotated[
    str | None,
    typer.Option(
        help="What the budget is the measure of where tokens are dropped inside the LLM: mean_tokens_per_layer, tokens "
        "(behind the last drop) or flops (mean_tokens_per_layer)."
    ),
]
Clip = Annotated[
    str | None, typer.Option(help="A CLIP model's folder or Hub id, for methods that read the question in its space.")
]
Tokens = Annotated[int | None, typer.Option(help="The longest answer, in tokens (the benchmark's own, or 16).")]
Map = Annotated[Path | None, typer.Option("--map", help="Where to write a picture of kept and merged patches.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting: sparsezip.k_min=16, runner.limit=20.")
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="A YAML file; docs/configuration.md tells its shape.")
]


@app.command()
def ask(
    image: ImageFile,
    question: Annotated[str, typer.Argument(metavar="QUESTION")],
    model: Model = None,
    method: Method = None,
    budget: Budget = None,
    keep_ratio: Ratio = None,
    match: Match = None,
    clip: Clip = None,
    max_new_tokens: Tokens = None,
    map_: Map = None,
    set_: Sets = None,
    config_: ConfigFile = None,
) -> None:
    """Answer a question about an image, and say what the answer cost."""
    options = {"--model": model, "--method": method, "--budget": budget, "--keep-ratio": keep_ratio,
               "--match": match, "--clip": clip, "--max-new-tokens": max_new_tokens}  # fmt: skip
    document, settings = _gather(config_, options, set_, ["sparsezip"])
    chosen = request.method(document, settings, None if config_ else BUDGET)
    opened = _open(image, map_)
    _quiet()
    _check_tokens(settings, [chosen])
    from .vlm import load

    vlm = load(settings.model.model_path, **_loading(settings))
    answer = vlm.ask(opened, question, chosen, max_new_tokens=settings.model.max_new_tokens or 16)
    typer.echo(answer.text)
    mean = sum(answer.tokens_per_layer) / len(answer.tokens_per_layer)
    typer.echo(f"{chosen.name}: {answer.tokens} of {answer.tokens_before} visual tokens; mean per LLM layer {mean:.1f}")
    typer.echo(_milliseconds(answer.timing))
    _draw(map_, opened, answer.maps)


@app.command()
def compress(
    image: ImageFile,
    question: Annotated[
        str | None, typer.Option(help="For methods that read one; without it their text term is off.")
    ] = None,
    model: Model = None,
    method: Method = None,
    budget: Budget = None,
    keep_ratio: Ratio = None,
    clip: Clip = None,
    map_: Map = None,
    set_: Sets = None,
    config_: ConfigFile = None,
) -> None:
    """Run the vision tower and the method alone; the language model is not loaded."""
    options = {"--model": model, "--method": method, "--budget": budget, "--keep-ratio": keep_ratio, "--clip": clip}
    document, settings = _gather(config_, options, set_, ["sparsezip"])
    chosen = request.method(document, settings, None if config_ else BUDGET)
    if chosen.parts[1] is not None:
        raise ConfigError(f"{chosen.name} drops tokens inside the language model, which is not loaded here. Use ask.")
    opened = _open(image, map_)
    _quiet()
    _check_tokens(settings, [chosen])
    from .models.load import load_tower
    from .pipeline import compress_images

    where = {"clip": settings.model.clip} if settings.model.clip else {}
    tower = load_tower(settings.model.model_path, question=question is not None, **where)
    trace = compress_images(tower, [opened], chosen, question)
    made = trace.images[0]
    dropped = int((made.source < 0).sum())
    typer.echo(
        f"{chosen.name}: {made.tokens} tokens for {made.patches} patches ({made.grid[0]} x {made.grid[1]}): "
        f"{made.K} kept, {made.patches - made.K - dropped} merged, {dropped} dropped"
    )
    typer.echo(f"kept: {' '.join(map(str, made.kept[:KEPT_SHOWN].tolist()))}{' ...' if made.K > KEPT_SHOWN else ''}")
    typer.echo(_milliseconds(trace.stages))
    _draw(map_, opened, made)


@app.command("eval")
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
    document, settings = _gather(config_, options, set_, COMPARED)
    runner = settings.runner
    groups = request.groups(document, settings)
    if runner.output_dir is None:
        raise ConfigError("Say where the run is kept: --out DIR. The same command on the same folder goes on with it.")
    folder = Path(runner.output_dir)
    asked, methods = request.methods(document, settings, None if config_ else BUDGET)
    _quiet()
    from rich.console import Console

    from .measure.evaluate import evaluate
    from .measure.report import table

    _check_tokens(settings, methods)
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
        **_loading(settings),
    )
    table.show(results, Console())
    typer.echo(f"Record, answers and results are in {folder}.")
    raise typer.Exit(1 if results["failed"] else 0)


@app.command()
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

    from .measure.report import budgets, chart, summary, table
    from .measure.store import write_json

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


@app.command("time")
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
    from . import methods

    if not stages:
        raise ConfigError("Say what is timed: --stages.")
    if json_ is not None and not json_.absolute().parent.is_dir():
        raise SettingError(f"--json {json_}: name a file in a folder that exists.")
    options = {"--method": method, "--budget": budget, "--keep-ratio": keep_ratio, "--match": match}
    document, settings = _gather(config_, options, set_, methods.registry.names())
    request.one(document, "budget", "budget", settings.model.budget)
    _, chosen = request.methods(document, settings, None if config_ else BUDGET, inside=True)
    _quiet()
    from rich.console import Console

    from .measure import latency
    from .measure.evaluate import labelled
    from .measure.report import table
    from .measure.store import write_json

    rows, cols = latency.Shape().grid
    for made in chosen:
        made.check(rows * cols)
    measured = latency.stages(labelled(chosen), threads=threads, batch=batch, dtype=dtype.value, rounds=rounds)
    table.draw(latency.sheet(measured), Console())
    typer.echo(latency.remark(measured))
    if json_ is not None:
        write_json(json_, measured)


class Listed(StrEnum):
    """What can be listed, and the folder it is read from."""

    methods = "methods"
    models = "models"
    benchmarks = "benchmarks"


@app.command("list")
def list_(what: Annotated[Listed, typer.Argument()]) -> None:
    """One line for each method, model family or benchmark."""
    room = f"measure.{what}" if what == Listed.benchmarks else what
    registry: Registry = import_module(f"sparsezip.{room}").registry
    width = max(map(len, registry.names()))
    for name in registry.names():
        typer.echo(f"{name:{width}}  {registry.header(name).splitlines()[0].removeprefix(f'{name}: ')}")


@testbed.command("data")
def make_data(
    out: Annotated[Path, typer.Argument(metavar="OUT")],
    seed: Annotated[int, typer.Option(min=0, help="One seed gives the same files everywhere.")] = 0,
    scenes: Annotated[int, typer.Option(min=1, help="Images with open questions; the other sets are smaller.")] = 200,
) -> None:
    """Write held-out scenes as image files, in the layouts of POPE, MME and DocVQA."""
    from .testbed import sets

    sets.write(out, seed, scenes)
    typer.echo(f"pope, mme, docvqa and scenes are in {out}.")


@testbed.command()
def train(
    out: Annotated[Path, typer.Argument(metavar="OUT")],
    minutes: Annotated[
        float, typer.Option(min=0.1, help="In all; the same command goes on with a run that was killed.")
    ] = 180,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    stages: Annotated[str | None, typer.Option(help="Some of tower, oracle, align, tune, by comma; none: all.")] = None,
) -> None:
    """Train the small model from nothing; the checkpoint ends in OUT/checkpoint."""
    from .testbed.train import STAGES, train

    names = stages.split(",") if stages else list(STAGES)
    for name in names:
        if name not in STAGES:
            raise UnknownNameError(f'There is no stage "{name}".{nearest(name, STAGES)} Known: {", ".join(STAGES)}.')
    typer.echo(f"Done: {train(out, minutes, names, threads, report=typer.echo)}")


@testbed.command()
def score(
    checkpoint: Annotated[
        Path | None, typer.Argument(metavar="CHECKPOINT", help="A trained one; none: the one that ships.")
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="Of each type.")] = 400,
    seed: Annotated[int, typer.Option(help="Of the held-out scenes.")] = 1,
) -> None:
    """Held-out scores of a checkpoint by question type, with noise for the image as a control."""
    _quiet()
    from .testbed import checkpoint_path
    from .testbed.score import score, table

    typer.echo(table(score(checkpoint or checkpoint_path(), questions, seed)))


def _show_version(asked: bool) -> bool:
    if asked:
        try:
            typer.echo(f"sparsezip {version('sparsezip')}")
        except PackageNotFoundError:
            typer.echo("sparsezip, from a folder that is not installed")
        raise typer.Exit
    return asked


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """What stands before the command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        code = app(arguments, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except Exception as error:
        if DEBUG:
            raise
        code, message = _failure(error)
        if message:  # none: the help was shown instead
            print(f"sparsezip: {' '.join(message.split())}", file=sys.stderr)
        return code


def _failure(error: Exception) -> tuple[int, str]:
    """Exit code and message."""
    if isinstance(error, SparsezipError):
        return 2 if isinstance(error, UsageError) else 1, str(error)
    if hasattr(error, "format_message"):  # typer's own: an option that is missing, unknown or no number
        said = error.format_message().rstrip(".")
        return 2, said and f"{said}. See --help."
    if isinstance(error, OSError) and error.filename:
        return 1, f"{error.filename}: {error.strerror}."
    return 1, f"{type(error).__name__}: {error} (SPARSEZIP_DEBUG=1 shows where)"


def _gather(
    file: Path | None, options: dict[str, Any], sets: list[str] | None, methods: list[str]
) -> tuple[Document, Settings]:
    document, settings = config.gather(file, options, sets or [], methods)
    for section in (settings.model, settings.runner):
        for key in ("conv_mode", "warmup"):
            if getattr(section, key, None) is not None:
                typer.echo(f"Note: {key} is {type(section).model_fields[key].description}.", err=True)
    return document, settings


def _loading(settings: Settings) -> dict[str, Any]:
    """What a model is opened with."""
    given = {"attn_implementation": settings.runner.attn_implementation, "clip": settings.model.clip}
    return {name: value for name, value in given.items() if value is not None}


def _check_tokens(settings: Settings, methods: Sequence[Any]) -> None:
    """Refuse more tokens than the model's images have patches, before a weight is read."""
    from .models.load import patches

    count = patches(settings.model.model_path)
    for method in methods if count else ():
        method.check(count)


def _own_sets(folder: Path, seed: int, scenes: int) -> Path:
    """The testbed's own sets, made once per run folder. Raises RunMismatchError where a run has others."""
    from .measure.store import refuse_different
    from .testbed import sets

    refuse_different(folder, {})
    made = folder / f"sets-seed{seed}-scenes{scenes}"
    if not made.exists():
        if (folder / "run.json").exists():
            raise RunMismatchError(f"{folder} holds a different run: it has no {made.name}. Choose another folder.")
        typer.echo(f"Making the testbed's own sets in {made}.", err=True)
        sets.write(made, seed, scenes)
    return made


def _open(image: Path, map_: Path | None) -> Any:
    from .images import open_image

    if map_ is not None and (map_.suffix.lower() not in PICTURES or not map_.absolute().parent.is_dir()):
        raise SettingError(f"--map {map_}: name a {', '.join(PICTURES)} file in a folder that exists.")
    return open_image(image)


def _draw(map_: Path | None, image: Any, trace: Any) -> None:
    from .measure.report import token_map

    if map_ is not None:
        token_map.draw(image, trace.kept, trace.source, trace.grid).save(map_)
        typer.echo(f"The picture is {map_}.")


def _milliseconds(stages: dict[str, float]) -> str:
    return "ms: " + ", ".join(f"{stage} {took:.1f}" for stage, took in stages.items())


def _quiet() -> None:
    """Keep other libraries' advice and progress bars off the terminal; errors come through."""
    if not DEBUG:
        from transformers.utils import logging

        warnings.simplefilter("ignore")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
