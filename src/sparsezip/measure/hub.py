"""Bring a benchmark from the Hugging Face Hub into a folder, which every command then reads like its original layout.

    folder/hub.jsonl      one row per question, as the Hub has it, without its pixels
    folder/images/        the images, byte for byte as they are stored there, under the names of the original
    folder/source.json    {"id", "config", "split", "revision"}

Only the split that is asked is downloaded, row by row. An export that was killed goes on where it was, with the
revision it began with, and ends in the same files. Nothing that a row says leads out of the folder.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import Progress

from ..errors import FailureError, RunMismatchError, SparsezipError, UsageError
from .benchmarks.base import HUB_FILE, Benchmark, Hub
from .store import lock

SOURCE = "source.json"


@dataclass(frozen=True)
class _Rows:
    """One configuration's split: its rows, and which columns of them are images."""

    stream: Any
    images: list[str]


def export(made: Benchmark, folder: Path, *, revision: str | None = None, console: Console | None = None) -> Path:
    """Fill `folder` with a benchmark's data set of the Hub, or finish that, and return it.

    revision: a commit, branch or tag of the data set; None: the newest, or the one that `folder` holds already.
    console: where progress is shown; None: nowhere.
    Raises UsageError where there is none, where `datasets` is missing or `folder` holds another one; DataError for a
    row at fault; FailureError where the Hub cannot be read or the folder cannot be written.
    """
    if made.hub is None:
        raise UsageError(f"{made.title} has no data set on the Hub.")
    try:
        _begin(made.hub, folder, revision)
        if not (folder / HUB_FILE).is_file():
            with Progress(console=console, disable=console is None) as progress:
                _fill(made, folder, progress)
    except SparsezipError:
        raise
    except Exception as error:  # the network, the Hub, the disk: whatever it was, what is there stays good
        said = " ".join(str(error).split())[:300]
        raise FailureError(
            f"{made.hub.id} could not be exported to {folder} ({type(error).__name__}: {said}). "
            "The same command goes on where this one stopped."
        ) from error
    return folder


def _begin(hub: Hub, folder: Path, revision: str | None) -> None:
    """Note where the rows come from, or see that it is from where those in `folder` do."""
    path, asked = folder / SOURCE, {"id": hub.id, "config": hub.config, "split": hub.split}
    if not path.exists():
        commit = _commit(hub.id, revision)
        folder.mkdir(parents=True, exist_ok=True)  # not where the Hub cannot be reached: another source may fill it
        _write(path, json.dumps({**asked, "revision": commit}, indent=1).encode())
        return
    held = _source(folder)
    if {key: held.get(key) for key in asked} != asked:
        raise RunMismatchError(f"{folder} holds {held.get('id')}, not {hub.id}. Choose another folder.")
    if revision is not None and held.get("revision") not in (revision, _commit(hub.id, revision)):
        raise RunMismatchError(
            f"{folder} holds revision {held.get('revision')}, not {revision}. Choose another folder."
        )


def _source(folder: Path) -> dict[str, Any]:
    try:
        held = json.loads((folder / SOURCE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FailureError(f"{folder / SOURCE} is damaged ({error}). Delete that folder.") from None
    if not isinstance(held, dict):
        raise FailureError(f"{folder / SOURCE} is damaged. Delete that folder.")
    return held


def _commit(name: str, revision: str | None) -> str | None:
    """The commit that `revision` is now, so that a later session reads the same rows; None for a folder on disk."""
    if Path(name).is_dir():
        return revision
    from huggingface_hub import HfApi

    commit: str | None = HfApi().dataset_info(name, revision=revision).sha
    return commit


def _fill(made: Benchmark, folder: Path, progress: Progress) -> None:
    assert made.hub is not None
    held, partial = _source(folder), folder / f"{HUB_FILE}.partial"
    rows = _rows(made.hub.id, made.hub.config, made.hub.split, held.get("revision"))
    pictures = _rows(made.hub.id, made.hub.images, made.hub.split, held.get("revision")) if made.hub.images else rows
    if not pictures.images:
        raise FailureError(f"{made.hub.id} has no column of images any more: its layout has changed.")
    with partial.open("a+b") as lines:
        lock(lines, folder)
        if pictures is not rows:
            for place, row in _placed(pictures, f"{made.title}, images", 0, progress):
                _keep_image(made, folder, row, pictures.images, place)
        done = _whole_lines(lines)
        for place, row in _placed(rows, made.title, done, progress):
            if pictures is rows:
                _keep_image(made, folder, row, rows.images, place)
            told = {key: value for key, value in row.items() if key not in rows.images}
            lines.write(json.dumps(told, ensure_ascii=False, default=str).encode() + b"\n")
            lines.flush()
        os.fsync(lines.fileno())
    partial.replace(folder / HUB_FILE)


def _rows(name: str, config: str | None, split: str, revision: str | None) -> _Rows:
    datasets = _datasets()
    stream = datasets.load_dataset(name, config, split=split, revision=revision, streaming=True)
    images = [column for column, kind in (stream.features or {}).items() if isinstance(kind, datasets.Image)]
    for column in images:
        stream = stream.cast_column(column, datasets.Image(decode=False))
    return _Rows(stream, images)


def _datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise UsageError("Data sets of the Hub need the package datasets: pip install sparsezip[hub]") from None
    return datasets


def _placed(rows: _Rows, what: str, done: int, progress: Progress) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row behind the first `done`, after its place for messages."""
    task = progress.add_task(what, total=None, completed=done)
    for number, row in enumerate(rows.stream.skip(done) if done else rows.stream, done + 1):
        yield f"{what} on the Hub, row {number}", row
        progress.advance(task)


def _keep_image(made: Benchmark, folder: Path, row: Mapping[str, Any], columns: list[str], place: str) -> None:
    """The image of a row as a file, if it is not there yet; without bytes an empty one, so that a run counts it."""
    path = folder / "images" / made.hub_image(row, place)
    if not path.exists():
        stored = row.get(columns[0]) or {}
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, stored.get("bytes") or b"")


def _write(path: Path, content: bytes) -> None:
    """A file that is there whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def _whole_lines(lines: IO[bytes]) -> int:
    """How many rows are there; a torn last one, of an export that was killed, is cut off."""
    lines.seek(0)
    count = end = 0
    for line in lines:
        if line.endswith(b"\n"):
            count, end = count + 1, end + len(line)
    lines.truncate(end)
    lines.seek(end)
    return count
