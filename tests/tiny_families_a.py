"""Tiny random models of transformers families, each with made inputs: nothing is downloaded.

Here: LLaVA with a Pixtral tower, LLaVA-NeXT, LLaVA-OneVision, VipLLaVA, InternVL, PaliGemma, Gemma 3, each with the
kind of decoder that its released checkpoints have. Run the file for a table of what works natively: all of it, but that
transformers 5.18 (not 5.23) gives beams wrong images ("beams' prefill") where a row has several, or InternVL makes
several tiles of one: it repeats A, B as A, A, B, B. With one entry a row in mm_encoder_outputs both are right.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import tiny_vlm
import torch
import transformers as hf
from PIL import Image

PATCH = 14
SIDE = 56  # of an image or tile: 4 x 4 patches, or 8 x 8 of half the size that become 4 x 4 tokens
SQUARE = ((56, 56),)
# Height and width. LLaVA-NeXT pads number 2 on the left and right, and number 4 at top and bottom.
SIZES = ((56, 112), (84, 126), (140, 90), (112, 112), (60, 112), (70, 210))
PINPOINTS = [[56, 112], [112, 56], [112, 112], [56, 168], [168, 56], [112, 168]]


@dataclass(frozen=True)
class Tiny:
    make_model: Callable[..., Any]  # make_model(seed=0, dtype=torch.float32) -> eval model
    inputs: Callable[..., dict]  # inputs(*rows, padding_side="left") -> tensors for model(**inputs) and generate
    processor: Callable[[], Any] | None  # makes the family's processor, where it works without torchvision


@cache
def make_tokenizer(**named):
    """Our tokenizer with special tokens that processors find by name."""
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tiny_vlm.make_tokenizer().backend_tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=named,
        padding_side="left",
    )


llava_tokens = partial(make_tokenizer, image_token="<image>", video_token="<video>")
pixtral_tokens = partial(make_tokenizer, image_token="[IMG]", break_token="[IMG_BREAK]", end_token="[IMG_END]")
internvl_tokens = partial(
    make_tokenizer,
    start_image_token="<img>",
    end_image_token="</img>",
    context_image_token="<IMG_CONTEXT>",
    video_token="<video>",
)
paligemma_tokens = partial(make_tokenizer, image_token="<image>")  # its own: PaliGemmaProcessor adds tokens
gemma3_tokens = partial(
    make_tokenizer, image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>"
)


# --- models -----------------------------------------------------------------------------------------------------------


def llm(kind, tokenizer, **settings):
    return kind(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        **settings,
    )


def tower(kind, side=SIDE, patch=PATCH, **settings):
    widths = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2}
    return kind(**widths, image_size=side, patch_size=patch, **settings)


def llava_pixtral_config(tokenizer):
    return hf.LlavaConfig(
        vision_config=tower(hf.PixtralVisionConfig, side=10 * PATCH),
        text_config=llm(hf.MistralConfig, tokenizer, sliding_window=None, head_dim=16),
        image_token_id=tokenizer.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def llava_next_config(tokenizer):
    return hf.LlavaNextConfig(
        vision_config=tower(hf.CLIPVisionConfig),
        text_config=llm(hf.MistralConfig, tokenizer, sliding_window=None),
        image_token_id=tokenizer.image_token_id,
        image_grid_pinpoints=PINPOINTS,
    )


def llava_onevision_config(tokenizer):
    return hf.LlavaOnevisionConfig(
        vision_config=tower(hf.SiglipVisionConfig, vision_use_head=False),
        text_config=llm(hf.Qwen2Config, tokenizer),
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_3",  # pictures 1 and 3 are interpolated to about 3 tiles
    )


def vipllava_config(tokenizer):
    return hf.VipLlavaConfig(
        vision_config=tower(hf.CLIPVisionConfig),
        text_config=llm(hf.LlamaConfig, tokenizer),
        image_token_id=tokenizer.image_token_id,
        vision_feature_layers=[-2, -3, 1],
    )


def internvl_config(tokenizer):
    return hf.InternVLConfig(
        vision_config=tower(hf.InternVLVisionConfig, patch=PATCH // 2, attention_bias=True),
        text_config=llm(hf.Qwen2Config, tokenizer),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=16,
        tie_word_embeddings=False,
    )


def paligemma_config(tokenizer):
    paligemma_processor()  # adds its location and segment tokens to the tokenizer
    return hf.PaliGemmaConfig(
        vision_config=tower(hf.SiglipVisionConfig, vision_use_head=False),
        text_config=llm(hf.GemmaConfig, tokenizer, head_dim=16),
        image_token_id=tokenizer.image_token_id,
        projection_dim=48,
        hidden_size=48,
        tie_word_embeddings=False,
    )


def gemma3_config(tokenizer):
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    attention = {"query_pre_attn_scalar": 16, "layer_types": layers, "sliding_window": 48}  # rows of 2 images: longer
    return hf.Gemma3Config(
        vision_config=tower(hf.SiglipVisionConfig, patch=PATCH // 2, vision_use_head=False),
        text_config=llm(hf.Gemma3TextConfig, tokenizer, head_dim=16, **attention),
        mm_tokens_per_image=16,
        image_token_id=tokenizer.image_token_id,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        tie_word_embeddings=False,
    )


def make_model(kind, make_config, tokens, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    model = kind(make_config(tokens())).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Weights of the usual size make a tower without contrast and an LLM that answers every image alike. Larger
            # ones make larger rounding errors: with these, logits of a row alone and in a batch differ by < 3e-6.
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.12 if "vision_tower" not in name else 0.4)
            elif "lambda_" in name:
                torch.nn.init.ones_(weight)  # InternVL starts its layers at a tenth
        # Neither padding nor end nor a token of images: answers have full length.
        model.lm_head.weight[[*range(5), *tokens().all_special_ids]] = 0
    return model.to(dtype)


# --- processors -------------------------------------------------------------------------------------------------------


class WithoutVideos:
    """For processors that insist on a video processor, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name, argument):
        if argument_name != "video_processor":
            super().check_argument_for_proper_class(argument_name, argument)


class OnevisionProcessor(WithoutVideos, hf.LlavaOnevisionProcessor):
    pass


class InternVLProcessor(WithoutVideos, hf.InternVLProcessor):
    pass


def square(side=SIDE):
    return {"height": side, "width": side}


def clip_processor(kind, images):
    strategy = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return kind(images, llava_tokens(), patch_size=PATCH, **strategy)


def llava_next_processor():
    sizes = {"size": {"shortest_edge": SIDE}, "crop_size": square(), "image_grid_pinpoints": PINPOINTS}
    return clip_processor(hf.LlavaNextProcessor, hf.LlavaNextImageProcessorPil(**sizes))


def vipllava_processor():
    return clip_processor(hf.LlavaProcessor, hf.CLIPImageProcessorPil(size=square(), do_center_crop=False))


def llava_onevision_processor():
    return OnevisionProcessor(
        hf.LlavaOnevisionImageProcessorPil(size=square(), image_grid_pinpoints=PINPOINTS),
        llava_tokens(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_3",
    )


def internvl_processor():
    images = hf.GotOcr2ImageProcessorPil(size=square(), max_patches=4)  # at most 4 tiles, then one of the whole
    return InternVLProcessor(images, internvl_tokens(), image_seq_length=16)


def paligemma_processor():
    images = hf.SiglipImageProcessorPil(size=square())
    images.image_seq_length = 16
    return hf.PaliGemmaProcessor(images, paligemma_tokens())


def gemma3_processor():
    return hf.Gemma3Processor(hf.Gemma3ImageProcessorPil(size=square()), gemma3_tokens(), image_seq_length=16)


# --- inputs -----------------------------------------------------------------------------------------------------------


def picture(seed, sizes=SQUARE):
    """A picture of coarse random colours, of the size that its seed gives."""
    height, width = sizes[seed % len(sizes)]
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST)


def prompt(question, images, mark="<image>"):
    return "USER: " + f"{mark}\n" * images + question + " ASSISTANT:"


def tokenized(tokens, texts, padding_side, **settings):
    return dict(tokens()(texts, padding=True, padding_side=padding_side, return_tensors="pt", **settings))


def processed(make_processor, *rows, mark="<image>", sizes=SQUARE, padding_side="left"):
    """Inputs of rows (question, [picture seeds]), by the family's processor."""
    pictures = [[picture(seed, sizes) for seed in seeds] for _, seeds in rows]
    batch = make_processor()(
        images=pictures if any(pictures) else None,
        text=[prompt(question, len(seeds), mark) for question, seeds in rows],
        padding=True,
        padding_side=padding_side,
        return_tensors="pt",
    )
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def paligemma_inputs(*rows, padding_side="left"):
    """The processor refuses rows all without images, and breaks one among others by <s> after its sixth letter."""
    if any(seeds for _, seeds in rows):
        return processed(paligemma_processor, *rows, padding_side=padding_side)
    texts = ["USER: <s>" + prompt(question, 0).removeprefix("USER: ") + "\n" for question, _ in rows]
    return tokenized(paligemma_tokens, texts, padding_side, return_token_type_ids=True)


def pixtral_inputs(*rows, padding_side="left"):
    """By hand: PixtralProcessor needs torchvision even to be imported."""
    pictures = [picture(seed, SIZES) for _, seeds in rows for seed in seeds]
    images = {}
    if pictures:
        make = hf.PixtralImageProcessorPil(size={"longest_edge": 10 * PATCH}, patch_size=square(PATCH))
        images = dict(make(pictures, return_tensors="pt"))
    grids = iter((images["image_sizes"] // PATCH).tolist() if pictures else [])
    texts = []
    for question, seeds in rows:
        text, *rest = prompt(question, len(seeds), "[IMG]").split("[IMG]")
        for after in rest:
            height, width = next(grids)
            text += "[IMG_BREAK]".join(["[IMG]" * width] * height) + "[IMG_END]" + after
        texts.append(text)
    return tokenized(pixtral_tokens, texts, padding_side, return_token_type_ids=False) | images


def tiny(kind, make_config, tokens, processor=None, inputs=None, **settings):
    inputs = inputs or partial(processed, processor, **settings)
    return Tiny(partial(make_model, kind, make_config, tokens), inputs, processor)


Llava, VipLlava = hf.LlavaForConditionalGeneration, hf.VipLlavaForConditionalGeneration
Next, Onevision = hf.LlavaNextForConditionalGeneration, hf.LlavaOnevisionForConditionalGeneration
InternVL = hf.InternVLForConditionalGeneration
PaliGemma, Gemma3 = hf.PaliGemmaForConditionalGeneration, hf.Gemma3ForConditionalGeneration
SOFT = "<start_of_image>"  # what stands for an image in Gemma 3's texts

TINY = {
    "llava_pixtral": tiny(Llava, llava_pixtral_config, pixtral_tokens, inputs=pixtral_inputs),
    "llava_next": tiny(Next, llava_next_config, llava_tokens, llava_next_processor, sizes=SIZES),
    "llava_onevision": tiny(Onevision, llava_onevision_config, llava_tokens, llava_onevision_processor, sizes=SIZES),
    "vipllava": tiny(VipLlava, vipllava_config, llava_tokens, vipllava_processor),
    "internvl": tiny(InternVL, internvl_config, internvl_tokens, internvl_processor, mark="<IMG_CONTEXT>", sizes=SIZES),
    "paligemma": tiny(PaliGemma, paligemma_config, paligemma_tokens, paligemma_processor, paligemma_inputs),
    "gemma3": tiny(Gemma3, gemma3_config, gemma3_tokens, gemma3_processor, mark=SOFT),
}


# --- what transformers does with them by itself -----------------------------------------------------------------------

ROWS = (("Is there a red circle?", [0]), ("What?", []), ("What color is the star? yes no", [1, 3]))


@torch.no_grad()
def check(tiny):
    model, batch = tiny.make_model(), tiny.inputs(*ROWS)
    prefills = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: prefills.append(kwargs["inputs_embeds"]), with_kwargs=True
    )

    def answers(inputs, beams=1):
        prefills.clear()
        sequences = model.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=beams)
        return sequences[:, inputs["input_ids"].shape[1] :].tolist()

    def last(inputs):
        ends = inputs["attention_mask"].cumsum(1).argmax(1)
        return model(**inputs).logits[range(len(ends)), ends]

    def worst(these, those):
        return f"{(these - those).abs().max().item():.1e}"

    alone = [tiny.inputs(row) for row in ROWS]
    others = [tiny.inputs((ROWS[0][0], [seed])) for seed in (0, 6, 12)]  # pictures of one size
    results = {
        "tokens": [int((tiny.inputs(("", [s]))["input_ids"] == model.config.image_token_id).sum()) for s in range(6)],
        "alone": worst(torch.cat([last(row) for row in alone]), last(batch)),
        "right padding": worst(last(tiny.inputs(*ROWS, padding_side="right")), last(batch)),
        "logits": f"{last(batch).std().item():.1f}",
        "other image": f"{min((last(others[0]) - last(other)).abs().max().item() for other in others[1:]):.1f}",
        "answers": f"{len({str(answers(other)) for other in others})} of 3 differ",
    }
    for beams in (1, 2):
        together = answers(batch, beams)
        embeds = prefills[0]
        same = sum(answers(row, beams)[0] == its for row, its in zip(alone, together, strict=True))
        results["greedy" if beams == 1 else "beams"] = f"{same} of 3 as alone"
    answers(batch)
    return results | {"beams' prefill": worst(embeds, prefills[0].repeat_interleave(2, 0))}


if __name__ == "__main__":
    print("transformers", hf.__version__)
    for name, family in TINY.items():
        print(f"{name:16}", "  ".join(f"{key} {value}" for key, value in check(family).items()))
