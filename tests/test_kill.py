"""A killed run of the command line ends as if nothing had happened; `make kill-test` does this at random moments."""

from dataclasses import replace

from kill_test import Run, killed, left_behind

from sparsezip.testbed import sets


def test_a_run_that_is_killed_under_either_runner_ends_as_if_nothing_had_happened(tmp_path):
    sets.write(tmp_path / "data", seed=0, scenes=4)
    whole = Run(tmp_path / "data", tmp_path / "whole", batch=4, limit=6)
    whole.finish()
    answers = whole.answered
    run = replace(whole, out=tmp_path / "killed")
    for runner in ("local", "ray"):
        before = run.answered
        started = killed(replace(run, runner=runner), "answering", 0, answers, workers=False)
        assert started is not None
        assert before < run.answered < answers
    kept = (run.out / "answers.jsonl").read_bytes()
    run.finish()
    assert not left_behind(started)
    assert (run.out / "answers.jsonl").read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert run.left() == whole.left()
