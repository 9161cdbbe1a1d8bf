"""The table of a run, for the terminal and as Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..session import commit_shown
from .budgets import compare
from .summary import FLOOR, OTHERS

NOT_MEASURED = "-"
TOKENS = ("tokens", "tokens_per_layer")
MANY = 8  # methods: more have a row each, where fewer have a column
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
    for line in _remarks(results):
        console.print(escape(line), highlight=False)


def draw(sheet: Sheet, console: Console) -> None:
    """Print one table, as wide as it is."""
    width, console.width = console.width, WIDE
    drawn = Table(title=escape(sheet.title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(sheet.headings):
        drawn.add_column(escape(heading), justify="right" if number else "left", no_wrap=True)
    for row in sheet.rows:
        drawn.add_row(*map(escape, row))
    console.print(drawn)
    console.width = width


def markdown(results: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    return "\n\n".join([*map(_in_markdown, sheets(results)), *_remarks(results)]) + "\n"


def budgets_markdown(compared: Mapping[str, Any]) -> str:
    """What budgets.compare picked, as Markdown: methods by budget, what is missing, and on what it was measured."""
    parts = [_in_markdown(_budgets(compared, benchmark)) for benchmark in compared["benchmarks"]]
    for name, missing in compared["missing"].items():
        why = missing["why"].split(". ")[0].rstrip(".")
        parts.append(f"`{name}` is left out at {', '.join(map(str, missing['budgets']))}. {why}.")
    return "\n\n".join([*parts, compared["measured"]]) + "\n"


def _in_markdown(sheet: Sheet) -> str:
    rule = ["---", *["---:"] * (len(sheet.headings) - 1)]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (sheet.headings, rule, *sheet.rows)]
    return f"**{sheet.title}**\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows)


def sheets(results: Mapping[str, Any]) -> Iterator[Sheet]:
    """The tables: of several budgets, the methods by budget; the summary, the cost, the scores of each benchmark."""
    compared = compare(results, "")
    if len(compared["budgets"]) > 1:
        yield from (_budgets(compared, benchmark) for benchmark in compared["benchmarks"])
    yield _summary(results)
    yield _cost(results)
    for benchmark in results["benchmarks"].values():
        yield _scores(results, benchmark)
        if benchmark["groups"]:
            yield _groups(results, benchmark)


def _budgets(compared: Mapping[str, Any], benchmark: Mapping[str, Any]) -> Sheet:
    """One row for each method, one column for each budget."""
    columns = [None, *compared["budgets"]]
    rows = []
    for name, points in benchmark["methods"].items():
        at = {point["budget"]: _point(point) for point in points}
        rows.append([name, *(at.get(budget, NOT_MEASURED) for budget in columns)])
    of = f" ({', '.join(benchmark['groups'])})" if benchmark["groups"] else ""
    title = (
        f"{benchmark['title']}{of}: {benchmark['score']} by budget, ± half its 95 % interval; "
        f"{benchmark['questions']:,} questions on {benchmark['images']:,} images; "
        "in brackets the mean visual tokens per LLM layer where it is not the budget"
    )
    return Sheet(title, ["method", "no budget", *map(str, compared["budgets"])], rows)


def _point(point: Mapping[str, Any]) -> str:
    if point["value"] is None:
        return NOT_MEASURED
    value, low, high = point["value"], point["low"], point["high"]
    half = "" if low is None else f" ± {max(high - value, value - low):.1f}"
    layers = point["per_layer"]
    told = layers is not None and (point["budget"] is None or abs(layers - point["budget"]) >= 0.05)
    return f"{value:.1f}{half}" + (f" ({round(layers, 1):g})" if told else "")


def _summary(results: Mapping[str, Any]) -> Sheet:
    """Latency and score side by side, in the columns of the literature."""
    headings = ["method", "tokens", "per layer"]
    rows = [
        [label, *(_range([b["methods"][label][key] for b in results["benchmarks"].values()]) for key in TOKENS)]
        for label in results["methods"]
    ]
    for benchmark in results["benchmarks"].values():
        shown = list(benchmark["columns"])[:2]
        headings += [f"{benchmark['title']} ms", *(benchmark["columns"][score] for score in shown)]
        for row in rows:
            method = benchmark["methods"][row[0]]
            row += [_median(method["latency_ms"]), *(_value(benchmark, method["scores"], score) for score in shown)]
    return Sheet("Visual tokens sent, their mean per LLM layer, median latency per question, scores", headings, rows)


def _cost(results: Mapping[str, Any]) -> Sheet:
    """Milliseconds per question, in all and by stage."""
    costs = [
        (benchmark["title"], label, benchmark["methods"][label])
        for benchmark in results["benchmarks"].values()
        for label in results["methods"]
    ]
    fullest_first = sorted((method["stages_ms"] for *_, method in costs), key=len, reverse=True)
    stages = list(dict.fromkeys(stage for timed in fullest_first for stage in timed))
    rows = []
    for title, label, method in costs:
        latency, ratio = method["latency_ms"], method["latency_ratio"]
        rows.append(
            [
                f"{title}, {label}",
                _median(latency),
                f"{latency['p10']:.1f} - {latency['p90']:.1f}" if latency else NOT_MEASURED,
                f"{ratio['median']:.2f}" if ratio else NOT_MEASURED,
                *(_median(method["stages_ms"].get(stage)) for stage in stages),
            ]
        )
    headings = ["benchmark, method", "ms", "p10 - p90", "x keep_all", *stages]
    return Sheet(
        "Milliseconds per question: median, spread, ratio to keep_all question by question, stages", headings, rows
    )


def _scores(results: Mapping[str, Any], benchmark: Mapping[str, Any]) -> Sheet:
    """Every score, the interval of the headline, and the paired differences."""
    headline, columns = benchmark["headline"], benchmark["columns"]
    percent = _percent(benchmark, headline)
    others = [other for other in OTHERS if any(other in made["differences"] for made in benchmark["methods"].values())]
    rows = []
    for label in results["methods"]:
        method = benchmark["methods"][label]
        rows.append(
            [
                label,
                str(method["n"]),
                *(_value(benchmark, method["scores"], score) for score in columns),
                _between(method["scores"][headline], percent),
                *(_difference(method["differences"].get(other, {}).get(headline), percent) for other in others),
                _number(method["agreement"]["value"], True),
            ]
        )
    headings = [
        "method",
        "n",
        *columns.values(),
        "95 % interval",
        *(f"minus {other}" for other in others),
        "same answer %",
    ]
    title = f"{benchmark['title']}: {benchmark['questions']:,} questions on {benchmark['images']:,} images"
    return Sheet(f"{title}; interval and paired differences are those of {columns[headline]}", headings, rows)


def _groups(results: Mapping[str, Any], benchmark: Mapping[str, Any]) -> Sheet:
    """The headline score by group, and by how much methods beat the floor there."""
    headline, labels = benchmark["headline"], results["methods"]
    percent = _percent(benchmark, headline)
    title = f"{benchmark['title']}: {benchmark['columns'][headline]} by {benchmark['group_noun']}"
    if len(labels) > MANY:  # too many for columns
        parts = benchmark["groups"].values()
        rows = [
            [label, *(_value(benchmark, part["methods"][label]["scores"], headline) for part in parts)]
            for label in labels
        ]
        return Sheet(title, ["method", *benchmark["groups"]], rows)
    beating = [label for label in labels if FLOOR in labels and label not in OTHERS]
    rows = [
        [
            group,
            str(part["n"]),
            *(_value(benchmark, part["methods"][label]["scores"], headline) for label in labels),
            *(_difference(part["methods"][label]["differences"][FLOOR][headline], percent) for label in beating),
        ]
        for group, part in benchmark["groups"].items()
    ]
    headings = [benchmark["group_noun"], "n", *labels, *(f"{label} minus {FLOOR}" for label in beating)]
    return Sheet(title, headings, rows)


def measured(results: Mapping[str, Any]) -> str:
    """On which model, with what and when."""
    record = results["record"]
    session = record["sessions"][0]
    return (
        f"Model {record['model']['name']} ({record['model']['revision']}) on {record['model']['device']}, "
        f"torch {session['torch']}, transformers {session['transformers']}, "
        f"{session['started']}{commit_shown(session)}. Intervals are clustered by image; - means not measured."
    )


def _remarks(results: Mapping[str, Any]) -> Iterator[str]:
    yield measured(results)
    for note in results["notes"]:
        yield f"Note: {note}"
    for failure in results["failures"]:
        yield f"Failed: {failure['benchmark']} {failure['id']} ({failure['method']}): {failure['error']}"


def _percent(benchmark: Mapping[str, Any], score: str) -> bool:
    heading: str = benchmark["columns"][score]
    return heading.endswith("%")


def _value(benchmark: Mapping[str, Any], scores: Mapping[str, Any], score: str) -> str:
    return _number(scores[score]["value"], _percent(benchmark, score))


def _number(value: int | float | None, percent: bool, sign: str = "") -> str:
    return NOT_MEASURED if value is None else f"{value * (100 if percent else 1):{sign}.1f}"


def _between(score: Mapping[str, Any], percent: bool, sign: str = "") -> str:
    if score["low"] is None:
        return NOT_MEASURED
    return f"{_number(score['low'], percent, sign)} to {_number(score['high'], percent, sign)}"


def _difference(score: Mapping[str, Any] | None, percent: bool) -> str:
    if score is None or score["value"] is None:
        return NOT_MEASURED
    return f"{_number(score['value'], percent, '+')} ({_between(score, percent, '+')})"


def _median(latency: Mapping[str, Any] | None) -> str:
    return f"{latency['median']:.1f}" if latency else NOT_MEASURED


def _range(values: Sequence[int | float | None]) -> str:
    """One number where the benchmarks agree, else the smallest and the largest."""
    shown = sorted({round(value, 1) for value in values if value is not None})
    if not shown:
        return NOT_MEASURED
    return f"{shown[0]:g}" if len(shown) == 1 else f"{shown[0]:g} - {shown[-1]:g}"
