"""A folder is a registry: every file of it registers one class under the file's own name.

Other packages add to a registry through an entry point of the group ``sparsezip.<folder>`` whose name is
the CLI name and whose value is the class.
"""

import ast
import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import UnknownNameError, UsageError


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean "x"?' for the nearest known name, or '' when none is near."""
    match = difflib.get_close_matches(name.lower(), sorted(known), n=1)
    return f' Did you mean "{match[0]}"?' if match else ""


def unknown(noun: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """What is to be raised where `name` is none of those that are `known`: it tells them, and the nearest."""
    known = list(known)
    return UnknownNameError(f'There is no {noun} "{name}".{nearest(name, known)} Known: {", ".join(known)}.')


def from_file(path: str | Path) -> ModuleType:
    """The Python file of a user as a module. It is run: whoever names a file vouches for it.

    Raises UsageError for a file that is missing or fails, in one line.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    spec = spec_from_file_location(str(path.resolve()), path)  # its path: no name that something is imported under
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file; its name has to end in .py.")
    module = sys.modules[spec.name] = module_from_spec(spec)  # where dataclasses look for what annotations name
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # anything may be in it
        raise UsageError(f"{path} cannot be loaded ({type(error).__name__}: {error}).") from error
    return module


class Registry:
    """The classes offered by the modules of one package, found by file name and imported only when asked for."""

    def __init__(self, package: str, noun: str) -> None:
        """`package`: the folder, such as "sparsezip.methods". `noun`: what one entry is called in messages."""
        self.package, self.noun = package, noun

    def names(self) -> list[str]:
        """Every registered name, in alphabetical order."""
        return sorted({*self._files(), *self._plugins()})

    def get(self, name: str) -> Any:
        """The class registered as `name`. Raises UnknownNameError with the nearest name."""
        if name in self._files():
            module = importlib.import_module(f"{self.package}.{name}")
            return next(
                value
                for value in vars(module).values()
                if isinstance(value, type) and value.__module__ == module.__name__ and vars(value).get("name") == name
            )
        plugins = self._plugins()
        if name in plugins:
            return plugins[name].load()
        raise unknown(self.noun, name, self.names())

    def header(self, name: str) -> str:
        """The docstring of the file registered as `name`, read without importing it."""
        for folder in importlib.import_module(self.package).__path__:
            file = Path(folder, f"{name}.py")
            if name in self._files() and file.is_file():
                return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or name
        return inspect.getdoc(inspect.getmodule(self.get(name))) or name

    def _files(self) -> set[str]:
        path = importlib.import_module(self.package).__path__
        names = (module.name for module in pkgutil.iter_modules(path))
        return {
            name
            for name in names
            if name not in ("base", "clip", "load", "pointwise", "towers") and not name.startswith("_")
        }

    def _plugins(self) -> dict[str, Any]:
        return {point.name: point for point in entry_points(group=self.package)}
