"""evs: of a video the patches that changed since the frame before; of a single image patches spread evenly.

Paper: NVIDIA, "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference", 2025.
Code: vllm-project/vllm, vllm/multimodal/evs.py (known from its description).
Parity: an independent count in the tests; there are no vectors of the authors' code.
Differs: a budget below one frame is met by patches of the first frame, spread evenly, where vLLM keeps all of it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import normalize

from ..ops.select import spread
from ..tensors import Captures, Compressed
from .base import Method, Questions


@dataclass(frozen=True, kw_only=True)
class EVS(Method):
    """Send `budget` tokens (64 unless said otherwise) of a frame on average: all of the first, then what changed most.

    How much a patch changed is 1 - cosine to the patch at its place in the frame before. A frame may get none.
    """

    name: ClassVar[str] = "evs"

    @property
    def uses(self) -> frozenset[str]:
        """Which images are the frames of a video."""
        return frozenset({"frames"})

    def reduce(self, captures: Captures, questions: Questions) -> Compressed:
        """Rank the patches of all frames of a video together."""
        frames, patches = captures.frames or 1, captures.patches
        total, kept = captures.total or frames * self.tokens(patches), list[torch.Tensor]()
        directions = normalize(captures.patch_features.float(), dim=-1)
        for video in directions.view(-1, frames, *directions.shape[1:]):
            first = spread(captures.grid, min(total, patches)).to(video.device)
            changed = 1 - (video[1:] * video[:-1]).sum(-1)
            more = changed.flatten().sort(descending=True, stable=True).indices[: total - len(first)]
            later = [more[more // patches == frame] % patches for frame in range(frames - 1)]
            kept += [first, *(indices.sort().values for indices in later)]
        return Compressed.selection(captures, kept)
