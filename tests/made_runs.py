"""Runs as they lie on disk, whose numbers can be worked out by hand: eight questions on four images."""

import json
from pathlib import Path
from typing import Any

from sparsezip.measure.records import Row

RIGHT = {"keep_all": "1111 1110", "random": "1100 0000", "grid": "1111 0000"}  # colour, then shape; others as grid
SESSION = {"started": "2026-01-01", "torch": "2", "transformers": "5", "machine": "here"}
MODEL = {"name": "fake", "revision": "1", "device": "cpu", "dtype": "float32"}


def rows(label: str, benchmark: str = "scenes", right: str | None = None, **changed: Any) -> list[Row]:
    """The answers of one method, the first of the question's words being its number."""
    name = label.partition("(")[0]
    hits = (right or RIGHT.get(name, RIGHT["grid"])).replace(" ", "")
    tokens = 576 if name == "keep_all" else 64
    return [
        Row(
            benchmark=benchmark,
            method=label,
            batch=number,
            id=str(number),
            image=f"{number % 4}.png",
            group="color" if number < 4 else "shape",
            question=f"{number} what?",
            references=["red"],
            answer="red" if hit == "1" else f"not {name}",
            **{
                "tokens": tokens,
                "tokens_before": 576,
                "tokens_per_layer": float(tokens),
                "timing_ms": {"tower": 3.0, "decode": 1.0 + number, "ttft": 5.0, "total": 6.0 + number},
                **changed,
            },
        )
        for number, hit in enumerate(hits)
    ]


def record(methods: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """What run.json holds; `changed`: parts of the config, or model, data, session, left_out."""
    whole = {
        "model": {**MODEL, **changed.pop("model", {})},
        "data": changed.pop("data", {"scenes": {"questions": 8, "fingerprint": "f"}}),
        "sessions": [{**SESSION, **changed.pop("session", {})}],
        "left_out": changed.pop("left_out", {}),
    }
    config = {
        "benchmarks": ["scenes"],
        "prompt": "llava",
        "max_new_tokens": {"scenes": 16},
        "batch_size": 1,
        "only": {},
    }
    return {"config": {**config, "methods": methods, **changed}, **whole}


def write(folder: Path, labels: list[str], given: list[Row] | None = None, **changed: Any) -> Path:
    """A run in `folder` of the methods with these labels, such as "grid(budget=64)"."""
    folder.mkdir(parents=True)
    methods = {label: settings(label) for label in labels}
    left_out = changed.get("left_out", {})
    made = given if given is not None else [row for label in labels if label not in left_out for row in rows(label)]
    (folder / "run.json").write_text(json.dumps(record(methods, **changed)))
    (folder / "answers.jsonl").write_text("".join(json.dumps(row.to_json()) + "\n" for row in made))
    return folder


def settings(label: str) -> dict[str, Any]:
    """What a label tells: its name, its budget."""
    name, _, told = label.partition("(budget=")
    return {"name": name, "budget": int(told.removesuffix(")")) if told else None}


def at(budget: float, label: str) -> list[Row]:
    """The answers of a method that got as many tokens in every layer."""
    return rows(label, tokens=round(budget), tokens_per_layer=float(budget))
