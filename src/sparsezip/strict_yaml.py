"""YAML without surprises, and where in it every key stands.

A key given twice is refused, where PyYAML silently takes the last: SparseZip's published files set switches both ways.
Values are read as in YAML 1.2: 1e-3 is a number, and 010, 1:30, 2025-01-01 and "no" are words. There are no aliases, so
no cycles and no bombs; nothing is nested deeper than a configuration can be, and no text holds what no terminal or path
can.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError

Keys = tuple[str, ...]

LONGEST = 1 << 17  # characters of a file: /dev/zero has no end, and PyYAML takes its time
DEEPEST = 20
UNREADABLE = re.compile(r"[\0-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # written as "\0" or "\ud800"


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not supported", problem_mark=self.get_mark())
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {}  # PyYAML's are those of YAML 1.1
for _kind, _pattern in (
    ("null", r"null|Null|NULL|~|"),
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?(0|[1-9][0-9]*)"),
    ("float", r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan"),
    ("merge", r"<<"),  # so that it is refused
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^({_pattern})$"), None)


def read(path: str | Path) -> tuple[Any, dict[Keys, str]]:
    """What a file holds, and for the path of each key its place, "run.yaml, line 3". Raises ConfigError."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(LONGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a name that no file can have
        raise ConfigError(f"Cannot read the configuration {path}: {error}") from error
    if len(text) > LONGEST:
        raise ConfigError(f"{path}: a configuration has at most {LONGEST:,} characters, and this has more.")
    origins: dict[Keys, str] = {}
    return parse(text, str(path), origins), origins


def parse(text: str, source: str, origins: dict[Keys, str]) -> Any:
    """The value that `text` is; the places of its keys are added to `origins`. Raises ConfigError in one line."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _note(node, (), 0, source, origins)
        return loader.construct_document(node)
    except ConfigError:
        raise
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{source}{line}: not valid YAML: {error.problem}.") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: nested too deeply to be a configuration.") from error
    except (yaml.YAMLError, ValueError) as error:  # control characters, 2025-99-99
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}.") from error


def _note(node: yaml.Node, path: Keys, depth: int, source: str, origins: dict[Keys, str]) -> None:
    """Where the keys below `node` stand; refuses what YAML allows and a configuration cannot mean."""
    place = f"{source}, line {node.start_mark.line + 1}"
    if depth > DEEPEST:
        raise ConfigError(f"{place}: nested too deeply to be a configuration.")
    if isinstance(node, yaml.ScalarNode) and (found := UNREADABLE.search(node.value)):
        raise ConfigError(f"{place}: the text holds the character U+{ord(found[0]):04X}. Take it out.")
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _note(item, path, depth + 1, source, origins)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
            raise ConfigError(f"{source}, line {line}: a key has to be a plain word.")
        _note(key, path, depth, source, origins)
        if key.value in seen:
            raise ConfigError(
                f'{source}, line {line}: the key "{key.value}" is given again '
                f"(first on line {seen[key.value]}). Keep one."
            )
        seen[key.value] = line
        origins[(*path, key.value)] = f"{source}, line {line}"
        _note(value, (*path, key.value), depth + 1, source, origins)
