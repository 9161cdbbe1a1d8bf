"""Training the testbed's model on two cores, in four resumable stages.

    tower   the CLIP tower learns what every patch shows (shape, colour, character and its place in the text, centres of
            things) and its CLS token what the image holds, on windows of the canvas that grow to the whole of it
    oracle  the Llama learns to answer from perfect visual tokens, sums of word embeddings (needs no tower, so it can
            run beside the first stage on the other core)
    align   the projector learns to turn the tower's features into such tokens
    tune    projector and Llama learn from the real tower's features, which stay fixed

Until the last phase of `tune` the Llama sees a part of the patches, in their places: those that show something and some
of the ground. Every step draws fresh scenes from a seed that names the stage and the step, so a resumed run sees the
data that an unbroken one would have seen. Learning rates follow the wall clock. docs/testbed.md says what came of it.
"""

import json
import random
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import UsageError
from . import curves
from .lessons import Heads, Labels, Oracle, answer_loss, encode, pixels, sincos, tower_loss
from .model import make_model, make_processor
from .packing import Words, pack
from .scenes import GRID, Difficulty, Scene, make

STAGES = {"tower": 0.3, "oracle": 0.33, "align": 0.02, "tune": 0.35}  # in order, with their shares of the time
NEEDS = {"tower": (), "oracle": (), "align": ("tower", "oracle"), "tune": ("tower", "oracle", "align")}
STATE = "state.safetensors"


@dataclass(frozen=True)
class Window:
    """A part of the canvas: patches down and across, scenes a step, things a scene, shares of forms and of signs."""

    rows: int = GRID
    columns: int = GRID
    batch: int = 16
    objects: tuple[int, int] = (3, 9)
    form: float = 0.2
    sign: float = 0.4


@dataclass(frozen=True)
class Phase:
    """From this share of a stage's time on: windows, by turns; patches that the Llama sees; questions a scene."""

    start: float
    windows: tuple[Window, ...]
    shown: int | None = None
    turns: int = 12


PHASES = {
    "tower": (  # square windows for things, wide ones for lines of text
        Phase(0.0, (Window(8, 8, 32, (2, 5), 0.0, 0.3), Window(3, GRID, 28, (0, 2), 0.7, 1.0))),
        Phase(0.6, (Window(12, 12, 16, (3, 6), 0.0, 0.4), Window(6, GRID, 16, (1, 4), 0.6, 1.0))),
        Phase(0.8, (Window(batch=6, form=0.3, sign=0.6),)),
    ),
    "oracle": (Phase(0.0, (Window(batch=24, objects=(2, 5), form=0.1, sign=0.3),), 72), Phase(0.35, (Window(),), 128)),
    "align": (Phase(0.0, (Window(batch=6),)),),
    "tune": (Phase(0.0, (Window(batch=12),), 160), Phase(0.75, (Window(batch=5),), None, 24)),
}


def scenes_for(stage: str, step: int, window: Window) -> list[Scene]:
    """The fresh training scenes of one step, each with something to ask about or to read."""
    small = window.rows * window.columns < GRID * GRID // 2  # a small window shows part of a canvas
    difficulty = Difficulty(
        objects=window.objects,
        radius=(12, 24),
        giant=0.0 if small else 0.1,
        distractors=(0, 1) if small else (1, 2),
        form=window.form,
        sign=window.sign,
        glyphs=(20, 28),
        lines=(1, 6) if small else (3, 12),
    )
    drawn = (make("train", f"{stage}/{step}/{i}", window.rows, window.columns, difficulty) for i in count())
    usable = (s for s in drawn if s.things or s.form or (small and s.sign))
    return list(islice(usable, window.batch))


def corner_of(rng: random.Random, window: Window) -> tuple[int, int]:
    """Where on the canvas the window of this step lies."""
    return rng.randint(0, GRID - window.rows), rng.randint(0, GRID - window.columns)


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
                self.model.model.vision_tower.embeddings.position_embedding.weight[1:] += sincos(dim)
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
        (out / stage).mkdir(parents=True, exist_ok=True)
        self._load()

    @property
    def finished(self) -> bool:
        """Whether the stage has had its minutes."""
        return self.elapsed >= self.seconds

    def run(
        self, max_steps: int | None = None, save_every: float = 60.0, report_every: int = 50
    ) -> Iterator[dict[str, float]]:
        """Train until the stage's minutes (of all its runs) or `max_steps` are used up; yields figures."""
        figures: dict[str, list[float]] = {}
        last, saved = time.perf_counter(), self.elapsed
        while not self.finished and (max_steps is None or self.step < max_steps):
            done = self.elapsed / self.seconds
            phase = [p for p in PHASES[self.stage] if p.start <= done][-1]
            early = self.out / "checkpoint-before-last-phase"
            if self.stage == "tune" and phase is PHASES["tune"][-1] and not early.exists():
                self.export(early)  # tells what the last phase changes
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
                means = {k: sum(v) / len(v) for k, v in figures.items()}
                means = {"step": self.step, "minutes": self.elapsed / 60} | means
                curves.record(self.out / self.stage, means)
                yield means
                figures = {}
            if self.elapsed - saved > save_every:
                self.save()
                saved = self.elapsed
        self.save()

    def _loss(self, phase: Phase, done: float) -> tuple[Tensor, dict[str, float]]:
        rng, window = random.Random(f"{self.stage}/{self.step}"), phase.windows[self.step % len(phase.windows)]
        scenes, corner = scenes_for(self.stage, self.step, window), corner_of(rng, window)
        # The fused kernel's backward is slow on short sequences.
        large = window.rows * window.columns == GRID * GRID
        self.model.model.vision_tower.config._attn_implementation = "sdpa" if large else "eager"
        if self.stage == "tower":
            return tower_loss(self.model, self.heads, scenes, corner)
        embed, labels = self.model.model.language_model.embed_tokens, Labels(scenes)
        kept = None
        if phase.shown:
            kept = labels.some(phase.shown, torch.Generator().manual_seed(rng.getrandbits(32)))
        if self.stage == "oracle":
            visual = self.oracle.tokens(embed, self.words, labels, rng)
        else:
            with torch.no_grad():
                features = encode(self.model, pixels(scenes), corner)[:, 1:]
            visual = self.model.model.multi_modal_projector(features)
        if self.stage == "align":
            with torch.no_grad():
                wanted = self.oracle.tokens(embed, self.words, labels, None)
            counts = torch.where(labels.shows() | (labels.of["center"] == 0), 1.0, 0.15)[..., None]
            loss = ((visual.float() - wanted) ** 2 * counts).mean() / wanted.var()
            return loss, {"loss": loss.item()}
        if kept is not None:
            visual = visual.gather(1, kept[..., None].expand(-1, -1, visual.shape[-1]))
        weight = {"oracle": 0.3 * max(0.0, 1 - done / 0.8), "tune": 0.3 * min(1.0, max(0.0, 3 - 4 * done))}[self.stage]
        return answer_loss(self.model, pack(scenes, self.words, rng, phase.turns, kept), visual, weight)

    def save(self) -> None:
        """Write weights and optimiser state as safetensors, atomically."""
        folder = self.out / self.stage
        tensors = {f"model.{n}": p.detach().contiguous() for n, p in self.trained.items()}
        for i, optimizer in enumerate(self.optimizers):
            for j, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{i}.{j}.{k}": v.contiguous() for k, v in state.items()}
        save_file(tensors, folder / "new.safetensors", {"clock": json.dumps(self._clock)})
        (folder / "new.safetensors").replace(folder / STATE)

    @property
    def _clock(self) -> dict[str, float]:
        return {"step": self.step, "elapsed": self.elapsed, "seconds": self.seconds}

    def _load(self) -> None:
        own = self.out / self.stage / STATE
        known = list(STAGES)
        for stage in known[: known.index(self.stage) + 1]:  # later stages overwrite what earlier ones taught
            path = self.out / stage / STATE
            if path.exists():
                weights = {n[6:]: t for n, t in load_file(path).items() if n.startswith("model.")}
                unknown = self.parts.load_state_dict(weights, strict=False).unexpected_keys
                assert not unknown, unknown
        if own.exists():
            state, clock = load_file(own), _clock_of(own)
            if clock["seconds"] != self.seconds:  # what is learnt when, and how fast, follows the share that is used up
                minutes = clock["seconds"] / 60 / STAGES[self.stage]
                raise UsageError(
                    f"Stage {self.stage} in {self.out} was begun with --minutes {minutes:g}. Go on with that, or "
                    "choose a new folder."
                )
            self.step, self.elapsed = int(clock["step"]), clock["elapsed"]
            for i, optimizer in enumerate(self.optimizers):
                saved = optimizer.state_dict()
                for name, tensor in state.items():
                    if name.startswith(f"optimizer.{i}."):
                        _, _, j, key = name.split(".")
                        saved["state"].setdefault(int(j), {})[key] = tensor
                optimizer.load_state_dict(saved)

    def export(self, folder: Path) -> None:
        """Write the model and its processor for stock transformers, weights named as in released LLaVA checkpoints.

        `folder` appears, in place of an older one, when all of it is written.
        """
        new = folder.with_name(f"{folder.name}.partial")
        llm, tower = self.model.model.language_model.config, self.model.model.vision_tower.config
        own = llm._attn_implementation
        llm._attn_implementation = tower._attn_implementation = "sdpa"
        self.model.save_pretrained(new)
        llm._attn_implementation = own
        weights = load_file(new / "model.safetensors")
        released = {n.replace("vision_tower.", "vision_tower.vision_model."): t for n, t in weights.items()}
        save_file(released, new / "model.safetensors", {"format": "pt"})
        self.processor.save_pretrained(new)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)


def _clock_of(state: Path) -> dict[str, float]:
    with safe_open(state, "pt") as file:
        clock = json.loads(file.metadata()["clock"])
    if not isinstance(clock, dict):
        raise UsageError(
            f"{state} was written by an older version, which did not note its minutes. Choose a new folder."
        )
    return clock


def _check_needs(out: Path, stage: str) -> None:
    """Raise UsageError unless the stages are finished that this one begins with."""
    clocks = {name: out / name / STATE for name in NEEDS[stage]}
    known = {name: _clock_of(state) for name, state in clocks.items() if state.exists()}
    missing = [name for name in clocks if name not in known or known[name]["elapsed"] < known[name]["seconds"]]
    if missing:
        raise UsageError(
            f"Stage {stage} begins with what {' and '.join(missing)} learnt, which is not finished in {out}. Train it "
            f"there first: --stages {','.join(missing)}."
        )


def train(
    out: Path,
    minutes: float,
    stages: Collection[str] = tuple(STAGES),
    threads: int = 2,
    report: Callable[[str], None] = print,
    report_every: int = 50,
) -> Path:
    """Run `stages`, in the order of STAGES, going on where a killed run stopped; returns where the result is.

    minutes: of all four stages, of which each takes its share. The first two may run at the same time in two processes;
    the export follows the last. Raises UsageError where `out` is something else than the folder of a run, was begun
    with other minutes, or lacks what a stage begins with.
    """
    if out.exists() and not any((out / name).is_dir() for name in STAGES) and (out.is_file() or any(out.iterdir())):
        raise UsageError(f"{out} holds something else than a training run. Choose a new folder.")
    torch.set_num_threads(threads)
    for stage in (name for name in STAGES if name in stages):
        _check_needs(out, stage)
        trainer = Trainer(out, stage, minutes * STAGES[stage])
        so_far = f"{trainer.step:,} steps, {trainer.elapsed / 60:.1f} minutes"
        if trainer.finished:
            report(f"{stage}: is finished ({so_far}).")
            continue
        report(
            f"{stage}: goes on after {so_far}."
            if trainer.step
            else f"{stage}: {trainer.seconds / 60:.1f} minutes, saved every minute, figures every {report_every} steps."
        )
        for figures in trainer.run(report_every=report_every):
            report(f"{stage}: " + "  ".join(f"{k} {v:.3g}" for k, v in figures.items()))
        (out / "curves.svg").write_text(curves.draw({name: curves.read(out / name) for name in STAGES}))
    if stage != "tune":
        return out / stage
    trainer.export(out / "checkpoint")
    return out / "checkpoint"
