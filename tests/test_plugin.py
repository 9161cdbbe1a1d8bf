"""A package of somebody else adds a method through an entry point; nothing in this library knows of it."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sparsezip

ROOT = Path(__file__).parent.parent
PLUGIN = Path(__file__).with_name("plugin")
PROGRAM = """
import importlib.util, json, torch, sparsezip
from made_captures import captures

spec = importlib.util.spec_from_file_location("generate", "docs/generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)
method, made = sparsezip.method("longest", budget=3), captures(images=2)
print(json.dumps({
    "listed": sparsezip.list_methods(),
    "file": type(method).__module__,
    "same": method == sparsezip.methods.Longest(budget=3),
    "pair": sparsezip.method("longest|fastv", budget=3).name,
    "kept": [kept.tolist() for kept in method.compress(made).kept],
    "longest": [row.norm(dim=-1).topk(3).indices.sort().values.tolist() for row in made.patch_features],
    "page": generate.page(),
}))
"""


@pytest.fixture
def installed(tmp_path):
    """An environment in which the plug-in is installed: its module can be imported, its metadata lie beside it."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    metadata = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = {
        group: "".join(f"{name} = {value}\n" for name, value in named.items())
        for group, named in project["entry-points"].items()
    }
    (metadata / "entry_points.txt").write_text("".join(f"[{group}]\n{named}" for group, named in points.items()))
    path = [Path(sparsezip.__file__).parents[1], PLUGIN, tmp_path, ROOT / "tests"]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}


def said(environment, *arguments):
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_a_method_like_any_other(installed):
    found = json.loads(said(installed, "-c", PROGRAM))
    assert "longest" in found["listed"]
    assert found["file"] == "sparsezip_longest"
    assert found["same"]
    assert found["pair"] == "longest|fastv"
    assert found["kept"] == found["longest"]
    assert (
        "\n## longest\n\nThe patches with the longest feature vectors, in somebody else's package.\n" in found["page"]
    )
    listed = said(installed, "-m", "sparsezip", "list", "methods")
    assert re.search(r"^longest +the patches with the longest feature vectors", listed, re.MULTILINE)
    assert "longest" not in sparsezip.list_methods()  # here it is not installed


def test_the_laws_are_tested_for_it_as_for_any_other(installed):
    told = said(installed, "-m", "pytest", "tests/test_method_laws.py", "-k", "longest", "-p", "no:cacheprovider")
    passed = int(re.search(r"(\d+) passed", told)[1])
    assert passed > 50
    assert "failed" not in told
