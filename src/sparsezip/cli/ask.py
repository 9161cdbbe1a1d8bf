"""`sparsezip ask` and `sparsezip compress`: one image."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .. import request
from ..errors import ConfigError, SettingError
from .options import (
    BUDGET,
    Budget,
    Clip,
    ConfigFile,
    ImageFile,
    Map,
    Match,
    Method,
    Model,
    Ratio,
    Sets,
    Tokens,
    check_tokens,
    gather,
    loading,
    quiet,
)

KEPT_SHOWN = 20
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


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
    document, settings = gather(config_, options, set_, ["sparsezip"])
    chosen = request.method(document, settings, () if config_ else (BUDGET,))
    opened = _open(image, map_)
    quiet()
    check_tokens(settings, [chosen])
    from ..vlm import load

    vlm = load(settings.model.model_path, **loading(settings))
    answer = vlm.ask(opened, question, chosen, max_new_tokens=settings.model.max_new_tokens or 16)
    typer.echo(answer.text)
    mean = sum(answer.tokens_per_layer) / len(answer.tokens_per_layer)
    typer.echo(f"{chosen.name}: {answer.tokens} of {answer.tokens_before} visual tokens; mean per LLM layer {mean:.1f}")
    typer.echo(_milliseconds(answer.timing))
    _draw(map_, opened, answer.maps)


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
    document, settings = gather(config_, options, set_, ["sparsezip"])
    chosen = request.method(document, settings, () if config_ else (BUDGET,))
    if chosen.parts[1] is not None:
        raise ConfigError(f"{chosen.name} drops tokens inside the language model, which is not loaded here. Use ask.")
    opened = _open(image, map_)
    quiet()
    check_tokens(settings, [chosen])
    from ..models.load import load_tower
    from ..pipeline import compress_images

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


def _open(image: Path, map_: Path | None) -> Any:
    from ..images import open_image

    if map_ is not None and (map_.suffix.lower() not in PICTURES or not map_.absolute().parent.is_dir()):
        raise SettingError(f"--map {map_}: name a {', '.join(PICTURES)} file in a folder that exists.")
    return open_image(image)


def _draw(map_: Path | None, image: Any, trace: Any) -> None:
    from ..measure.report import token_map

    if map_ is not None:
        if trace.views > 1:
            raise SettingError(
                f"--map {map_}: this model sees the image as {trace.views} views (itself and its tiles), which make no "
                "one picture. Leave --map out."
            )
        token_map.draw(image, trace.kept, trace.source, trace.grid).save(map_)
        typer.echo(f"The picture is {map_}.")


def _milliseconds(stages: dict[str, float]) -> str:
    return "ms: " + ", ".join(f"{stage} {took:.1f}" for stage, took in stages.items())
