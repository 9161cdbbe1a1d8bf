"""Training the testbed's model on two cores, in four resumable stages.

    tower   the CLIP tower learns what every patch shows (shape, colour, character) and its CLS token which things
            stand in the scene, on windows of the canvas that grow to the whole of it
    oracle  the Llama learns to answer from perfect visual tokens, sums of word embeddings (needs no tower, so it can
            run beside the first stage on the other core)
    align   the projector learns to turn the tower's features into such tokens
    tune    projector and Llama learn from the real tower's features, which stay fixed

Every step draws fresh scenes from a seed that names the stage and the step, so a resumed run sees the data that an
unbroken one would have seen. Learning rates follow the wall clock. docs/testbed.md says what came of it.
"""

import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  # PyTorch's own convention
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AttentionInterface, LlavaForConditionalGeneration

from .model import MEAN, STD, make_model, make_processor
from .packing import Turns, Words, pack
from .questions import pairs
from .scenes import CHARS, COLORS, GRID, PATCH, SHAPES, Difficulty, Scene, draw, make, patch_labels

STAGES = {"tower": 0.35, "oracle": 0.3, "align": 0.02, "tune": 0.33}  # in order, with their shares of the time
PAIRS = [(c, s) for c in COLORS for s in SHAPES]
WHATS = len(SHAPES) + len(CHARS)  # what a patch can show; one class more for nothing


@dataclass(frozen=True)
class Phase:
    """From this share of a stage's time on: side of the window in patches, scenes a step, things a scene."""

    start: float
    grid: int
    batch: int
    objects: tuple[int, int]


PHASES = {
    "tower": (
        Phase(0.0, 8, 32, (2, 5)),
        Phase(0.62, 12, 16, (3, 6)),
        Phase(0.82, GRID, 5, (4, 8)),
    ),
    "oracle": (Phase(0.0, 8, 24, (2, 5)), Phase(0.8, 12, 12, (3, 6))),
    "align": (Phase(0.0, 12, 16, (3, 6)),),
    "tune": (Phase(0.0, 8, 16, (2, 5)), Phase(0.08, 12, 10, (3, 6)), Phase(0.2, GRID, 4, (4, 8))),
}


def scenes_for(stage: str, step: int, phase: Phase) -> list[Scene]:
    """The fresh training scenes of one step."""
    small = phase.grid < 12  # a small window shows part of a canvas: fewer distractors, and no room for a form
    difficulty = Difficulty(
        objects=phase.objects,
        distractors=(0, 1) if small else (1, 2),
        form=0.0 if small else 0.1,
        sign=0.35,
        glyphs=(3,) if small else (3, 4),
    )
    return [make("train", f"{stage}/{step}/{i}", phase.grid, difficulty) for i in range(phase.batch)]


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


def corner_of(rng: random.Random, grid: int) -> tuple[int, int]:
    """Where on the canvas the window of this step lies."""
    return rng.randint(0, GRID - grid), rng.randint(0, GRID - grid)


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


class Trainer:
    """One stage: parameters, optimisers, clock and files. A killed run goes on from its last save."""

    def __init__(self, out: Path, stage: str, minutes: float) -> None:
        self.out, self.stage, self.seconds = out, stage, 60 * minutes
        processor = make_processor()
        self.words, self.processor = Words(processor.tokenizer), processor
        self.model = make_model(processor.tokenizer)
        self.model.model.language_model.config._attn_implementation = "testbed_training"
        dim = self.model.model.vision_tower.config.hidden_size
        self.heads, self.oracle = Heads(dim), Oracle(self.model.model.language_model.config.hidden_size)
        self.parts = nn.ModuleDict(
            {
                "tower": self.model.model.vision_tower, "projector": self.model.model.multi_modal_projector,
                "llm": self.model.model.language_model, "heads": self.heads, "oracle": self.oracle,
            }
        )  # fmt: skip
        trained = {
            "tower": ("tower", "heads"),
            "oracle": ("llm", "oracle"),
            "align": ("projector",),
            "tune": ("projector", "llm"),
        }[stage]
        self.parts.requires_grad_(False)
        for name in trained:
            self.parts[name].requires_grad_(True)
        if stage == "tower":
            with torch.no_grad():
                self.model.model.vision_tower.embeddings.position_embedding.weight[1:] += _sincos(dim)
        self.trained = {n: p for n, p in self.parts.named_parameters() if p.requires_grad}
        hidden = [p for n, p in self.trained.items() if p.ndim == 2 and (".layers." in n or n.startswith("projector"))]
        rest = [p for p in self.trained.values() if not any(p is h for h in hidden)]
        scale = {"tower": 1.0, "oracle": 1.0, "align": 0.7, "tune": 0.4}[stage]
        self.optimizers = [
            torch.optim.Muon(hidden, lr=3e-3 * scale, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=1e-3 * scale, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        self.rates = [o.param_groups[0]["lr"] for o in self.optimizers]
        self.step, self.elapsed = 0, 0.0
        self._load()

    def run(
        self, max_steps: int | None = None, save_every: float = 60.0, report_every: int = 50
    ) -> Iterator[dict[str, float]]:
        """Train until the stage's minutes (of all its runs) or `max_steps` are used up; yields figures."""
        figures: dict[str, list[float]] = {}
        last, saved = time.perf_counter(), self.elapsed
        while self.elapsed < self.seconds and (max_steps is None or self.step < max_steps):
            done = self.elapsed / self.seconds
            phase = [p for p in PHASES[self.stage] if p.start <= done][-1]
            rate = min(1.0, (self.step + 1) / 50) * max(0.03, min(1.0, (1 - done) / 0.5))
            for optimizer, base in zip(self.optimizers, self.rates, strict=True):
                optimizer.param_groups[0]["lr"] = base * rate
            with torch.autocast("cpu", torch.bfloat16):
                loss, now = self._loss(phase, done)
            loss.backward()
            nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.step += 1
            for key, value in now.items():
                if value == value:  # types that no scene of this step allowed are NaN
                    figures.setdefault(key, []).append(value)
            self.elapsed, last = self.elapsed + time.perf_counter() - last, time.perf_counter()
            if self.step % report_every == 0:
                yield {"step": self.step, "minutes": self.elapsed / 60, "grid": phase.grid} | {
                    k: sum(v) / len(v) for k, v in figures.items()
                }
                figures = {}
            if self.elapsed - saved > save_every:
                self.save()
                saved = self.elapsed
        self.save()

    def _loss(self, phase: Phase, done: float) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(f"{self.stage}/{self.step}")
        scenes, corner = scenes_for(self.stage, self.step, phase), corner_of(rng, phase.grid)
        self.model.model.vision_tower.config._attn_implementation = "sdpa" if phase.grid == GRID else "eager"
        if self.stage == "tower":
            return tower_loss(self.model, self.heads, scenes, corner)
        embed = self.model.model.language_model.embed_tokens
        if self.stage == "oracle":
            visual = self.oracle.tokens(embed, self.words, Labels(scenes), corner, rng)
            return answer_loss(self.model, pack(scenes, self.words, rng), visual, 0.3 * max(0.0, 1 - done / 0.8))
        with torch.no_grad():
            features = encode(self.model, pixels(scenes), corner)[:, 1:]
        visual = self.model.model.multi_modal_projector(features)
        if self.stage == "align":
            with torch.no_grad():
                wanted = self.oracle.tokens(embed, self.words, Labels(scenes), corner, None)
            weight = torch.where(Labels(scenes).what < WHATS, 1.0, 0.15)[..., None]
            loss = ((visual.float() - wanted) ** 2 * weight).mean() / wanted.var()
            return loss, {"align": loss.item()}
        return answer_loss(self.model, pack(scenes, self.words, rng), visual, 0.1 * max(0.0, 1 - done / 0.4))

    def save(self) -> None:
        """Write weights and optimiser state as safetensors, atomically."""
        folder = self.out / self.stage
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{n}": p.detach().contiguous() for n, p in self.trained.items()}
        for i, optimizer in enumerate(self.optimizers):
            for j, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{j}.{k}": v.contiguous() for k, v in state.items()}
        save_file(tensors, folder / "new.safetensors", {"clock": json.dumps([self.step, self.elapsed])})
        (folder / "new.safetensors").replace(folder / "state.safetensors")

    def _load(self) -> None:
        own = self.out / self.stage / "state.safetensors"
        for stage in list(STAGES)[
            : list(STAGES).index(self.stage) + 1
        ]:  # later stages overwrite what earlier ones taught
            path = self.out / stage / "state.safetensors"
            if path.exists():
                weights = {n[6:]: t for n, t in load_file(path).items() if n.startswith("model.")}
                unknown = self.parts.load_state_dict(weights, strict=False).unexpected_keys
                assert not unknown, unknown
        if own.exists():
            state = load_file(own)
            with safe_open(own, "pt") as file:
                self.step, self.elapsed = json.loads(file.metadata()["clock"])
            for i, optimizer in enumerate(self.optimizers):
                saved = optimizer.state_dict()
                for name, tensor in state.items():
                    if name.startswith(f"optimizer.{i}."):
                        _, _, j, key = name.split(".")
                        saved["state"].setdefault(int(j), {})[key] = tensor
                optimizer.load_state_dict(saved)

    def export(self, folder: Path) -> None:
        """Write the model and its processor for stock transformers, weights named as in released LLaVA checkpoints."""
        for part in (self.model.model.language_model, self.model.model.vision_tower):
            part.config._attn_implementation = "sdpa"
        self.model.save_pretrained(folder)
        weights = load_file(folder / "model.safetensors")
        released = {n.replace("vision_tower.", "vision_tower.vision_model."): t for n, t in weights.items()}
        save_file(released, folder / "model.safetensors", {"format": "pt"})
        self.processor.save_pretrained(folder)


def train(
    out: Path,
    minutes: float,
    stages: Iterable[str] = STAGES,
    threads: int = 2,
    report: Callable[[str], None] = print,
    report_every: int = 50,
) -> Path:
    """Run the stages for `minutes` in all, going on where a killed run stopped; returns the last one's folder.

    The first two stages may run at the same time in two processes; the export follows the last.
    """
    torch.set_num_threads(threads)
    for stage in stages:
        trainer = Trainer(out, stage, minutes * STAGES[stage])
        for figures in trainer.run(report_every=report_every):
            report(f"{stage}: " + "  ".join(f"{k} {v:.3g}" for k, v in figures.items()))
    if stage != "tune":
        return out / stage
    trainer.export(out / "checkpoint")
    return out / "checkpoint"


def _sincos(dim: int, amplitude: float = 0.25) -> Tensor:
    """A 2-D sine-cosine table [patch, dim] to start the position embeddings from; learnt alone they lag behind."""
    axis = torch.arange(GRID).float()[:, None] / 100 ** (torch.arange(dim // 4) / (dim // 4))
    one = torch.cat([axis.sin(), axis.cos()], 1)
    table = torch.cat([one[:, None].expand(-1, GRID, -1), one[None].expand(GRID, -1, -1)], -1)
    return amplitude * table.flatten(0, 1)
