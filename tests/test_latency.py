"""What `sparsezip time --stages` measures; never how long anything takes."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from sparsezip import cli, methods
from sparsezip.measure import latency

SMALL = latency.Shape(
    side=56, layers=2, dim=32, heads=2, clip=16, llm_layers=8, llm_heads=4, width=64, before=3, behind=5
)


@pytest.fixture
def clock(monkeypatch):
    """Every look at the clock is a second of wall time after the last, and half a second of CPU time."""
    wall, cpu = itertools.count(), itertools.count()
    monkeypatch.setattr(latency.time, "perf_counter", lambda: float(next(wall)))
    monkeypatch.setattr(latency.time, "process_time", lambda: next(cpu) / 2)


@pytest.mark.parametrize("name", [*methods.registry.names(), "visionzip|fastv", "keep_all|pyramiddrop"])
@pytest.mark.parametrize(("batch", "dtype"), [(1, "fp32"), (2, "bf16")])
def test_every_method_has_a_stage(name, batch, dtype, clock):
    threads = torch.get_num_threads()
    made = methods.method(name, **({"budget": 10} if name != "keep_all" else {}))
    measured = latency.stages({name: made}, SMALL, batch=batch, dtype=dtype, rounds=2)
    timed = measured["methods"][name]
    assert timed["cpu_ms"] == measured["tower"]["cpu_ms"] == {"median": 500, "p10": 500, "p90": 500}
    assert timed["wall_ms"]["median"] == 1000
    assert (timed["share"], timed["above"]) == (1, True)
    told = measured["record"]["methods"][name]
    assert methods.method(told.pop("name"), **told) == made
    assert torch.get_num_threads() == threads


def test_they_take_turns_after_a_warm_up(monkeypatch):
    order = []
    runs = [lambda letter=letter: order.append(letter) for letter in "abc"]
    assert len(latency._take_turns(runs, 2)) == 3
    assert "".join(order) == "abc" * 3


def test_the_tower_and_the_signals_have_the_shape(clock):
    made = latency._Made(SMALL, 2, torch.float32)
    tower = made.tower()
    out = tower()
    assert out.last_hidden_state.shape == (2, 17, 32)
    seen = made.captures(methods.method("visionzip", budget=6))
    assert seen.features.shape == (2, 17, 32)
    assert seen.delivered == {"cls_attention", "keys"}
    assert made.captures(methods.method("downsample", budget=4)).grid == (2, 2)
    assert made.captures(methods.method("downsample", budget=16)).grid == (4, 4)


def seen_by(method, monkeypatch, visual=16):
    """The lengths and counts of the views that the stage of `method` is timed on."""
    seen = []
    kind = type(method)
    keep = kind.keep
    run = latency._inside(method, visual, latency._Made(SMALL, 1, torch.float32))
    monkeypatch.setattr(kind, "keep", lambda self, view: seen.append(view) or keep(self, view))
    run()
    return [(len(view.visual[0]), view.count, view.stage, view.depth) for view in seen]


def test_each_drop_sees_what_the_one_before_left(monkeypatch):
    method = methods.method("pyramiddrop", budget=8)
    plan = method.plan(16, SMALL.llm)
    drops = method.after(SMALL.llm_layers)
    assert seen_by(method, monkeypatch) == [
        (before, count, stage, depth)
        for stage, (before, count, depth) in enumerate(zip([16, *plan], plan, drops, strict=False))
    ]
    own = seen_by(replace(method, budget=None), monkeypatch)
    assert [count for _, count, _, _ in own] == [None] * len(drops)
    assert [length for length, *_ in own] == sorted({length for length, *_ in own}, reverse=True)


def test_a_pair_drops_from_what_is_sent(monkeypatch):
    seen = []
    kind = methods.registry.get("fastv")
    keep = kind.keep
    monkeypatch.setattr(kind, "keep", lambda self, view: seen.append(len(view.visual[0])) or keep(self, view))
    latency.stages({"pair": methods.method("visionzip|fastv", budget=6)}, SMALL, rounds=1)
    assert set(seen) == {12}


@pytest.mark.parametrize("name", ["pyramiddrop", "keep_all|pyramiddrop"])
def test_a_budget_that_cannot_be_met_is_dropped_and_told(name, clock):
    shape = replace(SMALL, llm_layers=4)
    timed = latency.stages({"a": methods.method(name, budget=1)}, shape, rounds=1)["methods"]["a"]
    assert timed["note"] == "cannot meet the budget: at its own settings"


def test_the_table(clock):
    made = {"grid": methods.method("grid", budget=6), "fastv": methods.method("fastv")}
    measured = latency.stages(made, SMALL, rounds=3)
    measured["methods"]["fastv"] |= {"share": 0.005, "above": False}
    sheet = latency.sheet(measured)
    assert "batch 1, fp32, 1 thread(s)" in sheet.title
    cells = ["500.0", "500.0 - 500.0", "1000.0"]
    assert sheet.rows == [
        ["(tower)", "-", *cells, "100.0", ""],
        ["grid", "before", *cells, "100.0", "above 2%"],
        ["fastv", "inside", *cells, "0.5", ""],
    ]
    assert measured["record"]["started"] in latency.remark(measured)


def test_the_command(monkeypatch, tmp_path, capsys):
    asked = {}

    def stages(methods, **options):
        asked.update(methods=methods, **options)
        return measure(methods, SMALL, **options)

    measure = latency.stages
    monkeypatch.setattr(latency, "stages", stages)
    file = tmp_path / "out.json"
    arguments = ["time", "--stages", "--method", "keep_all,grid,fastv,visionzip|fastv", "--rounds", "1", "--json", file]
    assert cli.main([str(argument) for argument in arguments]) == 0
    assert {label: made.budget for label, made in asked["methods"].items()} == {
        "keep_all": None, "grid": 64, "fastv": 64, "visionzip|fastv": 64,
    }  # fmt: skip
    assert (asked["threads"], asked["batch"], asked["dtype"], asked["rounds"]) == (1, 1, "bf16", 1)
    assert list(json.loads(file.read_text())["methods"]) == list(asked["methods"])
    assert "visionzip|fastv" in capsys.readouterr().out
    assert cli.main(["time", "--stages", "--rounds", "1"]) == 0
    assert list(asked["methods"]) == methods.registry.names()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stages", "--method", "gird"], 'Did you mean "grid"'),
        (["--stages", "--budget", "0"], "--budget"),
        (["--stages", "--dtype", "fp8"], "--dtype"),
        (["--stages", "--threads", "0"], "--threads"),
        (["--stages", "--json", "nowhere/out.json"], "in a folder that exists"),
        (["--stages", "--method", "visionzip", "--set", "dominant=600"], "600"),
    ],
)
def test_what_cannot_be_timed_is_one_line(arguments, message, capsys):
    assert cli.main(["time", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
