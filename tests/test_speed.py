"""What `sparsezip time` measures; never how long anything takes."""

import itertools
import json
from collections import Counter

import pytest
import torch
from made_captures import captures as made_captures
from tiny_families import TINY
from tiny_vlm import make_config
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlavaForConditionalGeneration

from sparsezip import cli, methods
from sparsezip.errors import SettingError, UnknownNameError
from sparsezip.measure.speed import architectures, bench, limits, run, table

SIDE, PATCHES = 112, 64
BUDGET = 12
SENDS_BUDGET = [
    name
    for name in methods.registry.names()
    if methods.method(name).parts[1] is None and name not in ("keep_all", "downsample")
]


@pytest.fixture(scope="module")
def model():
    made = architectures.of_config(make_config(side=SIDE), dtype=torch.float32)
    return made.requires_grad_(False)


@pytest.fixture
def clock(monkeypatch):
    """Every look at the clock is a millisecond after the last."""
    ticks = itertools.count()
    monkeypatch.setattr(bench.time, "process_time", lambda: next(ticks) / 1000)


class Operations(TorchDispatchMode):
    """The operations inside the block, with the shapes of their tensors."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        shapes = [tuple(arg.shape) for arg in args if isinstance(arg, torch.Tensor)]
        self.seen.append((str(func), *shapes))
        return out


def operations(function):
    with Operations() as mode:
        function()
    return mode.seen


# -- models of published shapes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "width", "inner", "layers"), [("llava-1.5-7b", 4096, 11008, 32), ("llava-1.5-13b", 5120, 13824, 40)]
)
def test_the_shapes_have_the_published_number_of_parameters(name, width, inner, layers):
    """7.06 and 13.35 billion: two embeddings of 32,064 words, LLaMA's layers, CLIP-L at 336 px, two linear layers."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(architectures.ARCHITECTURES[name]())
    llama = 2 * 32064 * width + layers * (4 * width**2 + 3 * width * inner + 2 * width) + width
    projector = 1024 * width + width + width**2 + width
    assert sum(p.numel() for p in model.parameters()) == llama + projector + 303_507_456


def test_an_unknown_shape_is_refused():
    with pytest.raises(UnknownNameError, match=r"llava-1\.5-7b"):
        architectures.build("llava-1.5-7", dtype=torch.float32)


@pytest.mark.parametrize("shared", [False, True])
def test_a_made_model_is_whole_and_shares_what_it_is_told_to(shared):
    config = make_config(side=56)
    config.text_config.num_hidden_layers = 8
    made = architectures.of_config(config, dtype=torch.bfloat16, share_layers=shared)
    layers = made.model.language_model.layers
    weights = [layer.mlp.up_proj.weight for layer in layers]
    first = {id(weight): number for number, weight in reversed(list(enumerate(weights)))}
    assert [first[id(weight)] for weight in weights] == ([0, 1] * 4 if shared else list(range(8)))
    usual = LlavaForConditionalGeneration(config)
    assert made.state_dict().keys() == usual.state_dict().keys()
    for (name, mine), its in zip(made.named_buffers(), dict(usual.named_buffers()).values(), strict=True):
        assert torch.equal(mine, its), name
    stored = {p.data_ptr(): p for p in made.parameters()}.values()
    for parameter in stored:
        assert parameter.dtype == torch.bfloat16
        assert torch.isfinite(parameter).all()
        assert parameter.abs().max() < 2
    assert all(float(weight.std()) == pytest.approx(0.02, rel=0.2) for weight in weights)


# -- what is timed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", SENDS_BUDGET)
def test_behind_the_stage_all_methods_run_the_operations_of_ideal(model, name, batch):
    """So that the LLM is timed once for all methods that send equally many tokens."""
    timed = bench.Bench(model, batch, answer_tokens=2)
    method = methods.method(name, budget=BUDGET)
    _, ideal, _ = timed.splice(bench.Ideal(budget=BUDGET))
    _, mine, _ = timed.splice(method)
    assert {key: value.shape for key, value in mine.items() if isinstance(value, torch.Tensor)} == {
        key: value.shape for key, value in ideal.items() if isinstance(value, torch.Tensor)
    }
    timed.generate(ideal)  # what is made once is made now
    assert operations(lambda: timed.generate(mine)) == operations(lambda: timed.generate(ideal))


def test_another_number_of_tokens_would_show(model):
    timed = bench.Bench(model, 1, answer_tokens=2)
    calls = [timed.splice(bench.Ideal(budget=budget))[1] for budget in (BUDGET, BUDGET + 1)]
    timed.generate(calls[0])
    assert operations(lambda: timed.generate(calls[0])) != operations(lambda: timed.generate(calls[1]))


@pytest.mark.parametrize("batch", [1, 2])
def test_ideal_looks_at_nothing(model, batch):
    """One gather for each image; its indices are there beforehand."""
    method = bench.Ideal(budget=BUDGET)
    captures = methods_captures(model, batch)
    method.compress(captures)
    seen = Counter(name for name, *_ in operations(lambda: method.compress(captures)) if not free(name))
    assert seen == {"aten.index_select.default": batch}


def methods_captures(model, batch, wanted=frozenset()):
    from tiny_vlm import captured

    timed = bench.Bench(model, batch)
    with torch.inference_mode():
        return captured(timed.adapter, timed.images["pixel_values"], wanted)


@pytest.mark.parametrize(("name", "once", "each"), [("visionzip", 40, 28), ("sparsezip", 146, 46)])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_stage_is_few_operations_at_any_batch_size(model, name, once, each, batch):
    """The guard of the method stage: operations, not seconds. What is done image by image shows at batch 4."""
    method = methods.method(name, budget=BUDGET)
    captures = methods_captures(model, batch, method.needs - {"question"})
    with torch.inference_mode():
        method.compress(captures)
        seen = [name for name, *_ in operations(lambda: method.compress(captures)) if not free(name)]
    assert len(seen) <= once + each * batch, Counter(seen)


def free(name):
    """Views of tensors, which move nothing."""
    return any(
        part in name for part in ("view", "slice", "select.int", "unsqueeze", "expand", "transpose", "detach", "unbind")
    )


def test_the_answer_has_its_length_and_prefill_ends_with_its_first_token(model, clock):
    timed = bench.Bench(model, 2, answer_tokens=4)
    _, call, _ = timed.splice(bench.Ideal(budget=BUDGET))
    assert timed.generate(call) == {"prefill": pytest.approx(1), "decode": pytest.approx(1 / 3)}
    assert bench.Bench(model, 1, answer_tokens=1).generate(call).keys() == {"prefill"}


def test_every_stage_in_front_of_the_llm_is_counted_once(model, clock):
    timed = bench.Bench(model, 1)
    _, _, times = timed.splice(methods.method("sparsezip", budget=BUDGET))
    assert times.keys() == {"tower", "question", "compress", "project", "splice"}
    assert sum(times.values()) == pytest.approx(9)  # two looks at the clock for each of four stages, two for the whole
    assert times["tower"] == pytest.approx(1)


# -- the comparison ------------------------------------------------------------------------------------------------


def asked(**settings):
    return run.Asked(**{"arch": "tiny", "dtype": "fp32", "rounds": 2} | settings)


@pytest.fixture(scope="module")
def measured(model):
    chosen = {
        "visionzip": methods.method("visionzip", budget=BUDGET),
        "grid": methods.method("grid", budget=20),
        "fastv": methods.method("fastv", budget=32),
        "sparsevlm": methods.method("sparsevlm", budget=40),
        "pyramiddrop": methods.method("pyramiddrop", budget=2),
    }
    return run.measure(asked(batches=(1, 2)), chosen, model)


def test_rows_are_the_unmodified_model_then_ideal_with_its_methods_then_those_inside(measured):
    rows = [(row["method"], bool(row["model_of"]), row["tokens"]) for row in measured["rows"] if row["batch"] == 2]
    assert rows == [
        ("keep_all", False, 64),
        ("ideal", False, 20), ("grid", False, 20), ("visionzip", True, 20), ("divprune", True, 20),
        ("ideal", False, 12), ("visionzip", False, 12), ("visionzip", True, 12), ("divprune", True, 12),
        ("fastv", False, 64), ("sparsevlm", False, 64), ("sparsevlm", True, 64),
    ]  # fmt: skip
    assert len(measured["rows"]) == 2 * len(rows)
    assert measured["left_out"].keys() == {"pyramiddrop"}
    assert "too much for a budget of 2" in measured["left_out"]["pyramiddrop"]


def test_the_numbers_of_a_row_belong_together(measured):
    for row in measured["rows"]:
        stages = {name: spread["median"] for name, spread in row["stages"].items() if spread}
        assert {"prepare", "tower", "compress", "project", "splice", "prefill", "decode"} <= stages.keys()
        assert row["end_to_end"]["p10"] <= row["end_to_end"]["median"] <= row["end_to_end"]["p90"]
        assert row["per_layer"] <= row["tokens"]
    first, *others = (row for row in measured["rows"] if row["batch"] == 1)
    assert first["of_full"] == {"median": 1, "p10": 1, "p90": 1}
    assert first["prefill_flops"] > max(row["prefill_flops"] for row in others)
    by_name = {row["method"]: row for row in others if not row["model_of"]}
    assert by_name["ideal"]["of_ideal"]["median"] == 1
    assert by_name["fastv"]["of_ideal"] is None
    assert by_name["fastv"]["of_schedule"] > 0
    assert by_name["visionzip"]["own_flops"] > 0 == by_name["grid"]["own_flops"]


def test_ratios_are_of_sums_round_by_round():
    comparison = run._Comparison.__new__(run._Comparison)
    comparison.asked, comparison.counts = asked(answer_tokens=3), [64, 16]
    comparison.bench = type("Patches", (), {"patches": 64})()
    comparison.taken = {
        "prepare": [{"prepare": 1.0}, {"prepare": 2.0}],
        "grid": [{"tower": 10.0, "drop": 5.0}, {"tower": 20.0}],
        "llm 64": [{"prefill": 100.0}, {"prefill": 140.0}],
        "llm 16": [{"prefill": 30.0, "decode": 4.0}, {"prefill": 18.0, "decode": 5.0, "peak_bytes": 1e9}],
    }
    whole = comparison._whole("grid", 16)
    assert whole[0] == {"prepare": 1, "tower": 10, "drop": 5, "prefill": 30, "decode": 4}
    assert [comparison._end_to_end(times) for times in whole] == [1 + 10 + 30 + 8, 2 + 20 + 18 + 10]
    assert comparison._prefill(64) == 120
    assert comparison._prefill(40) == 72  # half of the way from 24 to 120
    assert comparison._prefill(4) == 0  # on the same line
    assert comparison._gains_below(20.0) == 54  # each token fewer saves two milliseconds
    assert comparison._gains_below(-1.0) == 64


@pytest.mark.parametrize(("family", "tokens"), [("llava_next", 52), ("qwen2_5_vl", 54)])
def test_other_families_are_timed_as_they_are(family, tokens, monkeypatch):
    """A picture with several tiles, and one of any size on a tower without CLS."""
    monkeypatch.setattr(bench, "PHOTO", (56, 112) if family == "llava_next" else (32, 48))
    chosen = {name: methods.method(name, budget=9) for name in ("visionzip", "divprune", "downsample")}
    asked = run.Asked(dtype="fp32", rounds=1)
    measured = run.measure(asked, chosen, TINY[family].make_model())
    rows = {row["method"]: row for row in measured["rows"] if not row["model_of"]}
    assert rows["keep_all"]["tokens"] == tokens
    assert [rows[name]["tokens"] for name in ("ideal", "visionzip", "divprune")] == [9, 9, 9]
    assert ("received" in str(measured["record"]["methods"])) == (family == "qwen2_5_vl")
    assert "scales images down" in measured["left_out"]["downsample"]
    assert all(row["own_flops"] is None for row in rows.values())
    assert [row["method"] for row in measured["rows"] if row["model_of"]] == (
        ["visionzip", "divprune"] if family == "llava_next" else []
    )


def test_they_take_turns_after_a_warm_up():
    order = []
    lanes = {letter: lambda letter=letter: order.append(letter) or {} for letter in "abc"}
    assert {name: len(times) for name, times in run._take_turns(lanes, 2, warm="b").items()} == {"a": 2, "b": 2, "c": 2}
    assert "".join(order) == "ac" + "abc" * 2


def test_nothing_is_left_behind(model):
    before = hooks(model)
    threads, attention = torch.get_num_threads(), model.model.language_model.config._attn_implementation
    run.measure(asked(rounds=1), {"pyramiddrop": methods.method("pyramiddrop", budget=2)}, model)
    run.measure(asked(rounds=1), {"sparsevlm": methods.method("sparsevlm", budget=40)}, model)
    assert hooks(model) == before
    with pytest.raises(SettingError):
        bench.Bench(model).splice(methods.method("fastv", k=3))  # an LLM of three layers has none behind the last
    assert hooks(model) == before
    assert torch.get_num_threads() == threads
    assert model.model.language_model.config._attn_implementation == attention
    assert model.model.vision_tower.config._attn_implementation == "sdpa"


def test_the_loop_in_python_chooses_as_divprune_does():
    captures = made_captures()
    kept = methods.method("divprune", budget=9).compress(captures).kept
    assert [sorted(limits.one_by_one(rows, 9)) for rows in captures.projected] == [its.tolist() for its in kept]


def hooks(model):
    return {
        name: (len(module._forward_hooks), len(module._forward_pre_hooks)) for name, module in model.named_modules()
    }


def test_a_pair_that_drops_nothing_inside_has_its_rows(model):
    pair = methods.method("visionzip|fastv", visionzip={"budget": 12}, fastv={"keep_ratio": 1.0})
    rows = run.measure(asked(rounds=1, rivals=False), {"pair": pair}, model)["rows"]
    assert [(row["method"], row["tokens"], row["per_layer"]) for row in rows] == [
        ("keep_all", 64, 64), ("ideal", 12, 12), ("pair", 12, 12),
    ]  # fmt: skip
    assert rows[2]["of_ideal"]["median"] > 0


# -- what is shown -------------------------------------------------------------------------------------------------


def test_the_tables(measured):
    times, work, cuts = table.sheets(measured)
    assert len(cuts.rows) == len(times.rows) - 2  # all but the unmodified model at two batch sizes
    assert cuts.rows[0][0] == "ideal"
    assert cuts.rows[0][4] == cuts.rows[0][6] == "100.0"
    assert all(len(row) == len(cuts.headings) for row in cuts.rows)
    assert len(times.rows) == len(work.rows) == len(measured["rows"])
    assert all(len(row) == len(times.headings) for row in times.rows)
    assert all(len(row) == len(work.headings) for row in work.rows)
    assert times.rows[3][:3] == ["visionzip *", "1", "20"]
    assert times.rows[0][-2:] == ["1.000", "1.000"]
    lines = list(table.remarks(measured))
    assert any(line.startswith("* Models of what official implementations pay") for line in lines)
    assert lines[-1].startswith("pyramiddrop is left out.")
    picture = table.picture(measured)
    assert "tiny, batch 1" in picture
    assert "tiny, batch 2" in picture


def test_answers_of_one_token_tell_nothing_of_longer_ones(model):
    told = run.measure(asked(rounds=1, answer_tokens=1), {"grid": methods.method("grid", budget=BUDGET)}, model)
    times, _, cuts = table.sheets(told)
    assert {cell for row in cuts.rows for cell in row[3:]} == {"-"}
    assert {row[times.headings.index("decode/token")] for row in times.rows} == {"-"}
    table.picture(told)


def test_the_command(model, monkeypatch, tmp_path, capsys):
    seen = {}

    def measure(asked, methods):
        seen.update(asked=asked, methods=methods)
        return real(asked, methods, model)

    real = run.measure
    monkeypatch.setattr(run, "measure", measure)
    monkeypatch.setattr("sparsezip.measure.latency.Shape.grid", (8, 8))
    file, picture = tmp_path / "out.json", tmp_path / "out.svg"
    arguments = ["time", "--budget", "12,40", "--method", "keep_all,grid", "--batch", "1,2", "--rounds", "1"]
    arguments += ["--device", "cpu", "--dtype", "fp32", "--json", str(file), "--picture", str(picture)]
    assert cli.main(arguments) == 0
    assert {label: made.budget for label, made in seen["methods"].items()} == {
        "grid(budget=12)": 12, "grid(budget=40)": 40,
    }  # fmt: skip
    assert (seen["asked"].batches, seen["asked"].rounds, seen["asked"].arch) == ((1, 2), 1, "llava-1.5-7b")
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads(file.read_text())
    assert len(printed["rows"]) == 2 * (1 + 2 * 4)
    assert picture.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "llava-7b"], "llava-1.5-7b"),
        (["--batch", "0"], "--batch 0"),
        (["--batch", "1,x"], "--batch 1,x"),
        (["--stages", "--batch", "1,8"], "Give one --batch"),
        (["--answer-tokens", "0"], "--answer-tokens"),
        (["--picture", "nowhere/out.svg"], "--picture nowhere/out.svg: name a file in a folder that exists"),
        (["--stages", "--picture", "out.svg"], "--picture has no meaning with --stages"),
        (["--device", "gpu"], "--device"),
        (["--method", "visionzip", "--set", "dominant=600"], "600"),
    ],
)
def test_what_cannot_be_timed_is_one_line(arguments, message, capsys):
    assert cli.main(["time", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
