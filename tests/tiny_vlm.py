"""A LLaVA small enough for tests: random weights, 56 px images of 4 x 4 patches, its own tokenizer and processor.

And a CLIP with the same tower, for methods that compare patches with text in its space.
"""

from functools import cache

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from sparsezip.models.base import TowerPass
from sparsezip.stages import capture
from sparsezip.trace import Trace

PATCH = 14
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@cache
def make_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["USER: What color is the star? Is there a red circle? ASSISTANT: yes no"] * 4, trainer
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=["<image>"],
        padding_side="left",
    )


def make_processor(side=56, template=TEMPLATE):
    size = {"height": side, "width": side}
    return LlavaProcessor(
        CLIPImageProcessorPil(size=size, do_center_crop=False),
        make_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def make_config(side=56, **settings):
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=side,
        patch_size=PATCH,
        projection_dim=32,
    )
    text = LlamaConfig(
        vocab_size=320,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    settings = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"} | settings
    return LlavaConfig(vision_config=vision, text_config=text, image_token_id=3, **settings)


def make_model(side=56, seed=0, dtype=torch.float32, **settings):
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(make_config(side, **settings)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Weights of the usual size make a tower without contrast and an LLM that answers every image alike.
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.25 if "vision_tower" not in name else 0.4)
        model.lm_head.weight[:5] = 0  # neither padding nor end nor image: answers have full length
    return model.to(dtype)


@cache
def make_clip_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["what is it"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|start|> $A <|end|>", special_tokens=[("<|start|>", 0), ("<|end|>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|start|>", eos_token="<|end|>", model_max_length=77
    )


def make_clip(model, width=32):
    """The CLIP whose vision tower `model` has (if it is as wide)."""
    text = CLIPTextConfig(
        vocab_size=len(make_clip_tokenizer()),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
    )
    vision = model.config.vision_config.to_dict() | {"hidden_size": width}
    torch.manual_seed(4)
    clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision, projection_dim=20)).eval()
    with torch.no_grad():
        for weight in clip.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    if width == 32:
        clip.vision_model.load_state_dict(model.model.vision_tower.state_dict())
    return clip


def picture(seed, side=56):
    """A picture of coarse random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((side, side), Image.Resampling.NEAREST)


def prompt(question, images=1):
    return "USER: " + "<image>\n" * images + question + " ASSISTANT:"


def inputs_for(*rows, side=56, padding_side="left"):
    """Processed inputs of rows (question, [picture seeds])."""
    pictures = [picture(seed, side) for _, seeds in rows for seed in seeds]
    return make_processor(side)(
        images=pictures or None,
        text=[prompt(question, len(seeds)) for question, seeds in rows],
        padding=True,
        padding_side=padding_side,
        return_tensors="pt",
        return_token_type_ids=False,
    )


def heard(adapter, call, seen, wanted, **settings):
    """What `capture` makes of images."""
    return capture(adapter, call, seen, TowerPass(captures=wanted, **settings), Trace())


def captured(adapter, pixels, wanted, **settings):
    """The same of images of one size."""
    call = {"pixel_values": pixels}
    (batch,) = heard(adapter, call, adapter.seen(call), wanted, **settings).batches
    return batch.captures


class NoAttentionMatrix(TorchDispatchMode):
    """Fails when any operation makes a tensor whose last two axes are both `rows` long."""

    def __init__(self, rows):
        super().__init__()
        self.shape = (rows, rows)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, torch.Tensor) and tensor.shape[-2:] == self.shape:
                raise AssertionError(f"{function} made an attention matrix of shape {tuple(tensor.shape)}")
        return output


def fingerprint(module):
    """Everything of a module tree that an interception could leave behind."""
    return {
        name: (
            {key: id(value) for key, value in vars(part).items() if not key.startswith("_")},
            {key: list(value) for key, value in vars(part).items() if key.endswith("_hooks") and value is not None},
        )
        for name, part in module.named_modules()
    }
