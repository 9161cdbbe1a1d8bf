"""Several runs in one report: what stands beside what, what is compared with what, and what is refused."""

import json

import pytest
from made_runs import at, rows, write

from sparsezip import cli
from sparsezip.errors import UsageError
from sparsezip.measure.report import runs, summary, table


def reported(*folders):
    """The numbers of a report of these runs."""
    return summary.summarise(*runs.joined(runs.read(folders)))


def difference(results, label, other="keep_all"):
    return results["benchmarks"]["scenes"]["methods"][label]["differences"][other]["exact_match"]["value"]


def ratio(results, label):
    return results["benchmarks"]["scenes"]["methods"][label]["latency_ratio"]


def test_one_run_stays_what_it_is(tmp_path):
    run = write(tmp_path / "a", ["keep_all", "grid"])
    assert reported(run) == summary.read(run)


def test_methods_that_come_twice_are_told_by_their_run_and_compared_in_it(tmp_path):
    a = write(tmp_path / "a", ["keep_all", "grid"])
    b = write(tmp_path / "b", ["keep_all", "pool"], [*rows("keep_all", right="11110000"), *rows("pool")])
    results = reported(a, b)
    assert results["methods"] == ["keep_all [a]", "grid", "keep_all [b]", "pool"]
    assert difference(results, "grid") == -3 / 8
    assert difference(results, "pool") == 0
    assert results["compared_with"]["pool"] == {"keep_all": "keep_all [b]"}
    assert ratio(results, "pool")["median"] == 1


def test_a_run_without_keep_all_is_compared_with_the_only_one_but_not_in_time(tmp_path):
    results = reported(write(tmp_path / "a", ["keep_all", "grid"]), write(tmp_path / "b", ["pool"]))
    assert results["methods"] == ["keep_all", "grid", "pool"]
    assert difference(results, "pool") == -3 / 8
    assert ratio(results, "pool") is None
    assert ratio(results, "grid")["median"] == 1
    assert any("Times of different runs" in note for note in results["notes"])


def test_other_machines_are_told(tmp_path):
    a, b = write(tmp_path / "a", ["keep_all"]), write(tmp_path / "b", ["grid"], session={"torch": "3"}, batch_size=8)
    assert "Times of different runs do not compare: the runs differ in batch_size, torch." in reported(a, b)["notes"]


def test_runs_of_different_benchmarks_are_columns_of_one_table(tmp_path):
    data = {"pope": {"questions": 8, "fingerprint": "p"}}
    pope = [
        type(row)(**{**row.to_json(), "references": ["yes"], "answer": "yes"})
        for label in ("keep_all", "grid")
        for row in rows(label, "pope")
    ]
    b = write(tmp_path / "b", ["keep_all", "grid"], pope, benchmarks=["pope"], max_new_tokens={"pope": 16}, data=data)
    results = reported(write(tmp_path / "a", ["keep_all", "grid"]), b)
    assert results["methods"] == ["keep_all", "grid"]
    assert list(results["benchmarks"]) == ["scenes", "pope"]
    assert "| grid | 64 | 64 | 9.5 | 50.0 | 9.5 | 100.0 |" in table.markdown(results)


def test_a_method_at_other_settings_is_told_by_them(tmp_path):
    """A sweep, run budget by budget: the labels of each run alone tell no budget."""
    given = {
        budget: [type(row)(**{**row.to_json(), "method": "grid"}) for row in at(budget, "grid")] for budget in (64, 32)
    }
    folders = []
    for budget, its in given.items():
        folders.append(write(tmp_path / str(budget), ["grid"], its))
        record = json.loads((folders[-1] / "run.json").read_text())
        record["config"]["methods"]["grid"]["budget"] = budget
        (folders[-1] / "run.json").write_text(json.dumps(record))
    results = reported(*folders)
    assert results["methods"] == ["grid(budget=64)", "grid(budget=32)"]
    assert results["unequal"] == []


def test_models_compare_method_by_method(tmp_path):
    small = write(tmp_path / "small", ["keep_all", "grid"])
    large = write(tmp_path / "large", ["keep_all", "grid"], model={"name": "other", "revision": "2"})
    results = reported(small, large)
    assert results["methods"] == ["keep_all [small]", "grid [small]", "keep_all [large]", "grid [large]"]
    assert results["compared_with"]["grid [large]"] == {"keep_all": "keep_all [large]"}
    assert any(
        note.startswith("The runs differ in the model (small: fake 1 float32, large: other 2")
        for note in results["notes"]
    )
    # A method whose own run has no keep_all is not measured against that of another model.
    alone = write(tmp_path / "alone", ["grid"], model={"revision": "3"})
    assert reported(small, alone)["compared_with"]["grid [alone]"] == {}


def test_prompts_compare_on_the_same_questions(tmp_path):
    data = {"scenes": {"questions": 8, "fingerprint": "other words"}}
    a, b = write(tmp_path / "a", ["keep_all"]), write(tmp_path / "b", ["keep_all"], prompt="bare", data=data)
    assert "The runs differ in the prompt (a: llava, b: bare)" in reported(a, b)["notes"][0]
    other = [type(row)(**{**row.to_json(), "references": ["blue"]}) for row in rows("keep_all")]
    with pytest.raises(UsageError, match="a and c do not compare: they asked different questions of scenes"):
        reported(a, write(tmp_path / "c", ["keep_all"], other, prompt="bare", data=data))


@pytest.mark.parametrize(
    ("labels", "changed", "message"),
    [
        (["keep_all"], {"data": {"scenes": {"questions": 8, "fingerprint": "g"}}}, "different questions of scenes"),
        (["keep_all"], {"data": {"scenes": {"questions": 9, "fingerprint": "f"}}}, "different questions of scenes"),
        (["keep_all"], {"model": {"revision": "2"}, "max_new_tokens": {"scenes": 3}}, "more than one thing (model"),
        (["pool"], {"model": {"revision": "2"}}, "and in all their methods"),
        (["pool"], {"loading": {"quantization": "int4"}}, "quantization=int4) and in all their methods"),
    ],
)
def test_what_does_not_compare_is_refused(tmp_path, labels, changed, message):
    a, b = write(tmp_path / "a", ["keep_all", "grid"]), write(tmp_path / "b", labels, **changed)
    with pytest.raises(UsageError) as refused:
        reported(a, b)
    assert message in str(refused.value)


def test_folders_of_one_name_are_told_by_their_paths(tmp_path):
    a, b = (write(tmp_path / name / "run", ["keep_all"]) for name in ("a", "b"))
    assert [run.name for run in runs.read([a, b])] == ["a/run", "b/run"]
    with pytest.raises(UsageError, match="given twice"):
        runs.read([a, a / ".." / "run"])


def test_a_scorer_that_has_changed_is_refused(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("# a benchmark")
    run = write(tmp_path / "a", ["keep_all"], data={str(own): {"file": "0" * 64}}, benchmarks=[str(own)])
    with pytest.raises(UsageError, match=r"own\.py has changed since a was scored with it"):
        runs.read([run])


def test_rows_of_earlier_versions_are_read(tmp_path):
    run = write(tmp_path / "a", ["keep_all", "grid"])
    old = [json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines()]
    for row in old:
        for key in ("map", "prefill_flops", "kv_bytes"):
            del row[key]
    (run / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    batch = {"number": 0, "benchmark": "scenes", "ids": [row["id"] for row in old[:8]]}
    (run / "plan.json").write_text(json.dumps([batch]))
    method = reported(run)["benchmarks"]["scenes"]["methods"]["grid"]
    assert (method["tokens"], method["prefill_flops"], method["kv_bytes"]) == (64, None, None)


# -- unequal budgets ------------------------------------------------------------------------------------------------


def of(**means):
    """The runs of methods with these tokens per layer, one run: "grid_64" is grid(budget=64), "grid" has its own."""
    labels = {name: name.replace("_", "(budget=") + ")" if "_" in name else name for name in means}
    return list(labels.values()), [row for name, mean in means.items() for row in at(mean, labels[name])]


EQUAL = {
    "one budget": of(grid_64=64, pool_64=64),
    "a token inside the LLM": of(grid_64=64, pool_64=63.2),
    "one per cent": of(grid_192=192, pool_192=190.5),
    "a sweep": of(grid_64=64, grid_32=32, pool_64=64, pool_32=32),
    "a sweep and one of its budgets": of(grid_64=64, grid_32=32, pool_32=32),
    "one method": of(grid_64=64, grid_32=32),
    "methods of their own": of(grid=64, pool=64),
    "of its own, and a budget": of(grid=64, pool_64=64),
}
UNEQUAL = {
    "one budget": of(grid_64=64, pool_64=82.2),
    "no budget in common": of(grid_64=64, pool_32=32),
    "methods of their own": of(grid=64, pool=83.5),
    "of its own, and a budget": of(grid=83.5, pool_64=64),
    "one of three": of(grid_64=64, grid_32=32, pool_64=64, random_16=16),
}


@pytest.mark.parametrize("case", EQUAL)
def test_natural_mixes_are_reported(tmp_path, case):
    labels, given = EQUAL[case]
    assert reported(write(tmp_path / "a", labels, given))["unequal"] == []
    whole = write(tmp_path / "b", ["keep_all"])
    assert reported(whole, tmp_path / "a")["unequal"] == []


@pytest.mark.parametrize("case", UNEQUAL)
def test_unequal_budgets_are_told_of_one_run(tmp_path, case):
    labels, given = UNEQUAL[case]
    (line,) = reported(write(tmp_path / "a", labels, given))["unequal"]
    assert line.startswith("scenes: the budgets differ, so scores do not compare at equal cost.")


def test_unequal_budgets_are_told_between_runs(tmp_path):
    a, b = write(tmp_path / "a", *of(grid=64)), write(tmp_path / "b", *of(pool=192))
    (line,) = reported(a, b)["unequal"]
    assert line.endswith("Mean visual tokens per LLM layer: grid 64.0, pool 192.0.")


def test_a_budget_that_was_not_met_does_not_make_a_sweep_unequal(tmp_path):
    labels, given = of(grid_64=64, grid_32=32, pool_64=64)
    left_out = {"pool(budget=32)": "Too few."}
    assert reported(write(tmp_path / "a", [*labels, *left_out], given, left_out=left_out))["unequal"] == []


def test_budgets_nobody_measured_are_told_of_nobody(tmp_path):
    given = [row for label in ("grid", "pool") for row in rows(label, tokens_per_layer=None, tokens=None)]
    assert reported(write(tmp_path / "a", ["grid", "pool"], given))["unequal"] == []


# -- the command ----------------------------------------------------------------------------------------------------


def run(capsys, *arguments):
    code = cli.main(["report", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


def test_unequal_budgets_are_refused_unless_allowed_and_then_stand_on_every_table(tmp_path, capsys):
    a, b = write(tmp_path / "a", ["keep_all", "grid"]), write(tmp_path / "b", *of(pool=192))
    code, out, err = run(capsys, a, b)
    assert (code, out, len(err)) == (2, "", 1)
    assert "the budgets differ" in err[0]
    assert err[0].endswith("add --allow-unequal-budgets to this report.")
    assert run(capsys, a, b, "--out", tmp_path / "out")[0] == 2
    assert not (tmp_path / "out").exists()
    code, out, err = run(capsys, a, b, "--allow-unequal-budgets", "--out", tmp_path / "out")
    assert (code, out, err) == (0, f"The report is in {tmp_path / 'out'}.\n", [])
    text = (tmp_path / "out" / "report.md").read_text()
    titles = [line for line in text.splitlines() if line.startswith("**")]
    assert len(titles) == 5
    assert all(title.startswith("**UNEQUAL BUDGETS: ") for title in titles)
    for name in ("accuracy_by_tokens", "accuracy_by_time", "stages", "differences"):
        assert "UNEQUAL BUDGETS: " in (tmp_path / "out" / f"{name}.svg").read_text()
    assert "UNEQUAL BUDGETS" in (tmp_path / "out" / "report.html").read_text()
    for suffix in (".md", ".svg"):
        run(capsys, a, b, "--allow-unequal-budgets", "--out", tmp_path / f"a{suffix}")
        assert "UNEQUAL BUDGETS: " in (tmp_path / f"a{suffix}").read_text()
    assert ",True," in (tmp_path / "out" / "report.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "holds no run"),
        (["a", "--out", "report.png"], "name a .md, .svg or .json file"),
        (["a", "--out", "nowhere/report.html"], "in a folder that exists"),
        (["a", "--out", "nowhere/folder"], "in a folder that exists"),
        (["a", "--out", "a/run.json/folder"], "in a folder that exists"),
        (["a", "--out", "a/file"], "or a folder for everything"),
        (["a", "--data", "nowhere"], "--data nowhere is no folder"),
        (["a", "a"], "given twice"),
        ([], "Missing argument"),
    ],
)
def test_what_cannot_be_reported_is_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a", ["keep_all"])
    (tmp_path / "a" / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(capsys, *arguments)
    assert (code, out, len(err)) == (2, "", 1)
    assert message in err[0]
    assert sorted(tmp_path.rglob("*")) == before
