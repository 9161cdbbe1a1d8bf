"""Configuration files: the published shape runs, and every slip is one line that says where."""

import math
import re
from pathlib import Path

import pytest
import yaml
from fake_model import run, write_data
from malformed_configs import MALFORMED

from sparsezip import cli
from sparsezip.config import Document, Model, Runner, dump, override, read_yaml, resolve
from sparsezip.errors import ConfigError
from sparsezip.strict_yaml import parse

FOLDER = Path(__file__).parent.parent / "configs"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))

# as published, with the trailing comments and odd spacing of the original files
PUBLISHED = """\
model:
  model_type: sparsezip
  model_path: liuhaotian/llava-v1.5-7b
  temperature: 0.0
  max_new_tokens: 16
  dominant: 54  # dynamic-K can override
  contextual: 12
  sparsezip:
    dynamic_k: true
    k_min: 32
    dynk:
      c: 12.0
      eps: 1.0e-3
    merging:
      kmeans_init_factor: 2.0
    skip_dynamic_k:   false

runner:
  dataset: pope
  ann_path: null
  output_dir: ./outputs_eval
  warmup: 5
  seed: 42
  limit: null
  attn_implementation: "sdpa"
"""


@pytest.fixture
def read(tmp_path: Path):
    def read(text: str) -> Document:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return read_yaml(path)

    return read


def changed(document: Document, assignment: str) -> Document:
    override(document, assignment, ["sparsezip"])
    return document


def test_the_published_shape(read):
    settings = resolve(read(PUBLISHED))
    assert settings.model.model_type == ["sparsezip"]
    assert settings.model.model_path == "liuhaotian/llava-v1.5-7b"
    assert settings.model.max_new_tokens == 16
    assert settings.of("sparsezip") == {
        "dynamic_k": True,
        "k_min": 32,
        "dynk": {"c": 12.0, "eps": 0.001},
        "merging": {"kmeans_init_factor": 2.0, "contextual_num": 12},  # `contextual` stands for it
        "skip_dynamic_k": False,
        "dominant": 54,
    }
    assert (settings.runner.dataset, settings.runner.seed, settings.runner.warmup) == (["pope"], 42, 5)
    assert settings.runner.ann_path is None
    assert settings.runner.attn_implementation == "sdpa"


def test_a_setting_in_the_section_wins_over_its_short_form(read):
    text = "model: {model_type: sparsezip, contextual: 16, sparsezip: {merging: {contextual_num: 20}}}"
    assert resolve(read(text)).of("sparsezip") == {"merging": {"contextual_num": 20}}


@pytest.mark.parametrize(
    ("name", "method", "settings"),
    [
        ("llava", "keep_all", {}),
        ("llava_vzip, dominant: 54, contextual: 10", "visionzip", {"dominant": 54, "contextual": 10}),
        ("sparsevlm, retained_tokens: 192", "sparsevlm", {"retained_tokens": 192}),
    ],
)
def test_the_published_names_of_methods(read, name, method, settings):
    resolved = resolve(read(f"model: {{model_type: {name}}}"))
    assert resolved.model.model_type == [method]
    assert resolved.of(method) == settings


def test_several_methods_and_benchmarks(read):
    settings = resolve(read("model: {model_type: [llava, grid]}\nrunner: {dataset: 'pope, mme'}"))
    assert settings.model.model_type == ["keep_all", "grid"]
    assert settings.runner.dataset == ["pope", "mme"]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("model:\n  dominant: 1\n  dominant: 2\n", 3, 'the key "dominant" is given again \\(first on line 2\\)'),
        (PUBLISHED.replace("skip_dynamic_k:   false", "skip_dynamic_k: false\n    skip_dynamic_k: true"), 17, "again"),
        ("modle: {}\n", 1, 'no key "modle". Did you mean "model"'),
        ("model:\n  model_pth: x\n", 2, 'no key "model_pth". Did you mean "model_path"'),
        ("model:\n  settings: x\n", 2, 'no key "settings"'),
        ("runner:\n  dataset: pope\n  wramup: 3\n", 3, 'no key "wramup". Did you mean "warmup"'),
        ("runner:\n  sparsezip: {}\n", 2, 'no key "sparsezip"'),
        ("model:\n  max_new_tokens: many\n", 2, "max_new_tokens: .* not 'many'"),
        ("model:\n  max_new_tokens: true\n", 2, "max_new_tokens"),
        ("model:\n  max_new_tokens: 0\n", 2, "max_new_tokens"),
        ("runner:\n  seed: 9223372036854775808\n", 2, "seed: .* not 9223372036854775808"),
        ("model:\n  temperature: 0.7\n", 2, "greedily"),
        ("model:\n  model_type: []\n", 2, "model_type"),
        ("runner:\n  dataset: [pope, 3]\n", 2, "dataset"),
        ("model: 3\n", 1, "model"),
        ("model:\n  sparsezip: 5\n", 2, '"sparsezip" is a section of settings, not the value 5'),
        ("model:\n  model_type: grid, random\n  random: 5\n", 3, '"random" is a section of settings'),
        ("model:\n  model_type: [[grid]]\n", 2, "model_type"),
        ("model:\n  model_type: visionzip\n  retained_tokens: 64\n", 3, "retained_tokens.* is a setting of sparsevlm"),
        ("model: {a: [1, 2}\n", 1, "not valid YAML"),
        ("model:\n\tmodel_type: x\n", 2, "not valid YAML"),
        ("model: &a {}\nrunner: *a\n", 2, "aliases are not supported"),
        ("model: {}\n---\nrunner: {}\n", 2, "not valid YAML"),
        ("1: {}\n", 1, "plain word"),
        ("model:\n  <<: {a: 1}\n", 2, "plain word"),
        ("model:\n  model_path: !!python/object:os.system x\n", 2, "not valid YAML"),
        ("- model\n", 1, "sections"),
        ("nothing but words\n", 1, "sections"),
    ],
)
def test_every_slip_names_its_line(read, text, line, message):
    with pytest.raises(ConfigError, match=rf"run\.yaml, line {line}: .*{message}") as caught:
        resolve(read(text))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def answered(tmp_path_factory) -> Path:
    """A finished run with its data and, beside it, a place for files."""
    folder = tmp_path_factory.mktemp("malformed")
    run(folder / "run", write_data(folder / "data"))
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", [*MALFORMED, "a file that is missing", "a folder"])
@pytest.mark.parametrize("out", ["run", "new"])
def test_a_malformed_file_ends_in_one_line_before_anything_runs(answered, monkeypatch, capsys, name, out):
    """Nothing is opened or written, whether the run is a new one or has answers already."""
    for opened in ("sparsezip.vlm.load", "sparsezip.models.load.load"):
        monkeypatch.setattr(opened, lambda *_, **__: pytest.fail("a model was opened"))
    monkeypatch.chdir(answered)
    file = answered / "run.yaml"
    content, message = MALFORMED.get(name, (None, "Cannot read the configuration"))
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    before = contents(answered)
    wanted = file if content is not None else answered if name == "a folder" else answered / "nowhere.yaml"
    options = [] if "dataset" in str(content) else ["--benchmark", "scenes"]
    code = cli.main(["eval", "--config", str(wanted), "--data", "data", "--out", out, *options])
    said = capsys.readouterr()
    assert (code, said.out, len(said.err.splitlines())) == (2, "", 1)
    assert said.err.startswith("sparsezip: ")
    assert message in said.err
    assert len(said.err) < 2200
    assert contents(answered) == before
    assert not (answered / "new").exists()


def test_an_empty_file_and_empty_sections_mean_the_defaults(read):
    for text in ("", "# nothing\n", "model:\nrunner:\n", "model:\n  sparsezip:\n"):
        assert resolve(read(text)).of("sparsezip") == {}


@pytest.mark.parametrize(
    ("text", "value"),
    [("8", 8), ("-8", -8), ("0", 0), ("0.5", 0.5), (".5", 0.5), ("2.", 2.0), ("-1.5e3", -1500.0), ("true", True),
     ("null", None), ("~", None), ("", None), ("False", False), ("010", "010"), ("0x1f", "0x1f"), ("1_000", "1_000"),
     ("1:30", "1:30"), ("2025-01-01", "2025-01-01"), ("no", "no"), ("on", "on"), ("'8'", "8"), (".inf", math.inf)],
)  # fmt: skip
def test_what_a_value_is_read_as(text, value):
    found = parse(f"key: {text}", "x", {})["key"]
    assert (found, type(found)) == (value, type(value))


def test_a_number_with_an_exponent_is_a_number(read):
    for number in ("1e-3", "1.0e-3", "1.e-3", "1E-3"):
        settings = resolve(read(f"model: {{sparsezip: {{dynk: {{eps: {number}}}}}}}"))
        assert settings.of("sparsezip") == {"dynk": {"eps": 0.001}}


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("sparsezip.k_min=16", ("model", "sparsezip", "k_min"), 16),
        ("k_min=16", ("model", "sparsezip", "k_min"), 16),
        ("merging.agglomerative=true", ("model", "sparsezip", "merging", "agglomerative"), True),
        ("dynk.eps=1e-3", ("model", "sparsezip", "dynk", "eps"), 0.001),
        ("alphas={attn: 1, entropy: 0}", ("model", "sparsezip", "alphas"), {"attn": 1, "entropy": 0}),
        ("model.max_new_tokens=4", ("model", "max_new_tokens"), 4),
        ("runner.limit=null", ("runner", "limit"), None),
        ("model.model_path=a=b", ("model", "model_path"), "a=b"),
    ],
)
def test_set_overrides_one_key(read, assignment, path, value):
    document = read(PUBLISHED)
    override(document, assignment, ["keep_all", "sparsezip"])
    found = document.tree
    for key in path:
        found = found[key]
    assert found == value
    assert document.origin(path) == f"--set {assignment}"
    assert document.tree["model"]["model_type"] == "sparsezip"  # the rest stands


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("k_min", "write KEY=VALUE"),
        ("=3", "write KEY=VALUE"),
        ("sparsezip.=3", "write KEY=VALUE"),
        ("k_min=[1", "--set k_min=.*not valid YAML"),
        ("sparsezip.alphas={attn: 1, attn: 2}", 'the key "attn" is given again'),
        ("runner.limt=3", 'no key "limt". Did you mean "limit"'),
        ("model.model_type.x=3", "is a value, not a section"),
    ],
)
def test_a_wrong_set_says_so(read, assignment, message):
    with pytest.raises(ConfigError, match=message):
        resolve(changed(read(PUBLISHED), assignment))


def test_a_bare_setting_is_refused_where_two_methods_could_mean_it(read):
    with pytest.raises(ConfigError, match="say which method, one of sparsezip, visionzip"):
        override(read(""), "budget=3", ["sparsezip", "visionzip"])


def test_check_finds_unknown_settings_at_any_depth(read):
    document = read("model:\n  sparsezip:\n    merging:\n      kmeans_iter: 3\n")
    with pytest.raises(
        ConfigError, match=r'line 4: sparsezip "merging" has no key "kmeans_iter". Did you mean "kmeans_it'
    ):
        document.check(("model", "sparsezip"), {"merging": {"kmeans_iters": 1}}, "sparsezip")


def test_what_is_overridden_is_no_longer_found_in_the_file(read):
    document = read("model:\n  sparsezip:\n    alphas: {attn: 1}\n")
    override(document, "alphas={attn: high}", ["sparsezip"])
    assert document.origin(("model", "sparsezip", "alphas", "attn")) == "--set alphas={attn: high}"


def test_check_refuses_a_value_where_a_section_belongs(read):
    with pytest.raises(ConfigError, match="line 1"):
        read("model: 3").check(("model",), {}, "x")


def test_every_key_is_on_the_page_and_every_key_on_the_page_is_one():
    page = (FOLDER.parent / "docs" / "configuration.md").read_text(encoding="utf-8")
    for name, section in (("model", Model), ("runner", Runner)):
        table = page.split(f"| section `{name}` |")[1].split("\n\n")[0]
        first = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
        assert {key for cell in first for key in re.findall(r"`(\w+)`", cell)} == {*section.model_fields} - {"settings"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_the_resolved_settings_read_back_as_themselves(path, tmp_path):
    settings = resolve(read_yaml(path))
    (tmp_path / "resolved.yaml").write_text(dump(settings), encoding="utf-8")
    assert resolve(read_yaml(tmp_path / "resolved.yaml")) == settings
    assert yaml.safe_load(dump(settings))["model"]["model_path"] == settings.model.model_path
