"""InternVL 2 to 3.5 in transformers' format: `InternVLForConditionalGeneration`. InternViT has a CLS token."""

from typing import Any, ClassVar

from .towers import Tiled


class InternVL(Tiled):
    """Squares of a tile's patches are shuffled into one token each; tiles follow each other directly."""

    name: ClassVar[str] = "internvl"
    architectures: ClassVar[frozenset[str]] = frozenset({"InternVLForConditionalGeneration"})
    offers: frozenset[str] = Tiled.offers | Tiled.received
    cls: ClassVar[int | None] = 0
    prompt: ClassVar[str] = "<|im_start|>user\n<IMG_CONTEXT>\n{question}<|im_end|>\n<|im_start|>assistant\n"

    @property
    def layers(self) -> Any:
        """Under another name."""
        return self.tower.encoder.layer

    def attention(self, layer: Any) -> Any:
        """Under another name."""
        return layer.attention

    @property
    def merge(self) -> int:
        """Of the pixel shuffle."""
        return round(1 / self.model.config.downsample_ratio)
