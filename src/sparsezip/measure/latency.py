"""How long each method's own stage takes, beside one pass of the vision tower: `sparsezip time --stages`.

    made = stages({"visionzip": method("visionzip", budget=64)})
    made["tower"]["cpu_ms"]["median"], made["methods"]["visionzip"]["share"]

Tower and LLM have the shape of LLaVA-1.5-7B (CLIP ViT-L/14 at 336 px) and random weights, so nothing is downloaded.
What a method reads is made up from a seed: how long a stage takes hardly depends on what it sees.

How it is measured
- CPU time of this process is what counts: it does not grow while another process has the core. Wall time stands beside.
- Tower and methods take turns (tower, a, b, tower, a, b), so that a machine that slows down slows them all. Each runs
  once before anything counts.
- A stage is `compress`, or inside the LLM `keep` at every layer that drops tokens, each on the tokens left so far. Not
  a method's own, so not counted: projecting the patches, reading the question, CLIP's text tower, and the queries and
  keys of a layer, which are there anyway (a method that looks ahead makes those of the next layer once more).
"""

import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel

from .. import methods as method_registry
from ..errors import BudgetError
from ..methods.base import LayerMethod, Method
from ..tensors import Captures, Decoder, LayerView, Question
from .clock import spread
from .report.table import NOT_MEASURED, Sheet
from .session import commit_shown, session

SHARE = 0.02  # of the tower's CPU time: what a stage may take
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A vision tower and an LLM, as far as the time of a stage depends on them."""

    side: int = 336  # pixels
    patch: int = 14  # pixels
    layers: int = 24
    dim: int = 1024
    heads: int = 16
    clip: int = 768  # width of CLIP's joint space
    llm_layers: int = 32
    llm_heads: int = 32
    width: int = 4096  # of the LLM
    before: int = 35  # tokens of the prompt before the image
    behind: int = 40  # and behind it

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.side // self.patch, self.side // self.patch

    @property
    def llm(self) -> Decoder:
        """As a budget sees it; the MLP has three matrices, 2.6875 times as wide as the LLM in LLaMA."""
        weights = 4 * self.width**2 + 3 * 2.6875 * self.width**2
        text = self.before + self.behind
        look = 6 * self.width**2
        return Decoder(layers=self.llm_layers, per_token=2 * weights, per_pair=4 * self.width, per_look=look, text=text)


def stages(
    methods: Mapping[str, Method],
    shape: Shape | None = None,
    *,
    threads: int = 1,
    batch: int = 1,
    dtype: str = "fp32",
    rounds: int = 9,
) -> dict[str, Any]:
    """Time the own stage of each of `methods` (by label), and the tower.

    Returns "tower" and "methods"[label] with "cpu_ms" and "wall_ms" ({"median", "p10", "p90"}), for a method also
    "where", "share" (of the tower's median CPU time), "above" (whether that is too much) and "note", and "record":
    what was measured where, when and with what. A budget that cannot be met inside the LLM is dropped, as noted.
    """
    shape = shape or Shape()
    made = _Made(shape, batch, DTYPES[dtype])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            prepared = {label: _prepared(method, made) for label, method in methods.items()}
            runs = [made.tower(), *(run for run, _ in prepared.values())]
            timed = _take_turns(runs, rounds)
    finally:
        torch.set_num_threads(before)
    tower, *others = timed
    measured = {}
    for (label, method), mine in zip(methods.items(), others, strict=True):
        share = mine["cpu_ms"]["median"] / tower["cpu_ms"]["median"]
        where = {"where": _where(method), "share": share, "above": share > SHARE, "note": prepared[label][1]}
        measured[label] = {**mine, **where}
    record = {
        **session(),
        "device": "cpu",
        "processor": processor(),
        "threads": threads,
        "batch": batch,
        "dtype": dtype,
        "rounds": rounds,
        "shape": asdict(shape),
        "methods": {label: {"name": its.name, **method_registry.settings(its)} for label, its in methods.items()},
    }
    made_of: dict[str, Any] = json.loads(json.dumps({"record": record, "tower": tower, "methods": measured}))
    return made_of


def own_flops(method: Method, config: Any) -> float:
    """What `method` itself computes for one image of a model with that config: matrix products, as PyTorch counts them.

    At its own settings where its budget cannot be met. Reading the question is not counted.
    """
    text, vision = config.get_text_config(), config.vision_config
    shape = Shape(
        side=vision.image_size,
        patch=vision.patch_size,
        dim=vision.hidden_size,
        heads=vision.num_attention_heads,
        llm_layers=text.num_hidden_layers,
        llm_heads=text.num_attention_heads,
        width=text.hidden_size,
    )
    with torch.inference_mode():
        stage, _ = _prepared(method, _Made(shape, 1, torch.float32))
        with FlopCounterMode(display=False) as counter:
            stage()
    return float(counter.get_total_flops())


def sheet(measured: Mapping[str, Any]) -> Sheet:
    """The table of what `stages` returns."""
    record, shape = measured["record"], measured["record"]["shape"]
    title = (
        f"Own stage of each method beside the vision tower ({shape['layers']} layers, {shape['dim']} wide, "
        f"{shape['side']} px), batch {record['batch']}, {record['dtype']}, {record['threads']} thread(s) of "
        f"{record['processor']}; median of {record['rounds']}"
    )
    rows = [["(tower)", NOT_MEASURED, *_cells(measured["tower"]), "100.0", ""]]
    for label, timed in measured["methods"].items():
        flag = f"above {SHARE:.0%}" if timed["above"] else ""
        rows.append(
            [
                label,
                timed["where"],
                *_cells(timed),
                f"{100 * timed['share']:.1f}",
                "; ".join(filter(None, (flag, timed["note"]))),
            ]
        )
    return Sheet(title, ["method", "LLM", "CPU ms", "p10 - p90", "wall ms", "% of tower", "note"], rows)


def remark(measured: Mapping[str, Any]) -> str:
    """With what it was measured, in a line."""
    record = measured["record"]
    return (
        f"torch {record['torch']}, {record['machine']}, {record['started']}{commit_shown(record)}. Random weights and "
        "made-up signals. % of tower is CPU time over CPU time; a stage inside the LLM is the sum over its layers."
    )


def _cells(timed: Mapping[str, Any]) -> list[str]:
    cpu, wall = timed["cpu_ms"], timed["wall_ms"]
    return [f"{cpu['median']:.1f}", f"{cpu['p10']:.1f} - {cpu['p90']:.1f}", f"{wall['median']:.1f}"]


def _where(method: Method) -> str:
    outer, inner = method.parts
    return "before" if inner is None else "inside" if inner is outer else "both"


# -- the clock -----------------------------------------------------------------------------------------------------


def _take_turns(runs: list[Callable[[], object]], rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of each, run in turn."""
    for run in runs:
        run()
    cpu: list[list[float]] = [[] for _ in runs]
    wall: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for number, run in enumerate(runs):
            at, used = time.perf_counter(), time.process_time()
            run()
            cpu[number].append(1000 * (time.process_time() - used))
            wall[number].append(1000 * (time.perf_counter() - at))
    return [{"cpu_ms": spread(mine), "wall_ms": spread(its)} for mine, its in zip(cpu, wall, strict=True)]


def processor() -> str:
    """The name of this machine's CPU."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


# -- what is timed -------------------------------------------------------------------------------------------------


def _prepared(method: Method, made: "_Made") -> tuple[Callable[[], object], str | None]:
    """What to run, and what there is to say about it."""
    try:
        return _stage(method, made), None
    except BudgetError:
        outer, inner = method.parts
        assert inner is not None, "in front of the LLM every budget can be met"
        own = replace(inner, budget=None, keep_ratio=None)
        return _stage(own if outer is inner else outer | own, made), "cannot meet the budget: at its own settings"


def _stage(method: Method, made: "_Made") -> Callable[[], object]:
    """The own stage of `method`, its inputs made."""
    outer, inner = method.parts
    rows, cols = made.shape.grid
    parts: list[Callable[[], object]] = []
    tokens = rows * cols
    if outer is not inner:
        captures, question = made.captures(outer), made.question() if "question" in outer.needs | outer.uses else None
        tokens = outer.compress(captures, question).tokens[0]
        parts.append(lambda: outer.compress(captures, question))
    if inner is not None:
        parts.append(_inside(inner, tokens, made))
    return lambda: [part() for part in parts]


def _inside(method: LayerMethod, visual: int, made: "_Made") -> Callable[[], object]:
    """`keep` at every layer that drops tokens, each on what the one before left; row by row, as the LLM's hooks do."""
    drops = method.after(made.shape.llm_layers)
    first = made.view(visual, 0, drops[0])
    settled = method.settled(first) if method.adapts else method
    plan = settled.plan(visual, made.shape.llm)
    views = []
    for stage, depth in enumerate(drops):
        count = None if plan is None else plan[stage]
        if count is None or count < visual:
            views.append(replace(made.view(visual, stage, depth), count=count))
            visual = settled.keep(views[-1]).tokens[0]

    def run() -> None:
        for _ in range(made.batch):
            if method.adapts:
                method.settled(first)
            for view in views:
                settled.keep(view)

    return run


class _Made:
    """Tensors of the right shape."""

    def __init__(self, shape: Shape, batch: int, dtype: torch.dtype) -> None:
        self.shape, self.batch, self.dtype = shape, batch, dtype
        self.draw = torch.Generator().manual_seed(0)
        self._sequence = cache(self._sequence_of)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.draw).to(self.dtype)

    def _attention(self, *shape: int) -> Tensor:
        return torch.softmax(2 * torch.randn(shape, generator=self.draw), -1).to(self.dtype)

    def tower(self) -> Callable[[], object]:
        """One pass of the tower."""
        shape = self.shape
        config = CLIPVisionConfig(
            hidden_size=shape.dim,
            intermediate_size=4 * shape.dim,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            image_size=shape.side,
            patch_size=shape.patch,
        )
        model: Any = CLIPVisionModel(config)
        model.to(self.dtype).eval()
        pixels = self._normal(self.batch, 3, shape.side, shape.side)
        return lambda: model(pixel_values=pixels)

    def captures(self, method: Method) -> Captures:
        """One pass of the tower at the grid `method` wants, with all that it reads and no more."""
        shape, images = self.shape, self.batch
        rows, cols = (
            shape.grid if method.sends_everything(shape.grid[0] * shape.grid[1]) else method.resized(shape.grid)
        )
        patches, heads = rows * cols, shape.heads
        signals: dict[str, Callable[[], Tensor]] = {
            "cls_attention": lambda: self._attention(images, heads, 1 + patches)[..., 1:],
            "keys": lambda: self._normal(images, 1 + patches, shape.dim // heads),
            "projected": lambda: self._normal(images, patches, shape.width),
            "image_embeds": lambda: self._normal(images, patches, shape.clip),
            "last_query": lambda: self._normal(images, shape.dim),
            "last_keys": lambda: self._normal(images, 1 + patches, shape.dim),
            "low_attention": lambda: self._attention(images, heads, 1 + patches)[..., 1:],
            "valid": lambda: torch.ones(images, patches, dtype=torch.bool),
        }
        read = {name: signals[name]() for name in sorted((method.needs | method.uses) & signals.keys())}
        features = self._normal(images, 1 + patches, shape.dim)
        return Captures(features=features, grid=(rows, cols), **read)  # type: ignore[arg-type]  # tensors by name

    def question(self) -> Question:
        """A question of twelve words."""
        shape = self.shape
        return Question(
            words=self._normal(12, shape.width), clip=self._normal(1, shape.clip), tower=self._normal(shape.dim)
        )

    def view(self, visual: int, stage: int, depth: int) -> LayerView:
        """What an LLM shows, in one row, behind a layer that `visual` of the image's tokens have come to."""
        shape = self.shape
        behind, patches = shape.before + visual, shape.grid[0] * shape.grid[1]
        tokens = behind + shape.behind
        angles = self._sequence("angles", tokens)
        return LayerView(
            q=self._sequence("q", tokens),
            k=self._sequence("k", tokens),
            hidden=self._sequence("hidden", tokens),
            embeds=self._sequence("embeds", shape.before + patches + shape.behind),
            position_ids=torch.arange(tokens)[None],
            visual=[torch.arange(shape.before, behind)],
            text=[torch.arange(behind, tokens)],
            stage=stage,
            depth=depth,
            began=[torch.arange(shape.before, shape.before + patches)],
            rope=(angles.cos(), angles.sin()),
            norm=torch.nn.RMSNorm(shape.width, dtype=self.dtype),
        )

    def _sequence_of(self, name: str, tokens: int) -> Tensor:
        """Made once for each length: they are large."""
        shape, head_dim = self.shape, self.shape.width // self.shape.llm_heads
        if name == "angles":
            turns = 10000 ** -(torch.arange(0, head_dim, 2) / head_dim).repeat(2)
            return (torch.arange(tokens)[:, None] * turns)[None].to(self.dtype)
        if name in ("q", "k"):
            return self._normal(1, shape.llm_heads, tokens, head_dim)
        return self._normal(1, tokens, shape.width)
