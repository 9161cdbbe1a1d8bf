"""Finding the question's own words in a prompt."""

import pytest
import torch
from tiny_vlm import TEMPLATE, inputs_for, make_processor, make_tokenizer

from sparsezip.models.llava import Llava
from sparsezip.plumbing.words import Template, question_words, text_after_images

QUESTION = "Is there a red circle?"
SYSTEM = "{{ 'Be brief. USER: hi. ' }}" + TEMPLATE.replace("ASSISTANT:", "ASSISTANT: Well,")
SPECIAL = (
    "{{ '<s>' }}{% for message in messages %}{{ '<s>' + message['role'] + '\n' }}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{{ '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


def turn(role, *parts):
    kinds = {True: {"type": "image"}}
    return {"role": role, "content": [kinds.get(part is None) or {"type": "text", "text": part} for part in parts]}


def words_of(prompt, template):
    """The words found in `prompt`, decoded."""
    processor = make_processor(template=template)
    ids = torch.tensor(processor.tokenizer(prompt)["input_ids"])
    found = Template.of(processor, Llava.prompt)
    return processor.tokenizer.decode(question_words(ids, torch.ones_like(ids), 3, processor.tokenizer, found)).strip()


@pytest.mark.parametrize("template", [TEMPLATE, SYSTEM, SPECIAL, None], ids=["llava", "system", "special", "none"])
def test_words_of_every_template(template):
    processor = make_processor(template=template)
    if template is None:
        prompt = Llava.prompt.replace("{question}", QUESTION)
    else:
        prompt = processor.apply_chat_template([turn("user", None, QUESTION)], add_generation_prompt=True)
    assert words_of(prompt, template) == QUESTION


@pytest.mark.parametrize("template", [TEMPLATE, SYSTEM, SPECIAL], ids=["llava", "system", "special"])
def test_the_last_question_of_a_conversation(template):
    conversation = [turn("user", None, "What is it?"), turn("assistant", "A star."), turn("user", QUESTION)]
    prompt = make_processor(template=template).apply_chat_template(conversation, add_generation_prompt=True)
    assert words_of(prompt, template) == QUESTION


def test_a_question_in_front_of_and_between_images():
    assert words_of(f"USER: {QUESTION} <image>\n ASSISTANT:", TEMPLATE) == QUESTION
    assert words_of("USER: Is <image> redder than <image>? ASSISTANT:", TEMPLATE) == "Is  redder than ?"


def test_no_template_in_the_prompt():
    assert words_of(f"Look: <image> {QUESTION}", TEMPLATE) == QUESTION


@pytest.mark.parametrize("template", [TEMPLATE, SYSTEM, SPECIAL, None], ids=["llava", "system", "special", "none"])
@pytest.mark.parametrize("question", ["", " "])
def test_an_empty_question_has_no_words(template, question):
    if template is None:
        prompt = Llava.prompt.replace("{question}", question)
    else:
        processor = make_processor(template=template)
        prompt = processor.apply_chat_template([turn("user", None, question)], add_generation_prompt=True)
    assert words_of(prompt, template) == ""


def test_padding_and_placeholders_are_no_words():
    inputs = inputs_for((QUESTION, [1]), ("What color is the star? What color is the star?", [1, 2]))
    processor = make_processor()
    template = Template.of(processor, Llava.prompt)
    row, mask = inputs["input_ids"][0], inputs["attention_mask"][0]
    assert mask[0] == 0
    words = question_words(row, mask, 3, processor.tokenizer, template)
    assert processor.tokenizer.decode(words).strip() == QUESTION
    assert text_after_images(row, mask, 3).tolist() == row[row.eq(3).nonzero().max() + 1 :].tolist()


def test_text_after_images_without_text_behind_or_image():
    ids = torch.tensor([0, 1, 7, 3, 3])
    assert text_after_images(ids, ids.ne(0).long(), 3).tolist() == [1, 7]
    ids = torch.tensor([1, 7, 8])
    assert text_after_images(ids, torch.ones_like(ids), 3).tolist() == [1, 7, 8]


def test_special_tokens_are_no_words():
    assert words_of("USER: <image>\nIs it<s> red?</s> ASSISTANT:", TEMPLATE) == "Is it red?"


def test_words_keep_their_tokens():
    """The words are tokens of the prompt itself, not of the question tokenised anew."""
    tokenizer = make_tokenizer()
    ids = torch.tensor(tokenizer(f"USER: <image>\n{QUESTION} ASSISTANT:")["input_ids"])
    words = question_words(ids, torch.ones_like(ids), 3, tokenizer, Template("USER:", "ASSISTANT:")).tolist()
    start = next(i for i in range(len(ids)) if ids[i : i + len(words)].tolist() == words)
    assert start > 0
