"""Write docs/methods.md and docs/performance.md, with their pictures: `python docs/generate.py`.

methods.md is made of the headers of the method files and of methods_results.json, which is what
`sparsezip report RUN --out docs/methods_results.json` picks from a run; performance.md of performance_results.json,
what `sparsezip time --json docs/performance_results.json` measured. surprises.md and limits.md are written by hand,
about these results.
"""

import json
from dataclasses import asdict
from pathlib import Path

import yaml

from sparsezip.measure.report import chart, table
from sparsezip.measure.speed import table as speed
from sparsezip.methods import registry

DOCS = Path(__file__).parent
PAGE, PICTURE, RESULTS, SURPRISES = (
    DOCS / name for name in ("methods.md", "methods.svg", "methods_results.json", "surprises.md")
)
TIMED, BARS, SPEED, LIMITS = (
    DOCS / name for name in ("performance.md", "performance.svg", "performance_results.json", "limits.md")
)
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

Written by `docs/generate.py` from what one command measured on a machine with two shared cores and no GPU, without a
download:

```bash
sparsezip time --arch llava-1.5-7b --share-layers --method sparsezip,visionzip,divprune,fastv,sparsevlm \
    --json docs/performance_results.json
```

![Where the time goes](performance.svg)"""
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
    TIMED.write_text(timed(), encoding="utf-8")
    BARS.write_text(bars(), encoding="utf-8")
    drawn = picture()
    if drawn is not None:
        PICTURE.write_text(drawn, encoding="utf-8")
