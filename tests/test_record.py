"""What a run is, as its record says, and that a folder never mixes two."""

import json
import os
import shutil
from pathlib import Path

import pytest
from fake_model import FakeModel, run, untimed, write_data

from sparsezip.errors import DataError, RunMismatchError
from sparsezip.measure.evaluate import evaluate
from sparsezip.measure.session import data_of

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


def test_the_record_says_what_was_run(data, tmp_path):
    run(tmp_path / "out", data, limit=4)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["config"]["limit"] == 4
    assert record["config"]["methods"]["random"]["seed"] == 0
    assert record["model"]["name"] == "fake"
    assert record["data"]["scenes"]["questions"] == 4
    session = record["sessions"][0]
    assert session["torch"].startswith("2.")
    assert {"python", "transformers", "sparsezip", "commit", "machine", "started"} <= set(session)


def test_how_a_model_is_opened_is_part_of_the_run(data, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("sparsezip.vlm.load", lambda name, **loading: opened.append((name, loading)) or FakeModel())
    evaluate("some/model", ["scenes"], ["grid"], tmp_path / "out", data=data, dtype="float16")
    assert opened == [("some/model", {"dtype": "float16"})]
    with pytest.raises(RunMismatchError, match=r"config\.loading\.dtype"):
        evaluate("some/model", ["scenes"], ["grid"], tmp_path / "out", data=data, dtype="float32")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"limit": 3}, "config.limit: null there, 3 here"),
        ({"batch_size": 2}, "config.batch_size: 3 there, 2 here"),
        ({"prompt": "bare"}, "config.prompt"),
        ({"config": {"dtype": "half"}}, "config.dtype: absent there"),
    ],
)
def test_a_folder_with_a_different_run_is_refused(data, tmp_path, change, words):
    run(tmp_path / "out", data)
    before = (tmp_path / "out" / "answers.jsonl").read_bytes()
    with pytest.raises(RunMismatchError, match=words):
        run(tmp_path / "out", data, **change)
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == before


def test_what_differs_is_told_in_a_line_that_can_be_read(data, tmp_path):
    asked = {"benchmarks": ["scenes"], "out": tmp_path / "out", "data": data}
    evaluate(FakeModel(), methods=["grid", "random"], **asked)
    with pytest.raises(RunMismatchError) as caught:
        evaluate(FakeModel(), methods=["grid", "keep_all"], **asked)
    methods = "config.methods.keep_all: absent there, present here; config.methods.random: present there, absent here"
    assert f"({methods})." in str(caught.value)


def test_a_different_run_is_refused_before_a_model_is_opened(data, tmp_path, monkeypatch):
    run(tmp_path / "out", data)
    monkeypatch.setattr("sparsezip.vlm.load", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(RunMismatchError, match=r"config\.batch_size"):
        evaluate("other/model", ["scenes"], ["keep_all"], tmp_path / "out", data=data)


def test_other_data_and_another_model_are_a_different_run(data, tmp_path):
    run(tmp_path / "out", data)
    other = FakeModel()
    other.revision = "2"
    with pytest.raises(RunMismatchError, match=r'model\.revision: "1" there, "2" here'):
        evaluate(other, ["scenes", "mme"], ["keep_all", "random", "grid"], tmp_path / "out", data=data, batch_size=3)
    rows = data / "scenes" / "scenes.jsonl"
    rows.write_text(rows.read_text().replace("thing 3", "object 3"))
    with pytest.raises(RunMismatchError, match=r"data\.scenes\.fingerprint"):
        run(tmp_path / "out", data)


def test_the_same_data_in_another_place_are_the_same_run(data, tmp_path):
    first = run(tmp_path / "out", data)
    data.rename(tmp_path / "moved")
    assert untimed(run(tmp_path / "out", tmp_path / "moved")) == untimed(first)


def test_another_image_of_the_same_name_and_size_is_other_data(data, tmp_path):
    other = data / "scenes" / "images" / "5.png"
    other.write_bytes(other.read_bytes() + bytes(100_000))  # long enough to be looked at in part
    run(tmp_path / "out", data)
    size = other.stat().st_size
    held = other.read_bytes()
    other.write_bytes(held[:-20] + bytes([1] * 20))  # a download that broke off in a file made beforehand
    assert other.stat().st_size == size
    with pytest.raises(RunMismatchError, match=r"data\.scenes\.fingerprint"):
        run(tmp_path / "out", data)
    other.write_bytes(held)
    os.utime(other, (0, 0))
    run(tmp_path / "out", data)


def test_the_hubs_revision_is_part_of_the_run(data, tmp_path):
    from sparsezip.measure.benchmarks import benchmark

    samples = benchmark("scenes").samples(data)
    folders = (data, data / "scenes")
    assert "source" not in data_of(samples, folders)
    (data / "scenes" / "hub.jsonl").touch()
    source = {"id": "some/set", "config": None, "split": "test", "revision": "abc"}
    (data / "scenes" / "source.json").write_text(json.dumps(source))
    assert data_of(samples, folders) == {**data_of(samples, [data]), "source": source}
    (data / "scenes" / "source.json").write_text('{"id": ')
    with pytest.raises(DataError, match=r"source\.json is damaged"):
        data_of(samples, folders)


def test_a_users_own_benchmark_and_model_are_part_of_the_run_by_what_is_in_them(tmp_path):
    own = tmp_path / "my_bench.py"
    shutil.copy(EXAMPLES / "my_bench.py", own)
    (tmp_path / "images").mkdir()
    shutil.copy(EXAMPLES / "scene.png", tmp_path / "images")
    question = {"id": 1, "image": "scene.png", "question": "How many stars are there?", "answer": "2"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question))
    mine = tmp_path / "mine.py"
    mine.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from fake_model import FakeModel\ndef load():\n    return FakeModel()\n"
    )

    def again():
        return evaluate(str(mine), [str(own)], ["keep_all"], tmp_path / "out", data=tmp_path)

    record = again()["record"]
    assert again()["record"] == record
    assert len(record["data"][str(own)]["file"]) == len(record["config"]["model_file"]) == 64
    assert record["model"]["name"] == "fake"
    for path, said in ((own, r"data\..*my_bench\.py\.file"), (mine, r"config\.model_file")):
        text = path.read_text()
        path.write_text(text + "# changed\n")
        with pytest.raises(RunMismatchError, match=said):
            again()
        path.write_text(text)
