"""Conversations about a batch of scenes, packed so that one visual prefix serves many questions."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .questions import YES_NO, Asked, ask
from .scenes import CHARS, COLORS, GRID, SHAPES, Scene

# How often each type is asked. Counting, position and reading get a small share: this level does not teach them.
MIX = {
    "color": 2.5, "shape": 2.5, "exist": 4.0, "exist_shape": 1.0, "exist_color": 1.0, "color_yn": 0.8, "count": 1.0,
    "count_yn": 0.6, "position": 1.0, "position_yn": 0.6, "read": 0.6, "read_yn": 0.2, "field": 1.5,
}  # fmt: skip


class Words:
    """Token ids of everything the stages need: the prompt's frame, questions, and the words that name a patch."""

    def __init__(self, tokenizer: Any) -> None:
        self.encode: Callable[[str], list[int]] = lambda text: tokenizer(text, add_special_tokens=False).input_ids
        self.prefix, self.suffix = [tokenizer.bos_token_id, *self.encode("USER: ")], self.encode("\n")
        self.image, self.eos, self.pad = (
            tokenizer.convert_tokens_to_ids("<image>"),
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
        )
        whats = [f" {s}" for s in SHAPES] + list(CHARS)
        self.what = torch.tensor([self.encode(w)[0] for w in whats] + [self.pad])
        self.color = torch.tensor([self.encode(f" {c}")[0] for c in COLORS] + [self.pad])


@dataclass
class Turns:
    """Packed conversations about a batch of scenes: one visual prefix each, turns that do not see each other."""

    ids: Tensor  # [scene, token]
    mask: Tensor  # [scene, 1, token, token], True where attention is allowed
    positions: Tensor  # [scene, token]
    targets: Tensor  # [scene, token], -100 where nothing is asked
    queries: Tensor  # [scene, turn] where the first token of each answer is predicted
    bearing: Tensor  # [scene, turn, token] the prefix tokens that bear the answer (BOS where nothing does)
    asked: list[list[Asked]]


def questions_for(scene: Scene, rng: random.Random, turns: int) -> list[Asked]:
    """A mix of questions that the scene allows."""
    # A window does not know where on the canvas it lies; a form has nothing but fields.
    types = ["field"] if scene.form else [t for t in MIX if scene.grid == GRID or not t.startswith("position")]
    weights, asked = [MIX[t] for t in types], list[Asked]()
    while len(asked) < turns:
        if question := ask(scene, rng.choices(types, weights)[0], rng):
            text = question.text
            if question.answer in ("yes", "no") and rng.random() < 0.2:
                text += YES_NO
            if rng.random() < 0.15:
                text = text[0].lower() + text[1:]
            asked.append(Asked(question.type, text, question.answer, question.patches))
    return asked


def pack(scenes: list[Scene], words: Words, rng: random.Random, turns: int = 12) -> Turns:
    """The conversations of one step. Equal, turn by turn, to asking each question alone."""
    patches = scenes[0].grid ** 2
    prefix = [*words.prefix, *[words.image] * patches, *words.suffix]
    asked = [questions_for(s, rng, turns) for s in scenes]
    rows = []
    for questions in asked:
        ids, turn, place, target, query = (
            list(prefix),
            [0] * len(prefix),
            list(range(len(prefix))),
            [-100] * len(prefix),
            [],
        )
        for number, q in enumerate(questions, 1):
            question = words.encode(f"{q.text} ASSISTANT:")
            answer = [*words.encode(f" {q.answer}"), words.eos]
            query.append(len(ids) + len(question) - 1)
            ids += question + answer[:-1]
            target += [-100] * (len(question) - 1) + answer
            place += range(len(prefix), len(prefix) + len(question) + len(answer) - 1)
            turn += [number] * (len(question) + len(answer) - 1)
        rows.append((ids, turn, place, target, query))
    length = max(len(row[0]) for row in rows)

    def padded(column: int, value: int) -> Tensor:
        return torch.tensor([row[column] + [value] * (length - len(row[column])) for row in rows])

    turn_of = padded(1, -1)
    same = (turn_of[:, None, :] == turn_of[:, :, None]) | (turn_of[:, None, :] == 0)
    bearing = torch.zeros(len(scenes), turns, length, dtype=torch.bool)
    for i, questions in enumerate(asked):
        for j, q in enumerate(questions):
            bearing[i, j, [len(words.prefix) + p for p in q.patches] or [0]] = True
    return Turns(
        padded(0, words.pad), (same & torch.ones(length, length, dtype=torch.bool).tril())[:, None],
        padded(2, 0), padded(3, -100), torch.tensor([row[4] for row in rows]), bearing, asked,
    )  # fmt: skip
