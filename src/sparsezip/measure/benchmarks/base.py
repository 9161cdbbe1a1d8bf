"""What a benchmark must offer. To add one, add a file to this folder: its name is the CLI name.

A file opens with the source, the licence, the official scorer and a raw example as it lies on disk, which is also what
its tests are made of. Its class reads that layout (`read`) and turns rows into scores (`measures`); everything else
follows from the folder.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from ...errors import DataError, UnknownNameError
from ...registry import nearest
from ..metrics.interval import Estimate
from ..records import Row, Sample

PROMPTS = {
    "llava": "{question}\nAnswer the question using a single word or phrase.",  # how LLaVA-1.5 was trained to be asked
    "bare": "{question}",  # for the shipped small model, whose tokenizer knows questions alone
}


@dataclass(frozen=True)
class Entry:
    """One question as the annotation has it."""

    id: str
    image: str
    question: str
    references: list[str]
    group: str


class Benchmark(ABC):
    """One benchmark: where its files lie, how it asks, how it scores."""

    name: ClassVar[str]  # the file's name
    title: ClassVar[str]  # as the literature writes it
    example: ClassVar[Mapping[str, str | None]]  # a smallest data set: the text of each file, None: an image
    group_noun: ClassVar[str]  # what its groups are: "split", "subtask", "type"
    columns: ClassVar[
        Mapping[str, str]
    ]  # scores of the table with their headings; "... %" marks a fraction; the first two are its summary
    headline: ClassVar[str]  # the score that is compared with keep_all
    max_new_tokens: ClassVar[int] = 16
    together: ClassVar[int] = 1  # so many consecutive questions of a group stay together under a limit
    image_folders: ClassVar[tuple[str, ...]] = ("images", "")  # below the folder of the benchmark

    @abstractmethod
    def read(self, roots: Sequence[Path], only: Sequence[str]) -> list[Entry]:
        """The questions of the groups `only` (none: all), in file order, from the first of `roots` that has them.

        Raises DataError for missing files and incomplete rows, UnknownNameError for an unknown group.
        """

    @abstractmethod
    def measures(self, rows: Sequence[Row]) -> dict[str, Estimate]:
        """Every score of answered rows, each with what its interval needs."""

    def remark(self, groups: Sequence[str]) -> str | None:
        """What a reader of scores on these groups alone has to know."""
        return None

    def score(self, rows: Sequence[Row]) -> dict[str, float | None]:
        """Every score of answered rows; None where the rows do not allow it."""
        return {name: estimate.value for name, estimate in self.measures(rows).items()}

    def samples(
        self, data: Path, images: Path | None = None, only: Sequence[str] = (), prompt: str = "llava"
    ) -> list[Sample]:
        """Every question below `data`, ready to be asked.

        data: the folder of this benchmark, or one that holds a folder of its name. images: where the images lie if not
        there. only: groups, none means all. prompt: a name in PROMPTS.
        Raises DataError for missing files, missing images and incomplete rows, UnknownNameError for an unknown name.
        """
        if prompt not in PROMPTS:
            raise UnknownNameError(
                f'There is no prompt "{prompt}".{nearest(prompt, PROMPTS)} Known: {", ".join(PROMPTS)}.'
            )
        roots = [root for root in (data, data / self.name) if root.is_dir()] or [data]
        entries = self.read(roots, only)
        folders = [root / folder for root in ([images] if images else roots) for folder in self.image_folders]
        found = self._found([entry.image for entry in entries], folders)
        samples = [
            Sample(
                id=entry.id,
                image=found[entry.image],
                image_id=entry.image,
                question=PROMPTS[prompt].format(question=entry.question),
                references=entry.references,
                group=entry.group,
            )
            for entry in entries
        ]
        seen: set[str] = set()
        for sample in samples:
            if sample.id in seen:
                raise DataError(f'{self.title}: the question id "{sample.id}" comes twice.')
            seen.add(sample.id)
        return samples

    def find_image(self, folder: Path, image: str) -> Path | None:
        """Where the annotation's `image` lies in `folder`, if it does."""
        candidates = (folder / image, folder / Path(image).name)
        return next((path for path in candidates if path.is_file()), None)

    def _found(self, names: Sequence[str], folders: Sequence[Path]) -> dict[str, Path]:
        """Where each image lies, or one error for all that are missing."""
        places = {
            name: next((path for folder in folders if (path := self.find_image(folder, name))), None)
            for name in dict.fromkeys(names)
        }
        missing = [name for name, place in places.items() if place is None]
        if missing:
            raise DataError(
                f"{self.title}: {len(missing):,} of {len(places):,} images are missing, such as {missing[0]}. "
                f"Looked in {', '.join(str(folder) for folder in folders)}. Name their folder with --images DIR."
            )
        return {name: place for name, place in places.items() if place is not None}


def spread(samples: Sequence[Sample], limit: int | None, together: int = 1) -> list[Sample]:
    """At most `limit` samples, in turn from each group, in their old order; None means all.

    Which ones of a group is drawn by a hash of their ids: the same every time, a larger limit adds to a smaller one,
    and many images are met, where the first samples of a file would be all questions on a few.
    """
    if limit is None or limit >= len(samples):
        return list(samples)
    groups: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(sample.group, []).append(index)
    queues = []
    for group in groups.values():
        units = [group[start : start + together] for start in range(0, len(group), together)]
        queues.append(sorted(units, key=lambda unit: sha256(samples[unit[0]].id.encode()).digest(), reverse=True))
    taken: list[int] = []
    room = max(limit, together)
    while room >= together and any(queues):
        for queue in queues:
            if queue and room >= together:
                unit = queue.pop()
                taken += unit
                room -= len(unit)
    return [samples[index] for index in sorted(taken)]


def chosen(known: Sequence[str], only: Sequence[str], what: str) -> list[str]:
    """The groups of `known` that `only` names; all where it names none. Raises UnknownNameError."""
    for name in only:
        if name not in known:
            raise UnknownNameError(f'There is no {what} "{name}".{nearest(name, known)} Known: {", ".join(known)}.')
    return [name for name in known if not only or name in only]


def first_existing(candidates: Iterable[Path], what: str) -> Path:
    """The first path that exists. Raises DataError that names every place."""
    candidates = list(dict.fromkeys(candidates))
    for path in candidates:
        if path.exists():
            return path
    raise DataError(f"{what} is missing. Looked for {', '.join(str(path) for path in candidates)}.")


def read_text(path: Path) -> str:
    """The text of an annotation file. Raises DataError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}).") from None


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a JSON-lines file after its place, "FILE, row 3", for messages. Raises DataError."""
    lines = [(number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError(f"{path} holds no question.")
    for number, line in lines:
        try:
            yield from objects([json.loads(line)], path, number)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, row {number} is not JSON ({error}).") from None


def objects(values: Iterable[Any], path: Path, first: int = 1) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each of `values` after its place in `path`. Raises DataError for one that is no JSON object."""
    for number, value in enumerate(values, first):
        place = f"{path}, row {number}"
        if not isinstance(value, dict):
            raise DataError(f"{place} is not a JSON object but {str(value)[:40]!r}.")
        yield place, value


def text_of(row: Mapping[str, Any], key: str, place: str) -> str:
    """A text that the row must have, stripped, which cannot hold an image's place. Raises DataError with the row."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f'{place} has no "{key}"{"" if value is None else f" but {value!r}"}.')
    return without_image(value.strip(), place)


def without_image(text: str, place: str) -> str:
    """The text itself. Raises DataError where it holds "<image>": a model would look for a second image there."""
    if "<image>" in text:
        raise DataError(f'{place} holds "<image>", which stands for an image and cannot be asked. Take it out.')
    return text


def id_of(row: Mapping[str, Any], key: str, place: str) -> str:
    """The row's number or name. Raises DataError that names the row."""
    value = row.get(key)
    if not isinstance(value, int | str) or value == "":
        raise DataError(f'{place} has no "{key}"{"" if value is None else f" but {value!r}"}.')
    return str(value)
