"""Held-out scores of a testbed checkpoint by question type, with a blind control, through stock transformers."""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .questions import TYPES, Asked, ask
from .scenes import Difficulty, draw
from .sets import held_out


@torch.no_grad()
def score(
    checkpoint: Path, per_type: int = 400, seed: int = 1, only: Sequence[str] = TYPES
) -> dict[str, dict[str, Any]]:
    """Exact-match accuracy on `per_type` questions of each type, about scenes of 4 to 8 things never seen in training.

    Per type: n, accuracy, blind (the same questions with noise for the image), majority (the share of the commonest
    answer) and, for yes/no types, yes_recall and no_recall. Existence questions are half true; half of the false ones
    share a colour or a shape with something in the scene.
    """
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint).eval()
    noise = torch.Generator().manual_seed(seed)
    rows: dict[str, list[tuple[str, str, str]]] = {t: [] for t in only}  # answer, prediction, blind prediction
    for i in range(40 * per_type):
        wanted = [t for t in only if len(rows[t]) < per_type]
        if not wanted:
            break
        rng = random.Random(f"{seed}/score/{i}/questions")
        scene = held_out(seed, f"score/{i}", Difficulty(form=0.3 if "field" in wanted else 0.0, sign=0.5))
        asked = [q for t in wanted for q in (ask(scene, t, rng),) if q]
        if not asked:
            continue
        pixels = processor.image_processor(Image.fromarray(draw(scene)), return_tensors="pt").pixel_values
        seen = answers(model, processor, pixels, asked)
        blind = answers(model, processor, torch.randn(pixels.shape, generator=noise), asked)
        for q, prediction, guess in zip(asked, seen, blind, strict=True):
            rows[q.type].append((q.answer, prediction, guess))
    return {type_: _figures(found) for type_, found in rows.items() if found}


def answers(model: LlavaForConditionalGeneration, processor: Any, pixels: Tensor, asked: list[Asked]) -> list[str]:
    """Greedy answers to questions about one image, whose tower pass they share."""
    prompts = [f"USER: <image>\n{q.text} ASSISTANT:" for q in asked]
    frame = "<image>" * model.config.image_seq_length
    inputs = processor.tokenizer([p.replace("<image>", frame) for p in prompts], return_tensors="pt", padding=True)
    (features,) = model.get_image_features(pixel_values=pixels).pooler_output
    encoded = {"image": BaseModelOutputWithPooling(pooler_output=[features] * len(asked))}  # type: ignore[arg-type]  # one entry an image
    out = cast(Any, model).generate(**inputs, mm_encoder_outputs=encoded, max_new_tokens=8, do_sample=False)
    decoded = processor.tokenizer.batch_decode(out[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in decoded]


def _figures(rows: list[tuple[str, str, str]]) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "n": len(rows),
        "accuracy": sum(a == p for a, p, _ in rows) / len(rows),
        "blind": sum(a == b for a, _, b in rows) / len(rows),
        "majority": Counter(a for a, _, _ in rows).most_common(1)[0][1] / len(rows),
    }
    for word in ("yes", "no"):
        found = [(a, p) for a, p, _ in rows if a == word]
        if found:
            figures[f"{word}_recall"] = sum(a == p for a, p in found) / len(found)
    return figures


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The scores as Markdown, with the versions they were made with."""
    columns = ("n", "accuracy", "blind", "majority", "yes_recall", "no_recall")
    lines = [f"| type | {' | '.join(columns)} |".replace("_", " "), "|---|" + "--:|" * len(columns)]
    for type_, row in figures.items():
        cells = (f"{row[c]:.3f}" if isinstance(row.get(c), float) else str(row.get(c, "-")) for c in columns)
        lines.append(f"| {type_} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"torch {torch.__version__}, transformers {transformers.__version__}, CPU"])
