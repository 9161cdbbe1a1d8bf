"""A model that answers from its question alone, and a data set for it. As a script, a run to be killed."""

import hashlib
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from PIL import Image


def example(made, folder):
    """The smallest data set of a benchmark, on disk."""
    for name, text in made.example.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            Image.new("RGB", (8, 8), "red").save(path)
        else:
            path.write_text(text, encoding="utf-8")
    return folder


class FakeModel:
    """Right for most questions; the answer depends on question, method and image, never on the batch."""

    name, revision = "fake", "1"

    def __init__(self, pause=0.0):
        self.pause = pause
        self.calls = []  # (method, questions) of each call

    def answer(self, images, questions, method, max_new_tokens):
        self.calls.append((method.name, list(questions)))
        return [self._one(image, question, method) for image, question in zip(images, questions, strict=True)]

    def _one(self, image, question, method):
        time.sleep(self.pause)
        digest = hashlib.sha256(f"{question}{method.name}{image.getpixel((0, 0))}".encode()).digest()
        truth = "red" if "color" in question else "yes" if "yes" in question else "no"
        layers = [576.0, 576.0] if method.name == "keep_all" else [64.0, 64.0]
        return SimpleNamespace(
            text=truth if digest[0] < (240 if method.name == "keep_all" else 180) else "blue",
            tokens=int(layers[0]),
            tokens_before=576,
            tokens_per_layer=layers,
            timing={"tower": 2.0 + digest[1] / 256, "compress": 0.5, "total": 10.0 + digest[2] / 256},
        )


def write_data(folder, images=8):
    """scenes with two questions an image, and MME with one pair an image."""
    (folder / "scenes" / "images").mkdir(parents=True)
    (folder / "mme" / "color").mkdir(parents=True)
    rows = []
    for number in range(images):
        for path in (folder / "scenes" / "images", folder / "mme" / "color"):
            Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(path / f"{number}.png")
        for type_ in ("color", "shape"):
            question, answer = f"what {type_} is thing {number}?", "red" if type_ == "color" else "no"
            rows.append(
                {
                    "question_id": len(rows),
                    "image": f"{number}.png",
                    "question": question,
                    "answer": answer,
                    "type": type_,
                }
            )
        (folder / "mme" / "color" / f"{number}.txt").write_text(f"Say yes {number}\tYes\nSay the other {number}\tNo\n")
    (folder / "scenes" / "scenes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(out, data, pause=0.0, **options):
    """The run the tests compare: three methods on two benchmarks."""
    from sparsezip.measure.evaluate import evaluate

    options = {"batch_size": 3, **options}
    return evaluate(FakeModel(pause), ["scenes", "mme"], ["keep_all", "random", "grid"], out, data=data, **options)


def written(out):
    """The rows as they stand in the file: in the order of their answers."""
    return [json.loads(line) for line in (out / "answers.jsonl").read_bytes().splitlines()]


def kept(out):
    """Answers in order, timings aside."""
    from sparsezip.measure.store import read_rows

    return [{k: v for k, v in row.to_json().items() if k != "timing_ms"} for row in read_rows(out)]


def untimed(value):
    """Results without what a clock or a calendar says."""
    if isinstance(value, dict):
        timed = ("latency_ms", "latency_ratio", "ttft_ms", "decode_ms", "stages_ms", "sessions")
        return {key: untimed(inner) for key, inner in value.items() if key not in timed}
    if isinstance(value, list):  # somebody may commit while the tests run
        return [inner for inner in value if "resumed under other conditions" not in str(inner)]
    return value


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), pause=0.003)
