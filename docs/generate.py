"""Write docs/methods.md from the headers of the method files: `python docs/generate.py`."""

from dataclasses import fields
from pathlib import Path

from sparsezip.methods import registry

PAGE = Path(__file__).parent / "methods.md"
INTRO = """\
# Methods

Written by `docs/generate.py` from the headers of the files in `src/sparsezip/methods`.
Every method also takes `budget` (tokens per image, all of them counted), `keep_ratio` (the same as a share of the
patches) and `paper` (the published formulas, defaults and quirks; what it changes stands under *Differs*).
"""


def page() -> str:
    """The whole page."""
    return INTRO + "".join(f"\n{_section(name)}" for name in registry.names())


def _section(name: str) -> str:
    sentence, *rest = registry.header(name).split("\n")
    lines = [f"## {name}", "", sentence.removeprefix(f"{name}: "), ""]
    for line in filter(None, rest):
        key, colon, text = line.partition(": ")
        lines.append(f"- **{key}**: {text}" if colon and key.istitle() and " " not in key else f"  {line.strip()}")
    kind = registry.get(name)
    settings = [field for field in fields(kind) if field.name not in ("budget", "keep_ratio", "paper")]
    if settings:
        lines.append(
            f"- **Settings**: {', '.join(f'`{field.name}={getattr(kind(), field.name)!r}`' for field in settings)}"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
