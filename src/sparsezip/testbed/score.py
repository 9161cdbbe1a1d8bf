"""Held-out scores of a testbed checkpoint by question type, with a blind control, through stock transformers."""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..measure.metrics import anls
from ..measure.metrics.caption import without_java
from ..measure.session import commit_shown, session
from ..models.load import load
from ..registry import unknown
from .drawing import draw
from .questions import NUMBERS, ORDERS, QUADRANTS, TYPES, Asked, ask, describe
from .scenes import COLORS, LEVELS, SHAPES, Scene, make

# What guessing gets who knows the question and its possible answers; for texts and captions about nothing.
CHANCE = {
    "color": 1 / len(COLORS),
    "shape": 1 / len(SHAPES),
    "position": 1 / len(QUADRANTS),
    "relation": 0.5,
}
TEXTS = ("read", "read_yn", "field")  # asked about small glyphs, and again about large ones
SMALL, LARGE = 20, 28  # pixels


@dataclass(frozen=True)
class Answered:
    """A question about a scene, the model's answer, and its answer when it sees noise instead."""

    asked: Asked
    scene: Scene
    seen: str
    blind: str


@torch.no_grad()
def score(
    checkpoint: str | Path = "testbed",
    per_type: int = 400,
    seed: int = 1,
    only: Sequence[str] = TYPES,
    level: str = "standard",
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Figures of `per_type` questions of each type, about scenes of a level (scenes.LEVELS) never seen in training.

    "types": rows of type, measure ("exact", "ANLS", "CIDEr"), n, score, for exact ones its 95 % interval (low, high;
    Wilson's, as every question is about a scene of its own), blind (the same questions with noise for the image),
    chance, majority (the share of the commonest answer) and, for yes/no types, yes_recall, no_recall and balanced
    (their mean). Types about text are asked about glyphs of 20 px, and again ("read 28 px") of 28 px. All numbers to
    count are asked for equally often. "model", "revision", "level", "seed", "session": what was measured, on what,
    when and where. `progress` is told how far it is.
    Raises UnknownNameError for an unknown level, and what models.load raises.
    """
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    opened = load(checkpoint, device="cpu")
    model, processor = opened.model, opened.processor
    base, noise = LEVELS[level], torch.Generator().manual_seed(seed)
    numbers = min(len(NUMBERS) - 1, base.objects[1])
    figures: list[dict[str, Any]] = []
    for height, types in {SMALL: only, LARGE: [t for t in only if t in TEXTS]}.items():
        rows: dict[str, list[Answered]] = {t: [] for t in types}
        for i in range(40 * per_type):
            wanted = [t for t in types if len(rows[t]) < per_type]
            if not wanted:
                break
            rest = [t for t in wanted if t != "field"]
            form = 0.0 if "field" not in wanted else 0.25 if rest else 1.0
            # Once the rest have enough, every scene is made to allow what is still wanted.
            sign, alike = (1.0 if set(rest) <= set(TEXTS) else 0.5), (1.0 if rest == ["count"] else base.alike)
            dial = replace(base, form=form, sign=sign, alike=alike, glyphs=(height,))
            scene = make("held-out", f"{seed}/report/{height}/{i}", difficulty=dial)
            rng = random.Random(f"{seed}/report/{height}/{i}/questions")
            counted = Counter(row.asked.answer for row in rows.get("count", []))
            rarer = [n for n in range(1, numbers + 1) if counted[str(n)] < -(-per_type // numbers)]
            asked = [q for t in wanted if (q := _question(scene, t, rng, rarer))]
            if asked:
                pixels = processor.image_processor(Image.fromarray(draw(scene)), return_tensors="pt").pixel_values
                seen = answers(model, processor, pixels, asked)
                blind = answers(model, processor, torch.randn(pixels.shape, generator=noise), asked)
                for q, answer, guess in zip(asked, seen, blind, strict=True):
                    rows[q.type].append(Answered(q, scene, answer, guess))
            if i % 50 == 49:
                done = sum(map(len, rows.values()))
                progress(f"{done:,} of {per_type * len(types):,} questions with glyphs of {height} px answered")
        for type_, found in rows.items():
            name = type_ if height == SMALL else f"{type_} {LARGE} px"
            figures += [{"type": name, **row} for row in _figures(found, numbers)]
    about = {"model": str(checkpoint), "revision": opened.revision, "level": level, "seed": seed, "session": session()}
    return {"types": figures, **about}


def _question(scene: Scene, type_: str, rng: random.Random, numbers: list[int]) -> Asked | None:
    """A question of that type; of those to count, one whose answer is among `numbers`."""
    if type_ != "count":
        return ask(scene, type_, rng)
    asked = (ask(scene, type_, rng, number=number) for number in rng.sample(numbers, len(numbers)))
    return next(filter(None, asked), None)


def answers(model: LlavaForConditionalGeneration, processor: Any, pixels: Tensor, asked: list[Asked]) -> list[str]:
    """Greedy answers to questions about one image, which share its tower pass and the cache of its visual prefix."""
    frame = "<image>" * model.config.image_seq_length
    tokenizer = processor.tokenizer
    prefix = tokenizer(f"USER: {frame}\n", return_tensors="pt").input_ids
    out = dict[int, str]()
    (features,) = cast(Any, model).get_image_features(pixel_values=pixels).pooler_output
    for tokens in {_longest(q) for q in asked}:
        here = [i for i, q in enumerate(asked) if _longest(q) == tokens]
        prompts = tokenizer(
            [f"{asked[i].text} ASSISTANT:" for i in here], return_tensors="pt", padding=True, add_special_tokens=False
        )
        encoded = {"image": BaseModelOutputWithPooling(pooler_output=[features])}  # type: ignore[arg-type]  # one entry an image
        cache = model(input_ids=prefix, mm_encoder_outputs=encoded, use_cache=True, logits_to_keep=1).past_key_values
        cache.batch_repeat_interleave(len(here))
        ids = torch.cat([prefix.expand(len(here), -1), prompts.input_ids], 1)
        mask = torch.cat([torch.ones_like(prefix).expand(len(here), -1), prompts.attention_mask], 1)
        made = cast(Any, model).generate(
            input_ids=ids, attention_mask=mask, past_key_values=cache, max_new_tokens=tokens, do_sample=False
        )
        for i, text in zip(
            here, tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True), strict=True
        ):
            out[i] = text.strip()
    return [out[i] for i in range(len(asked))]


def _longest(asked: Asked) -> int:
    return 96 if asked.type == "caption" else 8


def _figures(rows: list[Answered], numbers: int = len(NUMBERS) - 1) -> list[dict[str, Any]]:
    """The figures of one type, under each of its measures."""
    if not rows:
        return []
    type_, n = rows[0].asked.type, len(rows)
    if type_ == "caption":
        return [{"measure": "CIDEr", "n": n, "score": _cider(rows, "seen"), "blind": _cider(rows, "blind")}]
    right = [row.asked.answer == row.seen for row in rows]
    exact: dict[str, Any] = {
        "measure": "exact",
        "n": n,
        "score": sum(right) / n,
        "interval": _wilson(sum(right), n),
        "blind": sum(row.asked.answer == row.blind for row in rows) / n,
        "majority": Counter(row.asked.answer for row in rows).most_common(1)[0][1] / n,
    }
    if chance := {**CHANCE, "count": 1 / numbers}.get(type_):
        exact["chance"] = chance
    if {row.asked.answer for row in rows} <= {"yes", "no"}:
        exact["chance"] = 0.5
        for word in ("yes", "no"):
            found = [mark for row, mark in zip(rows, right, strict=True) if row.asked.answer == word]
            if found:
                exact[f"{word}_recall"] = sum(found) / len(found)
        if {"yes_recall", "no_recall"} <= set(exact):
            exact["balanced"] = (exact["yes_recall"] + exact["no_recall"]) / 2
    if type_ not in ("read", "field"):
        return [exact]
    near = {name: _anls([(getattr(row, name), row.asked.answer) for row in rows]) for name in ("seen", "blind")}
    return [exact, {"measure": "ANLS", "n": n, "score": near["seen"], "blind": near["blind"]}]


def _wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which holds near 1, too."""
    share, z = right / n, 1.959964
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def _anls(pairs: list[tuple[str, str]]) -> float:
    return float(anls.score([{"prediction": made, "answers": [right]} for made, right in pairs])["mean"])


def _cider(rows: list[Answered], name: str) -> float | None:
    """CIDEr against five sentences a scene that list its things in different orders; one scene alone has none."""
    if len(rows) < 2:
        return None
    references = [[_words(describe(row.scene, order).answer) for order in ORDERS] for row in rows]
    return float(without_java([_words(getattr(row, name)) for row in rows], references)[0]["CIDEr"]["corpus"])


def _words(text: str) -> str:
    return text.replace(",", "").lower()


def table(report: dict[str, Any]) -> str:
    """What `score` found as Markdown, with what it was measured on."""
    columns = {
        "measure": "measure", "n": "n", "score": "score", "interval": "95 %", "blind": "blind", "chance": "chance",
        "majority": "majority", "yes_recall": "yes recall", "no_recall": "no recall", "balanced": "balanced",
    }  # fmt: skip
    lines = [f"| type | {' | '.join(columns.values())} |", "|---|---|" + "--:|" * (len(columns) - 1)]
    for row in report["types"]:
        cells = (_shown(row.get(column)) for column in columns)
        lines.append(f"| {row['type']} | {' | '.join(cells)} |")
    here = report["session"]
    measured = (
        f"{report['model']} ({report['revision']}), {report['level']} held-out scenes of seed {report['seed']}, "
        f"torch {here['torch']}, transformers {here['transformers']}, {here['machine']} CPU, "
        f"{here['started']}{commit_shown(here)}"
    )
    return "\n".join([*lines, "", measured])


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return " to ".join(map(_shown, value))
    return f"{value:.3f}" if isinstance(value, float) else str(value)
