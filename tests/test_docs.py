"""What README, CONTRIBUTING and docs name exists: paths, links, headings, make targets, commands and their options."""

import ast
import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import typer

import sparsezip
from sparsezip import cli

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
ROOMS = tuple(
    f"{path.name}/" for path in ROOT.iterdir() if path.is_dir() and path.name not in ("runs", ".git", ".venv")
)

BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")


class Page:
    """One page, taken apart."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text
        self.blocks = [(kind, body) for kind, body in BLOCK.findall(text)]
        self.prose = BLOCK.sub("", text)

    @property
    def commands(self) -> list[list[str]]:
        """The commands of shell blocks and of code in the prose, as words."""
        lines = [
            line for kind, body in self.blocks if kind != "python" for line in body.replace("\\\n", " ").split("\n")
        ]
        lines = [line.strip().removeprefix("$ ") for line in [*lines, *CODE.findall(self.prose)]]
        commands = [shlex.split(line, comments=True) for line in lines if line.startswith(("sparsezip ", "make "))]
        return [["1" if re.fullmatch("[A-Z]", word) else word for word in words] for words in commands]  # N: a number

    @property
    def links(self) -> list[str]:
        return [link for link in LINK.findall(self.prose) if not link.startswith(("https://", "mailto:"))]

    @property
    def named_paths(self) -> list[str]:
        codes = [
            code for code in CODE.findall(self.prose) if code.startswith(ROOMS) and re.fullmatch(r"[\w./-]+", code)
        ]
        return [code for code in codes if "NAME" not in code]  # a file that is yet to be written

    @property
    def python(self) -> list[str]:
        return [body for kind, body in self.blocks if kind == "python"]


def headings(path: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def problems(page: Page) -> list[str]:
    """Everything the page names that is not there."""
    found = []
    for link in page.links:
        name, _, anchor = link.partition("#")
        target = (page.path.parent / name).resolve() if name else page.path
        if not target.exists():
            found.append(f"link to {link}")
        elif anchor and anchor not in headings(target):
            found.append(f"heading of {link}")
    found += [f"path {name}" for name in page.named_paths if not (ROOT / name).exists()]
    found += [f"command {shlex.join(words)}: {why}" for words in page.commands if (why := refusal(words))]
    found += [f"name {name}" for body in page.python for name in unknown_names(body)]
    return found


def refusal(words: list[str]) -> str:
    """Why a command would not even parse; empty if it does. Nothing is run."""
    program, *arguments = words
    if program == "make":
        targets = [word for word in arguments if "=" not in word]
        return ", ".join(f"no target {target}" for target in targets if target not in TARGETS)
    command = typer.main.get_command(cli.app)
    while arguments and arguments[0] in getattr(command, "commands", {}):
        command = command.commands[arguments.pop(0)]
    if hasattr(command, "commands") and not arguments[0].startswith("--"):
        return f"no command {arguments[0]}"
    try:
        context = command.make_context(program, arguments)
    except typer.Exit:  # --help, --version
        return ""
    except Exception as error:
        return error.format_message()
    files = [value for value in context.params.values() if isinstance(value, Path) and value.parts[0] == "configs"]
    return ", ".join(f"no file {file}" for file in files if not (ROOT / file).exists())


def unknown_names(body: str) -> list[str]:
    """The names `sparsezip.a.b` in Python code that the package does not have. Raises SyntaxError."""
    chains = {ast.unparse(node) for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Attribute)}
    return sorted(chain for chain in chains if re.fullmatch(r"sparsezip(\.\w+)+", chain) and not exists(chain))


def exists(chain: str) -> bool:
    value: object = sparsezip
    for i, name in enumerate(parts := chain.split(".")[1:]):
        if not hasattr(value, name):
            module = "sparsezip." + ".".join(parts[: i + 1])
            if not isinstance(value, ModuleType) or importlib.util.find_spec(module) is None:
                return False
            importlib.import_module(module)
        value = getattr(value, name)
    return True


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_everything_a_page_names_exists(path):
    assert problems(Page(path, path.read_text(encoding="utf-8"))) == []


WRONG = """\
# Title

[gone](nowhere.md), [no heading](#elsewhere), `src/sparsezip/nowhere.py`, `make nothing`

```bash
$ sparsezip lst methods
sparsezip eval --mdoel testbed \\
    --out runs/a
sparsezip eval --config configs/nowhere.yaml
sparsezip ask image.png  # no question
```

```python
sparsezip.compres(model, sparsezip.methods.SparseZap())
```
"""
RIGHT = """\
# A Title: with colon

[itself](#a-title-with-colon), `src/sparsezip/cli/__init__.py`, `make run`, `sparsezip --help`

```
$ sparsezip ask photo.png "What is this?" --set k_min=3   # a comment
a dog
```

```python
with sparsezip.compress(model, sparsezip.methods.KeepAll()): ...
```
"""


def test_the_check_finds_each_kind_of_mistake():
    found = problems(Page(ROOT / "CHANGELOG.md", WRONG))
    assert sorted(line.split(":")[0] for line in found) == [
        "command make nothing",
        "command sparsezip ask image.png",
        "command sparsezip eval --config configs/nowhere.yaml",
        "command sparsezip eval --mdoel testbed --out runs/a",
        "command sparsezip lst methods",
        "heading of #elsewhere",
        "link to nowhere.md",
        "name sparsezip.compres",
        "name sparsezip.methods.SparseZap",
        "path src/sparsezip/nowhere.py",
    ]


def test_the_check_accepts_what_is_there(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(RIGHT)
    assert problems(Page(page, RIGHT)) == []


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_methods_page_is_current(generate):
    assert generate.PAGE.read_text(encoding="utf-8") == generate.page(), "run `make fix`"
    if generate.picture() is not None:
        assert generate.PICTURE.read_text(encoding="utf-8") == generate.picture(), "run `make fix`"


def test_the_models_page_is_current(generate):
    assert generate.MODELS.read_text(encoding="utf-8") == generate.models(), "run `make fix`"


def test_what_transformers_changes_is_on_the_models_page(generate, tmp_path, monkeypatch):
    stored = json.loads(generate.FOUND.read_text(encoding="utf-8"))
    newest = max(stored)
    family = stored[newest]["families"]["llava"]
    monkeypatch.setattr(generate, "FOUND", tmp_path / "found.json")
    other = {"llava": family | {"methods": family["methods"] | {"fastv": "No reason."}}}
    generate.FOUND.write_text(json.dumps({"5.9.0": stored[newest] | {"families": other}, newest: stored[newest]}))
    assert f"The table is of {newest}; of 5.9.0 it would be another." in generate.models()
    generate.FOUND.write_text(json.dumps({"5.9.0": stored[newest] | {"families": other}}))
    assert "No fastv: No reason." in generate.models()


def test_the_page_about_speed_is_current(generate):
    assert generate.TIMED.read_text(encoding="utf-8") == generate.timed(), "run `make fix`"
    assert generate.BARS.read_text(encoding="utf-8") == generate.bars(), "run `make fix`"


def test_what_was_measured_is_on_the_methods_page(generate, tmp_path, monkeypatch):
    for name in ("RESULTS", "SURPRISES"):
        monkeypatch.setattr(generate, name, tmp_path / name)
    assert "How they compare" not in generate.page()
    assert generate.picture() is None
    points = [{"budget": 64, "sent": 64.0, "per_layer": 64.0, "value": 83.0, "low": 80.5, "high": 85.0}]
    benchmark = {"title": "POPE", "score": "acc %", "questions": 9, "images": 3, "groups": [], "methods": {"a": points}}
    measured = {"budgets": [64], "measured": "On a model.", "missing": {}, "benchmarks": [benchmark]}
    generate.RESULTS.write_text(json.dumps(measured))
    assert generate.page().endswith("| a | - | 83.0 ± 2.5 |\n\nOn a model.\n")
    assert ">a 83.0 at 64<" in generate.picture()
    generate.SURPRISES.write_text("### It fell\n")
    assert generate.page().endswith("On a model.\n\n### It fell\n")
