"""The options that several commands have, and what is done with them before any runs."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import config
from ..config import Document, Settings
from ..errors import SettingError

BUDGET = 64  # tokens per image where no file, option or setting says how many
COMPARED = ["keep_all", "sparsezip", "visionzip", "random", "grid"]
DEBUG = bool(os.environ.get("SPARSEZIP_DEBUG"))

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


def gather(
    file: Path | None, options: dict[str, Any], sets: list[str] | None, methods: list[str]
) -> tuple[Document, Settings]:
    """What the command is asked for, see config.gather; says on stderr what of it is not used."""
    document, settings = config.gather(file, options, sets or [], methods)
    if settings.model.conv_mode is not None:
        typer.echo(f"Note: conv_mode is {config.Model.model_fields['conv_mode'].description}.", err=True)
    return document, settings


def loading(settings: Settings) -> dict[str, Any]:
    """What a model is opened with."""
    given = {"attn_implementation": settings.runner.attn_implementation, "clip": settings.model.clip}
    return {name: value for name, value in given.items() if value is not None}


def check_tokens(settings: Settings, methods: Sequence[Any]) -> None:
    """Refuse more tokens than the model's images have patches, before a weight is read."""
    from ..models.load import patches

    path = settings.model.model_path
    if path.endswith(".py"):  # a user's own: what its images have shows when it is asked
        if not Path(path).is_file():
            raise SettingError(f"There is no file {path}.")
        return
    count = patches(path)
    for method in methods if count else ():
        method.check(count)


def quiet() -> None:
    """Keep other libraries' advice and progress bars off the terminal; errors come through."""
    if not DEBUG:
        from transformers.utils import logging

        warnings.simplefilter("ignore")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
