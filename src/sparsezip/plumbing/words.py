"""Find the question's own words in a tokenised prompt: no placeholders, no padding, no template, no system text."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Int
from torch import Tensor

_MARK = "@@@"


@dataclass(frozen=True)
class Template:
    """What stands directly in front of and behind the user's words in the last turn of a prompt."""

    before: str
    after: str

    @classmethod
    def of(cls, processor: Any, default: str) -> "Template":
        """The processor's chat template, or `default` (with "<image>" and "{question}" in it) where it has none."""
        if getattr(processor, "chat_template", None) is None:
            mark = getattr(processor, "image_token", "<image>")
            before, after = default.replace(mark, "").split("{question}")
            return cls(before.strip(), after.strip())
        user, assistant = (
            {"role": role, "content": [{"type": "text", "text": _MARK}]} for role in ("user", "assistant")
        )
        first, after = processor.apply_chat_template([user], add_generation_prompt=True).split(_MARK)
        later = processor.apply_chat_template([user, assistant, user], add_generation_prompt=True).split(_MARK)[2]
        # The system text stands in front of the first turn only, the end of the answer in front of the later one only.
        common = next((first[cut:] for cut in range(len(first)) if later.endswith(first[cut:])), "")
        return cls(common.strip(), after.strip())


def question_words(
    row: Int[Tensor, "token"], mask: Int[Tensor, "token"], placeholder: int, tokenizer: Any, template: Template
) -> Int[Tensor, "word"]:
    """The token ids of the last question in one prompt, none if it is empty.

    Where no template is found: all text behind the last image.
    """
    ids = row[mask.bool() & row.ne(placeholder)].tolist()
    decode = partial(tokenizer.decode, clean_up_tokenization_spaces=False)
    text = decode(ids)
    end = text.rfind(template.after) if template.after else len(text)
    start = text.rfind(template.before, 0, end) if template.before and end >= 0 else -1
    if start < 0:
        return text_after_images(row, mask, placeholder)
    question = text[start + len(template.before) : end]
    if not question.strip():
        return row[:0]
    start = end - len(question.lstrip())
    end = start + len(question.strip())
    # Token i reaches up to the length of the text decoded so far, which only grows.
    first = bisect_right(range(len(ids)), start, key=lambda i: len(decode(ids[: i + 1])))
    stop = bisect_left(range(len(ids)), end, key=lambda i: len(decode(ids[:i])))
    special = set(tokenizer.all_special_ids)
    return row.new_tensor([token for token in ids[first:stop] if token not in special])


def text_after_images(row: Int[Tensor, "token"], mask: Int[Tensor, "token"], placeholder: int) -> Int[Tensor, "word"]:
    """The token ids behind the last image of one prompt; all its text where nothing stands behind the image."""
    text, image = mask.bool() & row.ne(placeholder), row.eq(placeholder).nonzero()
    last = int(image[-1]) if len(image) else -1
    behind = row[last + 1 :][text[last + 1 :]]
    return behind if len(behind) else row[text]
