"""Read annotation files that nobody vouches for: every complaint is a DataError of one line that names file and row."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError

LONGEST_NAME, LONGEST_PATH = 255, 1000  # bytes of a file's name, characters of a path: what file systems take


def first_existing(candidates: Iterable[Path], what: str) -> Path:
    """The first path that exists. Raises DataError that names every place."""
    candidates = list(dict.fromkeys(candidates))
    for path in candidates:
        if path.exists():
            return path
    raise DataError(f"{what} is missing. Looked for {', '.join(str(path) for path in candidates)}.")


def read_text(path: Path) -> str:
    """The text of an annotation file. Raises DataError."""
    if not path.is_file():  # a named pipe would block for ever
        raise DataError(f"{path} is not a file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}).") from None
    if "\0" in text:
        raise DataError(f"{path} is not a text file: it holds a NUL byte.")
    return text


def parsed(text: str, place: str) -> Any:
    """The JSON value in `text`. Raises DataError, also for numbers and nesting that Python does not take."""
    try:
        return json.loads(text, object_pairs_hook=_once)
    except ValueError as error:
        raise DataError(f"{place} is not JSON ({error}).") from None
    except RecursionError:
        raise DataError(f"{place} is nested too deeply.") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, none of whose keys hides an earlier one: ids are keys in some files."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key of an object comes twice")
    return found


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a JSON-lines file after its place, "FILE, row 3", for messages. Raises DataError."""
    lines = [(number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError(f"{path} holds no question.")
    for number, line in lines:
        yield from objects([parsed(line, f"{path}, row {number}")], path, number)


def listed(path: Path, key: str) -> list[tuple[str, dict[str, Any]]]:
    """Each object in the list under `key` of a JSON file, after its place. Raises DataError."""
    whole = parsed(read_text(path), str(path))
    rows = whole.get(key) if isinstance(whole, dict) else None
    if not isinstance(rows, list) or not rows:
        raise DataError(f'{path} is not a JSON object whose "{key}" lists something.')
    return list(objects(rows, path))


def objects(values: Iterable[Any], path: Path, first: int = 1) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each of `values` after its place in `path`. Raises DataError for one that is no JSON object."""
    for number, value in enumerate(values, first):
        place = f"{path}, row {number}"
        if not isinstance(value, dict):
            raise DataError(f"{place} is not a JSON object but {_shown(value)}.")
        yield place, value


def text_of(row: Mapping[str, Any], key: str, place: str) -> str:
    """A text that the row must have, stripped, which cannot hold an image's place. Raises DataError with the row."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _lacks(place, key, value)
    return without_image(_writable(value.strip(), place), place)


def texts_of(row: Mapping[str, Any], key: str, place: str) -> list[str]:
    """A list of texts that the row must have, at least one. Raises DataError with the row."""
    values = row.get(key)
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise _lacks(place, key, values)
    return [_writable(value, place) for value in values]


def id_of(row: Mapping[str, Any], key: str, place: str) -> str:
    """The row's number or name. Raises DataError that names the row."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise _lacks(place, key, value)
    return _writable(str(value), place)


def image_of(row: Mapping[str, Any], key: str, place: str) -> str:
    """The image's name, which stays inside the folder that it is looked for in. Raises DataError with the row."""
    return inside(text_of(row, key, place), place)


def inside(name: str, place: str) -> str:
    """A file's name itself. Raises DataError where it leads out of its folder, on whatever system, or names nothing."""
    parts = name.replace("\\", "/").split("/")
    if not parts[0] or parts[0][1:2] == ":" or ".." in parts or set(parts) <= {"", "."}:
        raise DataError(f"{place} names the image {_shown(name)}, which does not lie inside the images' folder.")
    if "\0" in name or len(name) > LONGEST_PATH or max(len(part.encode()) for part in parts) > LONGEST_NAME:
        raise DataError(f"{place} names the image {_shown(name)}, which cannot be a file's name.")
    return name


def without_image(text: str, place: str) -> str:
    """The text itself. Raises DataError where it holds "<image>": a model would look for a second image there."""
    if "<image>" in text:
        raise DataError(f'{place} holds "<image>", which stands for an image and cannot be asked. Take it out.')
    return text


def by_id(rows: Sequence[tuple[str, dict[str, Any]]], key: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Rows, each with its place, by the id under `key`. Raises DataError for an id that comes twice."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for place, row in rows:
        number = id_of(row, key, place)
        if number in found:
            raise DataError(f'{place} has the "{key}" {_shown(number)} of an earlier row.')
        found[number] = place, row
    return found


def _writable(text: str, place: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half a character, which no file of ours could hold
        raise DataError(f"{place} holds half a character (a lone surrogate).") from None
    return text


def _lacks(place: str, key: str, value: Any) -> DataError:
    return DataError(f'{place} has no "{key}"{"" if value is None else f" but {_shown(value)}"}.')


def _shown(value: Any) -> str:
    """A value in a few characters of one line."""
    if isinstance(value, list | dict):
        return "[]" if value == [] else "a list" if isinstance(value, list) else "an object"
    return ascii(value) if len(ascii(value)) <= 60 else f"{ascii(value)[:57]}..."
