"""What `import sparsezip` offers, and that it imports nothing before it is used."""

import subprocess
import sys

import sparsezip


def test_every_name_resolves():
    for name in sparsezip.__all__:
        assert getattr(sparsezip, name) is not None, name
    assert set(sparsezip.__all__) <= set(dir(sparsezip))
    assert not hasattr(sparsezip, "nothing_of_the_kind")


DEEPER = ["ops.score.hybrid", "measure.metrics.yes_no.score", "methods.SparseZip", "errors.BudgetError"]


def test_what_lies_deeper_resolves_from_the_package_alone():
    code = f"import sparsezip; from operator import attrgetter; [attrgetter(path)(sparsezip) for path in {DEEPER}]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lists_are_lists_of_names():
    assert "sparsezip" in sparsezip.list_methods()
    assert "llava" in sparsezip.list_models()
    assert "pope" in sparsezip.list_benchmarks()


def test_importing_the_package_imports_neither_torch_nor_transformers():
    code = "import sys, sparsezip; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
