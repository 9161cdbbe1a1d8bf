"""Conversations about a batch of scenes, packed so that one visual prefix serves many questions."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .questions import YES_NO, Asked, Span, ask, describe
from .scenes import CHARS, COLORS, FIELDS, SHAPES, Scene

# How often each type is asked, of scenes that allow it.
MIX = {
    "color": 2.0, "shape": 2.0, "exist": 3.0, "exist_shape": 0.8, "exist_color": 0.8, "color_yn": 0.8, "count": 8.0,
    "count_yn": 2.5, "position": 1.5, "position_yn": 2.5, "relation": 2.0, "relation_yn": 2.5, "read": 2.0,
    "read_yn": 2.5,
}  # fmt: skip


class Words:
    """Token ids of everything the stages need: the prompt's frame, questions, and the words that name a patch."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.encode = lru_cache(maxsize=100_000)(lambda text: tokenizer(text, add_special_tokens=False).input_ids)
        self.prefix, self.suffix = [tokenizer.bos_token_id, *self.encode("USER: ")], self.encode("\n")
        self.image = tokenizer.convert_tokens_to_ids("<image>")
        self.eos, self.pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        self.what = self._first([f" {s}" for s in SHAPES] + list(CHARS))
        self.color = self._first([f" {c}" for c in COLORS])
        self.line = self._first([f" {name}" for name in (*FIELDS, "sign")])

    def _first(self, words: Sequence[str]) -> Tensor:
        return torch.tensor([self.encode(word)[0] for word in words] + [self.pad])

    def tokens(self, text: str, spans: Sequence[Span], shift: int = 0) -> tuple[list[int], list[tuple[int, ...]]]:
        """The tokens of a text, and the patches that bear each; `shift`: where the text begins that spans are of."""
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        bearing = [
            tuple(p for span in spans if start < span.end + shift and span.start + shift < end for p in span.patches)
            for start, end in encoded.offset_mapping
        ]
        return encoded.input_ids, bearing


def looks(
    asked: Asked, about: list[tuple[int, ...]], answer: list[tuple[int, ...]]
) -> list[tuple[int, tuple[int, ...]]]:
    """Where to look from which token of a turn: its place, counted from the question's first, and the patches.

    From where a token of the answer is due, to what bears it, or to the sequence's first token (no patches) where
    nothing does. From the nouns of a question that has several. Where things are to be counted, to one patch of each
    and, six times as much, to the first token: its share then tells the number, 6 / 7 for one thing, 1 / 2 for six.
    """
    due = len(about) - 1
    if asked.nouns:
        return [(i, patches) for i, patches in enumerate(about) if patches]
    if asked.counted:
        return [(due + len(answer) - 1, patches) for patches in [*[()] * 6, *((patch,) for patch in asked.counted)]]
    first = (due, answer[0] or asked.patches)
    return [first, *((due + i, patches) for i, patches in enumerate(answer) if i and patches)]


@dataclass
class Turns:
    """Packed conversations about a batch of scenes: one visual prefix each, turns that do not see each other."""

    ids: Tensor  # [scene, token]
    mask: Tensor  # [scene, 1, token, token], True where attention is allowed
    positions: Tensor  # [scene, token]
    targets: Tensor  # [scene, token], -100 where nothing is asked
    starts: Tensor  # [scene, turn] where the first token of each answer is predicted
    queries: Tensor  # [scene, query] tokens that have to look somewhere
    bearing: Tensor  # [scene, query, token] where: tokens of the prefix
    asked: list[list[Asked]]


def questions_for(scene: Scene, rng: random.Random, turns: int, caption: bool) -> list[Asked]:
    """A mix of questions that the scene allows; a caption, if wanted, takes the place of three."""
    if scene.form:
        types, weights = ["field"], [1.0]
    else:
        types, weights = list(MIX), list(MIX.values())
    asked = [describe(scene)] if caption and scene.things else []
    turns -= 2 * len(asked)
    known = set[str]()
    for _ in range(6 * turns):  # draws repeat themselves
        question = ask(scene, rng.choices(types, weights)[0], rng)
        if question and question.text not in known and len(asked) < turns:
            known.add(question.text)
            text = question.text
            if question.answer in ("yes", "no") and rng.random() < 0.2:
                text += YES_NO
            if rng.random() < 0.15:
                text = text[0].lower() + text[1:]
            asked.append(replace(question, text=text))
    return asked


def pack(scenes: list[Scene], words: Words, rng: random.Random, turns: int = 12, kept: Tensor | None = None) -> Turns:
    """The conversations of one step. Equal, turn by turn, to asking each question alone.

    kept: [scene, token] raster indices of the patches that are shown, ascending; none: all. They keep their places in
    the sequence, as if the others stood there unseen.
    """
    patches = scenes[0].rows * scenes[0].columns
    shown = [list(range(patches))] * len(scenes) if kept is None else kept.tolist()
    before, visible = len(words.prefix), len(shown[0])
    prefix = [*words.prefix, *[words.image] * visible, *words.suffix]
    after = before + patches + len(words.suffix)  # the place of a question's first token
    asked = [questions_for(s, rng, turns, rng.random() < 0.3) for s in scenes]
    rows, bearing = [], []
    for questions, places in zip(asked, shown, strict=True):
        ids, turn, target = list(prefix), [0] * len(prefix), [-100] * len(prefix)
        place = [*range(before), *(before + p for p in places), *range(before + patches, after)]
        slot = {p: before + i for i, p in enumerate(places)}
        start, borne = [], list[tuple[int, list[int]]]()
        for number, q in enumerate(questions, 1):
            question, about = words.tokens(f"{q.text} ASSISTANT:", q.nouns)
            answer, bears = words.tokens(f" {q.answer}", q.spans, 1)
            for at, wanted in looks(q, about, bears):
                borne.append((len(ids) + at, [slot[p] for p in wanted if p in slot] or [0]))
            start.append(len(ids) + len(question) - 1)
            ids += question + answer
            target += [-100] * (len(question) - 1) + [*answer, words.eos]
            place += range(after, after + len(question) + len(answer))
            turn += [number] * (len(question) + len(answer))
        rows.append((ids, turn, place, target, start, [query for query, _ in borne]))
        bearing.append(borne)
    length = max(len(row[0]) for row in rows)

    def padded(column: int, value: int) -> Tensor:
        longest = max(len(row[column]) for row in rows)
        return torch.tensor([row[column] + [value] * (longest - len(row[column])) for row in rows])

    turn_of, queries = padded(1, -1), padded(5, 0)
    same = (turn_of[:, None, :] == turn_of[:, :, None]) | (turn_of[:, None, :] == 0)
    marks = torch.zeros(*queries.shape, length, dtype=torch.bool)
    marks[:, :, 0] = True  # padding asks the first token about itself: no loss
    for i, borne in enumerate(bearing):
        for j, (_, tokens) in enumerate(borne):
            marks[i, j, 0] = False
            marks[i, j, tokens] = True
    return Turns(
        padded(0, words.pad), (same & torch.ones(length, length, dtype=torch.bool).tril())[:, None],
        padded(2, 0), padded(3, -100), padded(4, length - 1), queries, marks, asked,
    )  # fmt: skip
