"""Videos for the tiny models whose families take them: made by hand, as the processors that do it need torchvision."""

from functools import partial

import torch
from tiny_families import SMALL, SMALL_SIZES, llava_tokens, qwen_pixels, qwen_tokens, small_picture


def qwen_video(seed):
    """Patches of a video of 2 or 3 temporal patches in the order (time, place), and its grid."""
    times = 2 + seed % 2
    pictures = [small_picture(3 * (100 * (seed + 1) + frame) + seed % len(SMALL_SIZES)) for frame in range(2 * times)]
    frames = qwen_pixels(pictures)
    grid = frames["image_grid_thw"][0]
    # The image processor writes each image twice, as both frames of a temporal patch.
    frames = frames["pixel_values"].view(times, 2, grid.prod(), 3, 2, SMALL**2)[:, :, :, :, 0]
    return frames.permute(0, 2, 3, 1, 4).reshape(times * grid.prod(), -1), torch.tensor([times, *grid[1:]])


def qwen_videos(*rows, padding_side="left", frames_apart=False, seconds=None):
    videos = [qwen_video(seed) for _, seeds in rows for seed in seeds]
    expansions = []
    for _, (times, height, width) in videos:
        pads = "<|video_pad|>" * (height * width // 4)
        if frames_apart:  # each behind its time
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


def onevision_videos(*rows, frames=3):
    """Three frames of 4 x 4 patches, scaled down to 2 x 2, and one end of a line."""
    texts = [f"USER: {'<video>' * (4 * frames + 1) * len(seeds)} {question} ASSISTANT:" for question, seeds in rows]
    tokens = dict(llava_tokens()(texts, padding=True, return_tensors="pt", return_token_type_ids=False))
    seeds = [seed for _, row in rows for seed in row]
    if not seeds:
        return tokens
    drawn = [torch.randn(frames, 3, 56, 56, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return tokens | {"pixel_values_videos": torch.stack(drawn)}


VIDEOS = {
    "qwen2_vl": qwen_videos,
    "qwen2_5_vl": partial(qwen_videos, seconds=1.5),
    "qwen3_vl": partial(qwen_videos, frames_apart=True),
    "llava_onevision": onevision_videos,
}
