"""What a VLM family must say about itself. A family is one file of this folder; its name is the file's name.

An adapter describes: where the tower and its layer are, what one image looks like in the prompt, how patches become
visual tokens, what the tower can deliver. All hook work is done by the plumbing, once for every family.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ..errors import UnsupportedModelError
from ..tensors import Decoder, Question
from .clip import ClipText


class Adapter(ABC):
    """One model seen as a member of its family. Building one changes nothing in the model.

    Raises UnsupportedModelError for a model of the family that is configured in a way the adapter cannot serve.
    """

    name: ClassVar[str]
    architectures: ClassVar[frozenset[str]]  # class names in transformers
    offers: frozenset[str]  # optional fields of Captures the tower can deliver, and "question"
    tower_weights: ClassVar[tuple[str, ...]]  # parts of the names of the tower's weights in a checkpoint
    question_weights: ClassVar[tuple[str, ...]]  # and of what a question needs besides
    prompt: ClassVar[str]  # with "{question}", for a checkpoint whose processor has no chat template
    clip: ClipText | None = None  # the user's own, see `lend`

    def __init__(self, model: Any) -> None:
        """`model`: the transformers model, or a part of it that holds tower, projector and embeddings."""
        self.model = model

    @classmethod
    @abstractmethod
    def patches(cls, config: dict[str, Any]) -> int | None:
        """Patches of every image, read from config.json; None where that does not tell."""

    @property
    @abstractmethod
    def placeholder(self) -> int:
        """The id that stands for one visual token in input_ids."""

    @property
    @abstractmethod
    def decoder(self) -> Any:
        """The language model's decoder, which has `layers`, `norm` and `rotary_emb`."""

    @property
    @abstractmethod
    def llm_layers(self) -> int:
        """Number of layers of the language model."""

    @property
    @abstractmethod
    def tower(self) -> nn.Module:
        """The vision tower; called with pixel_values."""

    @property
    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """The tower's layers in their order."""

    @property
    @abstractmethod
    def layer(self) -> nn.Module:
        """The one whose output the projector reads."""

    @abstractmethod
    def attention(self, layer: nn.Module) -> nn.Module:
        """The attention module of one of them."""

    @property
    @abstractmethod
    def has_cls(self) -> bool:
        """Whether the first row of the tower is a CLS token."""

    @abstractmethod
    def grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """(rows, cols) of patches that the tower makes of these images."""

    @abstractmethod
    def check_call(self, call: dict[str, Any]) -> None:
        """Raise UnsupportedCallError for image arguments that the adapter cannot serve; remove those it has seen to."""

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """[..., token, dim] of the tower to [..., token, width] of the LLM."""

    @abstractmethod
    def carry_back(self, words: Tensor) -> Tensor:
        """The mean of words' embeddings [word, width] carried into tower space [dim], through the projector."""

    def heard_from(self, low_layer: float) -> dict[str, nn.Module]:
        """For each capture that is heard from an attention module: which one. `low_layer`: share of the depth."""
        last, low = self.layers[-1], self.layers[min(round(low_layer * len(self.layers)), len(self.layers) - 1)]
        layers = {"cls_attention": self.layer, "keys": self.layer, "last_query": last, "last_keys": last}
        return {name: self.attention(layer) for name, layer in (layers | {"low_attention": low}).items()}

    def lend(self, clip: ClipText | None) -> None:
        """Let the adapter use the CLIP that the tower is from: patches and questions in CLIP's joint space.

        Raises UnsupportedModelError for a CLIP whose tower has another width.
        """
        width = getattr(self.tower.config, "hidden_size", None)
        if clip is not None and clip.width != width:
            raise UnsupportedModelError(
                f"The vision tower of this CLIP is {clip.width} wide, that of this model {width}. Give the CLIP that "
                "the model's tower was taken from."
            )
        self.clip = clip
        self.offers = self.offers - {"image_embeds"} | ({"image_embeds"} if clip else set())

    def size(self, text: int) -> Decoder:
        """The language model's size, for prompts with `text` tokens besides the image's. An MLP has three matrices."""
        config = self.model.config.get_text_config()
        width, heads = config.hidden_size, config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or width // heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        looked = width * (heads + 2 * key_heads) * head_dim
        weights = looked + width * (heads * head_dim + 3 * config.intermediate_size)
        return Decoder(
            layers=self.llm_layers,
            per_token=2 * weights,
            per_pair=4 * heads * head_dim,
            per_look=2 * looked,
            per_cached=2 * key_heads * head_dim * self.model.dtype.itemsize,
            text=text,
        )

    def question(self, words: Tensor) -> Question:
        """The question whose token ids are `words` [word]."""
        embeddings = self.embed(words)
        return Question(words=embeddings, tower=self.carry_back(embeddings))

    def embed(self, ids: Tensor) -> Tensor:
        """The LLM's input embeddings of token ids, [word] to [word, width]."""
        embeddings = self.model.get_input_embeddings()
        return embeddings(ids.to(embeddings.weight.device))
