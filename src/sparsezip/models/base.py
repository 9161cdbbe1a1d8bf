"""What a VLM family must say about itself. A family is one file of this folder; its name is the file's name.

An adapter describes: where the tower and its layer are, what one image looks like in the prompt, how patches become
visual tokens, what the tower can deliver. All hook work is done by the plumbing, once for every family.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from ..tensors import Question


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
    def llm_layers(self) -> int:
        """Number of layers of the language model."""

    @property
    @abstractmethod
    def tower(self) -> nn.Module:
        """The vision tower; called with pixel_values."""

    @property
    @abstractmethod
    def layer(self) -> nn.Module:
        """The tower layer whose output the projector reads."""

    @property
    @abstractmethod
    def attention(self) -> nn.Module:
        """The attention module of that layer."""

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

    def question(self, words: Tensor) -> Question:
        """The question whose token ids are `words` [word]."""
        embeddings = self.embed(words)
        return Question(words=embeddings, tower=self.carry_back(embeddings))

    def embed(self, ids: Tensor) -> Tensor:
        """The LLM's input embeddings of token ids, [word] to [word, width]."""
        embeddings = self.model.get_input_embeddings()
        return embeddings(ids.to(embeddings.weight.device))
