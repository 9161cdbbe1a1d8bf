"""Methods timed in turn, beside as many tokens chosen at no cost: `sparsezip time`.

    measured = measure(Asked(arch="llava-1.5-7b"), {"visionzip": method("visionzip", budget=64)})
    measured["rows"][1]["stages"]["compress"]["median"]

What is in front of the LLM is timed for every method. What comes behind, prefill and decoding, is the same sequence of
operations on the same shapes for all methods that send equally many tokens (a test compares the operations), so it is
timed once for each number of tokens, for `ideal`: patches whose indices are known beforehand. The end-to-end time of a
method is the sum of both, round by round. Methods inside the LLM are timed whole, beside what layers take that process
as many tokens. Everything runs once before anything counts, then in turns (a, b, c, a, b, c), so that a machine that
slows down slows all.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median
from typing import Any

import torch

from ... import methods as method_registry
from ...errors import BudgetError, UnsupportedModelError
from ...methods.base import Method
from ...models.pointwise import Pointwise
from ...vlm import cost
from ..clock import spread
from ..latency import DTYPES, own_flops, processor
from ..session import session
from . import limits
from .architectures import TEXT, build
from .bench import STAGES, Bench, Ideal, Times

FULL, IDEAL = "keep_all", "ideal"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is timed."""

    arch: str = "llava-1.5-7b"
    dtype: str = "bf16"
    device: str = "cpu"
    share_layers: bool = False
    batches: tuple[int, ...] = (1,)
    answer_tokens: int = 2
    rounds: int = 3
    threads: int = 1
    rivals: bool = True


def measure(asked: Asked, methods: Mapping[str, Method], model: Any = None) -> dict[str, Any]:
    """Time `methods`, by label, and what they are compared with. `model`: the one to time, in place of a made one.

    "rows": of each batch size the unmodified model (keep_all), then by number of tokens ideal, the methods that send as
    many and models of what official implementations pay, then the methods inside the LLM. Of each row
        "method", "batch"
        "tokens"            that enter the LLM, per image; "per_layer": their mean over its layers
        "stages"[stage]     {"median", "p10", "p90"} in ms for the whole batch, "decode" per step; None: there is none
        "end_to_end"        the same of their sum, with `answer_tokens` - 1 steps
        "of_full", "of_ideal"   the same of its ratio to keep_all and to ideal, round by round
        "of_schedule"       inside the LLM: prefill over that of layers that process as many tokens
        "floor"             ms of the prefill's matrix products and attention alone, timed once when the rest is done
        "gains_below"       the number of tokens under which the method saves time
        "prefill_flops", "own_flops", "kv_bytes", "peak_bytes"      per image; own_flops are the method's own
        "model_of"          for a model of an official implementation's cost: which
    "left_out"[label]: why a method has no row. "record": what was timed where, when and with what.
    Raises UnknownNameError for an unknown arch.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(asked.threads)
    try:
        if model is None:
            dtype = DTYPES[asked.dtype]
            model = build(asked.arch, dtype=dtype, device=asked.device, share_layers=asked.share_layers)
        rows, left_out = list[dict[str, Any]](), dict[str, str]()
        for batch in asked.batches:
            comparison = _Comparison(Bench(model, batch, asked.answer_tokens), methods, asked)
            rows += comparison.rows()
            left_out |= comparison.left_out
            methods = {**methods, **comparison.methods}
    finally:
        torch.set_num_threads(before)
    cuda = asked.device.startswith("cuda")
    where = torch.cuda.get_device_name() if cuda else f"{asked.threads} thread(s) of {processor()}"
    settings = {label: {"name": its.name, **method_registry.settings(its)} for label, its in methods.items()}
    record = {**session(), **asdict(asked), "where": where, "methods": settings}
    return {"record": record, "rows": rows, "left_out": left_out}


class _Comparison:
    """Methods at one batch size."""

    def __init__(self, bench: Bench, methods: Mapping[str, Method], asked: Asked) -> None:
        self.bench, self.asked = bench, asked
        adapter = bench.adapter
        self.rivals = adapter if asked.rivals and isinstance(adapter, Pointwise) else None  # their code is for LLaVA
        self.entering, self.left_out = dict[str, list[int]](), dict[str, str]()
        self.methods = dict[str, Method]()
        for label, method in methods.items():
            if method.needs & adapter.received - adapter.offers:  # there is no CLS
                method = replace(method, saliency="received")
            try:
                self.entering[label] = bench.entering(method)
                self.methods[label] = method
            except (BudgetError, UnsupportedModelError) as error:
                self.left_out[label] = str(error)
        inside = {label for label, method in self.methods.items() if method.parts[1] is not None}
        self.inside = [label for label in self.methods if label in inside]
        self.outside = [label for label in self.methods if label not in inside]
        sent = {its[0] for its in self.entering.values() if its[0] == its[-1]}
        self.counts = sorted(sent | {bench.patches}, reverse=True)
        warm = set(self.methods)
        if not bench.cuda:  # where a prefill takes seconds, one of them warms what all of them run
            warm |= {f"llm {count}" for count in self.counts[:-1]} | {f"eager {label}" for label in self.inside}
        self.taken = _take_turns(self._lanes(), asked.rounds, warm)
        self.taken |= _take_turns({f"floor {count}": limits.floor(bench, count) for count in self.counts}, 1)

    def _lanes(self) -> dict[str, Callable[[], Times]]:
        bench, fewer = self.bench, [count for count in self.counts if count < self.bench.patches]
        lanes = {"prepare": bench.prepare}
        lanes |= {f"{IDEAL} {count}": bench.sent(Ideal(budget=count)) for count in self.counts}
        lanes |= {f"llm {count}": bench.answered(count) for count in self.counts}
        lanes |= {label: bench.sent(self.methods[label]) for label in self.outside}
        lanes |= {label: bench.dropped(self.methods[label]) for label in self.inside}
        if self.rivals:
            lanes |= {f"loop {count}": limits.greedy_loop(bench, count) for count in fewer}
            lanes |= {"eager tower": limits.eager_tower(bench, self.rivals)}
            mine = next((label for label in self.inside if self.methods[label].name == "sparsevlm"), None)
            if mine:  # at one budget: each takes a whole prefill
                lanes[f"eager {mine}"] = limits.eager_decoder(bench, self.methods[mine])
        return lanes

    def rows(self) -> list[dict[str, Any]]:
        """See `measure`."""
        layers, rows = self.bench.adapter.llm_layers, list[dict[str, Any]]()
        for count in self.counts:
            plain = [count] * layers
            first = count == self.bench.patches
            rows.append(self._row(FULL if first else IDEAL, plain, self._whole(f"{IDEAL} {count}", count)))
            for label in self.outside:
                if self.entering[label][0] == count:
                    rows.append(self._row(label, self.entering[label], self._whole(label, count)))
            if self.rivals and not first:
                for lane, name, model_of in (
                    ("eager tower", "visionzip", limits.eager_tower.__doc__),
                    (f"loop {count}", "divprune", limits.greedy_loop.__doc__),
                ):
                    times = [
                        mine | its
                        for mine, its in zip(self._whole(f"{IDEAL} {count}", count), self.taken[lane], strict=True)
                    ]
                    rows.append(self._row(name, plain, times, model_of))
        for label in self.inside:
            entering = self.entering[label]
            rows.append(self._row(label, entering, self._whole(label)))
            if f"eager {label}" in self.taken:
                rows.append(self._row(label, entering, self._whole(f"eager {label}"), limits.eager_decoder.__doc__))
        return rows

    def _whole(self, lane: str, count: int | None = None) -> list[Times]:
        """Round by round all stages: those of a lane, and where that ends in front of it those of the LLM."""
        parts = [self.taken["prepare"], self.taken[lane], *([self.taken[f"llm {count}"]] if count else [])]
        return [{stage: its for times in part for stage, its in times.items()} for part in zip(*parts, strict=True)]

    def _end_to_end(self, times: Times) -> float:
        often = {"decode": self.asked.answer_tokens - 1, "drop": 0, "peak_bytes": 0}  # drops are part of the prefill
        return sum(often.get(stage, 1) * took for stage, took in times.items())

    def _row(self, label: str, entering: list[int], mine: list[Times], model_of: str | None = None) -> dict[str, Any]:
        bench, count = self.bench, entering[0]
        uniform = count if entering[-1] == count else None
        full = self._whole(f"{IDEAL} {bench.patches}", bench.patches)
        ideal = self._whole(f"{IDEAL} {uniform}", uniform) if uniform else None
        ends, all_, best = ([self._end_to_end(times) for times in each] for each in (mine, full, ideal or []))
        method, mine_is = self.methods.get(label, Ideal()), label in self.methods and not model_of
        prefill_flops, kv_bytes = cost(bench.adapter, method, entering, sum(TEXT))
        row: dict[str, Any] = {
            "method": label,
            "batch": bench.batch,
            "tokens": count,
            "per_layer": fmean(entering),
            "stages": {stage: spread(times.get(stage) for times in mine) for stage in STAGES},
            "end_to_end": spread(ends),
            "of_full": spread(a / b for a, b in zip(ends, all_, strict=True)),
            "of_ideal": spread(a / b for a, b in zip(ends, best, strict=True)) if best else None,
            "of_schedule": None,
            "floor": spread(times["prefill"] for times in self.taken[f"floor {uniform}"]) if uniform else None,
            "gains_below": None,
            "prefill_flops": prefill_flops,
            "own_flops": own_flops(method, bench.model.config) if mine_is and bench.adapter.name == "llava" else None,
            "kv_bytes": kv_bytes,
            "peak_bytes": max((times.get("peak_bytes", 0.0) for times in mine), default=0.0) / bench.batch or None,
            "model_of": model_of and model_of.rstrip("."),
        }
        if uniform is None:
            row["of_schedule"] = row["stages"]["prefill"]["median"] / fmean(map(self._prefill, entering))
        elif uniform < bench.patches:
            # The tower is left out where it is the same: its noise is larger than what most methods take.
            grid = bench.seen.grid
            other_tower = model_of or method.resized(grid) != grid
            own = {"question", "compress", "project", "splice"} | ({"tower"} if other_tower else set())
            extra = [
                sum(times.get(stage, 0.0) - best_times.get(stage, 0.0) for stage in own)
                for times, best_times in zip(mine, ideal or [], strict=True)
            ]
            row["gains_below"] = self._gains_below(median(extra))
        return row

    def _prefill(self, count: int) -> float:
        """What a prefill of `count` tokens takes, on the line through the two measured ones next to it."""
        took = {known: median(times["prefill"] for times in self.taken[f"llm {known}"]) for known in self.counts}
        if len(took) == 1:
            return took[self.bench.patches]
        low, high = next(
            ((low, high) for high, low in zip(self.counts, self.counts[1:], strict=False) if count >= low),
            (self.counts[-1], self.counts[-2]),
        )
        return took[low] + (took[high] - took[low]) * (count - low) / (high - low)

    def _gains_below(self, extra: float) -> float:
        """Where what fewer tokens save equals the `extra` time that a method takes to choose them."""
        most, fewer = self.counts[0], self.counts[1]
        per_token = (self._prefill(most) - self._prefill(fewer)) / (most - fewer)
        return min(float(most), most - extra / per_token) if per_token > 0 else 0.0


def _take_turns(
    lanes: Mapping[str, Callable[[], Times]], rounds: int, warm: Collection[str] = ()
) -> dict[str, list[Times]]:
    """What each lane took, round by round: each once before anything counts, but those that did, then in turn."""
    for name, run in lanes.items():
        if name not in warm:
            run()
    taken: dict[str, list[Times]] = {name: [] for name in lanes}
    for _ in range(rounds):
        for name, run in lanes.items():
            taken[name].append(run())
    return taken
