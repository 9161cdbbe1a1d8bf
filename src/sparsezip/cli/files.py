"""Where the files lie that a run asks about: a folder of the user's, the user's cache, or the run's own folder."""

import os
from pathlib import Path

import typer

from ..config import Runner
from ..errors import RunMismatchError

HUB = "hub"


def data(runner: Runner, out: Path) -> Path:
    """The folder of the benchmarks' files; made first where it is to come from the Hub or from the testbed."""
    from ..measure.store import refuse_different

    if runner.ann_path and runner.ann_path != HUB:
        return Path(runner.ann_path)
    refuse_different(out, {})
    return _from_hub(runner.dataset) if runner.ann_path else _own_sets(out, runner.seed, runner.scenes)


def _from_hub(benchmarks: list[str]) -> Path:
    """The Hub's data set of each benchmark, kept for every later run."""
    from rich.console import Console

    from ..measure.benchmarks import benchmark
    from ..measure.hub import export

    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sparsezip" / HUB
    typer.echo(f"The Hub's data are kept in {cache}.", err=True)
    asked = [benchmark(name) for name in benchmarks]
    for made in sorted(asked, key=lambda made: made.hub is not None):  # one that is not there says so first
        export(made, cache / made.name, console=Console(stderr=True))
    return cache


def _own_sets(out: Path, seed: int, scenes: int) -> Path:
    """The testbed's own sets, made once per run folder. Raises RunMismatchError where a run has others."""
    from ..testbed import sets

    made = out / f"sets-seed{seed}-scenes{scenes}"
    if not made.exists():
        if (out / "run.json").exists():
            raise RunMismatchError(f"{out} holds a different run: it has no {made.name}. Choose another folder.")
        typer.echo(f"Making the testbed's own sets in {made}.", err=True)
        sets.write(made, seed, scenes)
    return made
