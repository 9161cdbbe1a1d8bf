"""Tiny random models of every family of sparsezip, each with made inputs: nothing is downloaded.

Each has the kind of decoder that released checkpoints have. Of the first part (LLaVA and its kin, InternVL, PaliGemma,
Gemma 3) patches have 14 px; of the second (Qwen, Idefics3, SmolVLM, Mistral3, Llama4) 4 px and a token is 2 x 2 of
them. A picture's seed gives its size, and a row is (question, [picture seeds]).

Where transformers itself differs: 5.18 gives beams wrong images, without a word, where a row has several or tiles of
one (it repeats A, B as A, A, B, B). Llama4 raises with beams.
"""

import warnings
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
SMALL, TILE = 4, 32
SMALL_SIZES = ((32, 32), (40, 32), (32, 64))  # (height, width)
QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
IDEFICS = ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
IDEFICS += ("<row_1_col_1>", "<row_1_col_2>", "<row_2_col_1>", "<row_2_col_2>")
MISTRAL = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
LLAMA = ("<|image_start|>", "<|image_end|>", "<|image|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>")
TEXT = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "patch_size": SMALL,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


@dataclass(frozen=True)
class Tiny:
    make_model: Callable[..., Any]  # make_model(seed=0, dtype=torch.float32) -> eval model
    inputs: Callable[..., dict]  # inputs(*rows, padding_side="left") -> tensors for model(**inputs) and generate
    processor: Callable[[], Any] | None = None  # makes the family's processor, where it works without torchvision


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


# --- the first part: models -------------------------------------------------------------------------------------------


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
    with warnings.catch_warnings():  # PaliGemma's gives tensors to numpy in a way that goes out of use
        warnings.simplefilter("ignore", DeprecationWarning)
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


@cache
def tokenizer_of(special):
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tiny_vlm.make_tokenizer().backend_tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=list(special),
        padding_side="left",
    )


def ids_of(special):
    return dict(zip(special, tokenizer_of(special).convert_tokens_to_ids(special), strict=True))


def random_model(name, special, vision, text=None, seed=0, dtype=torch.float32, **settings):
    """`name`: what the classes of the family begin with."""
    config = getattr(hf, name + "Config")(
        vision_config=vision, text_config=TEXT | (text or {}), tie_word_embeddings=False, **settings
    )
    torch.manual_seed(seed)
    model = getattr(hf, name + "ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for part, weight in model.named_parameters():
            # Weights of the usual size make a tower without contrast and an LLM that answers every image alike.
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.3 if "vision_" in part or "visual." in part else 0.12)
            # Not model.to(dtype): Llama4's tower has a complex buffer, of which even .to(torch.float32) leaves the
            # real part only. And like from_pretrained, this leaves the frequencies of rotary embeddings in float32.
            weight.data = weight.data.to(dtype)
        silent = [0, 1, 2, *ids_of(special).values()]  # answers are of full length, and text only
        model.get_output_embeddings().weight[silent] = 0
    return model


def small_picture(seed, size=None):
    """A picture of random colours, each 2 x 2 px."""
    height, width = size or SMALL_SIZES[seed % 3]
    colours = np.random.default_rng(seed).integers(0, 256, (height // 2, width // 2, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST)


def tokenize(special, rows, expansions, padding_side):
    """Tokenized prompts of `rows`, whose images (in the order of all rows) are written as `expansions`."""
    texts, expansions = [], iter(expansions)
    for question, seeds in rows:
        images = "".join(next(expansions) + "\n" for _ in seeds)
        texts.append(f"USER: {images}{question} ASSISTANT:")
    return dict(
        tokenizer_of(special)(
            texts, padding=True, padding_side=padding_side, return_tensors="pt", return_token_type_ids=False
        )
    )


# --- Qwen -------------------------------------------------------------------------------------------------------------
# Their processors need torchvision (for videos), so the text is made by hand; the pixels are the image processor's.


def qwen_pixels(pictures):
    size = {"shortest_edge": 16 * SMALL**2, "longest_edge": 4096 * SMALL**2}
    return dict(hf.Qwen2VLImageProcessorPil(patch_size=SMALL, size=size)(pictures, return_tensors="pt"))


def qwen_tokens(rows, expansions, padding_side):
    tokens, ids = tokenize(QWEN, rows, expansions, padding_side), ids_of(QWEN)
    image, video = (tokens["input_ids"] == ids[token] for token in ("<|image_pad|>", "<|video_pad|>"))
    return tokens | {"mm_token_type_ids": image.long() + 2 * video.long()}


def qwen_inputs(*rows, padding_side="left"):
    pictures = [small_picture(seed) for _, seeds in rows for seed in seeds]
    pixels = qwen_pixels(pictures) if pictures else {}
    counts = [grid.prod() // 4 for grid in pixels.get("image_grid_thw", [])]
    expansions = ["<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>" for count in counts]
    return qwen_tokens(rows, expansions, padding_side) | pixels


def qwen_model(name, vision, text=None, mrope=None, **settings):
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]} | (mrope or {})
    shared = {"patch_size": SMALL, "depth": 4, "num_heads": 4}
    tokens = {f"{token[2:-2].removesuffix('_pad')}_token_id": index for token, index in ids_of(QWEN).items()}
    return random_model(name, QWEN, shared | vision, {"rope_parameters": rope} | (text or {}), **tokens, **settings)


QWEN2 = {"embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}
QWEN2_5 = {  # windows of 2 x 2 tokens, that is 4 x 4 patches, in layers 0 and 2
    "hidden_size": 32,
    "out_hidden_size": 48,
    "intermediate_size": 48,
    "window_size": 16,
    "fullatt_block_indexes": [1, 3],
    "tokens_per_second": 2,
}
QWEN3_TEXT = {"num_hidden_layers": 4, "head_dim": 12}
QWEN3 = {  # the outputs of tower layers 0 and 2 are added to those of decoder layers 0 and 1
    "hidden_size": 32,
    "out_hidden_size": 48,
    "intermediate_size": 48,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 2],
}


# --- Idefics3 and SmolVLM ---------------------------------------------------------------------------------------------


def idefics_processor(image_processor):
    """SmolVLM's own processor needs num2words and torchvision; with images alone it writes what Idefics3's does."""
    return hf.Idefics3Processor(
        image_processor(size={"longest_edge": 2 * TILE}, max_image_size={"longest_edge": TILE}),
        tokenizer_of(IDEFICS),
        image_seq_len=16,
        chat_template=tiny_vlm.TEMPLATE,
    )


def idefics_inputs(image_processor, *rows, padding_side="left"):
    return dict(
        idefics_processor(image_processor)(
            images=[small_picture(seed) for _, seeds in rows for seed in seeds] or None,
            text=[tiny_vlm.prompt(question, len(seeds)) for question, seeds in rows],
            padding=True,
            padding_side=padding_side,
            return_tensors="pt",
            return_token_type_ids=False,
        )
    )


def idefics_model(name, **settings):
    vision, image = VISION | {"image_size": TILE}, ids_of(IDEFICS)["<image>"]
    return random_model(name, IDEFICS, vision, image_token_id=image, scale_factor=2, pad_token_id=0, **settings)


# --- Mistral3 ---------------------------------------------------------------------------------------------------------
# PixtralProcessor needs torchvision, so the text is made by hand; the pixels are the image processor's.


def mistral_inputs(*rows, padding_side="left"):
    pictures = [small_picture(seed) for _, seeds in rows for seed in seeds]
    images = hf.PixtralImageProcessorPil(patch_size=2 * SMALL, size={"longest_edge": 64})
    pixels = dict(images(pictures, return_tensors="pt")) if pictures else {}
    grids = [size // (2 * SMALL) for size in pixels.get("image_sizes", [])]
    expansions = ["[IMG_BREAK]".join(["[IMG]" * width] * height) + "[IMG_END]" for height, width in grids]
    return tokenize(MISTRAL, rows, expansions, padding_side) | pixels


def mistral_model(**settings):
    vision, image = VISION | {"model_type": "pixtral", "image_size": 64}, ids_of(MISTRAL)["[IMG]"]
    text = {"model_type": "mistral", "head_dim": 12, "sliding_window": None}
    return random_model("Mistral3", MISTRAL, vision, text, image_token_index=image, spatial_merge_size=2, **settings)


# --- Llama4 -----------------------------------------------------------------------------------------------------------
# Its image processor needs torchvision: all of its inputs are made by hand. (In float32, where it gives bfloat16.)


def llama_tiles(image):
    """The tiles of a picture as its image processor makes them: [tiles, 3, TILE, TILE], and (rows, columns)."""
    rows, columns = -(-image.height // TILE), -(-image.width // TILE)
    canvas = Image.new("RGB", (columns * TILE, rows * TILE))
    canvas.paste(image)
    corners = [(column * TILE, row * TILE) for row in range(rows) for column in range(columns)]
    tiles = [canvas.crop((x, y, x + TILE, y + TILE)) for x, y in corners]
    tiles += [image.resize((TILE, TILE), Image.Resampling.BILINEAR)] if len(tiles) > 1 else []
    pixels = torch.tensor(np.stack(tiles)).permute(0, 3, 1, 2) / 127.5 - 1
    return pixels, (rows, columns)


def llama_inputs(*rows, padding_side="left"):
    images = [llama_tiles(small_picture(seed)) for _, seeds in rows for seed in seeds]
    pads, expansions = "<|patch|>" * 16, []
    for tiles, (height, width) in images:
        line = "<|tile_x_separator|>".join([pads] * width) + "<|tile_y_separator|>"
        expansions.append(f"<|image_start|>{line * height * (len(tiles) > 1)}<|image|>{pads}<|image_end|>")
    tokens = tokenize(LLAMA, rows, expansions, padding_side)
    return tokens | ({"pixel_values": torch.cat([tiles for tiles, _ in images])} if images else {})


def llama_model(**settings):
    """Layer 1 of the decoder has experts and no rotary embedding; the others are dense and rotate."""
    vision = {
        "intermediate_size": 128,  # that of four patches beside each other
        "image_size": TILE,
        "projector_input_dim": 64,
        "projector_output_dim": 64,
        "vision_output_dim": 64,
    }
    text = {
        "head_dim": 12,
        "intermediate_size": 32,
        "intermediate_size_mlp": 64,
        "num_local_experts": 4,
        "moe_layers": [1],
        "no_rope_layers": [1, 0, 1],
    }
    ids = ids_of(LLAMA)
    tokens = {"boi": "<|image_start|>", "eoi": "<|image_end|>", "image": "<|patch|>"}
    tokens = {f"{name}_token_index": ids[token] for name, token in tokens.items()}
    return random_model("Llama4", LLAMA, VISION | vision, text, **tokens, **settings)


def qwen(name, vision, text=None, mrope=None):
    return Tiny(partial(qwen_model, name, vision, text, mrope), qwen_inputs)


def idefics(name, image_processor, own_processor):
    processor = partial(idefics_processor, image_processor)
    return Tiny(
        partial(idefics_model, name), partial(idefics_inputs, image_processor), processor if own_processor else None
    )


def llava_model(**settings):
    """Tests of LLaVA alone have larger weights in the LLM, and so larger rounding errors."""
    model = tiny_vlm.make_model(**settings)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "vision_tower" not in name:
                weight *= 0.5
    return model


TINY = {
    "llava": Tiny(llava_model, tiny_vlm.inputs_for, tiny_vlm.make_processor),
    "llava_pixtral": tiny(Llava, llava_pixtral_config, pixtral_tokens, inputs=pixtral_inputs),
    "llava_next": tiny(Next, llava_next_config, llava_tokens, llava_next_processor, sizes=SIZES),
    "llava_onevision": tiny(Onevision, llava_onevision_config, llava_tokens, llava_onevision_processor, sizes=SIZES),
    "vipllava": tiny(VipLlava, vipllava_config, llava_tokens, vipllava_processor),
    "internvl": tiny(InternVL, internvl_config, internvl_tokens, internvl_processor, mark="<IMG_CONTEXT>", sizes=SIZES),
    "paligemma": tiny(PaliGemma, paligemma_config, paligemma_tokens, paligemma_processor, paligemma_inputs),
    "gemma3": tiny(Gemma3, gemma3_config, gemma3_tokens, gemma3_processor, mark=SOFT),
    "qwen2_vl": qwen("Qwen2VL", QWEN2),
    "qwen2_5_vl": qwen("Qwen2_5_VL", QWEN2_5),
    "qwen3_vl": qwen("Qwen3VL", QWEN3, QWEN3_TEXT, {"mrope_interleaved": True}),
    "idefics3": idefics("Idefics3", hf.Idefics3ImageProcessorPil, own_processor=True),
    "smolvlm": idefics("SmolVLM", hf.SmolVLMImageProcessorPil, own_processor=False),
    "mistral3": Tiny(mistral_model, mistral_inputs),
    "llama4": Tiny(llama_model, llama_inputs),
}
