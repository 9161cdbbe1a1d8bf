"""A pair of methods has a name, settings and a place in configurations like any method."""

import json
import re

import pytest
import torch
import yaml
from made_captures import captures, questions
from made_views import view
from tiny_vlm import make_model, make_processor, picture
from transformers import AutoModelForImageTextToText
from transformers.utils import logging

from sparsezip import cli, config, methods, request
from sparsezip.errors import ConfigError, SettingError, UnknownNameError
from sparsezip.measure.evaluate import labelled
from sparsezip.testbed import sets


def test_a_pair_is_built_from_its_name():
    made = methods.method("visionzip|fastv", budget=64, visionzip={"dominant": 108, "contextual": 20}, fastv={"r": 0.5})
    assert made.outer == methods.method("visionzip", dominant=108, contextual=20, budget=128)
    assert made.inner == methods.method("fastv", r=0.5, budget=64)
    assert made.name == methods.method(" visionzip | fastv ").name == "visionzip|fastv"
    assert "visionzip|fastv" not in methods.registry.names()


def test_at_the_tensor_level_it_is_its_two_parts():
    made, captured, seen = methods.method("trim|fastv", trim={"budget": 12}), captures(), view()
    assert (made.needs, made.uses) == (made.outer.needs, made.outer.uses)
    both = made.compress(captured, questions()), made.outer.compress(captured, questions())
    assert all(torch.equal(*kept) for kept in zip(both[0].kept, both[1].kept, strict=True))
    assert torch.equal(made.keep(seen).indices[0], made.inner.keep(seen).indices[0])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"budget": 64, "match": "flops"},
        {"keep_ratio": 0.1, "paper": True},
        {"visionzip": {"dominant": 108}, "fastv": {"budget": 32, "match": "tokens"}},
    ],
)
def test_its_settings_build_it_again(settings):
    made = methods.method("visionzip|fastv", **settings)
    again = methods.method(made.name, **methods.settings(made))
    assert again == made
    assert methods.settings(again) == yaml.safe_load(yaml.safe_dump(methods.settings(made)))


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("visionzip|fastw", {}, UnknownNameError, 'no method "fastw". Did you mean "fastv"'),
        ("visonzip|fastv", {}, UnknownNameError, 'no method "visonzip". Did you mean "visionzip"'),
        ("fastv|visionzip", {}, SettingError, '"fastv|visionzip" is no pair'),
        ("visionzip|grid", {}, SettingError, "is no pair"),
        ("grid|visionzip|fastv", {}, SettingError, "is no pair"),
        ("visionzip|fastv", {"fastw": {}}, UnknownNameError, 'no setting "fastw". Did you mean "fastv"'),
        ("visionzip|fastv", {"fastv": {"kk": 3}}, UnknownNameError, 'fastv has no setting "kk"'),
        ("visionzip|", {}, SettingError, '"visionzip|" names one method'),
        ("visionzip|fastv", {"budget": 64, "fastv": {"budget": 20}}, SettingError, "gives fastv {'budget': 64}, but"),
        (
            "visionzip|fastv",
            {"keep_ratio": 0.1, "visionzip": {"budget": 9}},
            SettingError,
            "gives visionzip {'keep_ratio",
        ),
        ("visionzip|fastv", {"fastv": 3}, SettingError, "fastv = 3. Give its settings by name"),
    ],
)
def test_what_makes_no_pair_is_refused(name, settings, error, message):
    with pytest.raises(error) as caught:
        methods.method(name, **settings)
    assert message in str(caught.value)


def chosen(*sets, options=None, default=(64,), running="visionzip|fastv"):
    document, settings = config.gather(None, {"--method": running, **(options or {})}, sets, [])
    return request.methods(document, settings, default)


def test_settings_of_the_two_reach_the_pair_and_its_own_section_wins():
    _, (made,) = chosen("visionzip.contextual=7", "fastv.k=2", "model.visionzip|fastv.fastv.k=4")
    assert (made.outer.contextual, made.inner.k) == (7, 4)
    _, (both, alone) = chosen("visionzip.paper=true", running="visionzip|fastv,visionzip")
    assert both.outer.paper
    assert alone.paper
    assert not both.inner.paper


def test_the_two_draw_with_the_seed_of_the_run():
    _, (made,) = chosen("runner.seed=5", running="random|fastv")
    assert made.outer.seed == 5


@pytest.mark.parametrize(
    ("sets", "options", "budgets"),
    [
        ([], {}, (64, 128, 64)),
        ([], {"--budget": 32}, (32, 64, 32)),
        (["visionzip|fastv.budget=16"], {"--budget": 32}, (16, 32, 16)),
        (["fastv.budget=48"], {"--budget": 32}, (None, None, 48)),
        (["visionzip.dominant=108"], {}, (None, None, None)),
        (["visionzip|fastv.visionzip={dominant: 108}"], {}, (None, None, None)),
        (["visionzip.dominant=54"], {"--budget": 32}, (32, 64, 32)),
        (["visionzip.paper=true"], {}, (64, 128, 64)),
    ],
)
def test_the_budget_of_a_pair_is_one_for_both(sets, options, budgets):
    _, (made,) = chosen(*sets, options=options)
    assert (made.budget, made.outer.budget, made.inner.budget) == budgets


def test_the_usual_budget_is_not_forced_on_a_method_inside_the_llm():
    _, (made,) = chosen(running="fastv")
    assert made.budget is None
    _, (made,) = chosen(running="fastv", options={"--budget": 32})
    assert made.budget == 32


def test_match_and_ratio_reach_every_method():
    _, made = chosen(running="grid,fastv,visionzip|fastv", options={"--match": "flops", "--keep-ratio": 0.25})
    assert {method.match for method in made} == {"flops"}
    assert {method.keep_ratio for method in made} == {0.25}
    assert (made[2].inner.match, made[2].outer.keep_ratio, made[2].inner.keep_ratio) == ("flops", 0.5, 0.5)


def test_a_sweep_is_every_method_at_every_budget_and_its_configuration_the_same_sweep(tmp_path):
    names = "keep_all,grid,random,visionzip|fastv"
    options, sets = {"--budget": "192,64"}, ["random.budget=32", "fastv.k=2"]
    asked, made = chosen(*sets, options=options, running=names)
    labels = ["keep_all", "grid(budget=192)", "grid(budget=64)", "random",
              "visionzip|fastv(budget=192)", "visionzip|fastv(budget=64)"]  # fmt: skip
    assert list(labelled(made)) == labels
    _, settings = config.gather(None, {"--method": names, **options}, sets, [])
    (tmp_path / "resolved.yaml").write_text(config.dump(settings, asked))
    document, settings = config.gather(tmp_path / "resolved.yaml", {}, [], [])
    assert labelled(request.methods(document, settings, ())[1]) == labelled(made)


@pytest.mark.parametrize(
    ("sets", "running", "message"),
    [
        (["visionzip|fastv.fastv.kk=3"], "visionzip|fastv", 'visionzip|fastv "fastv" has no key "kk"'),
        (["visionzip|fastv.fastv=3"], "visionzip|fastv", "Give its settings by name"),
        (["fastv.k=0"], "visionzip|fastv", "--set fastv.k=0: FastV: k = 0"),
        (["model.grid.budget=3"], "visionzip|fastv", "settings of grid"),
        ([], "visionzip|fastw", 'Did you mean "fastv"'),
        ([], "visionzip|grid", '--method: "visionzip|grid" is no pair'),
    ],
)
def test_a_slip_in_a_pair_says_where_it_is(sets, running, message):
    if sets and sets[0].startswith("model."):
        document, settings = config.gather(None, {}, sets, [running])
    else:
        document, settings = config.gather(None, {"--method": running}, sets, [])
    with pytest.raises(ConfigError) as caught:
        request.methods(document, settings, (64,))
    assert message in str(caught.value)


def test_labels_name_what_methods_of_one_name_differ_in():
    made = [
        methods.method("visionzip|fastv", budget=64),
        methods.method("visionzip|fastv", budget=64, fastv={"k": 2}),
        methods.method("visionzip", budget=64),
        methods.method("visionzip", budget=64, paper=True),
    ]
    assert list(labelled(made)) == [
        "visionzip|fastv",
        "visionzip|fastv(fastv.k=2)",
        "visionzip",
        "visionzip(paper=True)",
    ]
    with pytest.raises(SettingError, match="visionzip is asked for twice"):
        labelled([made[2], made[2]])


# -- through the command line, on a model of 16 patches and 3 layers ---------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(capsys, tmp_path):
    picture(1, 56).save(tmp_path / "image.png")
    verbosity = logging.get_verbosity()

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    yield run
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def test_ask_counts_what_the_layers_process(run, model, tmp_path):
    asked = ["ask", tmp_path / "image.png", "Is there a star?", "--model", model, "--method"]
    code, out, err = run(*asked, "visionzip|fastv", "--budget", 6)
    assert (code, err) == (0, [])
    mean = float(re.search(r"visionzip\|fastv: 12 of 16 visual tokens; mean per LLM layer ([\d.]+)", out)[1])
    assert 5 < mean <= 6
    code, out, _ = run(*asked, "fastv", "--budget", 4, "--match", "tokens")
    assert code == 0
    assert "fastv: 16 of 16 visual tokens; mean per LLM layer 8.0" in out  # 16, 4 and 4


def test_what_a_pair_cannot_send_is_refused_before_a_model_is_opened(run, model, tmp_path, monkeypatch):
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", lambda *_, **__: pytest.fail("opened"))
    asked = ["ask", tmp_path / "image.png", "Why?", "--model", model, "--method", "visionzip|fastv"]
    code, _, err = run(*asked, "--set", "visionzip.dominant=10", "--set", "visionzip.contextual=7")
    assert (code, len(err)) == (2, 1)
    assert "10 + 7 = 17" in err[0]


def test_eval_leaves_out_what_the_layers_are_too_few_for(run, model, tmp_path):
    sets.write(tmp_path / "data", 0, 2)
    folder = tmp_path / "run"
    wanted = ["eval", "--model", model, "--benchmark", "scenes", "--method", "keep_all,grid,fastv,visionzip|fastv",
              "--budget", "8,4", "--data", tmp_path / "data", "--limit", 2, "--out", folder]  # fmt: skip
    code, out, err = run(*wanted)
    assert code == 0
    assert any(line.startswith("Left out: fastv(budget=4). FastV lets all 16") for line in err)
    results = json.loads((folder / "results.json").read_text())
    assert list(results["left_out"]) == ["fastv(budget=4)"]
    means = {label: made["tokens_per_layer"] for label, made in results["benchmarks"]["scenes"]["methods"].items()}
    assert means["grid(budget=4)"] == 4
    for label in ("fastv(budget=8)", "visionzip|fastv(budget=8)"):
        assert 7 < means[label] <= 8
    assert run(*wanted)[:2] == run("eval", "--config", folder / "config.yaml")[:2] == (0, out)
    code, _, err = run(*wanted[:5], "--method", "fastv", "--budget", 4, *wanted[9:-1], tmp_path / "other")
    assert (code, len(err)) == (2, 1)
    assert "too much for a budget of 4" in err[0]


def test_the_measure_of_a_pair_is_that_of_its_inner_method():
    assert methods.method("visionzip|fastv", match="tokens", fastv={"budget": 40}).inner.match == "tokens"
    assert methods.method("visionzip|fastv", fastv={"budget": 40, "match": "tokens"}).inner.match == "tokens"


def test_a_version_may_be_written_as_a_number():
    assert methods.method("sparsevlm", version=1.5) == methods.method("sparsevlm", version="1.5")
    assert chosen("sparsevlm.version=2.0", running="sparsevlm")[1][0].version == "2.0"
