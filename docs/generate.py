"""Write docs/methods.md, docs/models.md and docs/performance.md, with their pictures: `python docs/generate.py`.

methods.md is made of the headers of the method files and of methods_results.json, which is what
`sparsezip report RUN --out docs/methods_results.json` picks from a run; models.md of the headers of the family files
and of models_results.json, what `python tests/test_families.py --write` finds; performance.md of
performance_results.json, what `sparsezip time --json docs/performance_results.json` measured. surprises.md and
limits.md are written by hand, about these results.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from sparsezip.measure.report import chart, table
from sparsezip.measure.speed import table as speed
from sparsezip.methods import registry
from sparsezip.models import registry as families

DOCS = Path(__file__).parent
PAGE, PICTURE, RESULTS, SURPRISES = (
    DOCS / name for name in ("methods.md", "methods.svg", "methods_results.json", "surprises.md")
)
TIMED, BARS, SPEED, LIMITS = (
    DOCS / name for name in ("performance.md", "performance.svg", "performance_results.json", "limits.md")
)
SERVES = {"ok": "yes", "received": "received"}
MODELS, FOUND = DOCS / "models.md", DOCS / "models_results.json"
COMMON = ("budget", "keep_ratio", "match", "budget_scope", "saliency", "positions", "paper")  # of every method
FIELDS = ("Paper", "Code", "Parity", "Differs")
INTRO = """\
# Methods

Written by `docs/generate.py` from the headers of the files in `src/sparsezip/methods`.
Every method also takes `budget` (tokens per image, all of them counted), `keep_ratio` (the same as a share of the
patches), `match` (what that is the measure of where tokens are dropped inside the LLM: `mean_tokens_per_layer`,
`tokens` behind the last drop, or `flops` of the prefill), `budget_scope` (whether the budget is one for each `image`,
for all images of a `prompt`, or for each `tile` of a tiled image), `saliency` (what speaks for the whole image: the
tower's CLS token, `cls`, or for towers without one the attention `received` from all patches), `positions` (whether the
LLM counts what it is sent anew, `compact`, or each token keeps the position of its patch, `original`) and `paper` (the
published formulas, defaults and quirks; what it changes stands under *Differs*).
The block below a method holds its own settings with their defaults. Two methods make a pair, `visionzip|fastv`: one in
front of the LLM, then one inside it.
"""
PERFORMANCE = """\
# Speed

Written by `docs/generate.py` from what one command measured in under eight minutes on a machine with two shared cores
and no GPU, without a download:

```bash
sparsezip time --arch llava-1.5-7b --share-layers --json docs/performance_results.json
```

![Where the time goes](performance.svg)"""
SERVED = """\
# Models

Written by `docs/generate.py` from the headers of the files in `src/sparsezip/models` and from what the tests find:
`python tests/test_families.py --write` tries every method on a tiny random model of every family, under the
transformers that is installed."""
MARKS = """\
*yes*: as it comes. *received*: with `saliency="received"`, as the tower has no CLS token. *no*: refused. *clip*:
methods that compare in CLIP's space can be lent the tower's CLIP with `clip=`; without it they compare in the LLM's.
*videos*: in calls without images; each video is an image then, and its frames are the tiles."""
REASONS = {  # why methods are refused, by what the results call it
    "one size": "They run the tower on images scaled down, which those of other families do not take.",
    "deepstack": "Early layers of the LLM are given visual features, and nothing can be dropped in front of the last "
    "of them. Methods whose settings name layers can be given later ones.",
}
LEFT_OUT = """\
Not covered: Mllama, whose LLM reads images by cross-attention, so that no visual tokens are sent; models whose code
does not come with transformers; videos beside images, and those of families without a *yes* in that column. An image
that is seen as several views, itself and its tiles, needs a token for each: a smaller budget is refused.
"""
COMPARED = """\
## How they compare

![What is left of the score when fewer visual tokens are processed](methods.svg)
"""


def page() -> str:
    """The whole page."""
    return INTRO + "".join(f"\n{_section(name)}" for name in registry.names()) + _compared()


def picture() -> str | None:
    """The picture on it; None where nothing was measured."""
    return chart.svg(json.loads(RESULTS.read_text("utf-8"))) if RESULTS.exists() else None


def models() -> str:
    """The page about families: what each serves, of methods that all families treat alike."""
    stored = json.loads(FOUND.read_text("utf-8"))
    *others, newest = sorted(stored, key=lambda version: [int(part) for part in version.split(".")])
    found = stored[newest]["families"]
    alike = dict[tuple[str, ...], list[str]]()
    for name in registry.names():
        alike.setdefault(tuple(its["methods"].get(name, "untried") for its in found.values()), []).append(name)
    groups = sorted(alike.items(), key=lambda group: (-sum(one in SERVES for one in group[0]), group[1]))
    letters = [chr(ord("A") + number) for number in range(len(groups))]
    lines = ["| family | tower | CLS | clip | videos | " + " | ".join(letters) + " |", "|---" * (5 + len(groups)) + "|"]
    for number, (family, its) in enumerate(found.items()):
        cells = [family, its["tower"], *("yes" if its[name] else "" for name in ("cls", "clip", "videos"))]
        cells += [SERVES.get(outcomes[number], "no") for outcomes, _ in groups]
        lines.append(f"| {' | '.join(cells)} |")
    legend = [f"- **{letter}**: {', '.join(names)}" for letter, (_, names) in zip(letters, groups, strict=True)]
    legend += [f"  {REASONS['one size']}"] if "one size" in groups[-1][0] else []
    rows = [_family(family, its) for family, its in found.items()]
    paragraphs = [SERVED, "\n".join(lines), "\n".join(legend), MARKS, _tried(stored, newest, others), "\n".join(rows)]
    return "\n\n".join([*paragraphs, LEFT_OUT])


def _tried(stored: dict[str, Any], newest: str, others: list[str]) -> str:
    runs = [f"{version} ({stored[version]['date']}, {stored[version]['commit']})" for version in (newest, *others)]
    line = f"Tried with transformers {' and '.join(runs)}."
    differ = [version for version in others if stored[version]["families"] != stored[newest]["families"]]
    return line + (f" The table is of {newest}; of {', '.join(differ)} it would be another." if differ else "")


def _family(family: str, found: dict[str, Any]) -> str:
    """How it sees images, and which methods it refuses."""
    text = " ".join(families.header(family).split())
    reasons = {**REASONS, "inside": found["inside"]}
    refused = dict[str, list[str]]()
    for name, outcome in found["methods"].items():
        if outcome not in SERVES and outcome != "one size":
            refused.setdefault(outcome, []).append(name)
    return " ".join(
        [f"- {text}", *(f"No {', '.join(names)}: {reasons.get(why, why)}" for why, names in refused.items())]
    )


def timed() -> str:
    """The page about speed."""
    measured = json.loads(SPEED.read_text("utf-8"))
    tables = [table.in_markdown(sheet) for sheet in speed.sheets(measured)]
    return "\n\n".join([PERFORMANCE, *tables, *speed.remarks(measured), LIMITS.read_text("utf-8")])


def bars() -> str:
    """The picture on it."""
    return speed.picture(json.loads(SPEED.read_text("utf-8")))


def _compared() -> str:
    if not RESULTS.exists():
        return ""
    parts = [COMPARED, table.budgets_markdown(json.loads(RESULTS.read_text("utf-8")))]
    if SURPRISES.exists():
        parts.append(SURPRISES.read_text("utf-8"))
    return "".join(f"\n{part}" for part in parts)


def _section(name: str) -> str:
    sentence, *rest = registry.header(name).removeprefix(f"{name}: ").split("\n")
    lines = [f"## {name}", "", sentence[0].upper() + sentence[1:], ""]
    for line in filter(None, rest):
        key, colon, text = line.partition(": ")
        lines.append(f"- **{key}**: {text}" if colon and key in FIELDS else f"  {line.strip()}")
    kind = registry.get(name)
    settings = {key: value for key, value in asdict(kind()).items() if key not in COMMON}
    if settings and kind.sizing:
        lines.append(f"- **How many tokens**: {', '.join(f'`{setting}`' for setting in sorted(kind.sizing))}")
    if settings:
        lines += ["", "```yaml", *(f"{key}: {_flow(value)}" for key, value in settings.items()), "```"]
    return "\n".join(lines) + "\n"


def _flow(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=200).removesuffix("...\n").strip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    MODELS.write_text(models(), encoding="utf-8")
    TIMED.write_text(timed(), encoding="utf-8")
    BARS.write_text(bars(), encoding="utf-8")
    drawn = picture()
    if drawn is not None:
        PICTURE.write_text(drawn, encoding="utf-8")
