"""Several runs as one, so that their methods stand in one table, where that is honest.

Runs join where they asked the same questions in the same words of the same model: their methods then stand side by
side, each compared with the keep_all and the random of its own run, or else with the only ones there are. Runs may
also differ in ONE thing: the model, the prompt or the answer length. That is then what the report compares, method by
method, so they need a method in common.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from ...errors import SettingError, UsageError
from ..records import Row
from ..session import file_hash
from ..store import read_record, read_rows

LATENCY = ("device", "batch_size", "machine", "torch", "transformers", "runner", "workers")  # what it depends on


@dataclass(frozen=True)
class Run:
    """A run that was read: `name` is its folder's."""

    name: str
    record: dict[str, Any]
    rows: list[Row]

    @property
    def methods(self) -> Mapping[str, Any]:
        """The settings of its methods by label."""
        methods: Mapping[str, Any] = self.record["config"]["methods"]
        return methods

    @property
    def left_out(self) -> Mapping[str, str]:
        """The methods that could not meet their budget, with the reason."""
        left_out: Mapping[str, str] = self.record.get("left_out", {})
        return left_out


def read(folders: Sequence[Path]) -> list[Run]:
    """The runs in `folders`, named after them. Raises SettingError where one holds none or comes twice."""
    for number, folder in enumerate(folders):
        if not (folder / "run.json").is_file() or not (folder / "answers.jsonl").is_file():
            raise SettingError(f"{folder} holds no run. Give the folder that `sparsezip eval --out` made.")
        if folder.resolve() in [other.resolve() for other in folders[:number]]:
            raise SettingError(f"The run {folder} is given twice. Name it once.")
    found = [
        Run(name, read_record(folder), read_rows(folder)) for name, folder in zip(_names(folders), folders, strict=True)
    ]
    for run in found:
        for name, about in run.record.get("data", {}).items():
            if "file" in about and about["file"] != file_hash(Path(name)):
                raise UsageError(f"{name} has changed since {run.name} was scored with it. Bring the old file back.")
    return found


def joined(runs: Sequence[Run]) -> tuple[dict[str, Any], list[Row]]:
    """One record and its rows, for summary.summarise. A method that comes twice is told by its run.

    What the record has besides that of a single run: "runs", the records by name; "runs_of", by method the names of
    the runs it was in; "across", what the runs differ in; "joined", sentences on that for the reader.
    Raises UsageError where the runs do not compare.
    """
    if len(runs) == 1:
        return runs[0].record, runs[0].rows
    across = _across(runs)
    labels = _labels(runs, always=across is not None)
    methods: dict[str, Any] = {}
    absent: dict[str, str] = {}
    runs_of: dict[str, list[str]] = {}
    rows: list[Row] = []
    for run in runs:
        for label, settings in run.methods.items():
            named = labels[run.name, label]
            methods[named] = settings
            runs_of.setdefault(named, []).append(run.name)
            if label in run.left_out:
                absent[named] = run.left_out[label]
        rows += [replace(row, method=labels[run.name, row.method]) for row in run.rows if row.method in run.methods]
    config = {**runs[0].record["config"], "methods": methods, "benchmarks": _benchmarks(runs)}
    return {
        **runs[0].record,
        "config": config,
        "left_out": absent,
        "runs": {run.name: run.record for run in runs},
        "runs_of": runs_of,
        "across": across,
        "joined": list(_sentences(runs, across)),
    }, rows


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, or as much of their paths as tells them apart."""
    paths = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(parts[-length:]) for parts in paths]
        if len(set(names)) == len(names):
            break
    return names


def _benchmarks(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.record["config"]["benchmarks"]))


def _across(runs: Sequence[Run]) -> str | None:
    """The one thing that the runs differ in, if any. Raises UsageError where they do not compare."""
    differing: dict[str, str] = {}
    for one, other in combinations(runs, 2):
        both = f"{one.name} and {other.name} do not compare:"
        mine, theirs = _asked(one), _asked(other)
        for what in mine:
            if mine[what] != theirs[what]:
                differing.setdefault(what, f"{mine[what]} and {theirs[what]}")
        for name in set(one.record["config"]["benchmarks"]) & set(other.record["config"]["benchmarks"]):
            if not _same_questions(one, other, name):
                raise UsageError(f"{both} they asked different questions of {name}. Report them one by one.")
            lengths = [run.record["config"].get("max_new_tokens", {}).get(name) for run in (one, other)]
            if lengths[0] != lengths[1]:
                differing.setdefault("answer length", f"{lengths[0]} and {lengths[1]} tokens for {name}")
    told = "; ".join(f"{what}: {values}" for what, values in differing.items())
    if len(differing) > 1:
        raise UsageError(f"The runs differ in more than one thing ({told}). Report those that differ in one.")
    if differing and not set.intersection(*({_key(run, label) for label in run.methods} for run in runs)):
        raise UsageError(
            f"The runs differ in what they asked ({told}) and in all their methods. Give them one in common, such as "
            "keep_all, or report them one by one."
        )
    return next(iter(differing), None)


def _asked(run: Run) -> dict[str, str]:
    """What of a run has to be the same in another, in words."""
    config, model = run.record["config"], run.record.get("model", {})
    loading = {
        key: value for key, value in config.get("loading", {}).items() if key not in ("device", "dtype", "device_map")
    }
    parts = [str(model.get("name")), str(model.get("revision")), str(model.get("dtype"))]
    parts += [f"{key}={value}" for key, value in sorted({**loading, "file": config.get("model_file")}.items()) if value]
    weights = [part for part in parts[1:] if part != "None"]
    return {"model": " ".join(weights or parts[:1]), "prompt": str(config.get("prompt"))}


def _same_questions(one: Run, other: Run, name: str) -> bool:
    """Whether both asked the same of a benchmark: by fingerprint where they used the same words."""
    mine, theirs = (
        {key: value for key, value in run.record.get("data", {}).get(name, {}).items() if key != "source"}
        for run in (one, other)
    )
    if one.record["config"].get("prompt") == other.record["config"].get("prompt"):
        return bool(mine == theirs)
    first, second = (
        {row.id: (row.image, row.references, row.group) for row in run.rows if row.benchmark == name}
        for run in (one, other)
    )
    alike = all(first[number] == second[number] for number in first.keys() & second.keys())
    return alike and mine.get("questions") == theirs.get("questions") and bool(first.keys() & second.keys())


def _key(run: Run, label: str) -> str:
    """A method with all its settings, to be compared."""
    return repr(sorted((key, repr(value)) for key, value in {"name": label, **run.methods[label]}.items()))


def _labels(runs: Sequence[Run], always: bool) -> dict[tuple[str, str], str]:
    """The label of each method of each run: its own, with the settings that tell it from a namesake's, or its run.

    A method that was in several runs of different benchmarks is one method. always: all are told by their run.
    """
    held = [(run, label) for run in runs for label in run.methods]
    first = {
        (run.name, label): _told(run, label, [other for other, its in held if its == label]) for run, label in held
    }
    final = {}
    for run, label in held:
        named = first[run.name, label]
        twins = [(other, its) for other, its in held if other is not run and first[other.name, its] == named]
        clash = any(
            _key(other, its) != _key(run, label)
            or (its in other.left_out) != (label in run.left_out)
            or set(other.record["config"]["benchmarks"]) & set(run.record["config"]["benchmarks"])
            for other, its in twins
        )
        final[run.name, label] = f"{named} [{run.name}]" if clash or always else named
    return final


def _told(run: Run, label: str, holders: Sequence[Run]) -> str:
    """The label with the settings that are not alike in all the runs that have it."""
    mine, all_ = run.methods[label], [other.methods[label] for other in holders]
    told = [f"{key}={value}" for key, value in mine.items() if any(other.get(key) != value for other in all_)]
    return f"{label}({', '.join(told)})" if told and "(" not in label else label


def _sentences(runs: Sequence[Run], across: str | None) -> Iterator[str]:
    """What a reader of the joined tables has to know."""
    if across in ("model", "prompt"):
        told = ", ".join(f"{run.name}: {_named(run, across)}" for run in runs)
        yield f"The runs differ in the {across} ({told}); differences are those inside each run."
    elif across:
        yield f"The runs differ in the {across}; differences are those inside each run."
    conditions = [_conditions(run) for run in runs]
    differing = [key for key in LATENCY if len({str(its.get(key)) for its in conditions}) > 1]
    if differing:
        yield f"Times of different runs do not compare: the runs differ in {', '.join(differing)}."
    else:
        yield "Times of different runs were measured one run after the other; only those of one run compare closely."


def _named(run: Run, across: str) -> str:
    own = f"{run.record['model'].get('name')} " if across == "model" else ""
    return f"{own}{_asked(run)[across]}"


def _conditions(run: Run) -> dict[str, Any]:
    return {
        **(run.record.get("sessions") or [{}])[0],
        "device": run.record.get("model", {}).get("device"),
        "batch_size": run.record["config"].get("batch_size"),
    }
