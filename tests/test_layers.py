"""The laws of the layout in pyproject.toml hold, and each of them can be broken."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAWS = [
    contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
]

OFFENCES = {  # a file, and the line that breaks the law
    "layers": ("registry.py", "from . import cli"),
    "no cycles": ("ops/select.py", "from . import merge"),
    "methods never import each other": ("methods/grid.py", "from . import visionzip"),
    "benchmarks never import each other": ("measure/benchmarks/mme.py", "from . import pope"),
    "methods and ops know tensors": ("ops/score.py", "def lazily(): import transformers"),
    "what scores and reports runs without torch": ("measure/report/table.py", "import torch"),
    "ray stays in its runner": ("measure/runners/local.py", "import ray"),
}


def verdicts(folder: Path) -> dict[str, bool]:
    """For each law whether the package in `folder` keeps it."""
    script = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    done = subprocess.run(
        [sys.executable, "-c", script, "--no-cache", "--config", folder / "pyproject.toml"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder / "src")}, capture_output=True, text=True,
    )  # fmt: skip
    found = {law: f"{law} KEPT" in done.stdout for law in LAWS}
    assert all(f"{law} {'KEPT' if kept else 'BROKEN'}" in done.stdout for law, kept in found.items()), done
    return found


def test_every_law_is_kept():
    assert all(verdicts(ROOT).values())


def test_every_law_can_be_broken(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(
        ROOT / "src" / "sparsezip", tmp_path / "src" / "sparsezip", ignore=shutil.ignore_patterns("checkpoint")
    )
    for file, line in OFFENCES.values():
        with (tmp_path / "src" / "sparsezip" / file).open("a") as source:
            source.write(f"\n\n{line}\n")
    assert len(OFFENCES) == len(LAWS)
    assert not any(verdicts(tmp_path).values())


def test_a_new_top_level_file_has_to_be_given_a_layer(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(
        ROOT / "src" / "sparsezip", tmp_path / "src" / "sparsezip", ignore=shutil.ignore_patterns("checkpoint")
    )
    (tmp_path / "src" / "sparsezip" / "utils.py").write_text("")
    assert not verdicts(tmp_path)[LAWS[0]]
