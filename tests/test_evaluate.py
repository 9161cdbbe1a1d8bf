"""Runs: what is asked in which order, what is kept, and that neither a kill nor a broken image spoils a run."""

import io
import json
from pathlib import Path

import pytest
from fake_model import FakeModel, kept, run, untimed, write_data, written
from rich.console import Console

from sparsezip import methods
from sparsezip.errors import (
    BudgetError,
    DataError,
    FailureError,
    RunMismatchError,
    SettingError,
    UnknownNameError,
    UsageError,
)
from sparsezip.images import open_image
from sparsezip.measure.evaluate import evaluate
from sparsezip.measure.plan import Plan
from sparsezip.measure.report import table
from sparsezip.measure.store import Store, read_rows


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


# -- what is asked -------------------------------------------------------------------------------------------------


def test_every_method_answers_every_question_once(data, tmp_path):
    results = run(tmp_path / "out", data)
    rows = read_rows(tmp_path / "out")
    assert len({(row.benchmark, row.method, row.id) for row in rows}) == len(rows) == 3 * 32
    assert results["failed"] == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(results))
    assert "| keep_all |" in (tmp_path / "out" / "table.md").read_text()


def test_methods_take_turns_on_each_batch_and_questions_on_one_image_stand_together(data, tmp_path):
    run(tmp_path / "out", data, batch_size=2)
    cells = list(dict.fromkeys((row["batch"], row["method"]) for row in written(tmp_path / "out")))
    assert cells[:9] == [
        *((0, method) for method in ("keep_all", "random", "grid")),
        *((1, method) for method in ("random", "grid", "keep_all")),
        *((2, method) for method in ("grid", "keep_all", "random")),
    ]
    rows = [row for row in written(tmp_path / "out") if row["method"] == "grid" and row["benchmark"] == "scenes"]
    assert [row["image"] for row in rows] == [f"{number}.png" for number in range(8) for _ in range(2)]


def test_the_warm_up_is_not_counted(data, tmp_path):
    model = FakeModel()
    evaluate(model, ["scenes"], ["keep_all", "grid"], tmp_path / "out", data=data, batch_size=4)
    assert len(model.calls) == 2 + 2 * 4  # both methods once, then four batches by both
    assert [len(questions) for _, questions in model.calls] == [4] * 10
    assert len(read_rows(tmp_path / "out")) == 2 * 16


@pytest.mark.parametrize(("warmup", "sizes"), [(None, [4]), (0, []), (1, [1]), (6, [4, 2]), (99, [4, 4, 4, 4])])
def test_the_warm_up_is_as_long_as_is_asked(data, tmp_path, warmup, sizes):
    model = FakeModel()
    results = evaluate(
        model, ["scenes"], ["keep_all", "grid"], tmp_path / "out", data=data, batch_size=4, warmup=warmup
    )
    counted = [len(questions) for _, questions in model.calls]
    assert counted == [size for size in sizes for _ in range(2)] + [4] * 8
    assert results["record"]["config"]["warmup"] == warmup
    assert len(read_rows(tmp_path / "out")) == 2 * 16


class Choking(FakeModel):
    """Fails on one question of sixteen, or on all."""

    choked = "color is thing 0?"

    def answer(self, images, questions, method, max_new_tokens):
        if any(self.choked in question for question in questions):
            raise RuntimeError("cannot swallow that")
        return super().answer(images, questions, method, max_new_tokens)


def test_a_first_question_that_fails_does_not_end_the_run_in_its_warm_up(data, tmp_path):
    results = evaluate(Choking(), ["scenes"], ["grid"], tmp_path / "out", data=data)
    assert [failure["id"] for failure in results["failures"]] == ["0"]
    model = Choking()
    model.choked = "?"
    with pytest.raises(FailureError, match="grid answers no question of scenes"):
        evaluate(model, ["scenes"], ["grid"], tmp_path / "other", data=data)
    assert not list((tmp_path / "other").iterdir())


def test_a_limit_counts_per_benchmark_and_questions_keep_their_batch(data, tmp_path):
    run(tmp_path / "out", data, limit=5)
    rows = [row for row in read_rows(tmp_path / "out") if row.method == "keep_all"]
    assert [row.group for row in rows if row.benchmark == "scenes"].count("color") == 3
    assert [row.benchmark for row in rows].count("scenes") == 5
    assert [row.benchmark for row in rows].count("mme") == 4  # two whole pairs


def test_groups_and_prompt_can_be_chosen(data, tmp_path):
    run(tmp_path / "out", data, only={"scenes": ["shape"]}, prompt="bare")
    rows = read_rows(tmp_path / "out")
    assert {row.group for row in rows if row.benchmark == "scenes"} == {"shape"}
    assert not any("single word" in row.question for row in rows)


def test_the_small_model_is_asked_bare_questions(data, tmp_path):
    model = FakeModel()
    model.name = "testbed"
    evaluate(model, ["scenes"], ["keep_all"], tmp_path / "out", data=data)
    assert read_rows(tmp_path / "out")[0].question == "what color is thing 0?"


def test_a_folder_of_the_small_model_is_asked_bare_questions_too_and_the_choice_is_told(data, tmp_path, monkeypatch):
    monkeypatch.setattr("sparsezip.models.load.TESTBED", tmp_path / "shipped")
    for folder, template in (("shipped", "ours"), ("trained", "ours"), ("other", "theirs")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "chat_template.jinja").write_text(template)
    for folder, prompt in (("trained", "bare"), ("other", "llava"), ("nowhere", "llava")):
        model, console = FakeModel(), Console(file=io.StringIO())
        model.name = str(tmp_path / folder)
        results = evaluate(
            model, ["scenes"], ["keep_all"], tmp_path / "out" / folder, data=data, limit=2, console=console
        )
        assert results["record"]["config"]["prompt"] == prompt
        assert f'Note: questions are worded by the prompt "{prompt}"' in console.file.getvalue()
    console = Console(file=io.StringIO())
    evaluate(model, ["scenes"], ["keep_all"], tmp_path / "named", data=data, limit=2, console=console, prompt="bare")
    assert "Note" not in console.file.getvalue()


def test_a_method_that_comes_twice_is_labelled_by_its_settings(data, tmp_path):
    twice = [methods.method("random", budget=64), methods.method("random", budget=32), "keep_all"]
    results = evaluate(FakeModel(), ["scenes"], twice, tmp_path / "out", data=data)
    assert results["methods"] == ["random(budget=64)", "random(budget=32)", "keep_all"]
    with pytest.raises(SettingError, match="twice"):
        evaluate(FakeModel(), ["scenes"], ["grid", "grid"], tmp_path / "other", data=data)


def test_the_table_names_the_commit_where_there_is_one(data, tmp_path):
    results = run(tmp_path / "out", data, limit=4)
    session = results["record"]["sessions"][0]
    for commit, said in (
        ("0123456789", ", commit 0123456"),
        ("0123456789-dirty", ", commit 0123456-dirty"),
        (None, ""),
    ):
        session["commit"] = commit
        assert f"{session['started']}{said}. " in table.markdown(results)


def test_the_record_is_on_disk_before_the_first_answer(data, tmp_path, monkeypatch):
    def first(self, rows):
        assert (self.folder / "run.json").exists()
        assert (self.folder / "plan.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "append", first)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", data)


def test_progress_is_told_in_plain_lines_without_a_terminal(data, tmp_path):
    console = Console(file=io.StringIO(), width=80)
    run(tmp_path / "out", data, console=console)
    told = console.file.getvalue().splitlines()
    assert 5 <= len(told) <= 11
    assert told[-1].startswith("MME: 96 of 96 answers")


def test_progress_is_a_bar_with_the_time_left_on_a_terminal(data, tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    run(tmp_path / "out", data, console=console)
    assert "96/96" in console.file.getvalue()


# -- what is refused before anything runs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"limit": 0}, SettingError, "limit is 0"),
        ({"batch_size": -1}, SettingError, "batch_size is -1"),
        ({"warmup": -1}, SettingError, "warmup is -1"),
        ({"only": {"scenes": ["shap"]}}, UnknownNameError, 'Did you mean "shape"'),
        ({"images": Path("nowhere")}, DataError, "images are missing"),
        ({"prompt": "lava"}, UnknownNameError, 'Did you mean "llava"'),
    ],
)
def test_a_wrong_request_leaves_nothing_behind(data, tmp_path, change, error, words):
    with pytest.raises(error, match=words):
        run(tmp_path / "out", data, **change)
    assert not (tmp_path / "out").exists()


def test_unknown_names_are_refused_with_the_nearest(data, tmp_path):
    with pytest.raises(UnknownNameError, match='Did you mean "pope"'):
        evaluate(FakeModel(), ["poppe"], ["keep_all"], tmp_path / "out", data=data)
    with pytest.raises(UnknownNameError, match='Did you mean "visionzip"'):
        evaluate(FakeModel(), ["scenes"], ["visonzip"], tmp_path / "out", data=data)


def test_a_run_without_a_method_or_a_benchmark_is_refused(data, tmp_path):
    for names, asked in (([], ["keep_all"]), (["scenes"], [])):
        with pytest.raises(SettingError, match="needs a benchmark and a method"):
            evaluate(FakeModel(), names, asked, tmp_path / "out", data=data)


def test_a_benchmark_that_cannot_be_scored_here_is_refused_before_a_model_is_opened(data, tmp_path, monkeypatch):
    def refused(self):
        raise UsageError("Java is missing.")

    monkeypatch.setattr("sparsezip.measure.benchmarks.scenes.Scenes.ready", refused)
    monkeypatch.setattr("sparsezip.vlm.load", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(UsageError, match="Java is missing"):
        evaluate("some/model", ["scenes"], ["keep_all"], tmp_path / "out", data=data)
    assert not (tmp_path / "out").exists()


def test_data_are_found_at_fault_before_a_model_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("sparsezip.vlm.load", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(DataError):
        evaluate("some/model", ["scenes"], ["keep_all"], tmp_path / "out", data=tmp_path)


def test_a_setting_that_fails_in_the_warm_up_leaves_the_folder_free(data, tmp_path):
    class Refusing(FakeModel):
        def answer(self, images, questions, method, max_new_tokens):
            raise SettingError("dominant + contextual is too much")

    with pytest.raises(SettingError):
        evaluate(Refusing(), ["scenes"], ["keep_all"], tmp_path / "out", data=data)
    assert not list((tmp_path / "out").iterdir())
    assert run(tmp_path / "out", data)["failed"] == 0


class Deep(FakeModel):
    """Answers at no budget below 50 through `random`, as a method inside an LLM that sees all tokens first."""

    def answer(self, images, questions, method, max_new_tokens):
        if method.name == "random" and method.budget < 50:
            raise BudgetError(f"Random cannot reach {method.budget}.")
        return super().answer(images, questions, method, max_new_tokens)


def test_a_budget_that_one_method_cannot_meet_does_not_stop_the_others(data, tmp_path):
    sweep = ["keep_all", *(methods.method(name, budget=budget) for name in ("random", "grid") for budget in (64, 32))]
    console = Console(file=io.StringIO(), width=200)
    results = evaluate(Deep(), ["scenes"], sweep, tmp_path / "out", data=data, limit=6, console=console)
    assert results["methods"] == ["keep_all", "random(budget=64)", "grid(budget=64)", "grid(budget=32)"]
    assert results["left_out"] == {"random(budget=32)": "Random cannot reach 32."}
    assert "random is left out at 32. Random cannot reach 32." in results["notes"]
    assert "Left out: random(budget=32)" in console.file.getvalue()
    assert "24 of 24 answers" in console.file.getvalue()
    assert list(results["record"]["config"]["methods"])[2] == "random(budget=32)"
    # resumed in the middle, it knows what was decided
    path = tmp_path / "out" / "answers.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    model = Deep()
    again = evaluate(model, ["scenes"], sweep, tmp_path / "out", data=data, limit=6)
    assert untimed(again) == untimed(results)
    assert len(path.read_bytes().splitlines()) == 24
    assert model.calls


def test_without_a_warm_up_the_first_batch_shows_that_a_budget_cannot_be_met(data, tmp_path):
    methods_ = [methods.method("random", budget=budget) for budget in (32, 64)]
    console = Console(file=io.StringIO(), width=200)
    results = evaluate(Deep(), ["scenes"], methods_, tmp_path / "out", data=data, warmup=0, console=console)
    assert results["methods"] == ["random(budget=64)"]
    assert results["left_out"] == {"random(budget=32)": "Random cannot reach 32."}
    assert (results["answers"], results["failed"]) == (16, 0)
    assert "Left out: random(budget=32). Random cannot reach 32." in console.file.getvalue()
    assert "16 of 16 answers" in console.file.getvalue()
    for _ in range(2):  # nothing is left, neither now nor when it is resumed
        with pytest.raises(BudgetError, match="cannot reach 32"):
            evaluate(Deep(), ["scenes"], methods_[:1], tmp_path / "alone", data=data, warmup=0)
    assert (tmp_path / "alone" / "answers.jsonl").read_bytes() == b""


def test_a_method_that_has_answered_stays_whatever_it_cannot_do_later(data, tmp_path):
    """Its answers are there: what it fails on is counted, and a resumed run does not leave it out in silence."""

    class Picky(FakeModel):
        def __init__(self, small):
            super().__init__()
            self.small = small

        def answer(self, images, questions, method, max_new_tokens):
            if method.name == "grid" and any(image.getpixel((0, 0))[0] == 20 * self.small for image in images):
                raise BudgetError("Grid wants more than there is.")
            return super().answer(images, questions, method, max_new_tokens)

    asked = (["scenes"], ["keep_all", "grid"], tmp_path / "out")
    results = evaluate(Picky(small=5), *asked, data=data, batch_size=2)
    assert (results["left_out"], results["failed"]) == ({}, 2)  # both questions on that image, a batch of their own
    path = tmp_path / "out" / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BudgetError, match="more than there is"):
        evaluate(Picky(small=0), *asked, data=data, batch_size=2)
    assert evaluate(Picky(small=5), *asked, data=data, batch_size=2)["failed"] == 2


def test_a_budget_that_nobody_can_meet_is_refused(data, tmp_path):
    alone = [methods.method("random", budget=32)]
    with pytest.raises(BudgetError, match="cannot reach 32"):
        evaluate(Deep(), ["scenes"], alone, tmp_path / "out", data=data)
    assert not list((tmp_path / "out").iterdir())


def test_in_a_sweep_each_method_is_compared_with_the_floor_at_its_own_budget(data, tmp_path):
    sweep = [methods.method(name, budget=budget) for name in ("random", "grid") for budget in (64, 32)]
    results = evaluate(FakeModel(), ["scenes"], ["keep_all", *sweep], tmp_path / "out", data=data)
    scores = results["benchmarks"]["scenes"]["methods"]
    for budget in (64, 32):
        mine, floor = scores[f"grid(budget={budget})"], scores[f"random(budget={budget})"]
        assert set(mine["differences"]) == {"keep_all", "random"}
        assert set(floor["differences"]) == {"keep_all"}
        gain = mine["differences"]["random"]["exact_match"]["value"]
        assert gain == pytest.approx(mine["scores"]["exact_match"]["value"] - floor["scores"]["exact_match"]["value"])
    assert set(scores["keep_all"]["differences"]) == set()
    assert results["notes"] == []


def test_a_folder_that_another_process_writes_to_is_refused(data, tmp_path):
    run(tmp_path / "out", data)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    with Store(tmp_path / "out", record, Plan({}, [])), pytest.raises(RunMismatchError, match="Another process"):
        run(tmp_path / "out", data)


def test_a_folder_that_cannot_be_written_is_a_usage_error(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        run(tmp_path / "file" / "out", data)


# -- what fails on the way ------------------------------------------------------------------------------------------


def test_a_broken_image_costs_its_own_questions_and_is_shown(data, tmp_path):
    sound = run(tmp_path / "sound", data)
    broken = data / "scenes" / "images" / "3.png"
    broken.write_bytes(broken.read_bytes()[:40])
    results = run(tmp_path / "out", data)
    failed = [row for row in read_rows(tmp_path / "out") if row.error]
    assert {row.image for row in failed} == {"3.png"}
    assert results["failed"] == len(failed) == 3 * 2
    assert all(row.answer is None and row.tokens is None and not row.timing_ms for row in failed)
    assert "3.png is not a readable image" in results["failures"][0]["error"]
    assert any("6 of 96 answers failed" in note for note in results["notes"])
    shown = (tmp_path / "out" / "table.md").read_text()
    assert shown.count("3.png is not a readable image") == shown.count("Failed: ") == len(results["failures"])
    assert sum(failure["answers"] for failure in results["failures"]) == 6
    assert "Failed: scenes" in shown
    assert " more: " in shown
    scenes = results["benchmarks"]["scenes"]["methods"]["grid"]
    assert (scenes["n"], scenes["failed"]) == (14, 2)
    others = [row for row in kept(tmp_path / "sound") if row["image"] != "3.png" or row["benchmark"] == "mme"]
    assert [row for row in kept(tmp_path / "out") if row["error"] is None] == others
    assert untimed(results["benchmarks"]["mme"]) == untimed(sound["benchmarks"]["mme"])


def test_an_image_that_breaks_during_the_run_is_a_failure_too(data, tmp_path):
    class Breaking(FakeModel):
        def answer(self, *arguments, **options):
            if len(self.calls) == 8:
                (data / "scenes" / "images" / "7.png").unlink()
            return super().answer(*arguments, **options)

    results = evaluate(Breaking(), ["scenes"], ["keep_all", "grid"], tmp_path / "out", data=data)
    assert results["failed"] == 4
    assert "There is no image file" in results["failures"][0]["error"]


def test_a_question_that_fails_does_not_take_its_batch_with_it(data, tmp_path):
    model = Choking()
    model.choked = "shape is thing 4"
    results = evaluate(model, ["scenes"], ["keep_all", "grid"], tmp_path / "out", data=data, batch_size=4)
    assert [(failure["id"], failure["answers"]) for failure in results["failures"]] == [("9", 2)]
    assert results["failures"][0]["error"] == "RuntimeError: cannot swallow that"
    assert results["benchmarks"]["scenes"]["methods"]["grid"]["n"] == 15


def test_images_of_a_batch_are_decoded_once(data, tmp_path, monkeypatch):
    opened = []

    def counting(path):
        opened.append(path)
        return open_image(path)

    monkeypatch.setattr("sparsezip.measure.worker.open_image", counting)
    evaluate(FakeModel(), ["scenes"], ["keep_all", "random", "grid"], tmp_path / "out", data=data, batch_size=2)
    assert len(opened) == len(set(opened)) == 8  # the warm-up's is the first batch's
