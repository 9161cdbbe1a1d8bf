"""`make kill-test`: `sparsezip eval` is killed at random moments and finished, and ends as if nothing had happened.

    python tests/kill_test.py                        20 runs of each runner, about half an hour
    python tests/kill_test.py --kills 5 --seed 7

Each run is one of the small model, killed (SIGKILL) at a random moment of one of its phases in turn and then finished
by the same command. Ray's workers are killed with every other of its runs; else they have to go by themselves. What
is compared with a run of the local runner that nobody killed: every row and all results, timings aside.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from fake_model import kept, untimed, written

from sparsezip.measure.report import summary
from sparsezip.testbed import sets

PHASES = ("starting", "opening", "answering", "answering", "finishing")  # opening: of the model, with the warm-up
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Run:
    """One evaluation of the small model, in a process of its own."""

    data: Path
    out: Path
    batch: int = 1
    runner: str = "local"
    limit: int = 12

    def start(self) -> subprocess.Popen:
        words = [sys.executable, "-m", "sparsezip", "eval", "--model", "testbed", "--method", "keep_all,sparsezip"]
        words += ["--benchmark", "scenes,pope", "--data", self.data, "--limit", self.limit, "--out", self.out]
        words += ["--batch-size", self.batch, "--runner", self.runner, "--workers", 2 if self.runner == "ray" else 1]
        with self.log.open("wb") as log:
            return subprocess.Popen([str(word) for word in words], env=ENVIRONMENT, stdout=log, stderr=log)

    def finish(self) -> None:
        assert self.start().wait() == 0, self.log.read_text()

    @property
    def log(self) -> Path:
        return self.out.with_suffix(".log")

    @property
    def answered(self) -> int:
        """How many answers it has written."""
        answers = self.out / "answers.jsonl"
        return answers.read_bytes().count(b"\n") if answers.exists() else 0

    def phase(self, questions: int) -> str:
        """Where it is, if so many answers are to come."""
        if not (self.out / "answers.jsonl").exists():
            return "starting"
        if not (self.out / "run.json").exists():
            return "opening"
        return "answering" if self.answered < questions else "finishing"

    def left(self) -> dict:
        """What it has left in its folder, timings aside."""
        files = sorted(path.name for path in self.out.iterdir())
        once = len(written(self.out)) == len(kept(self.out))
        return {"rows": kept(self.out), "each once": once, "results": untimed(summary.read(self.out)), "files": files}


def undisturbed(run: Run) -> dict[str, float]:
    """Have `run` done without a kill; the seconds that each phase took."""
    child, begun, now, answers = run.start(), time.monotonic(), 0.0, 0
    began = dict.fromkeys(PHASES, 0.0)
    while child.poll() is None:
        time.sleep(0.005)
        now = time.monotonic() - begun
        if (phase := run.phase(sys.maxsize)) != "starting":
            began[phase] = began[phase] or now
        if run.answered != answers:
            answers, began["finishing"] = run.answered, now
    assert child.returncode == 0, run.log.read_text()
    ends = [*began.values(), now][1:]
    return {phase: end - began[phase] for phase, end in zip(began, ends, strict=True)}


def killed(run: Run, phase: str, wait: float, answers: int, workers: bool) -> set[int] | None:
    """Kill `run` so many seconds after it came to `phase`, at the phase's end at the latest; with its workers or alone.

    Returns the processes that it had started, or None where it was over before.
    """
    child, before = run.start(), run.answered
    while child.poll() is None and PHASES.index(run.phase(answers)) < PHASES.index(phase):
        time.sleep(0.002)
    while child.poll() is None and phase == "answering" and run.answered == before:
        time.sleep(0.002)
    moment = time.monotonic() + wait
    while run.phase(answers) == phase and time.monotonic() < moment and child.poll() is None:
        time.sleep(0.002)
    family = descendants(child.pid)
    child.kill()
    for pid in family if workers else ():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return family if child.wait() == -signal.SIGKILL else None


def descendants(pid: int) -> set[int]:
    """The processes that come from `pid`."""
    found, more = set(), {pid}
    pairs = [(child, parent) for child, parent, _ in processes()]
    while more:
        more = {child for child, parent in pairs if parent in more} - found
        found |= more
    return found


def processes() -> list[tuple[int, int, str]]:
    """Every process with its parent and its name."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 2) for line in listed.splitlines()]
    return [(int(pid), int(parent), name) for pid, parent, name in lines]


def left_behind(family: set[int]) -> set[int]:
    """The workers in `family` that have not ended by themselves. Whatever else of Ray is there, is killed."""
    there = {pid: name for pid, _, name in processes() if pid in family}
    for pid in there:  # Ray's agents would stay for a minute
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return {pid for pid, name in there.items() if "Actor" in name}


def survives(run: Run, phase: str, wait: float, expected: dict, workers: bool) -> tuple[str, list[str]]:
    """Kill `run` once and finish it; what was done, and what is wrong with the outcome."""
    answers, there = len(expected["rows"]), run.out / "answers.jsonl"
    while (family := killed(run, phase, wait, answers, workers)) is None:  # this time it was faster
        shutil.rmtree(run.out)
        wait /= 2
    told = f"{run.runner}, batch {run.batch}, {'all' if workers else 'alone'}: {run.phase(answers)}, "
    told += f"{run.answered} of {answers} answers"
    before = there.read_bytes() if there.exists() else b""
    run.finish()
    after, left = there.read_bytes(), run.left()
    wrong = [] if after.startswith(before[: before.rfind(b"\n") + 1]) else ["what was on disk has changed"]
    wrong += [f"other {what}" for what, value in left.items() if value != expected[what]]
    if lasting := left_behind(family):
        wrong.append(f"{len(lasting)} workers stayed")
    if there.read_bytes() != after:
        wrong.append("somebody wrote after the end")
    return told, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of each runner")
    parser.add_argument("--runner", choices=("local", "ray"), action="append", help="one or both (both)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng, bad, kills = random.Random(asked.seed), 0, 0
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        sets.write(folder / "data", seed=0, scenes=8)
        whole = {batch: Run(folder / "data", folder / f"whole-{batch}", batch) for batch in (1, 4)}
        lasts = {("local", batch): undisturbed(run) for batch, run in whole.items()}
        for runner in asked.runner or ("local", "ray"):
            for number in range(asked.kills):
                batch, phase = (1, 4)[number // len(PHASES) % 2], PHASES[number % len(PHASES)]
                if (runner, batch) not in lasts:
                    lasts[runner, batch] = undisturbed(
                        replace(whole[batch], out=folder / f"timed-{batch}", runner=runner)
                    )
                run = replace(whole[batch], out=folder / f"{runner}-{number}", runner=runner)
                wait = rng.random() * lasts[runner, batch][phase]
                told, wrong = survives(run, phase, wait, whole[batch].left(), workers=number % 2 == 1)
                kills, bad = kills + 1, bad + bool(wrong)
                print(f"{told}: {', '.join(wrong) or 'identical'}", flush=True)
    print(f"{kills - bad} of {kills} killed runs ended as if nothing had happened.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
