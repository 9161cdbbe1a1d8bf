"""The tables of a run, or of several that were joined: as text, for the terminal and as Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..session import commit_shown
from .budgets import compare, form_of
from .fairness import FLOOR, budget_of, marked, without_budget
from .summary import ANSWER_PATCHES, OTHERS

NOT_MEASURED = "-"
TOKENS = ("tokens", "tokens_per_layer")
TIMES = {"ttft_ms": "TTFT", "decode_ms": "decode", "latency_ms": "total"}
MANY, LONG = 8, 90  # methods, letters of their names: more have a row each, where fewer have a column
WIDE = 400  # characters: a table keeps its own width; cut-off numbers help nobody


@dataclass(frozen=True)
class Sheet:
    """A table as text: the first column is left-aligned, numbers follow."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def show(results: Mapping[str, Any], console: Console) -> None:
    """Print the tables and what a reader of them has to know."""
    for sheet in sheets(results):
        draw(sheet, console)
    for line in remarks(results):
        console.print(escape(plain(line)), highlight=False)


def draw(sheet: Sheet, console: Console) -> None:
    """Print one table, as wide as it is."""
    width, console.width = console.width, WIDE
    title = escape(plain(sheet.title))
    drawn = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(sheet.headings):
        drawn.add_column(escape(plain(heading)), justify="right" if number else "left", no_wrap=True)
    for row in sheet.rows:
        drawn.add_row(*(escape(plain(cell)) for cell in row))
    console.print(drawn)
    console.width = width


def plain(text: str) -> str:
    """`text` on one line, without what would steer a terminal: labels, groups and errors come from files."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def markdown(results: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    return "\n\n".join([*map(in_markdown, sheets(results)), *map(_quoted, remarks(results))]) + "\n"


def budgets_markdown(compared: Mapping[str, Any]) -> str:
    """What budgets.compare picked, as Markdown: methods by budget, what is missing, and on what it was measured."""
    unequal = compared.get("unequal", [])
    parts = [in_markdown(_marked(_budgets(compared, made), unequal)) for made in compared["benchmarks"]]
    parts += [f"Note: {_quoted(line)}" for line in unequal]
    for name, missing in compared["missing"].items():
        why = missing["why"].split(". ")[0].rstrip(".")
        parts.append(f"`{name}` is left out at {', '.join(map(str, missing['budgets']))}. {_quoted(why)}.")
    return "\n\n".join([*parts, compared["measured"]]) + "\n"


def in_markdown(sheet: Sheet) -> str:
    """One table as Markdown."""
    rule = ["---", *["---:"] * (len(sheet.headings) - 1)]
    rows = [[_quoted(cell).replace("|", "\\|") for cell in row] for row in (sheet.headings, rule, *sheet.rows)]
    return f"**{_quoted(sheet.title)}**\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _quoted(text: str) -> str:
    """Text as Markdown that holds no HTML."""
    return plain(text).replace("<", "&lt;")


def sheets(results: Mapping[str, Any]) -> Iterator[Sheet]:
    """The tables: of several budgets, the methods by budget; the summary, the costs, the scores of each benchmark."""
    for sheet in _sheets(results):
        yield _marked(sheet, results["unequal"])


def _marked(sheet: Sheet, unequal: Sequence[str]) -> Sheet:
    return replace(sheet, title=marked(sheet.title, unequal))


def _sheets(results: Mapping[str, Any]) -> Iterator[Sheet]:
    compared = compare(results, "")
    if len(compared["budgets"]) > 1:
        yield from (_budgets(compared, benchmark) for benchmark in compared["benchmarks"])
    yield _summary(results)
    yield _cost(results)
    yield _stages(results)
    for benchmark in results["benchmarks"].values():
        yield _scores(results, benchmark)
        if benchmark["groups"]:
            grouped = [benchmark["headline"], *({ANSWER_PATCHES} & set(benchmark["columns"]))]
            yield from (sheet for score in grouped for sheet in _groups(results, benchmark, score))


def _budgets(compared: Mapping[str, Any], benchmark: Mapping[str, Any]) -> Sheet:
    """One row for each method, one column for each budget."""
    columns = [None, *compared["budgets"]]
    rows = []
    for name, points in benchmark["methods"].items():
        at = {point["budget"]: _point(point, benchmark.get("digits", 1)) for point in points}
        rows.append([name, *(at.get(budget, NOT_MEASURED) for budget in columns)])
    of = f" ({', '.join(benchmark['groups'])})" if benchmark["groups"] else ""
    title = (
        f"{benchmark['title']}{of}: {benchmark['score']} by budget, ± half its 95 % interval; "
        f"{benchmark['questions']:,} questions on {benchmark['images']:,} images; "
        "in brackets the mean visual tokens per LLM layer where it is not the budget"
    )
    return Sheet(title, ["method", "no budget", *map(str, compared["budgets"])], rows)


def _point(point: Mapping[str, Any], digits: int) -> str:
    if point["value"] is None:
        return NOT_MEASURED
    value, low, high = point["value"], point["low"], point["high"]
    half = "" if low is None else f" ± {max(high - value, value - low):.{digits}f}"
    layers = point["per_layer"]
    told = layers is not None and (point["budget"] is None or abs(layers - point["budget"]) >= 0.05)
    return f"{value:.{digits}f}{half}" + (f" ({round(layers, 1):g})" if told else "")


def _summary(results: Mapping[str, Any]) -> Sheet:
    """Latency and score side by side, in the columns of the literature."""
    headings = ["method", "tokens", "per layer"]
    rows = [
        [label, *(_range([b["methods"][label][key] for b in results["benchmarks"].values()]) for key in TOKENS)]
        for label in results["methods"]
    ]
    for benchmark in results["benchmarks"].values():
        shown = [score for score in benchmark["columns"] if score != ANSWER_PATCHES][:2]
        headings += [f"{benchmark['title']} ms", *(benchmark["columns"][score] for score in shown)]
        for row in rows:
            method = benchmark["methods"][row[0]]
            row += [_at(method["latency_ms"]), *(_value(benchmark, method["scores"], score) for score in shown)]
    return Sheet("Visual tokens sent, their mean per LLM layer, median latency per question, scores", headings, rows)


def _cost(results: Mapping[str, Any]) -> Sheet:
    """What a question costs: of the LLM and in time."""
    rows = [
        [
            named,
            _range([method["tokens"]]),
            _range([method["tokens_per_layer"]]),
            _scaled(method["prefill_flops"], 1e9),
            _scaled(method["kv_bytes"], 1e6),
            *(_at(method[time], point) for time in TIMES for point in ("median", "p90")),
            f"{method['latency_ratio']['median']:.2f}" if method["latency_ratio"] else NOT_MEASURED,
        ]
        for named, method in _costs(results)
    ]
    timed = [heading for time in TIMES.values() for heading in (f"{time} ms", "p90")]
    headings = [_first(results), "tokens", "per layer", "prefill GFLOP", "KV MB", *timed, "x keep_all"]
    title = "Cost of a question: visual tokens, the LLM's prefill and cache (means), milliseconds (median and p90)"
    return Sheet(title, headings, rows)


def _stages(results: Mapping[str, Any]) -> Sheet:
    """Where the time goes."""
    costs = list(_costs(results))
    fullest_first = sorted((method["stages_ms"] for _, method in costs), key=len, reverse=True)
    stages = list(dict.fromkeys(stage for timed in fullest_first for stage in timed))
    rows = [[named, *(_at(method["stages_ms"].get(stage)) for stage in stages)] for named, method in costs]
    return Sheet("Milliseconds of a question by stage: medians", [_first(results), *stages], rows)


def _costs(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Label and numbers of each method that has answered any of a benchmark; of several, with its title."""
    several = len(results["benchmarks"]) > 1
    for benchmark in results["benchmarks"].values():
        for label in results["methods"]:
            if benchmark["methods"][label]["n"]:
                yield f"{benchmark['title']}, {label}" if several else label, benchmark["methods"][label]


def _first(results: Mapping[str, Any]) -> str:
    return "benchmark, method" if len(results["benchmarks"]) > 1 else "method"


def _scores(results: Mapping[str, Any], benchmark: Mapping[str, Any]) -> Sheet:
    """Every score, the interval of the headline, and the paired differences."""
    headline, columns = benchmark["headline"], dict(benchmark["columns"])
    form, located = form_of(benchmark, headline), columns.pop(ANSWER_PATCHES, None)
    others = [other for other in OTHERS if any(other in made["differences"] for made in benchmark["methods"].values())]
    rows = []
    for label in results["methods"]:
        method = benchmark["methods"][label]
        rows.append(
            [
                label,
                str(method["n"]),
                *(_value(benchmark, method["scores"], score) for score in columns),
                _between(method["scores"][headline], form),
                *(
                    cell
                    for other in others
                    for difference in [method["differences"].get(other, {}).get(headline)]
                    for cell in (_difference(difference, form), _chance(difference))
                ),
                _number(method["agreement"]["value"], (100, 1)),
                *([_difference(method["scores"][ANSWER_PATCHES], (100, 1), "")] if located else []),
            ]
        )
    headings = [
        "method",
        "n",
        *columns.values(),
        "95 % interval",
        *(heading for other in others for heading in (f"minus {other}", "p")),
        "same answer %",
        *([f"{located} (95 %)"] if located else []),
    ]
    title = f"{benchmark['title']}: {benchmark['questions']:,} questions on {benchmark['images']:,} images"
    return Sheet(f"{title}; interval and paired differences are those of {columns[headline]}", headings, rows)


def _groups(results: Mapping[str, Any], benchmark: Mapping[str, Any], score: str) -> Iterator[Sheet]:
    """A score by group, and by how much methods beat the floor there; of several budgets, a table for each."""
    title = f"{benchmark['title']}: {benchmark['columns'][score]} by {benchmark['group_noun']}"
    methods = results["record"]["config"]["methods"]
    budgets = {label: budget_of(methods[label]) for label in results["methods"]}
    several = dict.fromkeys(budget for budget in budgets.values() if budget is not None)
    if len(several) < 2:
        yield _grouped(title, benchmark, score, {label: label for label in budgets})
        return
    ratios = any(methods[label].get("keep_ratio") for label in budgets)  # of one command it is one or the other
    for shared in several:
        yield _grouped(
            f"{title}, {'keep ratio' if ratios else 'budget'} {shared:g}",
            benchmark,
            score,
            {label: without_budget(label, own) for label, own in budgets.items() if own in (None, shared)},
        )


def _grouped(title: str, benchmark: Mapping[str, Any], score: str, labels: Mapping[str, str]) -> Sheet:
    """The same of some methods. labels: what each is called here."""
    form, parts = form_of(benchmark, score), benchmark["groups"]
    if len(labels) > MANY or sum(map(len, labels.values())) > LONG:
        rows = [
            [name, *(_value(benchmark, part["methods"][label]["scores"], score) for part in parts.values())]
            for label, name in labels.items()
        ]
        return Sheet(title, ["method", *parts], rows)
    beating = [
        label
        for label in labels
        if label not in OTHERS and all(FLOOR in part["methods"][label]["differences"] for part in parts.values())
    ]
    rows = [
        [
            group,
            str(_asked(part, score)),
            *(_value(benchmark, part["methods"][label]["scores"], score) for label in labels),
            *(_difference(part["methods"][label]["differences"][FLOOR][score], form) for label in beating),
        ]
        for group, part in parts.items()
    ]
    minus = [f"{labels[label]} minus {FLOOR}" for label in beating]
    return Sheet(title, [benchmark["group_noun"], "n", *labels.values(), *minus], rows)


def _asked(part: Mapping[str, Any], score: str) -> int:
    """How many questions of a group a score is about: that of answer patches only about those that have some."""
    its = max((method["scores"][score]["n"] for method in part["methods"].values()), default=0)
    return int(its if score == ANSWER_PATCHES else part["n"])


def measured(results: Mapping[str, Any]) -> str:
    """On which model, with what and when; of several runs, each."""
    told = [
        f"{f'Run {name}: model' if name else 'Model'} {_measured(record)}." for name, record in _runs(results).items()
    ]
    return f"{' '.join(told)} Intervals are clustered by image; {NOT_MEASURED} means not measured."


def _measured(record: Mapping[str, Any]) -> str:
    session, model = record["sessions"][0], record["model"]
    return (
        f"{model['name']} ({model['revision']}) on {model['device']}, "
        f"torch {session['torch']}, transformers {session['transformers']}, "
        f"{session['started']}{commit_shown(session)}"
    )


def remarks(results: Mapping[str, Any]) -> Iterator[str]:
    """What a reader has to know: what the numbers are of, what they mean, what is wrong with them."""
    yield measured(results)
    yield from _meanings(results)
    for note in results["notes"]:
        yield f"Note: {note}"
    for failure in results["failures"]:
        more = f" and {failure['answers'] - 1} more" if failure["answers"] > 1 else ""
        yield f"Failed: {failure['benchmark']} {failure['id']} ({failure['method']}){more}: {failure['error']}"


def _meanings(results: Mapping[str, Any]) -> Iterator[str]:
    methods = [method for _, method in _costs(results)]
    if any(method["ttft_ms"] for method in methods):
        yield (
            "TTFT: from the question to the first token of the answer; decode: from there to its end; total: "
            "both; x keep_all: its ratio to keep_all's, question by question (median)."
        )
    sizes = sorted({record["config"].get("batch_size", 1) for record in _runs(results).values()} - {1})
    if sizes:
        together = " or ".join(map(str, sizes))
        yield f"Up to {together} questions were answered at a time; times are a question's share of its batch's."
    if any(method["prefill_flops"] is not None for method in methods):
        yield (
            "Prefill GFLOP: 1e9 operations of the LLM's layers on the prompt; KV MB: the prompt's keys and values in "
            "the cache, 1e6 bytes. Tower and projector are not in them."
        )
    if any(ANSWER_PATCHES in benchmark["columns"] for benchmark in results["benchmarks"].values()):
        yield (
            "APR (answer_patch_recall): of the patches that show what a question is about, the mean share that went "
            "through the LLM's last layer as tokens of their own (merged, pooled and scaled-down ones do not count), "
            "over the questions whose data tell these patches."
        )
    if any(method["differences"] for method in methods):
        yield (
            "p: two-sided test that a paired difference is 0, adjusted for the number of methods in its column (Holm)."
        )


def _runs(results: Mapping[str, Any]) -> Mapping[str, Any]:
    """The records of the runs by name; of a single one, which needs none, by nothing."""
    runs: Mapping[str, Any] = results["record"].get("runs") or {"": results["record"]}
    return runs


def _value(benchmark: Mapping[str, Any], scores: Mapping[str, Any], score: str) -> str:
    return _number(scores[score]["value"], form_of(benchmark, score))


def _number(value: int | float | None, form: tuple[int, int], sign: str = "") -> str:
    return NOT_MEASURED if value is None else f"{form[0] * value:{sign}.{form[1]}f}"


def _between(score: Mapping[str, Any], form: tuple[int, int], sign: str = "") -> str:
    if score["low"] is None:
        return NOT_MEASURED
    return f"{_number(score['low'], form, sign)} to {_number(score['high'], form, sign)}"


def _difference(score: Mapping[str, Any] | None, form: tuple[int, int], sign: str = "+") -> str:
    if score is None or score["value"] is None:
        return NOT_MEASURED
    return f"{_number(score['value'], form, sign)} ({_between(score, form, sign)})"


def _chance(difference: Mapping[str, Any] | None) -> str:
    """The adjusted p of a difference."""
    p = difference["p_holm"] if difference else None
    return NOT_MEASURED if p is None else "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _at(latency: Mapping[str, Any] | None, point: str = "median") -> str:
    return f"{latency[point]:.1f}" if latency else NOT_MEASURED


def _scaled(value: float | None, unit: float) -> str:
    return NOT_MEASURED if value is None else f"{value / unit:.3g}" if value < 1000 * unit else f"{value / unit:,.0f}"


def _range(values: Sequence[int | float | None]) -> str:
    """One number where the benchmarks agree, else the smallest and the largest."""
    shown = sorted({round(value, 1) for value in values if value is not None})
    if not shown:
        return NOT_MEASURED
    return f"{shown[0]:g}" if len(shown) == 1 else f"{shown[0]:g} - {shown[-1]:g}"
