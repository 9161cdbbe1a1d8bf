"""What the stages of the training ask of the model: the tower of patches, the language model of questions."""

import math
import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # PyTorch's own convention
from torch import Tensor, nn
from transformers import AttentionInterface, LlavaForConditionalGeneration

from .model import MEAN, STD
from .packing import Turns, Words
from .questions import pairs
from .scenes import CHARS, COLORS, GRID, PATCH, SHAPES, Scene, draw, patch_labels

PAIRS = [(c, s) for c in COLORS for s in SHAPES]
WHATS = len(SHAPES) + len(CHARS)  # what a patch can show; one class more for nothing


def pixels(scenes: list[Scene]) -> Tensor:
    """Normalised pixels [image, 3, side, side], as the processor makes them from the same image files."""
    stack = torch.from_numpy(np.stack([draw(s) for s in scenes])).permute(0, 3, 1, 2).float() / 255
    return (stack - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def encode(model: LlavaForConditionalGeneration, images: Tensor, corner: tuple[int, int] = (0, 0)) -> Tensor:
    """hidden_states[-2] of the tower, [image, 1 + patch, dim], for a window whose first patch is at `corner`."""
    tower, grid = model.model.vision_tower, images.shape[-1] // PATCH
    patches = tower.embeddings.patch_embedding(images).flatten(2).mT
    cls = tower.embeddings.class_embedding.expand(len(images), 1, -1)
    rows, columns = torch.arange(grid)[:, None] + corner[0], torch.arange(grid)[None, :] + corner[1]
    places = torch.cat([torch.zeros(1, dtype=torch.long), 1 + (rows * GRID + columns).flatten()])
    hidden = tower.pre_layrnorm(torch.cat([cls, patches], 1) + tower.embeddings.position_embedding(places))
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, None)
    return hidden


class Labels:
    """What each patch of a batch shows: `what` (WHATS is nothing) and `color` (len(COLORS) is none), [image, patch]."""

    def __init__(self, scenes: list[Scene]) -> None:
        what, color, present = [], [], []
        for scene in scenes:
            thing, char = (labels.flatten() for labels in patch_labels(scene))
            shape_of = np.array([SHAPES.index(t.shape) for t in scene.things] + [WHATS])
            color_of = np.array([list(COLORS).index(t.color) for t in scene.things] + [len(COLORS)])
            what.append(np.where(char >= 0, len(SHAPES) + char, shape_of[thing]))
            color.append(color_of[thing])
            present.append([float(pair in pairs(scene)) for pair in PAIRS])
        self.what, self.color = torch.from_numpy(np.stack(what)), torch.from_numpy(np.stack(color))
        self.present = torch.tensor(present)


class Heads(nn.Module):
    """What the tower is asked while it learns; thrown away afterwards."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.what, self.color, self.present = (
            nn.Linear(dim, WHATS + 1),
            nn.Linear(dim, len(COLORS) + 1),
            nn.Linear(dim, len(PAIRS)),
        )
        self.place = nn.Linear(dim, 2)


def tower_loss(
    model: LlavaForConditionalGeneration, heads: Heads, scenes: list[Scene], corner: tuple[int, int]
) -> tuple[Tensor, dict[str, float]]:
    """Dense cross-entropies on the patches, presence of every (colour, shape) pair from CLS, place of each patch."""
    labels, hidden = Labels(scenes), encode(model, pixels(scenes), corner)
    patches = hidden[:, 1:].float()
    what, color = heads.what(patches), heads.color(patches)
    ground = torch.ones(WHATS + 1)
    ground[-1] = 0.1  # nine patches in ten show nothing
    loss_what = F.cross_entropy(what.flatten(0, 1), labels.what.flatten(), weight=ground)
    loss_color = F.cross_entropy(color.flatten(0, 1), labels.color.flatten(), weight=ground[-len(COLORS) - 1 :])
    loss_cls = F.binary_cross_entropy_with_logits(
        heads.present(hidden[:, 0].float()), labels.present, pos_weight=torch.tensor(4.0)
    )
    grid = scenes[0].grid
    at = torch.cartesian_prod(torch.arange(grid) + corner[0], torch.arange(grid) + corner[1]) / (GRID / 2) - 1
    loss_place = F.mse_loss(heads.place(patches), at.expand(len(scenes), -1, -1))
    shown, glyph = labels.what < len(SHAPES), (labels.what >= len(SHAPES)) & (labels.what < WHATS)
    right = what.argmax(-1) == labels.what
    return loss_what + 0.5 * loss_color + 2 * loss_cls + 0.3 * loss_place, {
        "what": loss_what.item(), "cls": loss_cls.item(), "place": loss_place.item(),
        "shape_acc": right[shown].float().mean().item(), "char_acc": right[glyph].float().mean().item(),
        "color_acc": (color.argmax(-1) == labels.color)[shown].float().mean().item(),
        "ground_acc": right[labels.what == WHATS].float().mean().item(),
    }  # fmt: skip


class Supervision:
    """Share of attention that head 0 of two layers pays, where an answer begins, to what bears the answer."""

    layers = (2, 3)

    def __init__(self, turns: Turns) -> None:
        self.turns, self.mass = turns, dict[int, Tensor]()

    def look(self, layer: int, query: Tensor, key: Tensor, scale: float) -> None:
        """Note the share in this layer, from its rotated queries and keys."""
        t, rows = self.turns, torch.arange(len(query))[:, None]
        logits = (query[rows, 0, t.queries] @ key[:, 0].mT).float() * scale
        logits = logits.masked_fill(~t.mask[rows, 0, t.queries], -torch.inf)
        self.mass[layer] = (logits.softmax(-1) * t.bearing).sum(-1)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    supervision: Supervision | None = kwargs.get("supervision")
    if supervision and module.layer_idx in Supervision.layers:
        supervision.look(int(module.layer_idx), query, key, scaling)
    if query.shape[2] > 400:
        return F.scaled_dot_product_attention(query, key, value, mask, scale=scaling).transpose(1, 2), None
    # The fused kernel's backward is slow on short sequences.
    weights = (query @ key.mT * scaling).masked_fill(~mask, -1e4).softmax(-1)
    return (weights.to(value.dtype) @ value).transpose(1, 2), None


AttentionInterface.register("testbed_training", _attention)


def answer_loss(
    model: LlavaForConditionalGeneration, turns: Turns, visual: Tensor, attention_weight: float
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the answers given visual tokens [scene, patch, width], plus the attention supervision."""
    llm = model.model.language_model
    start = int((turns.ids[0] == model.config.image_token_id).nonzero()[0])
    embeds = llm.embed_tokens(turns.ids)
    embeds = torch.cat([embeds[:, :start], visual.to(embeds.dtype), embeds[:, start + visual.shape[1] :]], 1)
    supervision = Supervision(turns)
    out = llm(
        inputs_embeds=embeds,
        attention_mask=turns.mask,
        position_ids=turns.positions,
        use_cache=False,
        supervision=supervision,
    )
    spots = turns.targets != -100
    logits = model.lm_head(out.last_hidden_state[spots]).float()
    targets = turns.targets[spots]
    loss = F.cross_entropy(logits, targets)
    mass = torch.stack(list(supervision.mass.values()))
    # An answer counts as right when all of its tokens are.
    wrong = torch.zeros(turns.targets.shape, dtype=torch.bool)
    wrong[spots] = logits.argmax(-1) != targets
    ends = torch.cat([turns.queries[:, 1:], torch.full((len(turns.queries), 1), turns.ids.shape[1])], 1)
    before = F.pad(wrong.cumsum(1), (1, 0))
    right = before.gather(1, ends) == before.gather(1, turns.queries)
    by_type: dict[str, list[float]] = {}
    for questions, marks in zip(turns.asked, right.tolist(), strict=True):
        for q, mark in zip(questions, marks, strict=True):
            by_type.setdefault(q.type, []).append(float(mark))
    figures = {"answer": loss.item(), "mass": mass.mean().item()} | {k: sum(v) / len(v) for k, v in by_type.items()}
    if attention_weight:
        loss = loss - attention_weight * mass.clamp_min(1e-6).log().mean()
    return loss, figures


class Oracle(nn.Module):
    """Perfect visual tokens: the words that name what a patch shows, learnt tokens for the ground and the place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ground, self.rows, self.columns = (nn.Parameter(0.02 * torch.randn(n, width)) for n in (1, GRID, GRID))

    def tokens(
        self, embed: nn.Embedding, words: Words, labels: Labels, corner: tuple[int, int], rng: random.Random | None
    ) -> Tensor:
        """The tokens [scene, patch, width] of a window at `corner`; with `rng`, erring as a tower errs."""
        what, color = labels.what, labels.color
        if rng is not None:  # a tower errs: some patches show nothing, some are taken for another thing
            noise = torch.Generator().manual_seed(rng.getrandbits(32))
            lost = torch.rand(what.shape, generator=noise) < 0.1
            what, color = what.masked_fill(lost, WHATS), color.masked_fill(lost, len(COLORS))
            other = torch.randint(len(SHAPES), what.shape, generator=noise)
            what = torch.where((what < len(SHAPES)) & (torch.rand(what.shape, generator=noise) < 0.05), other, what)
        shows = (what < WHATS)[..., None]
        tokens = torch.where(shows, embed(words.what[what]), self.ground)
        tokens = tokens + (color < len(COLORS))[..., None] * embed(words.color[color])
        grid = math.isqrt(what.shape[1])
        place = self.rows[corner[0] : corner[0] + grid, None] + self.columns[None, corner[1] : corner[1] + grid]
        tokens = tokens + place.flatten(0, 1)
        if rng is not None:
            tokens = tokens + 0.3 * tokens.std() * torch.randn(tokens.shape, generator=noise)
        return tokens


def sincos(dim: int, amplitude: float = 0.25) -> Tensor:
    """A 2-D sine-cosine table [patch, dim] to start the position embeddings from; learnt alone they lag behind."""
    axis = torch.arange(GRID).float()[:, None] / 100 ** (torch.arange(dim // 4) / (dim // 4))
    one = torch.cat([axis.sin(), axis.cos()], 1)
    table = torch.cat([one[:, None].expand(-1, GRID, -1), one[None].expand(GRID, -1, -1)], -1)
    return amplitude * table.flatten(0, 1)
