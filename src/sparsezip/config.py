"""Strict YAML in, resolved YAML out: what a run is asked to do, and where each wish was written.

The shape is the one SparseZip's published files use, so that those files run here:

    model:
      model_type: sparsezip                   # or a list of methods; "llava" is keep_all, "llava_vzip" is visionzip;
                                              # "visionzip|fastv" is a pair
      model_path: llava-hf/llava-1.5-7b-hf
      max_new_tokens: 16
      dominant: 54                            # short for a setting of the method named by model_type
      sparsezip: {k_min: 32, k_max: 64}       # the settings of one method, under its name
    runner:
      dataset: pope                           # or a list of benchmarks
      seed: 42

Nothing is guessed and nothing is ignored: a key given twice, an unknown key and a value of the wrong type are
refused with the line they stand on (see strict_yaml.py). `--set` and the command line's own options override single
keys. Several values by comma are a sweep: of the budget and, in request.py, of any setting of a method.
"""

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from . import strict_yaml
from .errors import ConfigError
from .registry import nearest
from .strict_yaml import Keys

METHOD_OF = {"llava": "keep_all", "llava_vzip": "visionzip"}  # the published files' own names for two methods
SHOWN = 80  # characters of a wrong value
SHARED = ("budget", "keep_ratio", "match")  # the settings of all methods, which stand beside their sections
SHORT_FOR: dict[str, dict[str, Keys]] = {  # their settings that stand beside, not in, a method's section
    "sparsezip": {"dominant": ("dominant",), "contextual": ("merging", "contextual_num")},
    "visionzip": {"dominant": ("dominant",), "contextual": ("contextual",)},
    "sparsevlm": {"retained_tokens": ("retained_tokens",)},
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Count = Annotated[int, Field(ge=1, lt=2**31)]


def _one_or_many(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _words(value: Any) -> Any:
    return re.findall(r"[^\s,]+", value) if isinstance(value, str) else value


def parts(name: str) -> list[str]:
    """The methods in the name of a pair, or the one method."""
    return [METHOD_OF.get(part.strip(), part.strip()) for part in name.split("|")]


class Model(_Section):
    """The `model` section: which model answers, and through which methods."""

    model_type: list[str] = Field(default=["sparsezip"], min_length=1)
    model_path: str = "testbed"
    max_new_tokens: Count | None = Field(default=None, description="None: what the benchmark asks for")
    temperature: Literal[0] = 0
    conv_mode: str | None = Field(
        default=None, description="not used: the checkpoint's own chat template words prompts"
    )
    budget: list[Annotated[int, Field(ge=1)]] = Field(default=[], description="several: a sweep")
    keep_ratio: float | None = Field(default=None, gt=0, le=1)
    match: Literal["mean_tokens_per_layer", "tokens", "flops"] | None = None
    clip: str | None = Field(
        default=None, description="a CLIP model's folder or Hub id, for methods that read its text"
    )
    dominant: int | None = None
    contextual: int | None = None
    retained_tokens: int | None = None
    settings: dict[str, dict[str, Any]] = Field(default={}, description="by method; written under the method's name")

    @field_validator("model_type", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        names = _one_or_many(value)
        known = isinstance(names, list) and all(isinstance(name, str) for name in names)
        return ["|".join(parts(name)) for name in names] if known else names

    @field_validator("budget", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        if isinstance(value, str):
            if not re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*", value):
                raise ValueError("a number of tokens, or several as in 192,128,64")
            return [int(number) for number in value.split(",")]
        return [] if value is None else [value] if isinstance(value, int) else value

    @field_validator("temperature", mode="before")
    @classmethod
    def _greedy(cls, value: Any) -> Any:
        if value != 0 or isinstance(value, bool):
            raise ValueError("answers are decoded greedily; only 0 is possible")
        return 0


class Runner(_Section):
    """The `runner` section: what is asked, and how."""

    dataset: list[str] = Field(default=["pope", "mme", "docvqa", "scenes"], min_length=1)
    ann_path: str | None = Field(default=None, description="None: the testbed's own sets are made; hub: the Hub's data")
    images: str | None = None
    output_dir: str | None = None
    only: list[str] = Field(default=[], description="groups, as pope.random where there are several benchmarks")
    limit: Count | None = None
    prompt: str | None = None
    batch_size: Count = 1
    warmup: Count | None = Field(default=None, description="questions of each benchmark; None: a batch")
    runner: Literal["local", "ray"] = "local"
    workers: Count = 1
    address: str | None = Field(default=None, description="of a Ray cluster; None: this machine")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of methods that draw, and of the testbed's own sets")
    scenes: Count = Field(default=200, description="size of the testbed's own sets")
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] | None = None

    _split = field_validator("dataset", mode="before")(_one_or_many)
    _groups = field_validator("only", mode="before")(_words)


class Settings(_Section):
    """A whole run, every default filled in."""

    model: Model = Model()
    runner: Runner = Runner()

    @property
    def parts(self) -> list[str]:
        """The methods that run, those of pairs one by one."""
        return list(dict.fromkeys(part for name in self.model.model_type for part in parts(name)))

    def of(self, method: str) -> dict[str, Any]:
        """What is set for one method: its own section, completed by the short forms beside it.

        For a pair: its own section, completed by what is set for each of the two.
        """
        settings = copy.deepcopy(self.model.settings.get(method, {}))
        for part in parts(method) if "|" in method else []:
            settings[part] = over(self.of(part), settings.get(part) or {})
        for key, (*sections, name) in SHORT_FOR.get(method, {}).items():
            value = getattr(self.model, key)
            if value is not None:
                section = settings
                for part in sections:
                    section = section.setdefault(part, {})
                section.setdefault(name, value)
        return settings


def over(below: Any, above: Any) -> Any:
    """`above`, completed by what `below` has besides; mappings part by part."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    return below | {key: over(below.get(key), value) for key, value in above.items()}


OPTIONS: dict[str, Keys] = {  # of the command line, where they are not called as in the file
    "--model": ("model", "model_path"),
    "--method": ("model", "model_type"),
    "--budget": ("model", "budget"),
    "--keep-ratio": ("model", "keep_ratio"),
    "--match": ("model", "match"),
    "--clip": ("model", "clip"),
    "--max-new-tokens": ("model", "max_new_tokens"),
    "--benchmark": ("runner", "dataset"),
    "--data": ("runner", "ann_path"),
    "--out": ("runner", "output_dir"),
}


class Document:
    """The keys of a configuration and where each was written."""

    def __init__(self, tree: dict[str, Any], origins: dict[Keys, str]) -> None:
        """`origins`: for the path of each key, a place such as "run.yaml, line 3" or "--budget"."""
        self.tree, self.origins = tree, origins

    def put(self, keys: Keys, value: Any, origin: str) -> None:
        """Override one key; a mapping on the way that is missing is made."""
        section = self.tree
        for i, key in enumerate(keys[:-1], 1):
            if section.get(key) is None:
                section[key] = {}
            section = section[key]
            if not isinstance(section, dict):
                raise ConfigError(f'{origin}: "{".".join(keys[:i])}" is a value, not a section.')
        section[keys[-1]] = value
        self.origins = {path: place for path, place in self.origins.items() if path[: len(keys)] != keys}
        self.origins[keys] = origin

    def put_shared(self, key: str, value: Any, origin: str) -> None:
        """Override a setting of `SHARED` for all methods, whatever their own sections said of it before."""
        alike = ("budget", "keep_ratio") if key in ("budget", "keep_ratio") else (key,)
        sections = list((self.tree.get("model") or {}).values())
        while sections:
            if isinstance(section := sections.pop(), dict):
                for name in alike:
                    section.pop(name, None)
                sections += section.values()
        self.put(("model", key), value, origin)

    def origin(self, keys: Keys) -> str:
        """Where the key was written, or the section around it."""
        while keys and keys not in self.origins:
            keys = keys[:-1]
        return self.origins.get(keys, "configuration")

    def origin_of(self, method: str, setting: Keys) -> str:
        """Where a setting of a method was written: in its section or, if not there, as the short form beside it."""
        keys = ("model", method, *setting)
        if keys not in self.origins:
            for short, path in SHORT_FOR.get(method, {}).items():
                if path == setting and ("model", short) in self.origins:
                    return self.origins["model", short]
        return self.origin(keys)

    def check(self, keys: Keys, known: Mapping[str, Any], noun: str) -> None:
        """Every key under `keys` is in `known`, whose mappings are checked in turn. Raises ConfigError."""
        section: Any = self.tree
        for key in keys:
            section = section.get(key) or {}  # "sparsezip:" with nothing behind it is an empty section
        if not isinstance(section, dict):
            raise ConfigError(f'{self.origin(keys)}: "{".".join(keys)}" holds keys and values, not one value.')
        for key, value in section.items():
            if key not in known:
                raise ConfigError(
                    f'{self.origin((*keys, key))}: {noun} has no key "{key}".{nearest(key, known)} '
                    f"Known: {', '.join(sorted(known))}."
                )
            if isinstance(known[key], Mapping) and isinstance(value, dict):
                self.check((*keys, key), known[key], f'{noun} "{key}"')


def gather(
    file: Path | None, options: Mapping[str, Any], sets: Iterable[str], methods: list[str]
) -> tuple[Document, Settings]:
    """What one command is asked for: the file, its options (by name; None: not given), then `--set`. The later wins.

    `methods`: those to take where nobody names any. Raises ConfigError.
    """
    document = read_yaml(file) if file else Document({}, {})
    if not resolve(document).model.model_fields_set & {"model_type"}:
        document.put(("model", "model_type"), methods, "default")
    for option, value in options.items():
        if value is not None:
            section, key = OPTIONS.get(option, ("runner", option.removeprefix("--").replace("-", "_")))
            value = str(value) if isinstance(value, Path) else value
            if key in SHARED:
                document.put_shared(key, value, option)
            else:
                document.put((section, key), value, option)
    for assignment in sets:
        override(document, assignment, resolve(document).model.model_type)
    return document, resolve(document)


def read_yaml(path: str | Path) -> Document:
    """A YAML file. Raises ConfigError for one that is missing, malformed or repeats a key, naming the line."""
    tree, origins = strict_yaml.read(path)
    if not isinstance(tree, dict | None):
        raise ConfigError(f"{path}, line 1: a configuration is made of sections such as model: and runner:.")
    return Document(tree or {}, origins)


def override(document: Document, assignment: str, methods: Iterable[str]) -> None:
    """Apply one `--set KEY=VALUE`; the value is read as YAML.

    KEY is a path into the configuration (`runner.limit`), a setting of one method or of one in a pair
    (`sparsezip.k_min`), of whatever methods run (`method.budget`) or, where only one of `methods` compresses, just that
    setting (`k_min`, `merging.kmeans_iters`).
    """
    origin = f"--set {assignment}"
    name, equals, text = assignment.partition("=")
    keys = tuple(part.strip() for part in name.split("."))
    if not equals or not all(keys):
        raise ConfigError(f"{origin}: write KEY=VALUE, for example --set sparsezip.k_min=16.")
    value = strict_yaml.parse(text, origin, {})
    methods = list(methods)
    compressing = [method for method in methods if method != "keep_all"]
    if keys[0] in ("model", "runner"):
        document.put(keys, value, origin)
    elif keys[0] == "method" and keys[1:] in [(key,) for key in SHARED]:
        document.put_shared(keys[1], value, origin)
    elif keys[0] == "method" and len(keys) > 1:
        if not compressing:
            raise ConfigError(f"{origin}: what runs is keep_all, which has no settings.")
        for method in compressing:
            document.put(("model", method, *keys[1:]), copy.deepcopy(value), origin)
    elif keys[0] in (*methods, *(part for name in methods for part in parts(name))):
        document.put(("model", *keys), value, origin)
    elif len(compressing) == 1:
        document.put(("model", compressing[0], *keys), value, origin)
    else:
        raise ConfigError(f"{origin}: say which method, one of {', '.join(methods)}, as in METHOD.{name}=...")


def resolve(document: Document) -> Settings:
    """The document as a run, defaults filled in. Raises ConfigError for an unknown key or a value of the wrong type.

    The settings of methods are passed on as they are: a method checks its own.
    """
    tree: dict[str, Any] = copy.deepcopy(document.tree)
    document.check((), Settings.model_fields, "the configuration")
    for name, section in (("model", Model), ("runner", Runner)):
        known = {key for key in section.model_fields if key != "settings"}
        given = tree[name] = tree.get(name) or {}
        if name == "model" and isinstance(given, dict):  # what else holds keys and values is a method's section
            sections = [key for key in given if key not in known and isinstance(given[key], dict | None)]
            known.update(sections)
            methods = _one_or_many(given.get("model_type") or Model().model_type)
            for key in given:
                if key not in known and isinstance(methods, list) and key in methods:
                    raise ConfigError(
                        f'{document.origin((name, key))}: "{key}" is a section of settings, not the value {given[key]}.'
                    )
            given["settings"] = {key: given.pop(key) or {} for key in sections}
        document.check((name,), dict.fromkeys(known), f'section "{name}"')
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        keys = tuple(str(part) for part in first["loc"] if not isinstance(part, int))
        message = first["msg"].removeprefix("Value error, ")
        found = repr(first["input"])
        found = found if len(found) <= SHOWN else f"{found[:SHOWN]}..."
        raise ConfigError(f"{document.origin(keys)}: {'.'.join(keys)}: {message}, not {found}.") from error
    for key, usual in (("workers", 1), ("address", None)):
        if settings.runner.runner == "local" and getattr(settings.runner, key) != usual:
            raise ConfigError(f"{document.origin(('runner', key))}: {key} is for --runner ray.")
    if settings.model.budget and settings.model.keep_ratio is not None:
        raise ConfigError(
            f"{document.origin(('model', 'keep_ratio'))}: there is a budget as well "
            f"({document.origin(('model', 'budget'))}). Give one of them."
        )
    _check_short_forms(document, settings)
    return settings


def dump(settings: Settings, methods: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """The settings as YAML that `read_yaml` and `resolve` turn into the same run again.

    `methods`: every setting of the methods that run, defaults included, in place of what was given.
    """
    tree = settings.model_dump(mode="json")
    given = tree["model"].pop("settings")
    tree["model"] |= given if methods is None else {name: dict(values) for name, values in methods.items()}
    for short in () if methods is None else dict.fromkeys(key for keys in SHORT_FOR.values() for key in keys):
        del tree["model"][short]  # it stands in the sections
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _check_short_forms(document: Document, settings: Settings) -> None:
    model = settings.model
    if document.origin(("model", "model_type")) == "--method":  # a file may be run with other methods than its own
        return
    for key in ("dominant", "contextual", "retained_tokens"):
        takers = [method for method, short in SHORT_FOR.items() if key in short]
        if getattr(model, key) is not None and not set(takers) & set(settings.parts):
            raise ConfigError(
                f'{document.origin(("model", key))}: "{key}" is a setting of {", ".join(takers)}, '
                f"and none of these runs here. Methods: {', '.join(model.model_type)}."
            )
