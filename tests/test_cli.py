"""The command line: what it prints, what it writes, and the one line and exit code of everything that cannot be met."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image
from tiny_vlm import make_model, make_processor, picture
from transformers.utils import logging

from sparsezip import cli, request, vlm
from sparsezip.errors import FailureError
from sparsezip.measure.benchmarks.base import Benchmark
from sparsezip.testbed import sets

SRC = Path(cli.__file__).parents[2]
PATCHES = 16


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    """A random model never ends its answers by itself."""
    longest = Benchmark.longest_answer
    monkeypatch.setattr(Benchmark, "longest_answer", lambda made, prompt: min(longest(made, prompt), 2))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    sets.write(folder, 0, 2)
    return folder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    picture(1, 56).save(path)
    return path


@pytest.fixture
def run(capsys):
    """Run a command in this process; its exit code, output, and lines on stderr."""

    def run(*arguments: object) -> tuple[int, str, list[str]]:
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.splitlines()

    verbosity = logging.get_verbosity()  # the command line turns it down for its process
    yield run
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture
def no_model(monkeypatch):
    """A model that must not be opened: what cannot be met is said before."""

    def opened(*_: object, **__: object):
        raise AssertionError("a model was opened")

    monkeypatch.setattr(vlm, "load", opened)
    monkeypatch.setattr("sparsezip.models.load.load_tower", opened)


def process(*arguments: object, **options) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(SRC), "SPARSEZIP_DEBUG": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "sparsezip", *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


# -- ask and compress ----------------------------------------------------------------------------------------------


def test_ask_prints_the_answer_and_what_it_cost(run, model, image, tmp_path):
    drawn = tmp_path / "map.png"
    code, out, err = run("ask", image, "Is there a star?", "--model", model, "--budget", 6, "--map", drawn)
    assert (code, err) == (0, [])
    answer, tokens, stages, _ = out.splitlines()
    expected = vlm.load(model).ask(image, "Is there a star?", cli_method("sparsezip", budget=6))
    assert answer == expected.text
    assert tokens == "sparsezip: 6 of 16 visual tokens; mean per LLM layer 6.0"
    assert {"tower", "compress", "project", "prefill", "decode", "total"} <= {
        part.split()[0] for part in stages[4:].split(", ")
    }
    assert Image.open(drawn).size[0] > 56


def cli_method(name: str, **settings):
    from sparsezip import methods

    return methods.method(name, **settings)


def test_ask_takes_a_published_file_with_overrides(run, model, image, tmp_path):
    file = tmp_path / "visionzip.yaml"
    file.write_text(
        "model:\n  model_type: llava_vzip\n  model_path: liuhaotian/llava-v1.5-7b\n  temperature: 0.0\n"
        "  max_new_tokens: 3\n  dominant: 5\n  contextual: 2\n  conv_mode: llava_v1\n"
        "runner: {dataset: mme, warmup: 3, seed: 42}\n"
    )
    code, out, err = run("ask", image, "Why?", "--config", file, "--set", f"model.model_path={model}")
    assert code == 0
    assert "visionzip: 7 of 16" in out
    assert err == ["Note: conv_mode is not used: the checkpoint's own chat template words prompts."]
    code, out, _ = run("ask", image, "Why?", "--config", file, "--model", model, "--set", "contextual=3")
    assert "visionzip: 8 of 16" in out
    code, out, _ = run("ask", image, "Why?", "--config", file, "--model", model, "--method", "keep_all")
    assert "keep_all: 16 of 16" in out


def test_models_that_cannot_be_opened(run, image):
    for name, message in (
        ("liuhaotian/llava-v1.5-7b", "llava-hf/llava-1.5-7b-hf"),
        ("testbd", 'Did you mean "testbed"?'),
    ):
        for command in (["ask", image, "Why?"], ["compress", image]):
            code, _, err = run(*command, "--model", name)
            assert (code, len(err)) == (2, 1)
            assert message in err[0]


def test_compress_runs_the_tower_alone(run, model, image, monkeypatch, tmp_path):
    monkeypatch.setattr(vlm, "load", lambda *_, **__: pytest.fail("the language model was loaded"))
    drawn = tmp_path / "map.png"
    for question in ([], ["--question", "Is there a star?"]):
        code, out, err = run("compress", image, "--model", model, "--budget", 6, "--map", drawn, *question)
        assert (code, err) == (0, [])
        counted, kept, stages, _ = out.splitlines()
        assert counted == "sparsezip: 6 tokens for 16 patches (4 x 4): 5 kept, 11 merged, 0 dropped"
        assert len(kept.split()) == 6
        assert "tower" in stages
    assert drawn.exists()


def test_a_budget_of_all_patches_or_more_means_all_patches(run, model, image):
    for budget in ([], ["--budget", PATCHES], ["--budget", 1000]):  # 64 unless said otherwise
        code, out, _ = run("compress", image, "--model", model, "--method", "visionzip", *budget)
        assert code == 0
        assert "visionzip: 16 tokens for 16 patches (4 x 4): 16 kept, 0 merged, 0 dropped" in out


def test_settings_that_say_how_many_tokens_replace_the_usual_budget(run, model, image):
    _, out, _ = run("compress", image, "--model", model, "--method", "visionzip",
                    "--set", "dominant=5", "--set", "visionzip.contextual=2")  # fmt: skip
    assert "visionzip: 7 tokens" in out


@pytest.mark.parametrize(
    ("given", "budget"),
    [
        *((setting, None) for setting in ("k_min=32", "k_max=64", "dynk.c=12", "dynamic_k=true", "skip_dynamic_k=true",
                                          "dominant=54", "merging.contextual_num=32", "model.contextual=32")),
        ("keep_ratio=0.5", None),
        ("k_max=48 budget=32", 32),
        *((setting, 64) for setting in ("cross_beta=0", "paper=true", "merging.kmeans_iters=2")),
    ],
)  # fmt: skip
def test_the_usual_budget_is_for_who_does_not_say_how_many(given, budget):
    document, settings = cli.options.gather(None, {}, given.split(), ["sparsezip"])
    assert request.method(document, settings, (64,)).budget == budget


def test_a_file_is_taken_at_its_word(run, model, image, tmp_path):
    file = tmp_path / "visionzip.yaml"
    file.write_text("model: {model_type: visionzip}\n")
    code, _, err = run("compress", image, "--model", model, "--config", file)  # no usual budget: its own 64 tokens
    assert code == 2
    assert "54 + 10 = 64" in err[0]
    code, out, _ = run("compress", image, "--model", model, "--config", file, "--budget", 6)
    assert "visionzip: 6 tokens" in out


# -- eval ----------------------------------------------------------------------------------------------------------


def test_eval_shows_and_keeps_what_it_measured(run, model, data, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    wanted = ["eval", "--model", model, "--benchmark", "pope,scenes", "--method", "keep_all,visionzip", "--budget", 6,
              "--data", data, "--limit", 4, "--only", "pope.random,pope.popular", "--out", folder]  # fmt: skip
    code, out, err = run(*wanted)
    assert code == 0
    assert all(word in out for word in ("POPE ms", "keep_all", "visionzip", "95 % interval"))
    assert any("answers" in line for line in err)
    record = json.loads((folder / "run.json").read_text())
    assert record["config"]["methods"]["visionzip"]["budget"] == 6
    assert record["config"]["methods"]["keep_all"]["budget"] is None
    assert record["config"]["only"]["pope"] == ["random", "popular"]
    answers = (folder / "answers.jsonl").read_text()
    assert len(answers.splitlines()) == 16
    # the same command goes on, here with nothing left to do; another one is refused and leaves the folder alone
    code, again, _ = run(*wanted)
    assert (code, again) == (0, out)
    with monkeypatch.context() as patched:
        patched.setattr(vlm, "load", lambda *_, **__: pytest.fail("a model was opened"))
        code, _, err = run(*wanted, "--budget", 5)
    assert code == 2
    assert "holds a different run" in err[-1]
    assert (folder / "answers.jsonl").read_text() == answers
    # and what was resolved is a configuration for the same run
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["model"]["visionzip"]["budget"] == 6
    code, again, _ = run("eval", "--config", folder / "config.yaml")
    assert (code, again) == (0, out)


def test_eval_runs_every_method_at_every_budget(run, model, data, tmp_path):
    folder = tmp_path / "run"
    wanted = ["eval", "--model", model, "--benchmark", "scenes", "--method", "keep_all,random,grid", "--budget", "6, 3",
              "--data", data, "--limit", 4, "--out", folder]  # fmt: skip
    code, out, _ = run(*wanted)
    assert code == 0
    record = json.loads((folder / "run.json").read_text())
    assert {label: made["budget"] for label, made in record["config"]["methods"].items()} == {
        "keep_all": None, "random(budget=6)": 6, "random(budget=3)": 3, "grid(budget=6)": 6, "grid(budget=3)": 3,
    }  # fmt: skip
    assert json.loads((folder / "results.json").read_text())["notes"] == []
    assert run(*wanted)[:2] == (0, out)
    assert run("eval", "--config", folder / "config.yaml")[:2] == (0, out)


def test_eval_runs_every_method_at_all_its_settings(run, model, data, tmp_path):
    folder = tmp_path / "run"
    wanted = ["eval", "--model", model, "--benchmark", "scenes", "--method", "keep_all,sparsezip,grid", "--data", data,
              "--limit", 2, "--set", "sparsezip.cross_beta=0,0.3", "--set", "sparsezip.merging.kmeans_iters=1, 2",
              "--set", "method.budget=6,3", "--out", folder]  # fmt: skip
    code, out, _ = run(*wanted)
    assert code == 0
    made = json.loads((folder / "run.json").read_text())["config"]["methods"]
    assert sorted(
        (one["cross_beta"], one["merging"]["kmeans_iters"], one["budget"])
        for one in made.values()
        if one["name"] == "sparsezip"
    ) == [(beta, iters, budget) for beta in (0, 0.3) for iters in (1, 2) for budget in (3, 6)]
    assert sorted(str(one["budget"]) for one in made.values() if one["name"] != "sparsezip") == ["3", "6", "None"]
    assert run("eval", "--config", folder / "config.yaml")[:2] == (0, out)  # the same sweep, nothing left to do
    code, _, err = run("ask", "x.png", "Why?", "--set", "cross_beta=0,0.3")
    assert (code, len(err)) == (2, 1)
    assert "one value of every setting of sparsezip; a sweep is for eval" in err[0]


def test_the_settings_of_whatever_methods_run(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: {model_type: [keep_all, sparsezip, 'visionzip|fastv'], budget: 5,\n"
        "  sparsezip: {budget: 7, cross_beta: 0}, 'visionzip|fastv': {fastv: {keep_ratio: 0.5}}}\n"
    )

    def budgets(options: dict, *sets: str) -> list[tuple]:
        document, settings = cli.options.gather(file, options, list(sets), [])
        _, (everything, one, pair) = request.methods(document, settings, ())
        return [everything.budget, one.budget, pair.budget, pair.inner.keep_ratio]

    assert budgets({}) == [None, 7, None, 0.5]  # each by its own section
    assert budgets({}, "method.budget=9") == budgets({"--budget": "9"}) == [None, 9, 9, None]  # what is later wins
    assert budgets({}, "method.budget=9", "sparsezip.budget=4") == [None, 4, 9, None]
    document, settings = cli.options.gather(file, {}, ["method.paper=true"], [])
    _, (_, one, pair) = request.methods(document, settings, ())
    assert (one.paper, one.cross_beta, pair.paper) == (True, 0, True)


def test_a_resolved_file_takes_another_budget(run, model, data, tmp_path):
    asked = ["--model", model, "--benchmark", "scenes", "--data", data, "--limit", 2]
    assert run("eval", *asked, "--method", "grid", "--budget", 6, "--out", tmp_path / "a")[0] == 0
    code, _, _ = run("eval", "--config", tmp_path / "a" / "config.yaml", "--budget", 3, "--out", tmp_path / "b")
    assert code == 0
    assert json.loads((tmp_path / "b" / "run.json").read_text())["config"]["methods"]["grid"]["budget"] == 3


@pytest.mark.parametrize(
    "only", [["--only", "color", "shape"], ["--only", "color,shape"], ["--only", "color", "--only", "shape"],
             ["--only", "color shape"], ["--set", "runner.only=[color, shape]"]]
)  # fmt: skip
def test_groups_by_blank_comma_or_twice(run, model, data, tmp_path, only):
    wanted = ["eval", "--model", model, "--benchmark", "scenes", "--method", "grid", "--budget", 3, "--data", data]
    assert run(*wanted, *only, "--limit", 2, "--out", tmp_path / "run")[0] == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["only"] == {"scenes": ["color", "shape"]}


def test_a_benchmark_and_a_model_of_ones_own(run, data, tmp_path):
    shutil.copytree(data / "scenes", tmp_path / "data" / "mine")
    code = (SRC / "sparsezip/measure/benchmarks/scenes.py").read_text().replace("from ...", "from sparsezip.")
    code = code.replace("from ..", "from sparsezip.measure.").replace("from .", "from sparsezip.measure.benchmarks.")
    (tmp_path / "my_bench.py").write_text(code.replace('name = "scenes"', 'name = "mine"'))
    (tmp_path / "my_model.py").write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from fake_model import FakeModel\ndef load(**settings):\n    return FakeModel()\n"
    )
    code, out, err = run("eval", "--benchmark", tmp_path / "my_bench.py", "--model", tmp_path / "my_model.py",
                         "--method", "keep_all,grid", "--data", tmp_path / "data", "--only", "exist", "--limit", 2,
                         "--out", tmp_path / "run")  # fmt: skip
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert [(row["benchmark"], row["group"]) for row in rows] == [(str(tmp_path / "my_bench.py"), "exist")] * 4
    assert "EM %" in out


def test_what_the_runner_is_told(run, no_model, data, tmp_path, monkeypatch):
    told = {}

    def evaluate(*_: object, **options: object):
        told.update(options)
        raise FailureError("enough")

    monkeypatch.setattr("sparsezip.measure.evaluate.evaluate", evaluate)
    wanted = ["eval", "--data", data, "--out", tmp_path / "run", "--prompt", "lmms-eval"]
    assert run(*wanted, "--warmup", 7, "--runner", "ray", "--workers", 2, "--address", "ray://there:1")[0] == 1
    assert {key: told[key] for key in ("warmup", "runner", "workers", "address", "prompt")} == {
        "warmup": 7, "runner": "ray", "workers": 2, "address": "ray://there:1", "prompt": "lmms-eval",
    }  # fmt: skip
    assert run(*wanted)[0] == 1
    assert (told["warmup"], told["runner"], told["workers"], told["address"]) == (None, "local", 1, None)


def test_what_the_hub_lacks_is_said_before_anything_is_fetched(run, no_model, tmp_path, monkeypatch):
    monkeypatch.setattr("sparsezip.measure.hub._begin", lambda *_: pytest.fail("something is fetched"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, _, err = run("eval", "--benchmark", "mme,scenes", "--data", "hub", "--out", tmp_path / "run")
    assert (code, err[-1]) == (2, "sparsezip: scenes has no data set on the Hub.")


def test_data_of_the_hub_are_kept_in_the_users_cache(run, model, data, tmp_path, monkeypatch):
    asked = []

    def export(made, folder: Path, **_: object) -> Path:
        asked.append(made.name)
        return shutil.copytree(data / made.name, folder, dirs_exist_ok=True)

    monkeypatch.setattr("sparsezip.measure.hub.export", export)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wanted = ["eval", "--model", model, "--benchmark", "scenes,mme", "--method", "grid", "--budget", 3, "--limit", 2]
    code, _, err = run(*wanted, "--data", "hub", "--out", tmp_path / "run")
    assert (code, asked) == (0, ["scenes", "mme"])
    assert err[0] == f"The Hub's data are kept in {tmp_path}/cache/sparsezip/hub."
    assert (tmp_path / "cache/sparsezip/hub/mme").is_dir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for wrong in (["--out", tmp_path / "mine"], ["--prompt", "lava"], ["--benchmark", "coco_caption"]):
        monkeypatch.setenv("PATH", str(tmp_path))  # no Java there
        assert run(*wanted, "--data", "hub", "--out", tmp_path / "new", *wrong)[0] == 2
    assert asked == ["scenes", "mme"], "nothing is fetched for a run that cannot be"


def test_report_shows_a_run_and_writes_what_is_left_at_every_budget(run, model, data, tmp_path):
    folder = tmp_path / "run"
    _, shown, _ = run("eval", "--model", model, "--benchmark", "scenes", "--method", "keep_all,grid",
                      "--budget", "6,3", "--data", data, "--limit", 4, "--out", folder)  # fmt: skip
    code, out, err = run("report", folder)
    assert (code, err) == (0, [])
    assert out == shown.replace(f"Record, answers and results are in {folder}.\n", "")
    assert "EM % by budget" in out
    for suffix, start in ((".md", "**scenes"), (".svg", "<svg "), (".json", '{\n "budgets": [\n  6,\n  3\n ]')):
        out = tmp_path / f"compared{suffix}"
        assert run("report", folder, "--out", out)[:2] == (0, f"The report is in {out}.\n")
        assert out.read_text().startswith(start)
    for wrong, message in (
        ([tmp_path], "holds no run"),
        ([folder, "--out", "a.png"], "name a .md, .svg or .json file"),
        ([folder, "--out", "nowhere/a.md"], "in a folder that exists"),
    ):
        code, out, err = run("report", *wrong)
        assert (code, out, len(err)) == (2, "", 1)
        assert message in err[0]


def test_what_says_how_many_tokens_may_be_a_ratio(run, model, image):
    for command in (["ask", image, "Why?"], ["compress", image]):
        code, out, _ = run(*command, "--model", model, "--method", "grid", "--keep-ratio", 0.25)
        assert code == 0
        assert "grid: 4 " in out


def test_a_clip_model_is_opened_with_the_other(run, image, monkeypatch):
    """`load` and `load_tower` are given what --clip names."""
    given = []

    def opened(name, **options):
        given.append(options.get("clip"))
        raise FailureError("enough")

    monkeypatch.setattr(vlm, "load", opened)
    monkeypatch.setattr("sparsezip.models.load.load_tower", opened)
    for clip in ([], ["--clip", "some/clip"], ["--set", "model.clip=other/clip"]):
        for command in (["ask", image, "Why?"], ["compress", image]):
            assert run(*command, *clip)[0] == 1
    assert given == [None, None, "some/clip", "some/clip", "other/clip", "other/clip"]


def test_eval_makes_the_testbeds_own_sets_where_no_data_are_given(run, model, tmp_path):
    folder = tmp_path / "run"
    wanted = ["eval", "--model", model, "--benchmark", "mme", "--method", "random", "--limit", 2, "--out", folder]
    code, out, _ = run(*wanted, "--scenes", 2, "--seed", 3)
    assert code == 0
    assert "MME" in out
    assert (folder / "sets-seed3-scenes2" / "mme").is_dir()
    record = json.loads((folder / "run.json").read_text())
    assert record["config"]["methods"]["random"] | {"budget": 64, "seed": 3} == record["config"]["methods"]["random"]
    code, _, err = run(*wanted, "--scenes", 2, "--seed", 4)
    assert code == 2
    assert "holds a different run" in err[-1]
    assert not (folder / "sets-seed4-scenes2").exists()


def test_an_image_that_breaks_during_eval_is_shown_and_the_code_is_1(run, model, tmp_path):
    sets.write(tmp_path / "data", 0, 2)
    broken = tmp_path / "data" / "scenes" / "images" / "00001.png"
    broken.write_bytes(broken.read_bytes()[:500])
    code, out, err = run("eval", "--model", model, "--benchmark", "scenes", "--method", "grid",
                         "--data", tmp_path / "data", "--limit", 6, "--out", tmp_path / "run")  # fmt: skip
    assert code == 1
    assert "truncated or damaged" in out
    assert "answers failed" in out
    assert not any("Traceback" in line for line in err)


# -- what cannot be met: one line, exit code 2, and no model is opened -------------------------------------------------


def gigapixel(path: Path) -> None:
    from test_images import png_header

    path.write_bytes(png_header(40_000, 30_000))


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("command", ["ask", "compress"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "There is no image file"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("not an image"), "not a readable image"),
        (truncated, "truncated or damaged"),
        (gigapixel, "megapixels"),
    ],
)
def test_images(run, image, no_model, command, damage, message):
    damage(image)
    question = ["Why?"] if command == "ask" else []
    code, out, err = run(command, image, *question)
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith("sparsezip: ")
    assert message in err[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "sparsezp"], 'There is no method "sparsezp". Did you mean "sparsezip"?'),
        (["--method", "keep_all,grid"], "this command takes one method"),
        (["--set", "k_mim=3"], '--set k_mim=3: sparsezip has no key "k_mim". Did you mean "k_min"?'),
        (["--set", "merging.kmeans_iter=3"], 'Did you mean "kmeans_iters"?'),
        (["--set", "merging=3"], "merging"),
        (["--set", "visionzip.dominant=3"], 'sparsezip has no key "visionzip"'),
        (["--set", "model.visionzip.dominant=3"], "settings of visionzip, but what runs is sparsezip"),
        (["--set", "model.visonzip.dominant=3"], 'Did you mean "visionzip"?'),
        (["--set", "k_min=many"], "k_min"),
        (["--set", "sparsezip.k_min=0"], "sparsezip: --set sparsezip.k_min=0: SparseZip: k_min = 0"),
        (["--set", "model.contextual=-1"], "sparsezip: --set model.contextual=-1: SparseZip: merging"),
        (["--set", "k_min=64", "--set", "k_max=32"], "k_max"),
        (["--set", "cross_beta=.nan"], "cross_beta"),
        (["--set", "model.modelpath=x"], 'Did you mean "model_path"?'),
        (["--set", "k_min"], "write KEY=VALUE"),
        (["--set", "alphas={attn: 1"], "not valid YAML"),
        (["--budget", "0"], "--budget"),
        (["--budget", "many"], "--budget"),
        (["--budget", "6", "--keep-ratio", "0.5"], "--keep-ratio: there is a budget as well (--budget)"),
        (["--keep-ratio", "1.5"], "--keep-ratio: model.keep_ratio"),
        (["--keep-ratio", "0.5", "--method", "keep_all"], "--keep-ratio: keep_all takes no budget"),
        (["--match", "layers"], "--match: model.match: Input should be 'mean_tokens_per_layer'"),
        (["--set", "model.budget=[6, 3]"], "this command takes one budget, not 6, 3"),
        (["--set", "budget=6", "--set", "keep_ratio=0.5"], "budget"),
        (["--method", "keep_all", "--budget", "6"], "keep_all takes no budget"),
        (["--map", "map.txt"], "--map map.txt"),
        (["--map", "nowhere/map.png"], "in a folder that exists"),
        (["--config", "nowhere.yaml"], "Cannot read the configuration nowhere.yaml"),
        (["--mdoel", "x"], "No such option"),
    ],
)
def test_ask(run, image, no_model, arguments, message):
    code, out, err = run("ask", image, "Why?", *arguments)
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith("sparsezip: ")
    assert message in err[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "line 2: not valid YAML"),
        ("model:\n  dominant: 1\n  dominant: 2", 'line 3: the key "dominant" is given again (first on line 2)'),
        ("model:\n  model_type: sparsezap", 'line 2: There is no method "sparsezap". Did you mean "sparsezip"?'),
        ("model:\n  sparsezip:\n    k_mx: 2", 'line 3: sparsezip has no key "k_mx". Did you mean "k_max"?'),
        ("model:\n  sparsezip:\n    alphas: {attn: high}", "line 3: SparseZip: alphas: attn = 'high'"),
        ("model:\n  sparsezip:\n    k_min: 8\n    tau_feat: abc", "line 4: SparseZip: tau_feat = 'abc'"),
        (
            "model:\n  sparsezip:\n    merging:\n      contextual_num: -3",
            "line 4: SparseZip: merging: contextual_num = -3",
        ),
        (
            "model:\n  sparsezip:\n    merging: {kmeans_iters: 1}\n  contextual: -3",
            "line 4: SparseZip: merging: context",
        ),
        ("model:\n  model_path: x\n  dominant: -3", "line 3: SparseZip: dominant = -3"),
        ("model:\n  sparsezip:\n    k_max: 32\n    k_min: 64", "line 4: SparseZip got k_min=64"),
        ("model:\n  sparsezip:\n    alphas: 3", "line 3: SparseZip: alphas = 3"),
        ("model:\n  model_type: grid\n  sparsezip: {}", "line 3: settings of sparsezip, but what runs is grid"),
        ("runner:\n  seeds: 1", 'line 2: section "runner" has no key "seeds". Did you mean "seed"?'),
    ],
)
def test_configuration_files(run, image, no_model, tmp_path, text, message):
    file = tmp_path / "run.yaml"
    file.write_text(text + "\n")
    code, out, err = run("ask", image, "Why?", "--config", file)
    assert (code, out, len(err)) == (2, "", 1)
    assert f"{file}, {message}" in err[0]


def test_more_tokens_than_patches(run, model, image, data, tmp_path, no_model):
    asked = [
        "--model",
        model,
        "--method",
        "visionzip",
        "--set",
        "visionzip.dominant=10",
        "--set",
        "visionzip.contextual=7",
    ]
    folder = tmp_path / "run"
    for command in (
        ["ask", image, "Why?"],
        ["compress", image],
        ["eval", "--benchmark", "pope", "--data", data, "--limit", 2, "--out", folder],
    ):
        code, out, err = run(*command, *asked)
        assert (code, out, len(err)) == (2, "", 1)
        assert "10 + 7 = 17" in err[0]
        assert "16" in err[0]
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "pop"], 'There is no benchmark "pop". Did you mean "pope"?'),
        (["--method", "keep_all,visonzip"], 'Did you mean "visionzip"?'),
        (["--only", "random"], "Write BENCHMARK.GROUP, as in pope.random"),
        (["--benchmark", "pope", "--only", "rndom"], 'Did you mean "random"?'),
        (["--only", "pop.random"], "pop.random is no group of"),
        (["--prompt", "lava"], 'Did you mean "llava"?'),
        (["--limit", "0"], "--limit"),
        (
            ["--budget", "6,many"],
            "--budget: model.budget: a number of tokens, or several as in 192,128,64, not '6,many'",
        ),
        (["--budget", "6,0"], "--budget"),
        (["--method", "grid", "--budget", "6,6"], "The method grid is asked for twice"),
        (["--batch-size", "0"], "--batch-size"),
        (["--data", "nowhere"], "nowhere"),
        (["color"], '"color" belongs to no option'),
        (["--benchmark", "nowhere.py"], "There is no file nowhere.py"),
        (["--model", "nowhere.py"], "There is no file nowhere.py"),
        (["--runner", "rai"], "--runner: runner.runner: Input should be 'local' or 'ray', not 'rai'"),
        (["--workers", "2"], "--workers: workers is for --runner ray"),
        (["--address", "auto"], "--address: address is for --runner ray"),
        (["--runner", "ray", "--workers", "0"], "--workers"),
        (["--warmup", "0"], "--warmup"),
        (["--set", "method=3"], "say which method"),
        (["--set", "method.k_min=3"], '--set method.k_min=3: visionzip has no key "k_min"'),
        (["--set", "method.budget=6,many"], "--set method.budget=6,many: model.budget: a number of tokens"),
        (["--set", "method.budget=6", "--keep-ratio", "0.5"], "there is a budget as well (--set method.budget=6)"),
        (["--set", "sparsezip.cross_beta=0,much"], "--set sparsezip.cross_beta=0,much: SparseZip: cross_beta"),
        (["--set", "sparsezip.cross_beta=0,0"], "The method sparsezip is asked for twice"),
        (["--method", "keep_all", "--set", "method.paper=true"], "what runs is keep_all"),
        (["--set", "k_min=3"], "say which method"),
        (["--set", "runner.attn_implementation=fast"], "attn_implementation"),
    ],
)
def test_eval(run, no_model, data, tmp_path, arguments, message):
    folder = tmp_path / "run"
    code, out, err = run("eval", "--data", data, "--out", folder, *arguments)
    assert (code, out, len(err)) == (2, "", 1)
    assert message in err[0]
    assert not folder.exists()


def test_compress_has_no_llm_to_drop_tokens_in(run, image, no_model):
    for name in ("fastv", "visionzip|fastv"):
        code, out, err = run("compress", image, "--method", name)
        assert (code, out) == (2, "")
        assert f"{name} drops tokens inside the language model, which is not loaded here. Use ask." in err[0]


@pytest.mark.parametrize("given", [True, False])
def test_eval_writes_over_nobodys_files(run, no_model, data, tmp_path, given):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("config.yaml", "plan.json", "table.md"):
        (folder / name).write_text("runner: {dataset: pope}\n")
    wanted = ["eval", "--config", folder / "config.yaml", "--out", folder]
    code, out, err = run(*wanted, *(["--data", data] if given else []))
    assert (code, out, len(err)) == (2, "", 1)
    assert f"{folder} holds files and no run, such as config.yaml" in err[0]
    assert {path.read_text() for path in folder.iterdir()} == {"runner: {dataset: pope}\n"}
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_folder_that_cannot_be_one(run, no_model, model, data, tmp_path, given, place):
    (tmp_path / "file").write_text("mine")
    wanted = ["eval", "--model", model, "--out", tmp_path / place, "--scenes", 2]
    code, out, err = run(*wanted, *(["--data", data] if given else []))
    assert (code, out, len(err)) == (2, "", 1)
    assert "cannot be written" in err[0]
    assert (tmp_path / "file").read_text() == "mine"


def test_eval_wants_a_folder(run, no_model):
    code, _, err = run("eval", "--benchmark", "pope")
    assert code == 2
    assert "--out DIR" in err[0]


@pytest.mark.parametrize("missing", ["image", "text", "label"])
def test_annotation_rows_that_lack_something(run, no_model, data, tmp_path, missing):
    folder = tmp_path / "pope"
    folder.mkdir()
    for split in ("random", "popular", "adversarial"):
        rows = (data / "pope" / f"coco_pope_{split}.json").read_text().splitlines()
        (folder / f"coco_pope_{split}.json").write_text("\n".join(rows))
    broken = json.loads(rows[2])
    del broken[missing]
    rows[2] = json.dumps(broken)
    (folder / "coco_pope_adversarial.json").write_text("\n".join(rows))
    code, _, err = run("eval", "--benchmark", "pope", "--data", folder, "--images", data / "pope" / "images",
                       "--out", tmp_path / "run")  # fmt: skip
    assert (code, len(err)) == (2, 1)
    assert "row 3" in err[0]
    assert missing in err[0]


def test_annotations_whose_images_are_missing(run, no_model, data, tmp_path):
    (tmp_path / "none").mkdir()
    code, _, err = run(
        "eval", "--benchmark", "pope", "--data", data, "--images", tmp_path / "none", "--out", tmp_path / "run"
    )
    assert (code, len(err)) == (2, 1)
    assert "2 " in err[0]
    assert str(tmp_path / "none") in err[0]


# -- what fails on the way -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [RuntimeError("out of\nmemory"), FailureError("out of memory"), OSError(28, "full", "a.png")]
)
def test_failures_are_one_line_and_1(run, image, monkeypatch, error):
    def fails(*_: object, **__: object):
        raise error

    monkeypatch.setattr(vlm, "load", fails)
    code, _, err = run("ask", image, "Why?")
    assert (code, len(err)) == (1, 1)
    assert "out of memory" in err[0] or err[0] == "sparsezip: a.png: full."
    monkeypatch.setattr(cli.options, "DEBUG", True)
    with pytest.raises(type(error)):
        run("ask", image, "Why?")


def test_an_interrupt_is_130_without_a_traceback(tmp_path):
    running = process("testbed", "data", tmp_path / "sets", "--scenes", 100_000)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("sets.*.partial/scenes/images/00001.png")):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out, len(err.splitlines())) == (130, "", 1)
    assert "Stopped" in err
    assert not (tmp_path / "sets").exists()


# -- the rest --------------------------------------------------------------------------------------------------------


def test_lists_come_from_the_folders(run):
    for what, name in (("methods", "keep_all"), ("models", "llava"), ("benchmarks", "docvqa")):
        code, out, err = run("list", what)
        lines = out.splitlines()
        assert (code, err) == (0, [])
        folder = SRC / "sparsezip" / ("measure/benchmarks" if what == "benchmarks" else what)
        others = {"__init__", "base", "clip", "load", "pointwise", "towers"}
        files = {path.stem for path in folder.glob("*.py")} - others
        assert {line.split()[0] for line in lines} == files
        assert name in files
        assert all(len(line.split()) > 3 for line in lines)
    code, _, err = run("list", "method")
    assert (code, len(err)) == (2, 1)


def test_testbed_data_is_repeatable(run, tmp_path):
    for name in ("a", "b"):
        assert run("testbed", "data", tmp_path / name, "--seed", 5, "--scenes", 2)[0] == 0
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert {"pope", "mme", "docvqa", "coco_caption", "vqav2", "scenes"} == {file.parts[0] for file in files}
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    for out, option, said in (
        ("a", ("--seed", 6), "is not empty"),
        ("c", ("--split", "test"), 'There is no split "test". Known: held-out, train.'),
        ("c", ("--level", "stanard"), 'Did you mean "standard"?'),
    ):
        code, _, err = run("testbed", "data", tmp_path / out, "--scenes", 2, *option)
        assert (code, len(err)) == (2, 1)
        assert said in err[0]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_testbed_data_has_splits_and_levels(run, tmp_path):
    code, out, _ = run("testbed", "data", tmp_path / "a", "--scenes", 2, "--split", "train", "--level", "easy")
    assert code == 0
    assert "pope, mme, docvqa, coco_caption, vqav2 and scenes are in" in out
    sets.write(tmp_path / "b", 0, 2, "train", "easy")
    texts = [(tmp_path / name / "scenes" / "scenes.jsonl").read_text() for name in "ab"]
    assert texts[0] == texts[1]


def test_help_version_and_lists_start_without_torch():
    script = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from sparsezip.cli import main\n"
        "names = ('ask', 'compress', 'eval', 'report', 'time', 'list', 'testbed')\n"
        "commands = [[c, '--help'] for c in names] + [['--version']]\n"
        "commands += [['list', c] for c in ('methods', 'models', 'benchmarks')]\n"
        "commands += [['ask', 'x.png', 'y', '--config', 'z'], ['report', 'nowhere']]\n"
        "print([main(c) for c in commands], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(SRC)}, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1] == str([0] * 11 + [2] * 2), done.stderr


def test_python_m_sparsezip_prints_nothing_but_the_answer(model, image):
    out, err = process("ask", image, "Why?", "--model", model, "--method", "grid", "--budget", 3).communicate(
        timeout=120
    )
    assert err == ""
    assert "grid: 3 of 16" in out


def test_ctrl_c_says_that_the_run_can_go_on(run, data, tmp_path, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sparsezip.measure.evaluate.evaluate", stopped)
    code, _, err = run("eval", "--benchmark", "pope", "--data", data, "--method", "grid", "--out", tmp_path / "run")
    assert code == 130
    assert err == ["sparsezip: Stopped. Started again, `eval`, `data get` and `testbed train` go on where they were."]
