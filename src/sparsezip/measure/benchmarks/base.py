"""What a benchmark must offer. To add one, add a file to this folder: its name is the CLI name.

A file opens with the source, the licence, the official scorer and a raw example as it lies on disk, which is also what
its tests are made of. Its class reads that layout (`read`), reads a row of the Hub's data set (`entry_of`), and turns
answered rows into scores (`measures`); everything else follows from the folder.

How a question is worded is a preset, and each has its longest answer:
- llava: as LLaVA's own evaluation scripts ask (haotian-liu/LLaVA, scripts/v1_5/eval; 128 tokens everywhere).
- lmms-eval: as the tasks of EvolvingLMMs-Lab/lmms-eval ask.
- bare: the question alone, for the shipped small model, whose tokenizer knows nothing else.
The conversation around it ("USER: <image> ... ASSISTANT:") is no part of a preset: it comes from the checkpoint's chat
template. LLaVA's scripts put the sentence "A chat between a curious user ..." before it; the template of the
llava-hf checkpoints, which lmms-eval uses too, does not.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from ...errors import DataError, SettingError, UsageError
from ...registry import unknown
from .. import answer_patches
from ..annotations import inside, json_lines
from ..metrics.interval import Estimate
from ..records import Row, Sample

SHORT = "{question}\nAnswer the question using a single word or phrase."  # LLaVA-1.5 was trained on these words
HUB_FILE = "hub.jsonl"  # the rows of an exported Hub data set, beside the folder images


@dataclass(frozen=True)
class Prompt:
    """A wording, with {question} and, where a benchmark has one, {context} in it, and the longest answer in tokens."""

    text: str
    max_new_tokens: int

    def __post_init__(self) -> None:
        try:
            self.text.format(question="", context="")
        except (KeyError, IndexError, ValueError):
            raise SettingError(
                f"The prompt {self.text!r} may hold {{question}} and {{context}}, and other braces only doubled."
            ) from None


def prompts(text: str = SHORT, bare: str = "{question}", lmms_eval: int = 16, small: int = 16) -> dict[str, Prompt]:
    """The three presets of a benchmark that both projects word alike; `lmms_eval`, `small`: their longest answers."""
    return {"llava": Prompt(text, 128), "lmms-eval": Prompt(text, lmms_eval), "bare": Prompt(bare, small)}


@dataclass(frozen=True)
class Hub:
    """Where a benchmark lies on the Hugging Face Hub."""

    id: str
    split: str
    config: str | None = None
    images: str | None = None  # the configuration that holds the images, where the questions' own does not


@dataclass(frozen=True)
class Entry:
    """One question as the annotation has it."""

    id: str
    image: str
    question: str
    references: list[str]
    group: str
    context: str | None = None  # what else a prompt may tell, such as the text that was found in the image


class Benchmark(ABC):
    """One benchmark: where its files lie, how it asks, how it scores."""

    name: ClassVar[str]  # the file's name
    title: ClassVar[str]  # as the literature writes it
    example: ClassVar[Mapping[str, str | None]] = {}  # a smallest data set: the text of each file, None: an image
    group_noun: ClassVar[str] = "group"  # what its groups are: "split", "subtask", "type"
    columns: ClassVar[Mapping[str, str]]  # the table's scores and headings, two for the summary first; "... %": shares
    headline: ClassVar[str]  # the score that is compared with keep_all
    prompts: ClassVar[Mapping[str, Prompt]] = prompts()
    hub: ClassVar[Hub | None] = None
    groups: ClassVar[tuple[str, ...]] = ()  # those known beforehand, in their order
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

    def entry_of(self, row: Mapping[str, Any], place: str) -> Entry:
        """A row of the Hub's data set as `read` has it. `place`: for messages. Raises DataError."""
        raise UsageError(f"{self.title} has no data set on the Hub.")

    def from_hub(self, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Entry]:
        """Every row of the Hub's data set, after its place, as `read` has it. Raises DataError."""
        return [self.entry_of(row, place) for place, row in rows]

    def hub_image(self, row: Mapping[str, Any], place: str) -> str:
        """The file's name of the image in a row of the Hub's data set (of `hub.images`, if that is given)."""
        return self.entry_of(row, place).image

    def ready(self) -> None:
        """Raises UsageError where the answers could not be scored on this machine."""
        return None

    def remark(self, groups: Sequence[str]) -> str | None:
        """What a reader of scores on these groups alone has to know."""
        return None

    def score(self, rows: Sequence[Row]) -> dict[str, float | None]:
        """Every score of answered rows; None where the rows do not allow it."""
        return {name: estimate.value for name, estimate in self.measures(rows).items()}

    def longest_answer(self, prompt: str) -> int:
        """How many tokens an answer may have under the preset `prompt`. Raises UnknownNameError."""
        return self._prompt(prompt).max_new_tokens

    def samples(
        self, data: Path, images: Path | None = None, only: Sequence[str] = (), prompt: str = "llava"
    ) -> list[Sample]:
        """Every question below `data`, ready to be asked.

        data: the folder of this benchmark, or one that holds a folder of its name; in the original layout or as
        measure/hub.py exports the Hub's. images: where the images lie if not there. only: groups, none means all.
        prompt: a name in `prompts`.
        Raises DataError for missing files, missing images and incomplete rows, UnknownNameError for an unknown name.
        """
        wording = self._prompt(prompt)
        roots = [root for root in (data, data / self.name) if root.is_dir()] or [data]
        exported = [root for root in roots if (root / HUB_FILE).is_file()]
        entries = self._exported(exported[0] / HUB_FILE, only) if exported else self.read(roots, only)
        seen: set[str] = set()
        for entry in entries:
            if entry.id in seen:
                raise DataError(f"{self.title}: the question id {ascii(entry.id)[:60]} comes twice.")
            seen.add(entry.id)
            inside(entry.image, f"{self.title}: question {ascii(entry.id)[:60]}")
        folders = [
            root / folder
            for root in ([images] if images else exported[:1] or roots)
            for folder in (("images",) if exported and not images else self.image_folders)
        ]
        found = self._found([entry.image for entry in entries], folders)
        bearing = self._bearing(exported[:1] or roots, entries, whole=not only)
        return [
            Sample(
                id=entry.id,
                image=found[entry.image],
                image_id=entry.image,
                question=self._asked(wording, entry),
                references=entry.references,
                group=entry.group,
                answer_patches=bearing.get((entry.image, entry.question)),
            )
            for entry in entries
        ]

    def find_image(self, folder: Path, image: str) -> Path | None:
        """Where the annotation's `image` lies in `folder`, if it does."""
        candidates = (folder / image, folder / Path(image).name)
        return next((path for path in candidates if path.is_file()), None)

    def _prompt(self, name: str) -> Prompt:
        if name not in self.prompts:
            raise unknown("prompt", name, self.prompts)
        return self.prompts[name]

    def _asked(self, prompt: Prompt, entry: Entry) -> str:
        if "{context}" in prompt.text and entry.context is None:
            raise DataError(f"{self.title}: the prompt tells a context, which question {entry.id} does not have.")
        return prompt.text.format(question=entry.question, context=entry.context)

    def _bearing(
        self, roots: Sequence[Path], entries: Sequence[Entry], whole: bool
    ) -> dict[tuple[str, str], answer_patches.AnswerPatches]:
        """What the data say of the patches that bear an answer, by image and question; see measure/answer_patches.py.

        whole: `entries` are all that there are, so that a line about another question is a mistake.
        """
        path = next((path for root in roots if (path := root / answer_patches.FILE).exists()), None)
        told = answer_patches.read(path) if path else {}
        asked = {(entry.image, entry.question) for entry in entries}
        for key, (place, _) in told.items() if whole else ():
            if key not in asked:
                raise DataError(f"{place} is about a question that {self.title} does not ask. Make the data again.")
        return {key: said for key, (_, said) in told.items()}

    def _exported(self, path: Path, only: Sequence[str]) -> list[Entry]:
        entries = self.from_hub(json_lines(path))
        there = dict.fromkeys(entry.group for entry in entries)
        order = [group for group in self.groups if group in there] or list(there)
        wanted = chosen(order, only, f"{self.group_noun} of {self.title}")
        return [entry for group in wanted for entry in entries if entry.group == group]

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
            raise unknown(what, name, known)
    return [name for name in known if not only or name in only]
