"""The folder of a run: the plan first, then the record, then the answers, so that a killed run can be resumed.

    OUT/answers.jsonl  one row per sample and method, synced to disk batch by batch
    OUT/config.yaml    the request as a configuration, where it came from the command line
    OUT/plan.json      which samples are answered together, in which order; a resumed run reuses it
    OUT/run.json       what is asked of which model on which data, with which versions; written before any answer

A batch of one method is a cell: it is either in the file completely or it is done again. Files of others are never
written over: answers.jsonl comes first, into a folder that holds nothing else, and so marks a folder as ours.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import FailureError, RunMismatchError, UsageError
from .records import Row

IDENTITY = ("config", "model", "data")  # the parts of the record that make two runs the same run
BEFORE = re.compile(r"sets-seed\d+-scenes\d+(\..*)?")  # what the command line makes in a folder before its run begins


@dataclass(frozen=True)
class Batch:
    """Samples of one benchmark that are answered together."""

    number: int
    benchmark: str
    ids: list[str]


class Store:
    """The opened folder of one run."""

    def __init__(self, folder: Path, record: Mapping[str, Any], plan: list[Batch]) -> None:
        """Open the run of `record` in `folder`: as it was left if it is there, else with `plan`.

        Raises RunMismatchError when the folder holds a different run or when another process is writing to it,
        UsageError when it cannot be written, FailureError when its files are damaged.
        """
        self.folder, self._sessions = folder, record["sessions"]
        self._answers = _locked(folder / "answers.jsonl")
        try:
            if (folder / "run.json").exists():
                refuse_different(folder, record)
                self.record = read_record(folder)
                self.plan = [Batch(**batch) for batch in _read_json(folder / "plan.json")]
            elif self._answers.read(1):
                raise RunMismatchError(f"{folder} holds answers but no run.json. Choose another folder.")
            else:
                self.record, self.plan = {**record, "sessions": []}, plan
            self.rows = self._recover()
        except BaseException:
            self.close()
            raise

    def begin(self, asked: str | None = None) -> None:
        """Write down the request, the plan and the record of this session; from here on the folder holds this run."""
        self.record["sessions"] += self._sessions
        if asked is not None and not (self.folder / "run.json").exists():
            (self.folder / "config.yaml").write_text(asked, encoding="utf-8")
        write_json(self.folder / "plan.json", [vars(batch) for batch in self.plan])
        write_json(self.folder / "run.json", self.record)

    @property
    def done(self) -> set[tuple[int, str]]:
        """The cells that are on disk, as (batch number, method)."""
        return {(row.batch, row.method) for row in self.rows}

    def append(self, rows: list[Row]) -> None:
        """Keep one complete cell; it is on disk when this returns."""
        lines = "".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows)
        self._answers.write(lines.encode())
        self._answers.flush()
        os.fsync(self._answers.fileno())
        self.rows += rows

    def close(self) -> None:
        """Release the folder, as it was where no run has begun."""
        answers = self.folder / "answers.jsonl"
        with suppress(OSError):
            if not (self.folder / "run.json").exists() and not answers.stat().st_size:
                answers.unlink()
        self._answers.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _recover(self) -> list[Row]:
        """The rows of all complete cells; what a kill left of the last one is cut off."""
        size = {batch.number: len(batch.ids) for batch in self.plan}
        rows: list[Row] = []
        cell: list[Row] = []
        complete = position = 0
        self._answers.seek(0)
        for row, end in _parse(self._answers, self.folder):
            cell.append(row)
            position = end
            if len(cell) == size[row.batch]:
                rows += cell
                cell, complete = [], position
        self._answers.truncate(complete)
        self._answers.seek(complete)
        return rows


def refuse_different(folder: Path, record: Mapping[str, Any]) -> None:
    """Raise RunMismatchError when `folder` holds another run than `record`, or files and no run.

    Runs are compared in the parts that `record` has. Raises UsageError where `folder` is a file or cannot be read.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"The results cannot be written to {folder} ({error.strerror}).") from None
    if "run.json" in names:
        held = read_record(folder)
        differences = list(_differences({part: held.get(part, {}) for part in record}, record))
        if differences:
            raise RunMismatchError(f"{folder} holds a different run ({'; '.join(differences)}). Choose another folder.")
    elif "answers.jsonl" not in names:
        others = [name for name in names if not BEFORE.fullmatch(name)]
        if others:
            raise RunMismatchError(f"{folder} holds files and no run, such as {others[0]}. Choose another folder.")


def read_record(folder: Path) -> dict[str, Any]:
    """run.json of `folder`. Raises FailureError when it is missing or damaged."""
    record: dict[str, Any] = _read_json(folder / "run.json")
    return record


def read_rows(folder: Path) -> list[Row]:
    """Every complete row of answers.jsonl in `folder`."""
    with (folder / "answers.jsonl").open("rb") as file:
        return [row for row, _ in _parse(file, folder)]


def _parse(file: IO[bytes], folder: Path) -> Iterable[tuple[Row, int]]:
    """Each row with the byte offset behind it. A torn last line is left out; damage before it is an error."""
    end = 0
    lines = file.readlines()
    for number, line in enumerate(lines, 1):
        end += len(line)
        try:
            if not line.endswith(b"\n"):
                raise ValueError("no line end")
            row = Row(**json.loads(line))
        except (ValueError, TypeError) as error:
            if number == len(lines):
                return
            raise FailureError(f"{folder / 'answers.jsonl'}, line {number} is damaged ({error}).") from None
        yield row, end


def _locked(path: Path) -> IO[bytes]:
    """`path` opened for reading and writing by this process alone; a killed process loses its lock."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        file = path.open("r+b")
    except OSError as error:
        raise UsageError(f"The results cannot be written to {path.parent} ({error}).") from None
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise RunMismatchError(
                f"Another process is writing to {path.parent}. Wait for it, or choose another folder."
            ) from None
    return file


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON, so that a kill leaves the old file or the new one, never half of one."""
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FailureError(f"{path} is missing or damaged ({error}).") from None


def _differences(held: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterable[str]:
    """What differs between two records in the parts that make a run, in words."""
    there, here = (dict(_flat({key: record.get(key, {}) for key in IDENTITY})) for record in (held, asked))
    for key in sorted({*there, *here}):
        if there.get(key) != here.get(key):
            yield f"{key}: {there.get(key, 'absent')} there, {here.get(key, 'absent')} here"


def _flat(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.dumps(value, sort_keys=True, default=str)
