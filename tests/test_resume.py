"""What a run leaves on disk, and that one which was killed, added to or handed over goes on to the same end."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_model import FakeModel, kept, run, untimed, write_data, written
from rich.console import Console

from sparsezip.errors import FailureError, RunMismatchError, SettingError, UnknownNameError, UsageError
from sparsezip.measure.evaluate import evaluate
from sparsezip.measure.plan import Plan
from sparsezip.measure.report import summary
from sparsezip.measure.store import Store, read_rows


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


# -- killed ---------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_asked_again(data, tmp_path):
    first = run(tmp_path / "out", data)
    model = FakeModel()
    again = evaluate(
        model, ["scenes", "mme"], ["keep_all", "random", "grid"], tmp_path / "out", data=data, batch_size=3
    )
    assert not model.calls
    assert untimed(again) == untimed(first)
    assert again["record"] == first["record"] == json.loads((tmp_path / "out" / "run.json").read_text())
    assert not any("resumed" in note for note in again["notes"])


def test_answers_cut_at_any_byte_are_completed_to_the_same_run(data, tmp_path):
    whole = untimed(run(tmp_path / "whole", data))
    answers = (tmp_path / "whole" / "answers.jsonl").read_bytes()
    rng = random.Random(0)
    ends = [position for position in range(len(answers)) if answers[position : position + 1] == b"\n"]
    cuts = [0, 1, len(answers) - 1, ends[0], ends[0] + 1, ends[4] + 1, *rng.sample(range(len(answers)), 10)]
    for number, cut in enumerate(cuts):
        out = tmp_path / str(number)
        out.mkdir()
        for name in ("run.json", "plan.json"):
            (out / name).write_bytes((tmp_path / "whole" / name).read_bytes())
        (out / "answers.jsonl").write_bytes(answers[:cut])
        assert untimed(run(out, data)) == whole, cut
        assert kept(out) == kept(tmp_path / "whole"), cut


def test_what_a_kill_left_behind_the_last_whole_row_is_cut_off(data, tmp_path):
    run(tmp_path / "out", data)
    path = tmp_path / "out" / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-200] + b"x" * 9999)
    console = Console(file=io.StringIO(), width=80)
    run(tmp_path / "out", data, console=console)
    assert "96 of 96 answers" in console.file.getvalue()  # those that were there are counted
    assert b"x" * 9 not in path.read_bytes()
    assert len(read_rows(tmp_path / "out")) == 96


def test_a_run_killed_before_its_record_starts_anew(data, tmp_path):
    whole = run(tmp_path / "whole", data)
    out = tmp_path / "out"
    out.mkdir()
    (out / "sets-seed0-scenes200.seed0-scenes200.partial").mkdir()
    (out / "answers.jsonl").touch()
    (out / "config.yaml").write_text("mod")
    (out / "plan.json").write_text('[{"number": 0, "bench')
    (out / "run.partial").write_text("{")
    assert untimed(run(out, data, asked="model: {}")) == untimed(whole)
    assert (out / "config.yaml").read_text() == "model: {}"


def test_the_recorded_batches_are_used_again(data, tmp_path):
    run(tmp_path / "out", data)
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    batches = plan["batches"]
    batches[0]["ids"], batches[1]["ids"] = batches[1]["ids"], batches[0]["ids"]
    (tmp_path / "out" / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "out" / "answers.jsonl").write_bytes(b"")
    run(tmp_path / "out", data)
    assert [row["id"] for row in written(tmp_path / "out")[:2]] == batches[0]["ids"]


def test_damage_inside_the_answers_is_an_error_not_a_guess(data, tmp_path):
    run(tmp_path / "out", data)
    path = tmp_path / "out" / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], lines[5][:30] + b"\n", *lines[6:]]))
    with pytest.raises(FailureError, match=r"answers.jsonl, line 6 is damaged"):
        run(tmp_path / "out", data)


def test_a_run_killed_at_any_moment_ends_like_one_that_was_not(data, tmp_path):
    whole = untimed(run(tmp_path / "whole", data))
    out, rng = tmp_path / "killed", random.Random(1)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
    }
    script = Path(__file__).with_name("fake_model.py")
    killed = 0
    for share in (0.0, 0.3, 0.7):
        child = subprocess.Popen([sys.executable, script, out, data], env=environment, stderr=subprocess.PIPE)
        enough = share * (tmp_path / "whole" / "answers.jsonl").stat().st_size
        while child.poll() is None and not (
            (out / "run.json").exists() and (out / "answers.jsonl").stat().st_size >= enough
        ):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.01)
        child.send_signal(signal.SIGKILL)
        _, said = child.communicate()
        assert child.returncode == -signal.SIGKILL, said.decode()
        killed += 1
    assert 0 < len(read_rows(out)) < len(read_rows(tmp_path / "whole"))
    assert untimed(run(out, data)) == whole
    assert kept(out) == kept(tmp_path / "whole")
    assert len(summary.read(out)["record"]["sessions"]) == killed + 1


def test_a_run_in_progress_can_be_read(data, tmp_path):
    run(tmp_path / "out", data)
    path = tmp_path / "out" / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:30]) + lines[30][:20])
    assert summary.read(tmp_path / "out")["answers"] == 30
    with pytest.raises(FailureError, match=r"run\.json is missing"):
        summary.read(tmp_path)


# -- by sample ------------------------------------------------------------------------------------------------------


class Again(FakeModel):
    """Says how often it was asked, and never the same."""

    def _one(self, image, question, method):
        answer = super()._one(image, question, method)
        answer.text += f" at call {len(self.calls)}"
        return answer


def resume(out, data, model):
    return evaluate(model, ["scenes", "mme"], ["keep_all", "random", "grid"], out, data=data, batch_size=3)


def test_rows_of_several_workers_may_stand_in_any_order_and_only_what_is_missing_is_added(data, tmp_path):
    whole = untimed(run(tmp_path / "out", data))
    before = kept(tmp_path / "out")
    path = tmp_path / "out" / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    path.write_bytes(b"".join(lines))
    assert untimed(run(tmp_path / "out", data)) == whole
    assert kept(tmp_path / "out") == before

    gone = [json.loads(line) for line in (lines[20], lines[70])]
    left = b"".join(line for number, line in enumerate(lines) if number not in (20, 70))
    path.write_bytes(left)
    model = FakeModel()
    assert untimed(resume(tmp_path / "out", data, model)) == untimed(summary.read(tmp_path / "out"))
    assert path.read_bytes().startswith(left)
    added = path.read_bytes()[len(left) :].splitlines(keepends=True)
    assert sorted(added) == sorted([lines[20], lines[70]])
    counted = model.calls[6:]  # behind the warm-up of three methods on two benchmarks
    assert [method for method, _ in counted] == [row["method"] for row in map(json.loads, added)]
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())["batches"]
    sizes = {
        tuple(batch["ids"]): len(batch["ids"]) for batch in plan if batch["number"] in [row["batch"] for row in gone]
    }
    assert sum(len(questions) for _, questions in counted) == sum(sizes.values()) == 4  # whole batches, as they were
    assert kept(tmp_path / "out") == before


def test_one_sample_added_to_a_finished_run_changes_nothing_but_that_sample(data, tmp_path):
    whole = run(tmp_path / "out", data)
    folder, before = tmp_path / "out", kept(tmp_path / "out")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    rows = [row for row in written(folder) if row["benchmark"] == "scenes" and row["id"] == "4"]
    more = [{**row, "id": "added", "image": "added.png", "answer": "blue"} for row in rows]
    added = b"".join(json.dumps(row).encode() + b"\n" for row in more)
    with (folder / "answers.jsonl").open("ab") as file:
        file.write(added)
    model = FakeModel()
    results = resume(folder, data, model)
    assert not model.calls
    assert {path.name for path in folder.iterdir()} == set(files)
    assert (folder / "answers.jsonl").read_bytes() == files["answers.jsonl"] + added
    for name in ("plan.json", "run.json"):
        assert (folder / name).read_bytes() == files[name]
    assert [row for row in kept(folder) if row["id"] != "added"] == before
    assert results["benchmarks"]["mme"] == whole["benchmarks"]["mme"]
    mine, theirs = (each["benchmarks"]["scenes"]["groups"] for each in (results, whole))
    assert mine["shape"] == theirs["shape"]
    assert list(mine) == list(theirs)
    for label in whole["methods"]:
        changed, old = (each["color"]["methods"][label] for each in (mine, theirs))
        right, n = old["scores"]["exact_match"]["value"] * old["n"], old["n"] + 1
        assert (changed["n"], changed["scores"]["exact_match"]["value"]) == (n, pytest.approx(right / n))


def test_of_two_rows_of_one_sample_the_first_counts(data, tmp_path):
    whole = untimed(run(tmp_path / "out", data))
    rows = written(tmp_path / "out")
    with (tmp_path / "out" / "answers.jsonl").open("a") as file:
        file.writelines(json.dumps({**row, "answer": "other"}) + "\n" for row in rows[:9])
    assert untimed(run(tmp_path / "out", data)) == whole
    assert len(written(tmp_path / "out")) == len(rows) + 9


def test_a_failure_is_kept_and_a_line_taken_out_is_answered_again(data, tmp_path):
    broken = data / "scenes" / "images" / "3.png"
    sound = broken.read_bytes()
    broken.write_bytes(b"")
    assert run(tmp_path / "out", data)["failed"] == 6
    model = Again()
    assert resume(tmp_path / "out", data, model)["failed"] == 6
    assert not model.calls
    path = tmp_path / "out" / "answers.jsonl"
    path.write_bytes(b"".join(line for line in path.read_bytes().splitlines(True) if b'"error": null' in line))
    broken.write_bytes(sound)
    with pytest.raises(RunMismatchError, match=r"data\.scenes\.fingerprint"):  # these are other data
        run(tmp_path / "out", data)
    broken.write_bytes(b"")
    assert run(tmp_path / "out", data)["failed"] == 6


# -- what cannot be written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [3_000, 20_000])
def test_a_full_disk_is_one_clear_line_and_loses_nothing(data, tmp_path, room):
    import resource

    whole = untimed(run(tmp_path / "whole", data))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # stands for a disk that is full at this byte
    try:
        with pytest.raises(FailureError, match=r"\.json.? cannot be written \(File too large\)\. Once that is mended"):
            run(tmp_path / "out", data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    there = (tmp_path / "out" / "answers.jsonl").read_bytes() if (tmp_path / "out" / "answers.jsonl").exists() else b""
    assert untimed(run(tmp_path / "out", data)) == whole
    assert (tmp_path / "out" / "answers.jsonl").read_bytes().startswith(there[: there.rfind(b"\n") + 1])
    assert kept(tmp_path / "out") == kept(tmp_path / "whole")


def test_a_line_that_the_system_takes_in_parts_is_written_whole(data, tmp_path):
    run(tmp_path / "whole", data, limit=2)
    rows = read_rows(tmp_path / "whole")
    record = {"config": {"methods": {}}}
    with Store(tmp_path / "out", record, Plan({}, [])) as store:
        taken = store._answers
        store._answers = SimpleNamespace(
            write=lambda text: taken.write(text[:100]), fileno=taken.fileno, close=taken.close
        )
        assert store.append(rows) == len(rows)
    assert read_rows(tmp_path / "out") == rows


def test_a_folder_that_is_read_only_is_a_usage_error(data, tmp_path, monkeypatch):
    def refused(self, *_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(UsageError, match=r"cannot be written to .*out \(Read-only file system\)"):
        run(tmp_path / "out", data)


def test_every_answer_is_synced_before_the_next_is_asked(data, tmp_path, monkeypatch):
    synced, seen = [], []
    real = os.fsync

    def fsync(number):
        real(number)
        path = tmp_path / "out" / "answers.jsonl"
        if os.path.samestat(os.fstat(number), path.stat()):
            synced.append(path.stat().st_size)

    class Watching(FakeModel):
        def answer(self, *arguments, **options):
            seen.append(((tmp_path / "out" / "answers.jsonl").stat().st_size, (synced or [0])[-1]))
            return super().answer(*arguments, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    evaluate(Watching(), ["scenes"], ["grid"], tmp_path / "out", data=data, batch_size=2)
    assert [size for size, _ in seen] == [done for _, done in seen]
    assert len(set(seen)) == 8


# -- other runners --------------------------------------------------------------------------------------------------


class Scattered:
    """A runner whose workers finish in no order, and do one job twice."""

    made = ()

    def __init__(self, make, workers, address):
        type(self).made = (workers, address)
        self.worker = make()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def described(self):
        return self.worker.described()

    def warm_up(self, first, tokens):
        return self.worker.warm_up(first, tokens)

    def run(self, jobs):
        jobs = list(jobs)
        random.Random(0).shuffle(jobs)
        for job in [*jobs, *jobs[:1]]:
            yield self.worker.answer(job)


@pytest.fixture
def ray(monkeypatch):
    import sparsezip.measure.evaluate as module

    monkeypatch.setattr(module, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "sparsezip.measure.runners.ray", SimpleNamespace(Ray=Scattered))
    monkeypatch.setattr("sparsezip.vlm.load", lambda name, **_: FakeModel())


def scattered(out, data, **options):
    options = {"runner": "ray", "workers": 2, "address": "here", **options}
    return evaluate("fake", ["scenes", "mme"], ["keep_all", "random", "grid"], out, data=data, batch_size=3, **options)


def test_the_order_in_which_workers_answer_changes_no_result(data, tmp_path, ray):
    whole = untimed(run(tmp_path / "whole", data))
    assert untimed(scattered(tmp_path / "out", data)) == whole
    assert Scattered.made == (2, "here")
    assert kept(tmp_path / "out") == kept(tmp_path / "whole")
    assert [row["id"] for row in written(tmp_path / "out")] != [row["id"] for row in written(tmp_path / "whole")]
    assert len(written(tmp_path / "out")) == 96


def test_a_run_may_be_handed_from_one_runner_to_the_other(data, tmp_path, ray):
    whole = run(tmp_path / "out", data)
    path = tmp_path / "out" / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:40]))
    results = scattered(tmp_path / "out", data)
    assert untimed(results["benchmarks"]) == untimed(whole["benchmarks"])
    assert [(each["runner"], each["workers"]) for each in results["record"]["sessions"]] == [("local", 1), ("ray", 2)]
    assert any("resumed under other conditions" in note for note in results["notes"])


def test_a_runner_that_cannot_be_is_refused_before_anything_is_opened(data, tmp_path, monkeypatch):
    monkeypatch.setattr("sparsezip.vlm.load", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(UnknownNameError, match='Did you mean "ray"'):
        scattered(tmp_path / "out", data, runner="rayy")
    with pytest.raises(SettingError, match="this process alone"):
        scattered(tmp_path / "out", data, runner="local")
    with pytest.raises(SettingError, match="workers is 0"):
        scattered(tmp_path / "out", data, workers=0)
    with pytest.raises(SettingError, match="give its name"):
        evaluate(FakeModel(), ["scenes"], ["grid"], tmp_path / "out", data=data, runner="ray")
    monkeypatch.setattr("sparsezip.measure.evaluate.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "sparsezip\[ray\]"'):
        scattered(tmp_path / "out", data)
    assert not (tmp_path / "out").exists()
