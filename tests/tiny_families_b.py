"""Tiny random models of seven more families and inputs for them: Qwen2/2.5/3-VL, Idefics3, SmolVLM, Mistral3, Llama4.

All patches are 4 px, all tokens 2 x 2 patches. A picture is 32 x 32, 40 x 32 or 32 x 64 px (height x width; by its
seed, modulo 3), which makes
    Qwen, Mistral3     16, 20 or 32 tokens in reading order
    Idefics3, SmolVLM  80, 80 or 48: 4, 4 or 2 tiles of 4 x 4 tokens, then the whole picture as one more tile
    Llama4             16, 48 or 48: likewise, of 1, 2 or 2 tiles; what is one tile has no other beside it

Run the file for a table of what works natively, which is all of it but beams: Llama4 raises with any image. And
transformers 5.18 (not 5.23) gives beams wrong images, without a word, where a row has several images, or tiles of
one: it repeats A, B as A, A, B, B. A row alone goes as wrong as in a batch, hence the look at their first logits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import tiny_vlm
import torch
import transformers
from PIL import Image
from transformers import (
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PixtralImageProcessorPil,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    SmolVLMImageProcessorPil,
)

PATCH, TILE = 4, 32
SIZES = ((32, 32), (40, 32), (32, 64))  # (height, width)
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
    "patch_size": PATCH,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


@dataclass(frozen=True)
class Tiny:
    make_model: Callable[..., Any]  # make_model(seed=0, dtype=torch.float32): a model in evaluation mode
    inputs: Callable[..., dict]  # inputs(*rows, padding_side="left"), a row being (question, [picture seeds])
    processor: Callable | None = None  # makes the family's own processor, where that works without torchvision
    video_inputs: Callable[..., dict] | None = None  # like inputs; each seed is a video of 2 or 3 temporal patches


# Blocks ---------------------------------------------------------------------------------------------------------------


@cache
def make_tokenizer(special):
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny_vlm.make_tokenizer().backend_tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=list(special),
        padding_side="left",
    )


def ids_of(special):
    return dict(zip(special, make_tokenizer(special).convert_tokens_to_ids(special), strict=True))


def make_model(name, special, vision, text=None, seed=0, dtype=torch.float32, **settings):
    """`name`: what the classes of the family begin with."""
    config = getattr(transformers, name + "Config")(
        vision_config=vision, text_config=TEXT | (text or {}), tie_word_embeddings=False, **settings
    )
    torch.manual_seed(seed)
    model = getattr(transformers, name + "ForConditionalGeneration")(config).eval()
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


def picture(seed, size=None):
    """A picture of random colours, each 2 x 2 px."""
    height, width = size or SIZES[seed % 3]
    colours = np.random.default_rng(seed).integers(0, 256, (height // 2, width // 2, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.NEAREST)


def tokenize(special, rows, expansions, padding_side):
    """Tokenized prompts of `rows`, whose images (in the order of all rows) are written as `expansions`."""
    texts, expansions = [], iter(expansions)
    for question, seeds in rows:
        images = "".join(next(expansions) + "\n" for _ in seeds)
        texts.append(f"USER: {images}{question} ASSISTANT:")
    return dict(
        make_tokenizer(special)(
            texts, padding=True, padding_side=padding_side, return_tensors="pt", return_token_type_ids=False
        )
    )


# Qwen -----------------------------------------------------------------------------------------------------------------
# Their processors need torchvision (for videos), so the text is made by hand; the pixels are the image processor's.


def qwen_pixels(pictures):
    size = {"shortest_edge": 16 * PATCH**2, "longest_edge": 4096 * PATCH**2}
    return dict(Qwen2VLImageProcessorPil(patch_size=PATCH, size=size)(pictures, return_tensors="pt"))


def qwen_tokens(rows, expansions, padding_side):
    tokens, ids = tokenize(QWEN, rows, expansions, padding_side), ids_of(QWEN)
    image, video = (tokens["input_ids"] == ids[token] for token in ("<|image_pad|>", "<|video_pad|>"))
    return tokens | {"mm_token_type_ids": image.long() + 2 * video.long()}


def qwen_inputs(*rows, padding_side="left"):
    pictures = [picture(seed) for _, seeds in rows for seed in seeds]
    pixels = qwen_pixels(pictures) if pictures else {}
    counts = [grid.prod() // 4 for grid in pixels.get("image_grid_thw", [])]
    expansions = ["<|vision_start|>" + "<|image_pad|>" * count + "<|vision_end|>" for count in counts]
    return qwen_tokens(rows, expansions, padding_side) | pixels


def qwen_video(seed):
    """Patches of a video in the order (time, place), and its grid."""
    size, times = SIZES[seed % 3], 2 + seed % 2
    frames = qwen_pixels([picture(100 * (seed + 1) + frame, size) for frame in range(2 * times)])
    grid = frames["image_grid_thw"][0]
    # The image processor writes each image twice, as both frames of a temporal patch.
    frames = frames["pixel_values"].view(times, 2, grid.prod(), 3, 2, PATCH**2)[:, :, :, :, 0]
    return frames.permute(0, 2, 3, 1, 4).reshape(times * grid.prod(), -1), torch.tensor([times, *grid[1:]])


def qwen_video_inputs(*rows, padding_side="left", frames_apart=False, seconds=None):
    videos = [qwen_video(seed) for _, seeds in rows for seed in seeds]
    expansions = []
    for _, (times, height, width) in videos:
        pads = "<|video_pad|>" * (height * width // 4)
        if frames_apart:
            frames = [f"<{time + 0.5:.1f} seconds><|vision_start|>{pads}<|vision_end|>" for time in range(times)]
            expansions.append("".join(frames))
        else:
            expansions.append(f"<|vision_start|>{pads * times}<|vision_end|>")
    tokens = qwen_tokens(rows, expansions, padding_side)
    if not videos:
        return tokens
    pixels, grids = map(list, zip(*videos, strict=True))
    tokens |= {"pixel_values_videos": torch.cat(pixels), "video_grid_thw": torch.stack(grids)}
    return tokens | ({"second_per_grid_ts": torch.full((len(videos),), seconds)} if seconds else {})


def qwen_model(name, vision, text=None, mrope=None, **settings):
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]} | (mrope or {})
    shared = {"patch_size": PATCH, "depth": 4, "num_heads": 4}
    tokens = {f"{token[2:-2].removesuffix('_pad')}_token_id": index for token, index in ids_of(QWEN).items()}
    return make_model(name, QWEN, shared | vision, {"rope_parameters": rope} | (text or {}), **tokens, **settings)


QWEN2 = {"embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}
QWEN2_5 = {  # windows of 2 x 2 tokens, that is 4 x 4 patches, in layers 0 and 2
    "hidden_size": 32,
    "out_hidden_size": 48,
    "intermediate_size": 48,
    "window_size": 16,
    "fullatt_block_indexes": [1, 3],
    "tokens_per_second": 2,
}
QWEN3 = {  # the outputs of tower layers 0 and 2 are added to those of decoder layers 0 and 1
    "hidden_size": 32,
    "out_hidden_size": 48,
    "intermediate_size": 48,
    "num_position_embeddings": 64,
    "deepstack_visual_indexes": [0, 2],
}


# Idefics3 and SmolVLM -------------------------------------------------------------------------------------------------


def idefics_processor(image_processor):
    """SmolVLM's own processor needs num2words and torchvision; with images alone it writes what Idefics3's does."""
    return Idefics3Processor(
        image_processor(size={"longest_edge": 2 * TILE}, max_image_size={"longest_edge": TILE}),
        make_tokenizer(IDEFICS),
        image_seq_len=16,
        chat_template=tiny_vlm.TEMPLATE,
    )


def idefics_inputs(image_processor, *rows, padding_side="left"):
    return dict(
        idefics_processor(image_processor)(
            images=[picture(seed) for _, seeds in rows for seed in seeds] or None,
            text=[tiny_vlm.prompt(question, len(seeds)) for question, seeds in rows],
            padding=True,
            padding_side=padding_side,
            return_tensors="pt",
            return_token_type_ids=False,
        )
    )


def idefics_model(name, **settings):
    vision, image = VISION | {"image_size": TILE}, ids_of(IDEFICS)["<image>"]
    return make_model(name, IDEFICS, vision, image_token_id=image, scale_factor=2, pad_token_id=0, **settings)


# Mistral3 -------------------------------------------------------------------------------------------------------------
# PixtralProcessor needs torchvision, so the text is made by hand; the pixels are the image processor's.


def mistral_inputs(*rows, padding_side="left"):
    pictures = [picture(seed) for _, seeds in rows for seed in seeds]
    images = PixtralImageProcessorPil(patch_size=2 * PATCH, size={"longest_edge": 64})
    pixels = dict(images(pictures, return_tensors="pt")) if pictures else {}
    grids = [size // (2 * PATCH) for size in pixels.get("image_sizes", [])]
    expansions = ["[IMG_BREAK]".join(["[IMG]" * width] * height) + "[IMG_END]" for height, width in grids]
    return tokenize(MISTRAL, rows, expansions, padding_side) | pixels


def mistral_model(**settings):
    vision, image = VISION | {"model_type": "pixtral", "image_size": 64}, ids_of(MISTRAL)["[IMG]"]
    text = {"model_type": "mistral", "head_dim": 12, "sliding_window": None}
    return make_model("Mistral3", MISTRAL, vision, text, image_token_index=image, spatial_merge_size=2, **settings)


# Llama4 ---------------------------------------------------------------------------------------------------------------
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
    images = [llama_tiles(picture(seed)) for _, seeds in rows for seed in seeds]
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
    return make_model("Llama4", LLAMA, VISION | vision, text, **tokens, **settings)


def qwen(name, vision, text=None, mrope=None, **video):
    """`video`: what of the inputs differs between the families."""
    model = partial(qwen_model, name, vision, text, mrope)
    return Tiny(model, qwen_inputs, video_inputs=partial(qwen_video_inputs, **video))


def idefics(name, image_processor, own_processor):
    processor = partial(idefics_processor, image_processor)
    return Tiny(
        partial(idefics_model, name), partial(idefics_inputs, image_processor), processor if own_processor else None
    )


TINY = {
    "qwen2_vl": qwen("Qwen2VL", QWEN2),
    "qwen2_5_vl": qwen("Qwen2_5_VL", QWEN2_5, seconds=1.5),
    "qwen3_vl": qwen(
        "Qwen3VL", QWEN3, {"num_hidden_layers": 4, "head_dim": 12}, {"mrope_interleaved": True}, frames_apart=True
    ),
    "idefics3": idefics("Idefics3", Idefics3ImageProcessorPil, own_processor=True),
    "smolvlm": idefics("SmolVLM", SmolVLMImageProcessorPil, own_processor=False),
    "mistral3": Tiny(mistral_model, mistral_inputs),
    "llama4": Tiny(llama_model, llama_inputs),
}


# What native transformers does with them ------------------------------------------------------------------------------

ROWS = (("Is there a red circle?", [0]), ("What?", []), ("What color is it?", [1, 2]))


def attempt(function):
    try:
        return function()
    except Exception as error:
        return type(error).__name__


@torch.no_grad()
def check(model, make):
    """Facts of one family, for rows with 1, 0 and 2 images (or videos)."""

    def last(inputs):
        logits = model(**inputs).logits
        return logits[torch.arange(len(logits)), -1 - inputs["attention_mask"].flip(-1).argmax(-1)]

    def answers(rows, **settings):
        inputs = make(*rows)
        output = model.generate(**inputs, max_new_tokens=6, do_sample=False, **settings)
        return output[:, inputs["input_ids"].shape[1] :]

    def like_alone(**settings):
        together, alone = answers(ROWS, **settings), [answers([row], **settings)[0] for row in ROWS]
        return f"{sum(map(torch.equal, together, alone))}/3"

    def first_logits(**settings):
        settings |= {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 1}
        return model.generate(**make(*ROWS), do_sample=False, **settings).logits[0]

    def differ(one, other):
        return f"{(one - other).abs().max():.1e}"

    logits, alone = last(make(*ROWS)), torch.cat([last(make(row)) for row in ROWS])
    return {
        "spread of logits": f"{logits.std():.2f}",
        "other picture": differ(last(make((ROWS[0][0], [3]))), alone[:1]),  # as large as picture 0
        "batch": differ(logits, alone),
        "right padding": differ(last(make(*ROWS, padding_side="right")), alone),
        "greedy = alone": like_alone(),
        "beams = alone": attempt(lambda: like_alone(num_beams=2)),
        "beams' first logits": attempt(
            lambda: differ(first_logits(num_beams=2), first_logits().repeat_interleave(2, 0))
        ),
    }


if __name__ == "__main__":
    kinds = [(name, tiny.make_model, tiny.inputs) for name, tiny in TINY.items()]
    kinds += [(f"{name} video", tiny.make_model, tiny.video_inputs) for name, tiny in TINY.items() if tiny.video_inputs]
    table = {name: check(model(), make) for name, model, make in kinds}
    heads = list(table["llama4"])
    print(f"{'transformers ' + transformers.__version__:20}", *heads, sep="  ")
    for name, row in table.items():
        print(f"{name:20}", *(f"{row[head]:>{len(head)}}" for head in heads), sep="  ")
