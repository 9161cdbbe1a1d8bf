"""Ask every method every question, keep every answer, report what it was worth and what it cost.

    methods = [method("keep_all"), method("visionzip", budget=64)]
    results = evaluate("testbed", ["pope", "scenes"], methods, Path("runs/a"), data=Path("data"), console=console)
    table.show(results, console)              # sparsezip.measure.report.table
    sys.exit(1 if results["failed"] else 0)   # a broken image is a counted failure: the run completes

On disk, in `out`: plan.json, run.json, answers.jsonl while it runs (see store.py), then results.json and table.md.
The same call on the same folder resumes a run that was killed, wherever that was, and ends with the same answers.

How it is measured
- Each batch is answered by all methods in turn before the next batch, and the first method changes from batch to batch:
  whatever else the machine does meets all methods alike, so that latencies compare.
- Each method answers the first batch of every benchmark once before anything counts (warm-up).
- `batch_size=1` gives the latency of a question; of a larger batch each question is given its share.
- What is wrong with the request (unknown names, bad settings, missing files, another run in the folder) is raised
  before anything is recorded. What fails later is recorded in its row, counted and shown.
- A method that cannot meet its budget, as the warm-up shows, is left out with its reason; the others run.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image
from rich.console import Console
from rich.markup import escape

from .. import methods as method_registry
from ..errors import BudgetError, ImageError, SettingError
from ..images import open_image
from ..methods.base import Method
from .benchmarks import benchmark
from .benchmarks.base import spread
from .clock import Countdown
from .records import Row, Sample
from .report import summary, table
from .runners import local
from .session import session
from .store import Batch, Store, refuse_different, write_json

COMMON = ("budget", "keep_ratio", "match", "paper")  # what the two of a pair have from it


@runtime_checkable
class Model(Protocol):
    """What is evaluated: `sparsezip.load` returns one."""

    @property
    def name(self) -> str:
        """As it was asked for."""

    @property
    def revision(self) -> str:
        """Which weights it has."""

    def answer(
        self, images: list[Image.Image], questions: list[str], method: Method, max_new_tokens: int
    ) -> Sequence[Any]:
        """One answer per row: text, tokens, tokens_before, tokens_per_layer (list), timing (stage to ms, "total")."""


@dataclass(frozen=True)
class Cell:
    """One batch to be answered by one method."""

    batch: Batch
    label: str


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
    config: Mapping[str, Any] | None = None,
    asked: str | None = None,
    console: Console | None = None,
    **loading: Any,
) -> dict[str, Any]:
    """Run, or finish, the evaluation that `out` holds; returns what is in results.json.

    model: a loaded model, or a name for `sparsezip.load` (`loading`: device, dtype, ...), opened after the data.
    benchmarks: by name. methods: by name or as objects; one that comes twice is labelled by its settings.
    data: the folder of the benchmark, or one that holds the benchmarks' folders. images: their folder elsewhere.
    only: groups by benchmark, such as {"pope": ["random"]}. limit: questions per benchmark, spread over its groups.
    prompt: how questions are asked, a name in benchmarks.base.PROMPTS; None: "bare" for the testbed, else "llava".
    max_new_tokens: None: the benchmark's own. batch_size: questions answered together.
    config: further settings that make the run what it is; kept in run.json and compared when it is resumed.
    asked: the request as a configuration file, kept as config.yaml.
    console: where progress is shown; None: nowhere.

    Results: "failed" counts questions without an answer, over all methods. For the rest see report/summary.py.
    Raises UsageError (of whatever kind) before anything is recorded, FailureError where the folder is damaged.
    """
    for name, number in (("limit", limit), ("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
        if number is not None and number < 1:
            raise SettingError(f"{name} is {number}, but must be 1 or more.")
    chosen = {name: benchmark(name) for name in benchmarks}
    running = labelled([method_registry.method(m) if isinstance(m, str) else m for m in methods])
    model_name = model if isinstance(model, str) else model.name
    wording = prompt or _usual_prompt(model_name)
    only = only or {}
    samples = {
        name: spread(made.samples(data, images, only.get(name, ()), wording), limit, made.together)
        for name, made in chosen.items()
    }
    tokens = {name: max_new_tokens or made.max_new_tokens for name, made in chosen.items()}
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
            "loading": loading,
            **(config or {}),
        },
        "data": {name: {"questions": len(mine), "fingerprint": fingerprint(mine)} for name, mine in samples.items()},
    }
    record = json.loads(json.dumps(record, default=str))
    refuse_different(out, record)
    vlm = _load(model, **loading) if isinstance(model, str) else model
    record |= {"model": _described(vlm), "sessions": [session()]}
    with Store(out, record, list(_planned(samples, batch_size))) as store:
        by_id = {(name, sample.id): sample for name, mine in samples.items() for sample in mine}
        opened = lru_cache(maxsize=batch_size)(open_image)  # the methods of a batch share its decoded images

        def answer(cell: Cell) -> list[Row]:
            questions = [by_id[cell.batch.benchmark, number] for number in cell.batch.ids]
            return _answered(vlm, running[cell.label], cell, questions, opened, tokens[cell.batch.benchmark])

        def todo() -> list[Cell]:
            labels, done = [label for label in running if label not in store.record.get("left_out", {})], store.done
            return [cell for cell in _cells(store.plan, labels) if (cell.batch.number, cell.label) not in done]

        if todo():
            left_out = store.record.setdefault("left_out", {})
            able = {label: made for label, made in running.items() if label not in left_out}
            refused = _warm_up(vlm, able, samples, batch_size, tokens)
            if refused and (store.rows or len(refused) == len(able)):
                raise next(iter(refused.values()))
            left_out |= {label: str(error) for label, error in refused.items()}
            store.begin(asked)
            said = [f"Left out: {label}. {left_out[label]}" for label in refused]
            if not prompt:
                said.append(f'Note: questions are worded by the prompt "{wording}"; none was named.')
            if console:
                console.print(escape("\n".join(said)), highlight=False)
        total = sum(len(batch.ids) for batch in store.plan) * (len(running) - len(store.record.get("left_out", {})))
        with Countdown(console, total, len(store.rows)) as countdown:
            for rows in local.run(todo(), answer):
                store.append(rows)
                countdown.advance(len(rows), chosen[rows[0].benchmark].title)
        results = summary.summarise(store.record, store.rows)
    write_json(out / "results.json", results)
    (out / "table.md").write_text(table.markdown(results), encoding="utf-8")
    return results


def fingerprint(samples: Sequence[Sample]) -> str:
    """A hash of the questions, their references, and the names and sizes in bytes of their images."""
    digest = hashlib.sha256()
    for sample in samples:
        parts = (
            sample.id,
            sample.image_id,
            sample.image.stat().st_size,
            sample.question,
            sample.references,
            sample.group,
        )
        digest.update(json.dumps(parts).encode())
    return digest.hexdigest()[:16]


def _usual_prompt(model: str) -> str:
    """How a model is asked: "bare" for the testbed's, shipped or trained anew, which its chat template tells."""
    from ..models.load import TESTBED

    own, its = (folder / "chat_template.jinja" for folder in (TESTBED, Path(model)))
    bare = model == "testbed" or (own.is_file() and its.is_file() and its.read_bytes() == own.read_bytes())
    return "bare" if bare else "llava"


def _load(name: str, **loading: Any) -> Model:
    from ..vlm import load  # only now: data at fault are told of before a model is opened

    opened: Model = load(name, **loading)
    return opened


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


def _planned(samples: Mapping[str, Sequence[Sample]], batch_size: int) -> Iterator[Batch]:
    """Batches of one benchmark each, questions on one image side by side."""
    number = 0
    for name, mine in samples.items():
        images = {image: place for place, image in enumerate(dict.fromkeys(sample.image_id for sample in mine))}
        ids = [sample.id for sample in sorted(mine, key=lambda sample: images[sample.image_id])]
        for start in range(0, len(ids), batch_size):
            yield Batch(number, name, ids[start : start + batch_size])
            number += 1


def _cells(plan: Sequence[Batch], labels: list[str]) -> Iterator[Cell]:
    """Every batch under every method; the method that comes first changes from batch to batch."""
    for batch in plan:
        turn = batch.number % len(labels)
        yield from (Cell(batch, label) for label in labels[turn:] + labels[:turn])


def _answered(
    model: Model, method: Method, cell: Cell, samples: list[Sample], opened: Any, max_new_tokens: int
) -> list[Row]:
    """The rows of one cell. A broken image costs its own questions only, and so does whatever else fails."""
    rows: dict[str, Row] = {}
    sound: list[tuple[Sample, Image.Image]] = []

    def row(sample: Sample, **measured: Any) -> None:
        rows[sample.id] = Row.of(
            sample, benchmark=cell.batch.benchmark, method=cell.label, batch=cell.batch.number, **measured
        )

    for sample in samples:
        try:
            sound.append((sample, opened(sample.image)))
        except ImageError as error:
            row(sample, error=str(error))
    together = [sound] if sound else []
    while together:
        part = together.pop()
        try:
            answers = model.answer(
                [image for _, image in part],
                [sample.question for sample, _ in part],
                method,
                max_new_tokens=max_new_tokens,
            )
        except Exception as error:  # whatever it is, it must not cost the other questions of a run of hours
            if len(part) > 1:
                together += [[one] for one in part]
            else:
                row(part[0][0], error=f"{type(error).__name__}: {error}")
            continue
        for (sample, _), answer in zip(part, answers, strict=True):
            layers = answer.tokens_per_layer
            row(
                sample,
                answer=answer.text,
                tokens=answer.tokens,
                tokens_before=answer.tokens_before,
                tokens_per_layer=sum(layers) / len(layers) if layers else None,
                timing_ms=dict(answer.timing),
            )
    return [rows[sample.id] for sample in samples]


def _warm_up(
    model: Model,
    methods: Mapping[str, Method],
    samples: Mapping[str, Sequence[Sample]],
    batch_size: int,
    tokens: Mapping[str, int],
) -> dict[str, BudgetError]:
    """Answer a first batch of every benchmark with every method: what is wrong with a method shows here, unrecorded.

    Returns the methods that cannot meet their budget, and what they say.
    """
    refused: dict[str, BudgetError] = {}
    for name, mine in samples.items():
        sound = []
        for sample in mine:
            try:
                sound.append((open_image(sample.image), sample.question))
            except ImageError:
                continue  # recorded when its turn comes
            if len(sound) == batch_size:
                break
        for label, method in methods.items():
            if sound and label not in refused:
                try:
                    model.answer(
                        [image for image, _ in sound],
                        [question for _, question in sound],
                        method,
                        max_new_tokens=tokens[name],
                    )
                except BudgetError as error:
                    refused[label] = error
    return refused


def _described(model: Model) -> dict[str, Any]:
    inner = getattr(model, "model", None)
    return {
        "name": model.name,
        "revision": model.revision,
        "device": str(getattr(inner, "device", None)),
        "dtype": str(getattr(inner, "dtype", None)),
    }
