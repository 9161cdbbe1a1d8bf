"""The report as one HTML page that needs nothing else: no script, no request, its pictures and images inside.

Questions, answers, labels and errors come from files that nobody vouches for: all text is escaped, and the page's own
policy forbids whatever escaping might have missed.
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ...errors import ImageError
from ...images import open_image
from ..maps import unpack
from ..records import Row
from . import changes, token_map
from .changes import GAINED, LOST, OTHER, Change
from .fairness import UNEQUAL
from .style import CSS
from .table import Sheet, plain, remarks, sheets

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
MAPS = 36  # changed answers that are shown
SIDE = 384  # pixels of a token map
LONG = 40  # rows: what is longer is folded away
LONGEST = 600  # letters of a question or an answer
VERDICTS = {LOST: "lost", GAINED: "gained", OTHER: "other"}


def page(
    results: Mapping[str, Any],
    rows: Sequence[Row],
    pictures: Mapping[str, str],
    found: Mapping[tuple[str, str], Path],
    missing: Sequence[str],
) -> str:
    """The page. pictures: SVG by heading. found, missing: what changes.images knows of the images."""
    record = results["record"]
    runs = list(record.get("runs") or [])
    titles = ", ".join(made["title"] for made in results["benchmarks"].values())
    title = f"{titles}: {', '.join(runs) if runs else record['model']['name']}"
    measured, *notes = remarks(results)
    parts = [
        f"<header><p class=kicker>sparsezip report</p><h1>{_text(title)}</h1><p>{_text(measured)}</p></header>",
        *(
            [f"<p class=warning><strong>{UNEQUAL}.</strong> Scores do not compare at equal cost.</p>"]
            * bool(results["unequal"])
        ),
        '<nav><a href="#pictures">Pictures</a><a href="#tables">Tables</a><a href="#changes">Changed answers</a>'
        '<a href="#notes">Notes</a><a href="#runs">How it was run</a></nav>',
        _section(
            "pictures",
            "Pictures",
            (_folded(name, svg, svg.count("<text") > 8 * LONG) for name, svg in pictures.items()),
        ),
        _section(
            "tables",
            "Tables",
            (_folded(sheet.title, _table(sheet), len(sheet.rows) > LONG) for sheet in sheets(results)),
        ),
        _section("changes", "Changed answers", _changes(results, rows, found, missing)),
        _section("notes", "Notes", [f"<ul>{''.join(f'<li>{_text(note)}</li>' for note in notes)}</ul>"]),
        _section("runs", "How it was run", _records(record)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{_text(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _section(name: str, heading: str, parts: Any) -> str:
    return f'<section id="{name}"><h2>{heading}</h2>\n' + "\n".join(parts) + "\n</section>"


def _folded(heading: str, content: str, closed: bool) -> str:
    opened = "" if closed else " open"
    return f"<details{opened}><summary>{_text(heading)}</summary><div class=wide>{content}</div></details>"


def _table(sheet: Sheet) -> str:
    head = "".join(f"<th>{_text(heading)}</th>" for heading in sheet.headings)
    body = "".join(
        f"<tr><th>{_text(row[0])}</th>{''.join(f'<td>{_text(cell)}</td>' for cell in row[1:])}</tr>\n"
        for row in sheet.rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"


def _changes(
    results: Mapping[str, Any], rows: Sequence[Row], found: Mapping[tuple[str, str], Path], missing: Sequence[str]
) -> Iterator[str]:
    changed = changes.changes(results, rows)
    if not changed:
        yield "<p>No method changed an answer of keep_all, or there is no keep_all to compare with.</p>"
        return
    kinds = (LOST, GAINED, OTHER)
    counts = [
        [label, str(len(its)), *(str(sum(change.kind == kind for change in its)) for kind in kinds)]
        for label, its in changed.items()
    ]
    sheet = Sheet("Answers that differ from keep_all's, by method", ["method", "changed", *kinds], counts)
    yield _folded(sheet.title, _table(sheet), len(counts) > LONG)
    yield "".join(f"<p class=warning>{_text(why)}</p>" for why in missing)
    picked = changes.chosen(changed, MAPS)
    total, shown = (sum(map(len, its.values())) for its in (changed, picked))
    yield (
        f"<p>{shown:,} of {total:,} are shown, lost ones first. Patches that were kept are as they are, merged ones "
        "carry the tint of their token, dropped ones are dark.</p>"
    )
    for label, its in picked.items():
        yield f"<h3>{_text(label)}</h3><div class=cards>{''.join(_card(label, change, found) for change in its)}</div>"


def _card(label: str, change: Change, found: Mapping[tuple[str, str], Path]) -> str:
    row, before = change.after, change.before
    picture, told = _picture(row, found)
    scores = change.scores or (None, None)
    said = [
        ("reference", " / ".join(dict.fromkeys(row.references)), ""),
        (before.method, before.answer or "", _verdict(scores[0])),
        (label.partition("(")[0], row.answer or "", _verdict(scores[1])),
    ]
    answers = "".join(
        f"<dt>{_text(who)}</dt><dd>{_text(answer, LONGEST) or '<i>nothing</i>'}{verdict}</dd>"
        for who, answer, verdict in said
    )
    tokens = "" if row.tokens_per_layer is None else f" · {round(row.tokens_per_layer, 1):g} tokens per layer"
    if row.answer_patch_recall is not None:
        tokens += f" · {row.answer_patch_recall:.0%} of {row.answer_patches} answer patches kept"
    small = f"{change.title} {row.id} · {row.group} · {row.image}{tokens}"
    return (
        f'<article class="card {VERDICTS[change.kind]}">{picture}<div><p class=kind>{change.kind}</p>'
        f"<p class=question>{_text(row.question, LONGEST)}</p><dl>{answers}</dl>"
        f"<p class=small>{_text(told)}</p><p class=small>{_text(small)}</p></div></article>"
    )


def _verdict(score: float | None) -> str:
    if score is None:
        return ""
    word = "right" if score == 1 else "wrong" if score == 0 else f"{100 * score:.0f} %"
    return f' <span class="{word if word in ("right", "wrong") else "partly"}">{word}</span>'


def _picture(row: Row, found: Mapping[tuple[str, str], Path]) -> tuple[str, str]:
    """The image of a row with its patches marked, and what is to be said of it."""
    path = found.get((row.benchmark, row.image))
    try:
        if path is None:
            raise ImageError("The image was not found.")
        image = open_image(path)
    except ImageError as error:
        return "<div class=absent>no image</div>", str(error)
    if row.map is None:
        whole = row.tokens is not None and row.tokens == row.tokens_before == row.tokens_per_layer
        return _inside(image), "Every patch was kept." if whole else "The run did not record where the patches went."
    try:
        drawn, counts = token_map.marked(image, *unpack(row.map))
    except ValueError as error:
        return _inside(image), str(error)
    return _inside(drawn), f"{counts}."


def _inside(image: Image.Image) -> str:
    """An image as a part of the page."""
    file = io.BytesIO()
    ImageOps.contain(image, (SIDE, SIDE)).save(file, "JPEG", quality=82)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="where the patches went" loading="lazy">'


def _records(record: Mapping[str, Any]) -> Iterator[str]:
    for name, run in (record.get("runs") or {"the run": record}).items():
        kept = {key: run[key] for key in ("model", "data", "sessions", "left_out", "config") if key in run}
        text = escape(json.dumps(kept, indent=1))
        yield _folded(f"Record of {name}", f"<pre>{text}</pre>", True)


def _text(words: str, most: int | None = None) -> str:
    """Words as HTML, line by line without what steers a terminal or turns the direction of writing."""
    cut = words if most is None or len(words) <= most else f"{words[:most]} …"
    return escape("\n".join(plain(line) for line in cut.splitlines()))
