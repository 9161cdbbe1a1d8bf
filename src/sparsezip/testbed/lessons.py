"""What the stages of the training ask of the model: the tower of patches, the language model of questions."""

import math
import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # PyTorch's own convention
from torch import Tensor, nn
from transformers import AttentionInterface, LlavaForConditionalGeneration

from .drawing import draw
from .labels import patch_labels
from .model import MEAN, STD
from .packing import Turns, Words
from .questions import pairs
from .scenes import CHARS, COLORS, FIELDS, GRID, PATCH, SHAPES, Scene

PAIRS = [(c, s) for c in COLORS for s in SHAPES]
# How many answers each question to a patch has; one more means none.
KINDS = {"what": len(SHAPES) + len(CHARS), "color": len(COLORS), "center": 1, "line": len(FIELDS) + 1, "index": 5}
DISTRACTORS = 3


def pixels(scenes: list[Scene]) -> Tensor:
    """Normalised pixels [image, 3, side, side], as the processor makes them from the same image files."""
    stack = torch.from_numpy(np.stack([draw(s) for s in scenes])).permute(0, 3, 1, 2).float() / 255
    return (stack - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def encode(model: LlavaForConditionalGeneration, images: Tensor, corner: tuple[int, int] = (0, 0)) -> Tensor:
    """hidden_states[-2] of the tower, [image, 1 + patch, dim], for a window whose first patch is at `corner`."""
    tower = model.model.vision_tower
    patches = tower.embeddings.patch_embedding(images).flatten(2).mT
    cls = tower.embeddings.class_embedding.expand(len(images), 1, -1)
    rows, columns = torch.arange(images.shape[2] // PATCH)[:, None], torch.arange(images.shape[3] // PATCH)[None, :]
    at = (rows + corner[0]) * GRID + columns + corner[1]
    places = torch.cat([torch.zeros(1, dtype=torch.long), 1 + at.flatten()])
    hidden = tower.pre_layrnorm(torch.cat([cls, patches], 1) + tower.embeddings.position_embedding(places))
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, None)
    return hidden


class Labels:
    """What each patch of a batch shows, [image, patch] by kind (its number in KINDS: none), and what each image holds.

    present: [image, pair + character + kind of distractor] as zeros and ones.
    """

    def __init__(self, scenes: list[Scene]) -> None:
        rows: dict[str, list[Any]] = {kind: [] for kind in KINDS}
        present = []
        for scene in scenes:
            labels = patch_labels(scene)
            shape_of = np.array([SHAPES.index(t.shape) for t in scene.things] + [KINDS["what"]])
            color_of = np.array([list(COLORS).index(t.color) for t in scene.things] + [KINDS["color"]])
            rows["what"].append(np.where(labels.char >= 0, len(SHAPES) + labels.char, shape_of[labels.thing]))
            rows["color"].append(color_of[labels.thing])
            rows["center"].append(np.where(labels.center >= 0, 0, 1))
            rows["line"].append(np.where(labels.line >= 0, labels.line, KINDS["line"]))
            rows["index"].append(np.where(labels.index >= 0, labels.index, KINDS["index"]))
            texts = [line.text for _, _, line in scene.form] + ([scene.sign.text] if scene.sign else [])
            here, chars, kinds = pairs(scene), set("".join(texts)), {d[0] for d in scene.distractors}
            held = [p in here for p in PAIRS] + [c in chars for c in CHARS] + [k in kinds for k in range(DISTRACTORS)]
            present.append([float(h) for h in held])
        self.of = {kind: torch.from_numpy(np.stack(found)).flatten(1) for kind, found in rows.items()}
        self.present = torch.tensor(present)

    def shows(self) -> Tensor:
        """[image, patch], True where a patch shows a thing or a character."""
        return self.of["what"] < KINDS["what"]

    def some(self, count: int, noise: torch.Generator) -> Tensor:
        """[image, count] ascending patches: those that show something first, centres and characters before the rest."""
        marks = torch.rand(self.of["what"].shape, generator=noise) + self.shows()
        marks += 2.0 * (self.of["center"] == 0) + 2.0 * (self.of["what"] >= len(SHAPES)) * self.shows()
        return marks.topk(min(count, marks.shape[1])).indices.sort().values


def waves() -> Tensor:
    """Where a patch lies, [row or column, 16] as sines and cosines of periods from 96 down to 6 patches."""
    angles = torch.arange(GRID)[:, None] * (2 * math.pi / 96 * 2 ** (torch.arange(8) * 4 / 7))
    return torch.cat([angles.sin(), angles.cos()], 1)


class Heads(nn.Module):
    """What the tower is asked while it learns; thrown away afterwards."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.kinds = nn.ModuleDict({kind: nn.Linear(dim, count + 1) for kind, count in KINDS.items()})
        self.present = nn.Linear(dim, len(PAIRS) + len(CHARS) + DISTRACTORS)
        self.place = nn.Linear(dim, 2 * waves().shape[1])


def tower_loss(
    model: LlavaForConditionalGeneration, heads: Heads, scenes: list[Scene], corner: tuple[int, int]
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropies on every patch, presence of pairs, characters and distractors from CLS, places of the patches."""
    labels, hidden = Labels(scenes), encode(model, pixels(scenes), corner)
    patches, loss, figures = hidden[:, 1:].float(), torch.zeros(()), dict[str, float]()
    right = dict[str, Tensor]()
    for kind, wanted in labels.of.items():
        logits, none = heads.kinds[kind](patches), KINDS[kind]
        weight = torch.ones(none + 1)
        weight[-1] = 0.3 if kind == "center" else 0.1  # nine patches in ten show nothing
        part = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weight=weight)
        loss = loss + {"what": 1.0, "color": 0.5}.get(kind, 0.4) * part
        right[kind] = logits.argmax(-1) == wanted
        figures[kind] = right[kind][wanted < none].float().mean().item()
    shape, shown = labels.of["what"] < len(SHAPES), labels.shows()
    for name, where in {"shape": shape, "char": shown & ~shape, "ground": ~shown}.items():
        figures[name] = right["what"][where].float().mean().item()
    here = F.binary_cross_entropy_with_logits(
        heads.present(hidden[:, 0].float()), labels.present, pos_weight=torch.tensor(4.0)
    )
    rows, columns = waves()[corner[0] :][: scenes[0].rows], waves()[corner[1] :][: scenes[0].columns]
    at = torch.cat([rows[:, None].expand(-1, len(columns), -1), columns[None].expand(len(rows), -1, -1)], -1)
    place = F.mse_loss(heads.place(patches), at.flatten(0, 1).expand(len(scenes), -1, -1))
    loss = loss + 2 * here + 0.5 * place
    return loss, figures | {"loss": loss.item(), "loss cls": here.item(), "loss place": place.item()}


class Supervision:
    """Share of attention that head 0 of two layers pays to where a token has to look (see packing.looks)."""

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
    ends = F.pad(turns.starts[:, 1:], (0, 1), value=turns.ids.shape[1])
    before = F.pad(wrong.cumsum(1), (1, 0))
    right = before.gather(1, ends) == before.gather(1, turns.starts)
    by_type: dict[str, list[float]] = {}
    for questions, marks in zip(turns.asked, right.tolist(), strict=True):
        for q, mark in zip(questions, marks, strict=False):
            by_type.setdefault(q.type, []).append(float(mark))
    figures = {"loss": loss.item(), "attention": mass.mean().item()} | {k: sum(v) / len(v) for k, v in by_type.items()}
    if attention_weight:
        loss = loss - attention_weight * mass.clamp_min(1e-6).log().mean()
    return loss, figures


class Oracle(nn.Module):
    """Perfect visual tokens: the words that name what a patch shows, learnt tokens for ground, centre, order, place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ground, self.center = (nn.Parameter(0.02 * torch.randn(1, width)) for _ in range(2))
        self.index = nn.Parameter(0.02 * torch.randn(KINDS["index"] + 1, width))
        self.rows, self.columns = (nn.Parameter(waves() @ (0.004 * torch.randn(waves().shape[1], width))) for _ in "rc")

    def tokens(self, embed: nn.Embedding, words: Words, labels: Labels, rng: random.Random | None) -> Tensor:
        """The tokens [scene, patch, width] of whole canvases; with `rng`, erring as a tower errs."""
        kinds = dict(labels.of)
        if rng is not None:  # some patches show nothing, some things are taken for others
            noise = torch.Generator().manual_seed(rng.getrandbits(32))
            shape = kinds["what"].shape
            often = torch.where(kinds["center"] == 0, 0.01, torch.where(kinds["what"] < len(SHAPES), 0.1, 0.02))
            lost = torch.rand(shape, generator=noise) < often
            kinds = {kind: found.masked_fill(lost, KINDS[kind]) for kind, found in kinds.items()}
            other = torch.randint(len(SHAPES), shape, generator=noise)
            wrong = (kinds["what"] < len(SHAPES)) & (torch.rand(shape, generator=noise) < 0.04)
            kinds["what"] = torch.where(wrong, other, kinds["what"])
        shows = (kinds["what"] < KINDS["what"])[..., None]
        tokens = torch.where(shows, embed(words.what[kinds["what"]]), self.ground)
        for kind, ids in {"color": words.color, "line": words.line}.items():
            tokens = tokens + (kinds[kind] < KINDS[kind])[..., None] * embed(ids[kinds[kind]])
        tokens = tokens + (kinds["center"] == 0)[..., None] * self.center
        tokens = tokens + (kinds["index"] < KINDS["index"])[..., None] * self.index[kinds["index"]]
        tokens = tokens + (self.rows[:, None] + self.columns[None]).flatten(0, 1)
        if rng is not None:
            tokens = tokens + 0.3 * tokens.std().detach() * torch.randn(tokens.shape, generator=noise)
        return tokens


def sincos(dim: int, amplitude: float = 0.25) -> Tensor:
    """A 2-D sine-cosine table [patch, dim] to start the position embeddings from; learnt alone they lag behind."""
    axis = torch.arange(GRID).float()[:, None] / 100 ** (torch.arange(dim // 4) / (dim // 4))
    one = torch.cat([axis.sin(), axis.cos()], 1)
    table = torch.cat([one[:, None].expand(-1, GRID, -1), one[None].expand(GRID, -1, -1)], -1)
    return amplitude * table.flatten(0, 1)
