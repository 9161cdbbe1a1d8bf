"""Read what is asked about each image: from the prompts of a call, or as the user gives it."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .errors import UnsupportedCallError
from .models.base import Adapter
from .plumbing.words import Template, question_words, text_after_images
from .tensors import Question

Asked = str | Question | Sequence[str | Question | None] | None  # one for all images, or one per image


class Reader:
    """Makes the Question of every image of a call."""

    def __init__(self, adapter: Adapter, wanted: frozenset[str], processor: Any, question: Asked) -> None:
        """`question`: given by the user for all images or per image; None: read from the prompts.

        With image_embeds among the `wanted` captures it is embedded by CLIP as well.
        """
        self.adapter, self.processor, self.given = adapter, processor, question
        self.clip = adapter.clip if "image_embeds" in wanted else None
        self.tokenizer = getattr(processor, "tokenizer", processor)
        texts = [question] if isinstance(question, str | Question) else question or []
        if processor is None and any(isinstance(text, str) for text in texts):
            raise UnsupportedCallError("A question given as text has to be tokenised. Give processor= as well.")
        if processor is None and question is None and self.clip is not None and "question" in wanted:
            raise UnsupportedCallError("CLIP reads the question as text. Give processor=, or a Question of your own.")

    def of(self, adapter: Adapter) -> "Reader":
        """The same for an adapter with other placeholders."""
        made = copy.copy(self)
        made.adapter = adapter
        return made

    def __call__(self, ids: Tensor, mask: Tensor | None, per_row: list[int]) -> list[Question | None]:
        """One question per image, of prompts [row, token] that hold `per_row` images each."""
        if self.given is None:
            mask = torch.ones_like(ids) if mask is None else mask
            read = [self._from_prompt(*row) if count else None for *row, count in zip(ids, mask, per_row, strict=True)]
            return [question for question, count in zip(read, per_row, strict=True) for _ in range(count)]
        if isinstance(self.given, str | Question):
            return [self._from_user(self.given)] * sum(per_row)
        return [self._from_user(question) for question in self.given]

    def _from_prompt(self, row: Tensor, mask: Tensor) -> Question:
        placeholder = self.adapter.placeholder
        if self.processor is None:
            return self._of(text_after_images(row, mask, placeholder))
        return self._of(question_words(row, mask, placeholder, self.tokenizer, self._template))

    @cached_property
    def _template(self) -> Template:
        return Template.of(self.processor, self.adapter.prompt)

    def _from_user(self, question: str | Question | None) -> Question | None:
        if isinstance(question, Question) and question.words is not None and question.tower is None:
            return replace(question, tower=self.adapter.carry_back(_some(question.words)))
        if not isinstance(question, str):
            return question
        ids = self.tokenizer(question, add_special_tokens=False)["input_ids"]
        return self._of(torch.tensor(ids, dtype=torch.long), question)

    def _of(self, words: Tensor, text: str | None = None) -> Question:
        question = self.adapter.question(_some(words))
        if self.clip is None:
            return question
        if text is None:
            text = self.tokenizer.decode(words, clean_up_tokenization_spaces=False).strip()
        return replace(question, clip=self.clip.text(text))


def _some(words: Tensor) -> Tensor:
    if not len(words):
        raise UnsupportedCallError(
            "The method reads the question, but there are no words in it. Ask something, or give question=."
        )
    return words
