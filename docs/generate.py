"""Write docs/methods.md from the headers of the method files: `python docs/generate.py`."""

from dataclasses import asdict
from pathlib import Path

import yaml

from sparsezip.methods import registry

PAGE = Path(__file__).parent / "methods.md"
COMMON = ("budget", "keep_ratio", "match", "paper")
FIELDS = ("Paper", "Code", "Parity", "Differs")
INTRO = """\
# Methods

Written by `docs/generate.py` from the headers of the files in `src/sparsezip/methods`.
Every method also takes `budget` (tokens per image, all of them counted), `keep_ratio` (the same as a share of the
patches) and `paper` (the published formulas, defaults and quirks; what it changes stands under *Differs*).
The block below a method holds its own settings with their defaults.
"""


def page() -> str:
    """The whole page."""
    return INTRO + "".join(f"\n{_section(name)}" for name in registry.names())


def _section(name: str) -> str:
    sentence, *rest = registry.header(name).removeprefix(f"{name}: ").split("\n")
    lines = [f"## {name}", "", sentence[0].upper() + sentence[1:], ""]
    for line in filter(None, rest):
        key, colon, text = line.partition(": ")
        lines.append(f"- **{key}**: {text}" if colon and key in FIELDS else f"  {line.strip()}")
    settings = {key: value for key, value in asdict(registry.get(name)()).items() if key not in COMMON}
    if settings:
        lines += ["", "```yaml", *(f"{key}: {_flow(value)}" for key, value in settings.items()), "```"]
    return "\n".join(lines) + "\n"


def _flow(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=200).removesuffix("...\n").strip()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
