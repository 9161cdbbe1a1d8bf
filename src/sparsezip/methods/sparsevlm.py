"""sparsevlm: words that are about the image rate its tokens inside the LLM; the best of those that go are merged.

Paper: Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML 2025.
Code: Gumpest/SparseVLMs @ 91fb6d9 (1.0), b9619e6 (1.5), 26a5f48 (2.0: SparseVLM+), llava/model/language_model.
Parity: golden vectors, both forms: choices, clusters, heads, ranks exactly, values to 2e-6; their noise is left out.
Differs: positions stay, layers follow the depth, gravity stays above 5 %; no torch.rand noise; few tokens all stay.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, Field
from torch import Tensor

from ..errors import SettingError
from ..ops.attention import asking, gravity, raters, rotary, rows
from ..ops.merge import recycled
from ..ops.select import top
from ..tensors import Decoder, Kept, LayerView
from .base import LayerMethod, Layers

TABLES = {  # by retained_tokens: what each stage keeps; what 1.5 merges comes on top
    "1.5": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    "2.0": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}
RULES = {192: (13.5, 0.0), 128: (9.0, 6.0), 64: (0.8, 0.0)}  # scale and bias of 1.0
LAYERS = {"1.0": (2, 6, 15, 19), "1.5": (2, 6, 15), "2.0": (2, 6, 15)}
HEADS = 14  # that count in 2.0


def _worded(version: object) -> object:
    return str(version) if isinstance(version, float) else version  # as YAML reads 1.5


@dataclass(frozen=True, kw_only=True)
class SparseVLM(LayerMethod):
    """Drop tokens behind `layers`, counted from 0, by the attention of the text that rates the image.

    `retained_tokens` names the authors' counts: a table in 1.5 and 2.0; 1.0 keeps the rank of the attention times
    `scale` plus `bias`. `layers=None` is 2, 6, 15 (in 1.0 also 19) of 32, so those at the same depths of any LLM; of
    two that fall together there the later one counts. With a budget all shares of the table are raised to one power.

    Raises SettingError for settings of another version, or a table that does not fit the layers.
    """

    name: ClassVar[str] = "sparsevlm"
    sizing: ClassVar[frozenset[str]] = frozenset({"retained_tokens", "scale", "bias"})

    version: Annotated[Literal["1.0", "1.5", "2.0"], BeforeValidator(_worded)] = "1.5"
    retained_tokens: Literal[192, 128, 96, 64] = 192
    scale: Annotated[float, Field(gt=0)] | None = None
    bias: float | None = None
    layers: Layers | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version == "1.0":
            if self.retained_tokens not in RULES and None in (self.scale, self.bias):
                raise SettingError("SparseVLM 1.0 has no rule for 96 tokens. Give scale and bias.")
        elif (self.scale, self.bias) != (None, None):
            raise SettingError(f"SparseVLM {self.version} has no scale and no bias: they are of version 1.0.")
        elif self.layers and len(self.layers) != 3 and self.asked(576) is None:
            raise SettingError(f"SparseVLM got the layers {self.layers}, but has counts for 3. Give 3, or a budget.")

    @property
    def compact(self) -> bool:
        """As published, up to 1.5."""
        return self.paper and self.version != "2.0"

    def after(self, layers: int) -> list[int]:
        """`layers`."""
        return list(self._stages(layers))

    def left(self, share: float, visual: int, stages: int) -> list[float]:
        """The table's shares of 576 tokens at share 0.5, to a power that makes them 0 and 1 at the ends."""
        counts = self._counts(576, range(3))
        counts = counts[-stages:] + counts[-1:] * (stages - 3)
        return [visual * (count / 576) ** ((1 - share) / share) if share else 0.0 for count in counts]

    def plan(self, visual: int, llm: Decoder) -> list[int] | None:
        """As every method; where stages fall together, the counts of those that stay."""
        numbers = self._stages(llm.layers).values()
        if self.version == "1.0" or self.asked(visual) is not None or len(numbers) == 3:
            return super().plan(visual, llm)
        return self._counts(visual, numbers)

    def drop(self, view: LayerView) -> Kept:
        """Rank by the raters' mean attention; merge the best of what goes around density peaks."""
        attention = self.attention(view)
        scores, visual = attention.mean(0), attention.shape[1]
        kept, groups = self._shares(view, attention)
        selection = Kept.selection(top(scores[None], [kept]), [visual])
        if not groups:
            return selection
        pool, noise = _pool(visual - kept), None
        if self.paper:  # it decides between tokens that are each other's nearest
            noise = torch.rand(1, pool)[0].to(scores.device) * 1e-6
        return recycled(selection, scores, view.hidden[0, view.visual[0]], pool, groups, noise)

    def attention(self, view: LayerView) -> Float[Tensor, "rater visual"]:
        """What each rater attends to, mean over heads; in 2.0 corrected for the distance, over the strongest heads."""
        words, queries = view.text_embeds[0], asking(view)
        if len(words):
            queries = queries[raters(words, view.first_embeds[0])]
        attention = rows(view.q, view.k, queries)[0][..., view.visual[0]]
        if self.version == "2.0":
            rope = view.rope or rotary(view.position_ids)
            attention = attention / gravity(rope, queries, 0.001 if self.paper else 0.05)[0][:, view.visual[0]]
            attention = attention[attention.sum((1, 2)).argsort(descending=True, stable=True)[:HEADS]]
        return attention.mean(0)

    def _stages(self, layers: int) -> dict[int, int]:
        asked = self.layers and [layer + 1 for layer in self.layers]
        return self._placed(asked, [layer + 1 for layer in LAYERS[self.version]], layers)

    def _counts(self, visual: int, numbers: Iterable[int]) -> list[int]:
        table, counts = TABLES.get(self.version, TABLES["1.5"])[self.retained_tokens], []
        for number in numbers:
            kept = min(table[number], visual)
            visual = kept + self._groups(visual - kept)
            counts.append(visual)
        return counts

    def _shares(self, view: LayerView, attention: Float[Tensor, "rater visual"]) -> tuple[int, int]:
        """How many tokens are kept, and how many are made of the others."""
        visual = attention.shape[1]
        if view.count is not None:  # kept and made ones in the published proportion, at most one in four made
            count = min(view.count, visual)
            fitting = (kept for kept in range(count, 0, -1) if kept + self._groups(visual - kept) <= count)
            kept = max(next(fitting, 0), count - count // 4)
            return kept, count - kept
        if self.version == "1.0":
            rank = int(torch.linalg.matrix_rank(attention))
            if rank == visual:
                return visual, 0
            scale, bias = RULES.get(self.retained_tokens, (0.0, 0.0))
            scale, bias = scale if self.scale is None else self.scale, bias if self.bias is None else self.bias
            wanted = int(rank * scale + bias)
        else:
            wanted = self._at(TABLES[self.version][self.retained_tokens], view.stage)
        kept = max(1, min(wanted, visual - int(self.paper)))
        return kept, self._groups(visual - kept)

    def _groups(self, gone: int) -> int:
        return 0 if self.version == "2.0" or not gone else _pool(gone) // 10 + 1


def _pool(gone: int) -> int:
    return int(0.3 * gone) + 1
