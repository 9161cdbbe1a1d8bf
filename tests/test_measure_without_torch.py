"""Scoring and reporting work where torch and transformers cannot be imported."""

import subprocess
import sys
from pathlib import Path

import sparsezip

PROGRAM = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers"}:
            raise ImportError(name + " is not to be imported here")

sys.meta_path.insert(0, Absent())
import pkgutil, importlib, sparsezip.measure

for room in ("metrics", "benchmarks", "report"):
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


def test_scoring_and_reporting_need_no_torch():
    source = str(Path(sparsezip.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], env={"PYTHONPATH": source}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "| m |" in done.stdout
    assert "'pope'" in done.stdout
    assert done.stdout.rstrip().endswith("1.0")
