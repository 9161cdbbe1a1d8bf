"""Ask every method every question, keep every answer, report what it was worth and what it cost.

    methods = [method("keep_all"), method("visionzip", budget=64)]
    results = evaluate("testbed", ["pope", "scenes"], methods, Path("runs/a"), data=Path("data"), console=console)
    table.show(results, console)              # sparsezip.measure.report.table
    sys.exit(1 if results["failed"] else 0)   # a broken image is a counted failure: the run completes

On disk, in `out`: plan.json, run.json, answers.jsonl while it runs (see store.py), then results.json and table.md.
The same call on the same folder resumes a run that was killed, wherever that was, and ends with the same answers.

How it is measured
- Each batch is answered by all methods in turn before the next batch, and the first method changes from batch to batch:
  whatever else the machine does meets all methods alike, so that latencies compare. (On several workers each takes the
  next job of that order when it is free.)
- Each method answers a first batch of every benchmark once before anything counts (`warmup`).
- `batch_size=1` gives the latency of a question; of a larger batch each question is given its share.
- Batches are made by length, questions on one image side by side (plan.py). A batch that does not fit in memory is
  halved (worker.py).
- What is wrong with the request (unknown names, bad settings, missing files, another run in the folder) is raised
  before anything is recorded. What fails later is recorded in its row, counted and shown.
- A method that cannot meet its budget, as the warm-up shows or its first batch, is left out with its reason; the others
  run.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from .. import methods as method_registry
from ..errors import BudgetError, FailureError, ImageError, SettingError, UsageError
from ..images import open_image
from ..methods.base import Method
from ..registry import unknown
from .benchmarks import benchmark
from .benchmarks.base import Benchmark, spread
from .clock import Countdown
from .plan import Batch, planned
from .records import Sample
from .report import summary, table
from .runners import Runner
from .runners.local import Local
from .session import data_of, file_hash, session
from .store import Store, refuse_different, write_json, write_text
from .worker import Job, Model, Worker, make_worker

COMMON = ("budget", "keep_ratio", "match", "paper")  # what the two of a pair have from it
RUNNERS = ("local", "ray")
UNABLE = "BudgetError: "  # how the error of a row begins
TRIES = 3  # batches that a method may fail on in the warm-up, in case it is the batch's fault


def evaluate(
    model: Model | str,
    benchmarks: Sequence[str],
    methods: Sequence[Method | str],
    out: Path,
    *,
    data: Path,
    images: Path | None = None,
    only: Mapping[str, Sequence[str]] | None = None,
    limit: int | None = None,
    prompt: str | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 1,
    warmup: int | None = None,
    runner: str = "local",
    workers: int = 1,
    address: str | None = None,
    config: Mapping[str, Any] | None = None,
    asked: str | None = None,
    console: Console | None = None,
    **loading: Any,
) -> dict[str, Any]:
    """Run, or finish, the evaluation that `out` holds; returns what is in results.json.

    model: a loaded model, a name for `sparsezip.load`, or "FILE.py" with a function load(**settings); opened after the
    data, with the settings `loading` (device, dtype, ...).
    benchmarks: by name or "FILE.py". methods: by name or as objects; one that comes twice is labelled by its settings.
    data: the folder of the benchmark, or one that holds the benchmarks' folders. images: their folder elsewhere.
    only: groups by benchmark, such as {"pope": ["random"]}. limit: questions per benchmark, spread over its groups.
    prompt: how questions are asked, a benchmark's preset; None: "bare" for the testbed, else "llava".
    max_new_tokens: None: the benchmark's own. batch_size: questions answered together.
    warmup: questions per benchmark that every method answers before anything counts; None: one batch.
    runner: "local", or "ray" with so many `workers` at `address` (None: here). A run may be resumed by another.
    config: further settings that make the run what it is; kept in run.json and compared when it is resumed.
    asked: the request as a configuration file, kept as config.yaml.
    console: where progress is shown; None: nowhere.

    Results: "failed" counts questions without an answer, over all methods. For the rest see report/summary.py.
    Raises UsageError (of whatever kind) before anything is recorded, FailureError where the folder is damaged or full.
    """
    counts = {"limit": limit, "batch_size": batch_size, "max_new_tokens": max_new_tokens, "workers": workers}
    for name, number in counts.items():
        if number is not None and number < 1:
            raise SettingError(f"{name} is {number}, but must be 1 or more.")
    if warmup is not None and warmup < 0:
        raise SettingError(f"warmup is {warmup}, but must be 0 or more.")
    chosen = {name: benchmark(name) for name in benchmarks}
    running = labelled([method_registry.method(m) if isinstance(m, str) else m for m in methods])
    if not chosen or not running:
        raise SettingError("A run needs a benchmark and a method.")
    for made in chosen.values():
        made.ready()
    start = _runner(runner, model, running, loading, workers, address)
    wording = prompt or _usual_prompt(model if isinstance(model, str) else model.name)
    only = only or {}
    samples = {
        name: spread(made.samples(data, images, only.get(name, ()), wording), limit, made.together)
        for name, made in chosen.items()
    }
    tokens = {name: max_new_tokens or made.longest_answer(wording) for name, made in chosen.items()}
    record: dict[str, Any] = {
        "config": {
            "benchmarks": list(chosen),
            "methods": {
                label: {"name": made.name, **method_registry.settings(made)} for label, made in running.items()
            },
            "only": {name: list(groups) for name, groups in only.items()},
            "limit": limit,
            "prompt": wording,
            "max_new_tokens": tokens,
            "batch_size": batch_size,
            "warmup": warmup,
            "loading": loading,
            **({"model_file": file_hash(Path(model))} if isinstance(model, str) and model.endswith(".py") else {}),
            **(config or {}),
        },
        "data": {
            name: data_of(samples[name], (data, data / made.name), Path(name) if name.endswith(".py") else None)
            for name, made in chosen.items()
        },
    }
    record = json.loads(json.dumps(record, default=str))
    refuse_different(out, record)
    with Store(out, record, planned(samples, batch_size)) as store, start() as on:
        found = {"data": str(data.absolute()), "images": str(images.absolute()) if images else None}  # for reports
        store.about(on.described(), session() | {"runner": runner, "workers": workers, **found})
        by_id = {(name, sample.id): sample for name, mine in samples.items() for sample in mine}

        def job(batch: Batch, label: str) -> Job:
            return Job(batch, label, [by_id[batch.benchmark, number] for number in batch.ids], tokens[batch.benchmark])

        if store.todo():
            ordered: dict[str, list[Sample]] = {name: [] for name in samples}
            for batch in store.plan.batches:
                ordered[batch.benchmark] += job(batch, "").samples
            refused = _warm_up(on, ordered, tokens, batch_size, batch_size if warmup is None else warmup)
            for label, why in refused.items():
                if label in store.able or not set(store.labels) - set(refused):
                    raise BudgetError(why)
                _say(console, f"Left out: {label}. {why}")
            store.left_out.update(refused)
            store.begin(asked)
            if not prompt:
                _say(console, f'Note: questions are worded by the prompt "{wording}"; none was named.')
            _answer(on, store, job, chosen, console)
        if not store.labels:
            raise BudgetError(next(iter(store.left_out.values())))
        if others := store.others():
            _say(console, f"Note: {others:,} of the answers are to questions that this run does not ask.")
        results = summary.read(out)
        write_json(out / "results.json", results)
        write_text(out / "table.md", table.markdown(results))
    return results


def _answer(
    on: Runner,
    store: Store,
    job: Callable[[Batch, str], Job],
    chosen: Mapping[str, Benchmark],
    console: Console | None,
) -> None:
    """Have answered what is missing, and keep it."""
    jobs = (job(batch, label) for batch, label in store.todo() if label not in store.left_out)
    done, total = store.progress()
    with Countdown(console, total, done) as countdown:
        for rows in on.run(jobs):
            label, unable = rows[0].method, [row.error for row in rows if row.error and row.error.startswith(UNABLE)]
            if label in store.left_out:  # asked of another worker before that was known
                continue
            if len(unable) == len(rows) and label not in store.able:
                store.leave_out(label, unable[0].removeprefix(UNABLE))
                countdown.total = store.progress()[1]
                _say(console, f"Left out: {label}. {store.left_out[label]}")
                continue
            countdown.advance(store.append(rows), chosen[rows[0].benchmark].title)


def _warm_up(
    on: Runner, samples: Mapping[str, Sequence[Sample]], tokens: Mapping[str, int], batch_size: int, count: int
) -> dict[str, str]:
    """Have the first `count` sound questions of every benchmark answered: what is wrong with a method shows here.

    Returns the methods that cannot meet their budget, and what they say.
    """
    sound = {name: filter(_opens, mine) for name, mine in samples.items()}
    refused: dict[str, str] = {}
    failures = 0
    while count > 0:
        first = {name: list(islice(mine, min(batch_size, count))) for name, mine in sound.items()}
        if not any(first.values()):
            break
        try:
            refused |= on.warm_up(first, tokens)
            count -= batch_size
        except FailureError:
            failures += 1
            if failures == TRIES:
                raise
    return refused


def _opens(sample: Sample) -> bool:
    try:
        open_image(sample.image)
    except ImageError:  # recorded when its turn comes
        return False
    return True


def _runner(
    name: str,
    model: Model | str,
    methods: Mapping[str, Method],
    loading: Mapping[str, Any],
    workers: int,
    address: str | None,
) -> Callable[[], Runner]:
    """What opens the runner of that name, and with it the model. Raises UsageError for what does not go together."""
    if name not in RUNNERS:
        raise unknown("runner", name, RUNNERS)
    if name == "local":
        if workers != 1 or address is not None:
            raise SettingError('workers and address are for the runner "ray"; the local one is this process alone.')
        if isinstance(model, str):
            return lambda: Local(make_worker(model, methods, loading))
        return lambda: Local(Worker(model, methods))
    if not isinstance(model, str):
        raise SettingError('With the runner "ray" every worker opens the model itself: give its name instead of it.')
    if find_spec("ray") is None:
        raise UsageError('The runner "ray" needs a package that is not here: pip install "sparsezip[ray]".')
    from .runners.ray import Ray

    return partial(Ray, partial(make_worker, model, methods, loading), workers, address)


def _say(console: Console | None, said: str) -> None:
    if console:
        console.print(escape(said), highlight=False)


def labelled(methods: Sequence[Method]) -> dict[str, Method]:
    """Methods by label: the name and, where a name comes several times, the settings that differ from the defaults.

    Of these those in which the methods of that name are not all alike. Raises SettingError for a method given twice.
    """
    made: dict[str, Method] = {}
    for method in methods:
        mine, alike = _told(method), [_told(other) for other in methods if other.name == method.name]
        default = _told(method_registry.method(method.name))
        told = [
            f"{key}={value}"
            for key, value in mine.items()
            if value != default.get(key) and any(other.get(key) != value for other in alike)
        ]
        label = f"{method.name}({', '.join(told)})" if told else method.name
        if label in made:
            raise SettingError(f"The method {label} is asked for twice with the same settings.")
        made[label] = method
    return made


def _told(method: Method) -> dict[str, Any]:
    """The settings that a label may tell; those of a pair's two as "fastv.k", without what follows from its budget."""
    told = method_registry.settings(method)
    for part in method_registry.parts(method.name) if "|" in method.name else []:
        follows = COMMON if (method.budget, method.keep_ratio) != (None, None) else ()
        told |= {f"{part}.{key}": value for key, value in told.pop(part).items() if key not in follows}
    return told


def _usual_prompt(model: str) -> str:
    """How a model is asked: "bare" for the testbed's, shipped or trained anew, which its chat template tells."""
    from ..models.load import TESTBED

    own, its = (folder / "chat_template.jinja" for folder in (TESTBED, Path(model)))
    bare = model == "testbed" or (own.is_file() and its.is_file() and its.read_bytes() == own.read_bytes())
    return "bare" if bare else "llava"
