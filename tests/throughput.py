"""How much faster are questions answered together, sharing their images, than one by one? `make throughput`.

    python tests/throughput.py [--images 500] [--batch 12] [--threads 2] [--setting sparsezip:64]...

The small model that ships with the package is asked the questions of one of POPE's splits, made of held-out scenes: six
on each of 500 images are 3,000. Both ways go through what an evaluation runs (plan, worker, rows) in one process and
take turns, chunk by chunk and in alternating order, so that whatever else the machine does meets both alike:

    one by one   batches of one question: every question has its own preparation and tower pass
    together     batches of `--batch` questions, those on one image side by side

Printed is, for each setting METHOD:TOKENS, the time of a question both ways (all chunks), their ratio, the ratio's 10th
and 90th percentile over chunks, the images that went through the tower per question, and the answers that differ.
Not collected by pytest, where no time is asserted.
"""

import argparse
import os
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory

import torch

import sparsezip
from sparsezip.measure.benchmarks import benchmark
from sparsezip.measure.plan import planned
from sparsezip.measure.worker import Job, Worker
from sparsezip.testbed.sets import write_pope

SETTINGS = ("sparsezip:64", "visionzip:64", "keep_all:576", "sparsezip:576", "visionzip:576")
CHUNK = 16  # images: a whole number of batches of 6, 12, 24, 48 and 96 questions
SPLIT = "adversarial"


@dataclass
class Way:
    """One way to ask, and what it took."""

    batch_size: int
    seconds: list[float] = field(default_factory=list)  # by chunk
    passes: int = 0  # images that went through the tower
    answers: dict[str, str | None] = field(default_factory=dict)


def measure(vlm, method, samples, batch_size, chunk=CHUNK):
    """The questions asked one by one and together, chunk by chunk in turns."""
    worker, tokens = Worker(vlm, {"it": method}), benchmark("pope").longest_answer("bare")
    ways = [Way(1), Way(batch_size)]
    by_image = {}
    for sample in samples:
        by_image.setdefault(sample.image_id, []).append(sample)
    images = list(by_image.values())

    def run(way, mine):
        by_id = {sample.id: sample for sample in mine}
        for batch in planned({"pope": mine}, way.batch_size).batches:
            for row in worker.answer(Job(batch, "it", [by_id[name] for name in batch.ids], tokens)):
                if row.error:
                    raise SystemExit(row.error)
                way.answers[row.id] = row.answer

    for way in ways:  # warm-up
        run(way, [sample for mine in images[: max(1, batch_size // 6)] for sample in mine])
    current = ways[0]

    def count(tower, args):
        current.passes += len(args[0])

    hook = vlm.adapter.tower.register_forward_pre_hook(count)
    for number, start in enumerate(range(0, len(images), chunk)):
        mine = [sample for its in images[start : start + chunk] for sample in its]
        for way in ways if number % 2 == 0 else ways[::-1]:
            current = way
            began = time.perf_counter()
            run(way, mine)
            way.seconds.append(time.perf_counter() - began)
    hook.remove()
    return ways


def line(setting, ways, questions):
    """One row of the table."""
    alone, together = ways
    ratios = [one / other for one, other in zip(alone.seconds, together.seconds, strict=True)]
    deciles = quantiles(ratios, n=10, method="inclusive") if len(ratios) > 1 else ratios
    ms = [1000 * sum(way.seconds) / questions for way in ways]
    passes = [way.passes / questions for way in ways]
    differ = sum(alone.answers[name] != together.answers[name] for name in alone.answers)
    return (
        f"| {setting} | {questions:,} | {ms[0]:.1f} | {ms[1]:.1f} | {ms[0] / ms[1]:.2f} | {deciles[0]:.2f} to "
        f"{deciles[-1]:.2f} | {passes[0]:.2f} | {passes[1]:.2f} | {differ} |"
    )


def main(arguments=None):
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--batch", type=int, default=12, help="questions together")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--setting", action="append", help="METHOD:TOKENS; several times for several")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    vlm = sparsezip.load("testbed", device="cpu")
    with TemporaryDirectory() as folder:
        write_pope(Path(folder) / "pope", seed=0, count=asked.images)
        samples = benchmark("pope").samples(Path(folder), None, [SPLIT], "bare")
        print(
            f"batches of {asked.batch}, {asked.threads} threads, torch {version('torch')}, transformers "
            f"{version('transformers')}, load {os.getloadavg()[0]:.1f} at the start\n\n"
            "| setting | questions | ms one by one | ms together | ratio | 10 % to 90 % of chunks | tower passes | "
            "together | answers that differ |\n| --- | --: | --: | --: | --: | --: | --: | --: | --: |"
        )
        for setting in asked.setting or SETTINGS:
            name, _, tokens = setting.partition(":")
            method = sparsezip.method(name, **({"budget": int(tokens)} if name != "keep_all" else {}))
            ways = measure(vlm, method, samples, asked.batch)
            print(line(setting, ways, len(samples)), flush=True)


if __name__ == "__main__":
    main()
