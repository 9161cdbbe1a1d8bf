"""The folder of a run: the plan first, then the record, then the answers, so that a killed run can be resumed.

    OUT/answers.jsonl  one row per sample and method, synced to disk batch by batch
    OUT/config.yaml    the request as a configuration, where it came from the command line
    OUT/plan.json      the samples in the data's order, and which are answered together; a resumed run reuses it
    OUT/run.json       what is asked of which model on which data, with which versions; written before any answer

A row is known by its benchmark, method and sample id; where two are alike the first counts. Rows are written in the
order in which they are answered and read in the data's, so that no result depends on the former. The line that a kill
tore is cut off, a whole one never is: rows of samples that the run does not ask are kept and scored like the others.
Files of others are never written over: answers.jsonl comes first, into a folder that holds nothing else, and so marks a
folder as ours.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ..errors import FailureError, RunMismatchError, UsageError
from .plan import Batch, Plan, turns
from .records import Row

IDENTITY = ("config", "model", "data")  # the parts of the record that make two runs the same run
BEFORE = re.compile(r"sets-seed\d+-scenes\d+(\..*)?")  # what the command line makes in a folder before its run begins


class Store:
    """The opened folder of one run, for this process alone."""

    def __init__(self, folder: Path, record: Mapping[str, Any], plan: Plan) -> None:
        """Open the run of `record` in `folder`: as it was left if it is there, else with `plan`.

        Raises RunMismatchError when the folder holds a different run or when another process is writing to it,
        UsageError when it cannot be written, FailureError when its files are damaged.
        """
        self.folder, self._session = folder, dict[str, Any]()
        self._answers = _locked(folder / "answers.jsonl")
        try:
            if (folder / "run.json").exists():
                refuse_different(folder, record)
                self.record, self.plan = read_record(folder), _read_plan(folder)
            elif os.fstat(self._answers.fileno()).st_size:
                raise RunMismatchError(f"{folder} holds answers but no run.json. Choose another folder.")
            else:
                self.record, self.plan = {**record, "sessions": [], "left_out": {}}, plan
            self._recover()
        except BaseException:
            self.close()
            raise

    def _recover(self) -> None:
        """See what is there, and cut off the line that a kill tore."""
        self._done: set[tuple[str, str, str]] = set()
        self.able: set[str] = set()  # the methods that have answered anything
        whole = 0
        for row, end in _parse(self._answers.read(), self.folder):
            self._kept(row)
            whole = end
        self._answers.truncate(whole)
        self._answers.seek(whole)

    def _kept(self, row: Row) -> None:
        self._done.add((row.benchmark, row.method, row.id))
        if row.error is None:
            self.able.add(row.method)

    def about(self, model: Mapping[str, Any], session: Mapping[str, Any]) -> None:
        """Say what model answers, and the circumstances. Raises RunMismatchError where another one did."""
        if (self.folder / "run.json").exists():
            refuse_different(self.folder, {"model": model})
        self.record["model"], self._session = dict(model), dict(session)

    def begin(self, asked: str | None = None) -> None:
        """Write down the request, the plan and the record of this session; from here on the folder holds this run."""
        if asked is not None and not (self.folder / "run.json").exists():
            write_text(self.folder / "config.yaml", asked)
        self.record["sessions"].append(self._session)
        write_json(self.folder / "plan.json", self.plan.to_json())
        write_json(self.folder / "run.json", self.record)

    @property
    def labels(self) -> list[str]:
        """The methods of the run, without those that are left out."""
        return [label for label in self.record["config"]["methods"] if label not in self.left_out]

    @property
    def left_out(self) -> dict[str, str]:
        """The methods that cannot meet their budget, and what they say."""
        left_out: dict[str, str] = self.record.setdefault("left_out", {})
        return left_out

    def leave_out(self, label: str, why: str) -> None:
        """Ask nothing of that method any more."""
        self.left_out[label] = why
        write_json(self.folder / "run.json", self.record)

    def todo(self) -> list[tuple[Batch, str]]:
        """What is to be answered in which order: every batch and method of which anything is missing."""
        return [(batch, label) for batch, label in turns(self.plan.batches, self.labels) if self._missing(batch, label)]

    def progress(self) -> tuple[int, int]:
        """How many answers there are of those that are planned, and how many are planned."""
        planned = sum(len(ids) for ids in self.plan.samples.values()) * len(self.labels)
        return planned - sum(len(self._missing(batch, label)) for batch, label in self.todo()), planned

    def others(self) -> int:
        """How many answers are there that nobody planned."""
        asked = {(name, id) for name, ids in self.plan.samples.items() for id in ids}
        return sum((name, id) not in asked for name, _, id in self._done)

    def append(self, rows: list[Row]) -> int:
        """Keep those of `rows` that are not there yet, and say how many; they are on disk when this returns."""
        new = [row for row in rows if (row.benchmark, row.method, row.id) not in self._done]
        lines = "".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in new).encode()
        with _written(self.folder / "answers.jsonl"):
            while lines:
                lines = lines[self._answers.write(lines) :]
            os.fsync(self._answers.fileno())
        for row in new:
            self._kept(row)
        return len(new)

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

    def _missing(self, batch: Batch, label: str) -> list[str]:
        return [id for id in batch.ids if (batch.benchmark, label, id) not in self._done]


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
    record = _read_json(folder / "run.json")
    if not isinstance(record, dict):
        raise FailureError(f"{folder / 'run.json'} is damaged (no JSON object).")
    return record


def read_rows(folder: Path) -> list[Row]:
    """Every whole row of answers.jsonl in `folder`, once: in the plan's order of samples, then that of its methods."""
    try:
        content = (folder / "answers.jsonl").read_bytes()
    except OSError as error:
        raise FailureError(f"{folder / 'answers.jsonl'} cannot be read ({error.strerror}).") from None
    rows: dict[tuple[str, str, str], Row] = {}
    for row, _ in _parse(content, folder):
        rows.setdefault((row.benchmark, row.method, row.id), row)
    if not (folder / "plan.json").exists():
        return list(rows.values())
    asked = [(name, id) for name, ids in _read_plan(folder).samples.items() for id in ids]
    place = {sample: number for number, sample in enumerate(asked)}
    turn = {label: number for number, label in enumerate(read_record(folder)["config"]["methods"])}
    return sorted(
        rows.values(),
        key=lambda row: (place.get((row.benchmark, row.id), len(place)), turn.get(row.method, len(turn))),
    )


def _read_plan(folder: Path) -> Plan:
    try:
        return Plan.of(_read_json(folder / "plan.json"))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise FailureError(f"{folder / 'plan.json'} is damaged ({error}).") from None


def _parse(content: bytes, folder: Path) -> Iterator[tuple[Row, int]]:
    """Each row with the byte offset behind it. A last line without its end is left out; other damage is an error."""
    *lines, _ = content.split(b"\n")
    end = 0
    for number, line in enumerate(lines, 1):
        end += len(line) + 1
        try:
            row = Row(**json.loads(line))
            if not all(isinstance(part, str) for part in (row.benchmark, row.method, row.id)):
                raise TypeError("benchmark, method and id have to be texts")
        except (ValueError, TypeError, RecursionError) as error:
            raise FailureError(
                f"{folder / 'answers.jsonl'}, line {number} is damaged ({error}). Take it out, and the same command "
                "has its question answered again."
            ) from None
        yield row, end


def _locked(path: Path) -> IO[bytes]:
    """`path` opened for reading and writing by this process alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        file = path.open("r+b", buffering=0)
    except OSError as error:
        raise UsageError(f"The results cannot be written to {path.parent} ({error.strerror}).") from None
    try:
        lock(file, path.parent)
    except UsageError:
        file.close()
        raise
    return file


def lock(file: IO[Any], folder: Path) -> None:
    """Keep other processes from `file`, which stands for `folder`, until it is closed or this process is killed.

    Raises RunMismatchError where another one has it, UsageError where that cannot be told.
    """
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunMismatchError(
                f"Another process is writing to {folder}. Wait for it, or choose another folder."
            ) from None
        except OSError as error:
            raise UsageError(f"{folder} cannot be locked ({error.strerror}). Use a folder on another disk.") from None


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as JSON; see `write_text`."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False))


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, so that a kill leaves the old file or the new one, never half of one.

    Raises FailureError where it cannot be written.
    """
    partial = path.with_suffix(".partial")
    with _written(path):
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


@contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FailureError(
            f"{path} cannot be written ({error.strerror}). Once that is mended the same command goes on: what has been "
            "answered is kept."
        ) from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FailureError(f"{path} is missing or damaged ({error}).") from None


def _differences(held: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterable[str]:
    """What differs between two records in the parts that make a run, in words."""
    there, here = ({key: record.get(key, {}) for key in IDENTITY} for record in (held, asked))
    return _apart(there, here)


def _apart(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key in sorted({*there, *here}):
        held, asked = there.get(key), here.get(key)
        if isinstance(held, Mapping) and isinstance(asked, Mapping):
            yield from _apart(held, asked, f"{prefix}{key}.")
            continue
        old, new = (_told(part[key]) if key in part else "absent" for part in (there, here))
        if old != new:
            yield f"{prefix}{key}: {old} there, {new} here"


def _told(value: Any) -> str:
    """A value as JSON; of a section, such as a method's settings, that it is there, since the line is to be read."""
    return "present" if isinstance(value, Mapping) and value else json.dumps(value, sort_keys=True, default=str)
