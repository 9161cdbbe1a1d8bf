"""What `sparsezip time` prints: where the time goes, and what work it is."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..report import bars
from ..report.table import NOT_MEASURED, Sheet
from ..session import commit_shown

ANSWERS = {2: "POPE -19.2, MME -36.2", 8: "DocVQA -11.0"}  # tokens of an answer: what SparseZip's authors publish


def sheets(measured: Mapping[str, Any]) -> Iterator[Sheet]:
    """The three tables."""
    record, rows = measured["record"], measured["rows"]
    clock = "wall" if record["device"].startswith("cuda") else "CPU"
    of = (
        f"{record['arch']}, random weights, {record['dtype']}, {record['where']}; {clock} ms of a batch, medians of "
        f"{record['rounds']} rounds"
    )
    stages = list(rows[0]["stages"])
    times = [
        [
            *_name(row),
            *(_ms(row["stages"][stage]) for stage in stages),
            _ms(row["end_to_end"]),
            _spread(row["end_to_end"]),
            _ratio(row["of_full"]),
            _ratio(row["of_ideal"]),
        ]
        for row in rows
    ]
    headings = [
        "method",
        "batch",
        "tokens",
        *stages[:-1],
        "decode/token",
        "end to end",
        "p10 - p90",
        "x all",
        "x ideal",
    ]
    yield Sheet(f"Time by stage: {of}; answers of {record['answer_tokens']} tokens", headings, times)
    work = [
        [
            *_name(row),
            f"{row['per_layer']:.1f}",
            _number(row["prefill_flops"], 1e9),
            _number(row["own_flops"], 1e9),
            _number(row["kv_bytes"], 2**20),
            _number(row["peak_bytes"], 2**20),
            _ms(row["floor"]),
            f"{row['stages']['prefill']['median'] / row['floor']['median']:.2f}" if row["floor"] else NOT_MEASURED,
            NOT_MEASURED if row["of_schedule"] is None else f"{row['of_schedule']:.2f}",
            NOT_MEASURED if row["gains_below"] is None else f"{row['gains_below']:.0f}",
        ]
        for row in rows
    ]
    headings = ["method", "batch", "tokens", "per layer", "prefill GFLOP", "own GFLOP", "KV MiB", "peak MiB"]
    headings += ["predicted prefill", "prefill/predicted", "x schedule", "gains below"]
    yield Sheet("Work, and how far the prefill is from its matrix products alone", headings, work)
    yield _cuts(rows)


def _cuts(rows: Sequence[Mapping[str, Any]]) -> Sheet:
    """How much of the time to a whole answer is saved, at the lengths of published ones."""
    shown = []
    for row in rows:
        here = [other for other in rows if other["batch"] == row["batch"]]
        ideals = [its for its in here if its["method"] == "ideal" and its["tokens"] == row["tokens"]]
        cells = []
        for answer in ANSWERS:
            if row["stages"]["decode"] is None:  # answers of one token
                cells += [NOT_MEASURED, NOT_MEASURED]
                continue
            cut, *best = (1 - _whole(its, answer) / _whole(here[0], answer) for its in (row, *ideals))
            cells.append(f"{-100 * cut:.1f}")
            cells.append(f"{100 * cut / best[0]:.1f}" if best and row["of_ideal"] else NOT_MEASURED)
        if row is not here[0]:
            shown.append([*_name(row), *cells])
    headings = ["method", "batch", "tokens"]
    for answer in ANSWERS:
        headings += [f"{answer} tokens, %", "of ideal's cut %"]
    published = "; ".join(f"{answer} tokens: {its}" for answer, its in ANSWERS.items())
    return Sheet(
        f"End-to-end time against all tokens, by length of the answer (published, %: {published})", headings, shown
    )


def _whole(row: Mapping[str, Any], answer: int) -> float:
    """End to end for answers of so many tokens, from the medians of the stages."""
    took = {stage: its["median"] for stage, its in row["stages"].items() if its and stage != "drop"}
    return float(sum((answer - 1 if stage == "decode" else 1) * its for stage, its in took.items()))


def remarks(measured: Mapping[str, Any]) -> Iterator[str]:
    """What the numbers are of, and what they mean."""
    record = measured["record"]
    yield (
        f"torch {record['torch']}, transformers {record['transformers']}, {record['machine']}, "
        f"{record['started']}{commit_shown(record)}."
    )
    yield (
        "Drop: the part of the prefill in which a method inside the LLM chooses. x all, x ideal: end to end over "
        "that of the unmodified model, and of as many tokens chosen at no cost. x schedule: the prefill of a method "
        "inside the LLM over what layers of as many tokens take. Gains below: the number of tokens under which the "
        "method saves time. Own GFLOP: matrix products of the method itself, as PyTorch counts them. Predicted: the "
        "LLM's matrix products and attention alone, on this machine. Memory and FLOPs are per image."
    )
    models = dict.fromkeys(row["model_of"] for row in measured["rows"] if row["model_of"])
    if models:
        yield f"* Models of what official implementations pay at the same shapes, not their code. {'. '.join(models)}."
    if any(its.get("saliency") == "received" for its in record["methods"].values()):
        yield "The tower has no CLS token: methods that read it go by what patches receive (saliency=received)."
    for label, why in measured["left_out"].items():
        yield f"{label} is left out. {why}"


def picture(measured: Mapping[str, Any]) -> str:
    """A bar of stages for each row, an image's share of its batch, as SVG."""
    panels = {}
    for batch in dict.fromkeys(row["batch"] for row in measured["rows"]):
        methods = {}
        for row in measured["rows"]:
            if row["batch"] == batch:
                steps = {"decode": measured["record"]["answer_tokens"] - 1}
                shown = {
                    stage: {"median": steps.get(stage, 1) * its["median"] / batch}
                    for stage, its in row["stages"].items()
                    if its and stage != "drop"
                }
                methods[" ".join(_name(row)[::2])] = {
                    "stages_ms": shown,
                    "latency_ms": {"median": row["end_to_end"]["median"] / batch},
                }
        title = f"{measured['record']['arch']}, batch {batch}"
        panels[title] = {"title": title, "methods": methods}
    return bars.stages({"benchmarks": panels, "unequal": []})


def _name(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['method']}{' *' if row['model_of'] else ''}", str(row["batch"]), str(row["tokens"])]


def _ms(timed: Mapping[str, Any] | None) -> str:
    return f"{timed['median']:.1f}" if timed else NOT_MEASURED


def _spread(timed: Mapping[str, Any]) -> str:
    return f"{timed['p10']:.1f} - {timed['p90']:.1f}"


def _ratio(timed: Mapping[str, Any] | None) -> str:
    return f"{timed['median']:.3f}" if timed else NOT_MEASURED


def _number(value: float | None, unit: float) -> str:
    return NOT_MEASURED if value is None else f"{value / unit:.3g}" if value < 1000 * unit else f"{value / unit:,.0f}"
