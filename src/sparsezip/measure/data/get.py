"""Bring a benchmark's files to disk: from their official addresses, from archives at hand, or from the Hub.

    DATA/NAME/          the files of one benchmark, in their original layout; it appears when it is whole
    DATA/val2014/       COCO's validation images, which several benchmarks ask about
    DATA/sources.json   what was fetched from where, with its SHA-256 and who vouches for it
    DATA/.get/          what is on its way; a later call goes on with it

A folder that is there is never changed. Without a published checksum the first file that arrives is trusted and noted
down, and a later one has to be the same.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ...errors import DataError, UsageError
from ..benchmarks.base import Benchmark
from ..store import lock, write_json
from .download import Download
from .sources import OFFICIAL, File, Part
from .unpack import Limits, unpack

SOURCES = "sources.json"
STAGE = ".get"


def get(
    made: Benchmark,
    data: Path,
    origin: Sequence[str] = (),
    *,
    console: Console | None = None,
    parts: Mapping[str, tuple[Part, ...]] | None = None,
    **network: Any,
) -> None:
    """Bring the files of one benchmark to `data`.

    origin: "official", "hub" or archives at hand; the official addresses, or the Hub where there are none, unless said
    otherwise. parts, network: other addresses, and settings of `Download`, for tests.
    Raises UsageError for what cannot be had that way, DataError for a hostile or damaged archive, FailureError where
    fetching fails.
    """
    console = console or Console(stderr=True, quiet=True)
    known = parts or {name: source.parts for name, source in OFFICIAL.items()}
    official = known.get(made.name, ())
    chosen = list(origin) or ["official" if official else "hub"]
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"The data cannot be written to {data} ({error.strerror}).") from None
    if chosen == ["hub"]:
        from ..hub import export

        export(made, data / made.name, console=console)
    elif chosen == ["official"]:
        if not official:
            raise UsageError(how(made.name, data) or f"{made.title} has no official address.")
        with _locked(data) as stage:
            for part in official:
                _fetch(part, data, stage, console, network)
    else:
        _from_archives(made, data, [Path(name) for name in chosen])


def how(name: str, data: Path) -> str:
    """How the files of a benchmark are had where no official address gives them; empty where one does."""
    source = OFFICIAL.get(name)
    return source.how.format(data=data) if source else ""


def _from_archives(made: Benchmark, data: Path, archives: Sequence[Path]) -> None:
    for archive in archives:
        if not archive.is_file():
            raise UsageError(f"--from takes official, hub or an archive; there is no file {archive}.")
    target = data / made.name
    if target.exists():
        raise UsageError(f"{target} is there already. Move it away to unpack it anew.")
    with _locked(data) as stage, _new(stage / made.name) as fresh:
        for archive in archives:
            unpack(archive, fresh)
        fresh.rename(target)


def _fetch(part: Part, data: Path, stage: Path, console: Console, network: Mapping[str, Any]) -> None:
    """One folder: every file of it, then the folder itself."""
    target, mine = data / part.folder, stage / f"{part.folder}-files"
    if target.exists():
        console.print(f"{target} is there already and stays as it is.")
        shutil.rmtree(mine, ignore_errors=True)
        return
    mine.mkdir(exist_ok=True)
    noted = _noted(data)
    found: dict[str, Any] = {}
    for file in part.files:
        first = noted.get(file.url, {}).get("sha256")
        sha256, by = (file.sha256, file.by) if file.sha256 else (first, f"arrived first, says {data / SOURCES}")
        path = mine / file.name
        with _bar(file.name, console) as progress:
            digest = Download(file.url, path, file.cap, file.size, sha256, by, progress=progress, **network).run()
        trust = file.by if file.sha256 else "first use: nobody published a checksum"
        found[file.url] = {"sha256": digest, "bytes": path.stat().st_size, "checked": trust}
        console.print(f"{file.name}: sha256 {digest} ({'as ' + file.by if file.sha256 else trust}).")
    with _new(stage / part.folder) as fresh:
        for file in part.files:
            _place(file, mine / file.name, fresh)
        write_json(data / SOURCES, noted | found)
        fresh.rename(target)
    shutil.rmtree(mine, ignore_errors=True)


def _place(file: File, path: Path, folder: Path) -> None:
    if file.keep is None:
        shutil.copyfile(path, folder / file.name)
    else:
        unpack(path, folder, keep=file.keep, strip=file.strip, limits=Limits(bytes=file.unpacked))


def _noted(data: Path) -> dict[str, Any]:
    """What was fetched before. Raises DataError where that cannot be read, since trust rests on it."""
    path = data / SOURCES
    if not path.exists():
        return {}
    try:
        noted = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        noted = None
    if not isinstance(noted, dict) or not all(isinstance(entry, dict) for entry in noted.values()):
        raise DataError(f"{path} is damaged. Remove it to trust what arrives next.")
    return noted


@contextmanager
def _new(folder: Path) -> Iterator[Path]:
    """An empty folder, gone afterwards unless it was renamed."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(data: Path) -> Iterator[Path]:
    """The folder of what is on its way, for this process alone."""
    stage = data / STAGE
    stage.mkdir(exist_ok=True)
    with (stage / "lock").open("w") as held:
        lock(held, data)
        yield stage


@contextmanager
def _bar(name: str, console: Console) -> Iterator[Any]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=None)
        yield lambda here, total: bar.update(task, completed=here, total=total)
