"""pyramiddrop: stage by stage half of the visual tokens go, those that the next layer's last query attends to least.

Paper: Xing et al., "PyramidDrop: Accelerating Your Large VLMs via Pyramid Visual Redundancy Reduction", CVPR 2025.
Code: Cooperx521/PyramidDrop @ 6444f30, llava/model/modeling_llama_pdrop.py.
Parity: golden vectors of the authors' code: scores to 3e-9 and kept tokens exactly, in both forms.
Differs: tokens keep their positions, and layers=None follows the LLM's depth; with paper=True neither.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from ..errors import SettingError
from ..ops.attention import asking, rows
from ..ops.select import top
from ..tensors import Decoder, Kept, LayerView
from .base import LayerMethod, Layers


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(LayerMethod):
    """Keep a share `ratios[i]` of the image's tokens from layer `layers[i]` on.

    `layers=None` is 8, 16 and 24 of 32, so those at the same depths of any LLM; of two that fall together there the
    later one counts. With a budget all ratios are raised to one power.

    Raises SettingError for ratios that rise, or not one per layer.
    """

    name: ClassVar[str] = "pyramiddrop"
    sizing: ClassVar[frozenset[str]] = frozenset({"ratios"})
    looks_ahead: ClassVar[bool] = True

    layers: Layers | None = None
    ratios: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (0.5, 0.25, 0.125)

    def __post_init__(self) -> None:
        super().__post_init__()
        layers = self.layers or (8, 16, 24)
        if len(layers) != len(self.ratios):
            raise SettingError(
                f"PyramidDrop got {len(self.ratios)} ratios for the layers {layers}. Give one per layer."
            )
        if sorted(self.ratios, reverse=True) != list(self.ratios):
            raise SettingError(f"PyramidDrop got the ratios {self.ratios}. They count all tokens, so they never rise.")

    @property
    def compact(self) -> bool:
        """As published."""
        return self.paper

    def after(self, layers: int) -> list[int]:
        """The layers in front of `layers`."""
        return list(self._placed(self.layers, (8, 16, 24), layers))

    def left(self, share: float, visual: int, stages: int) -> list[float]:
        """The ratios at share 0.5, to a power that makes them 0 and 1 at the ends."""
        return [visual * ratio ** ((1 - share) / share) if share else 0.0 for ratio in self.ratios[-stages:]]

    def plan(self, visual: int, llm: Decoder) -> list[int] | None:
        """As every method; where stages fall together, the ratios of those that count."""
        numbers = self._placed(self.layers, (8, 16, 24), llm.layers).values()
        if self.asked(visual) is not None or len(numbers) == len(self.ratios):
            return super().plan(visual, llm)
        return [self._count(visual, number) for number in numbers]

    def drop(self, view: LayerView) -> Kept:
        """Rank by the attention of the text's last token, mean over heads."""
        attention = rows(view.q, view.k, asking(view)[-1:])[:, :, 0, view.visual[0]].mean(1)
        count = self._count(len(view.first_embeds[0]), view.stage) if view.count is None else view.count
        return Kept.selection(top(attention, [count]), [attention.shape[1]])

    def _count(self, began: int, stage: int) -> int:
        return max(1, int(began * self._at(self.ratios, stage)))
