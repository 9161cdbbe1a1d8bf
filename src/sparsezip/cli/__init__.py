"""The command line: `sparsezip ask | compress | eval | report | time | list | data | testbed`.

A command first gathers what it is asked for (file, options, --set) and checks it; only then is a model loaded. What
cannot be met is one line on stderr and exit code 2, what fails on the way is one line and 1, an interrupt is 130.
SPARSEZIP_DEBUG=1 shows tracebacks and what other libraries have to say.
"""

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from ..errors import SparsezipError, UsageError
from . import data, options, testbed
from .ask import ask, compress
from .evaluate import evaluate
from .listing import list_
from .report import report
from .timing import time_

INTERRUPTED = 130  # what typer makes of Ctrl-C
LONGEST = 2000  # characters of a message

app = typer.Typer(
    name="sparsezip",
    help="Send fewer visual tokens to a vision-language model, and see what that costs and saves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(ask)
app.command()(compress)
app.command("eval")(evaluate)
app.command()(report)
app.command("time")(time_)
app.command("list")(list_)
app.add_typer(data.app, name="data")
app.add_typer(testbed.app, name="testbed")


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
        if code == INTERRUPTED:
            print(
                "sparsezip: Stopped. Started again, `eval`, `data get` and `testbed train` go on where they were.",
                file=sys.stderr,
            )
        return code if isinstance(code, int) else 0
    except Exception as error:
        if options.DEBUG:
            raise
        code, message = _failure(error)
        if message:  # none: the help was shown instead
            print(f"sparsezip: {_line(message)}", file=sys.stderr)
        return code


def _line(message: str) -> str:
    """On one line that can be read, whatever a file's author had it quote."""
    line = " ".join(message.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


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
