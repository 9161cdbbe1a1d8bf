"""`sparsezip list`: what there is."""

from enum import StrEnum
from importlib import import_module
from typing import Annotated

import typer

from ..registry import Registry


class Listed(StrEnum):
    """What can be listed, and the folder it is read from."""

    methods = "methods"
    models = "models"
    benchmarks = "benchmarks"


def list_(what: Annotated[Listed, typer.Argument()]) -> None:
    """One line for each method, model family or benchmark."""
    room = f"measure.{what}" if what == Listed.benchmarks else what
    registry: Registry = import_module(f"sparsezip.{room}").registry
    width = max(map(len, registry.names()))
    for name in registry.names():
        typer.echo(f"{name:{width}}  {registry.header(name).splitlines()[0].removeprefix(f'{name}: ')}")
