"""Scoring and reporting work where torch and transformers cannot be imported."""

import subprocess
import sys
from pathlib import Path

import pytest
from made_runs import write

import sparsezip

ABSENT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers"}:
            raise ImportError(name + " is not to be imported here")

sys.meta_path.insert(0, Absent())
"""
PROGRAM = """
import pkgutil, importlib, sparsezip.measure

for room in ("metrics", "benchmarks", "data", "report"):
    package = importlib.import_module("sparsezip.measure." + room)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(package.__name__ + "." + module.name)
for name in ("records", "maps", "store", "clock"):
    importlib.import_module("sparsezip.measure." + name)

from sparsezip.measure.records import Row
from sparsezip.measure.report import summary, table

row = Row(
    benchmark="pope", method="m", batch=0, id="1", image="i", group="g", question="q", references=["yes"], answer="yes"
)
record = {
    "config": {"benchmarks": ["pope"], "methods": {"m": {}}},
    "model": {"name": "n", "revision": "r", "device": "d"},
    "sessions": [{"torch": "2", "transformers": "5", "started": "now"}],
}
print(table.markdown(summary.summarise(record, [row])))
print(sparsezip.list_benchmarks(), sparsezip.measure.metrics.yes_no.score([{"answer": "yes", "label": "yes"}])["acc"])
"""


def without_torch(program, *arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", ABSENT + program, *map(str, arguments)],
        env={"PYTHONPATH": str(Path(sparsezip.__file__).parents[1])}, capture_output=True, text=True,
    )  # fmt: skip


def test_scoring_and_reporting_need_no_torch():
    done = without_torch(PROGRAM)
    assert done.returncode == 0, done.stderr
    assert "| m |" in done.stdout
    assert "'pope'" in done.stdout
    assert done.stdout.rstrip().endswith("1.0")


def test_the_program_above_is_really_without_torch():
    done = without_torch("import torch")
    assert "torch is not to be imported here" in done.stderr


@pytest.mark.parametrize("out", [None, "everything"])
def test_the_whole_command_needs_no_torch(tmp_path, out):
    folders = [write(tmp_path / "a", ["keep_all", "grid"]), write(tmp_path / "b", ["pool"])]
    told = ["--out", tmp_path / out] if out else []
    done = without_torch("from sparsezip import cli\nsys.exit(cli.main(sys.argv[1:]))", "report", *folders, *told)
    assert (done.returncode, done.stderr) == (0, "")
    if out:
        assert len(list((tmp_path / out).iterdir())) == 8
    else:
        assert "keep_all" in done.stdout
