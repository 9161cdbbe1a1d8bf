"""MME: two yes/no questions on each of 1,187 images in 14 subtasks; one of the two is a yes.

Source: https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models, branch Evaluation (Fu et al.
2023), on request; subtasks keep image and text side by side or in the folders images/ and questions_answers_YN/.
Licence: research only, images under their owners' terms.
Official scorer: its eval_tool/calculation.py (accuracy and accuracy+ per subtask, in percent, added up); checked here
against lmms-eval and VLMEvalKit. As in LLaVA's scripts and lmms-eval, the prompt replaces "Please answer yes or no.".
Hub: lmms-lab-encoder/MME (until July 2026 lmms-lab/MME), whose "question_id" is subtask and file name of the image.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from ...errors import DataError
from ..annotations import image_of, read_text, text_of, without_image
from ..metrics import mme
from ..metrics.interval import Estimate, mean, ratio
from ..records import Row
from .base import Benchmark, Entry, Hub, chosen

EXAMPLE = {
    "existence/000000006040.txt": (
        "Is there a surfboard in this image? Please answer yes or no.\tYes\n"
        "Is there a sofa in this image? Please answer yes or no.\tNo\n"
    ),
    "existence/000000006040.jpg": None,
    "artwork/questions_answers_YN/12894.txt": (
        "Does this artwork exist in the form of painting? Please answer yes or no.\tYes\n"
        "Does this artwork exist in the form of sculpture? Please answer yes or no.\tNo\n"
    ),
    "artwork/images/12894.jpg": None,
}
SUBTASKS = (*mme.PERCEPTION, *mme.COGNITION)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class Mme(Benchmark):
    """Perception and cognition, asked with pairs of yes/no questions."""

    name = "mme"
    title = "MME"
    example: ClassVar = EXAMPLE
    group_noun = "subtask"
    groups = SUBTASKS
    hub = Hub("lmms-lab-encoder/MME", "test")
    columns: ClassVar = {
        "accuracy": "acc %",
        "accuracy_plus": "acc+ %",
        "perception": "perception",
        "cognition": "cognition",
    }
    headline = "accuracy"
    together = 2  # accuracy+ is about both questions on an image
    image_folders = ("", "MME_Benchmark_release_version", "MME_Benchmark_release_version/MME_Benchmark")

    def read(self, roots: Sequence[Path], only: Sequence[str]) -> list[Entry]:
        """The questions of the subtask folders, which may lie in those of the official archive."""
        roots = [root / folder for root in roots for folder in self.image_folders]
        there = [root for root in roots if any((root / subtask).is_dir() for subtask in SUBTASKS)]
        if not there:
            raise DataError(f"MME: a subtask folder is missing. Looked in {', '.join(str(root) for root in roots)}.")
        present = [subtask for subtask in SUBTASKS if (there[0] / subtask).is_dir()]
        return [
            Entry(
                id=f"{subtask}/{stem}#{number}",
                image=f"{subtask}/{stem}",
                question=_plain(question),
                references=[answer],
                group=subtask,
            )
            for subtask in chosen(present, only, f"subtask of MME in {there[0]}")
            for stem, number, question, answer in _questions(there[0] / subtask)
        ]

    def from_hub(self, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Entry]:
        """Every row of lmms-lab-encoder/MME; the questions on an image are numbered in their order."""
        met: Counter[str] = Counter()
        entries = []
        for place, row in rows:
            entry = self.entry_of(row, place)
            met[entry.image] += 1
            entries.append(replace(entry, id=f"{entry.image}#{met[entry.image]}"))
        return entries

    def entry_of(self, row: Mapping[str, Any], place: str) -> Entry:
        """A row of lmms-lab-encoder/MME, without the number of the question on its image."""
        subtask, image = text_of(row, "category", place), PurePosixPath(self.hub_image(row, place))
        if subtask not in SUBTASKS or image.parts[:-1] != (subtask,):
            raise DataError(f"{place} has the category {subtask!r:.60} and no image of one of MME's 14 subtasks.")
        answer = text_of(row, "answer", place).lower()
        if answer not in ("yes", "no"):
            raise DataError(f"{place} has the answer {answer!r:.60}; MME knows yes and no.")
        question = _plain(text_of(row, "question", place))
        return Entry(
            id=str(image), image=f"{subtask}/{image.stem}", question=question, references=[answer], group=subtask
        )

    def hub_image(self, row: Mapping[str, Any], place: str) -> str:
        """Subtask and file name, which make up the "question_id"."""
        return image_of(row, "question_id", place)

    def find_image(self, folder: Path, image: str) -> Path | None:
        """The image beside the text file, or in the subtask's folder images."""
        subtask, stem = image.split("/", 1)
        candidates = (folder / subtask / sub / f"{stem}{suffix}" for sub in ("", "images") for suffix in SUFFIXES)
        return next((path for path in candidates if path.is_file()), None)

    def remark(self, groups: Sequence[str]) -> str | None:
        """Sums over a part of the subtasks are not the published ones."""
        if set(groups) == set(SUBTASKS):
            return None
        return (
            f"MME: perception and cognition add up {len(groups)} of {len(SUBTASKS)} subtasks; published sums have all."
        )

    def measures(self, rows: Sequence[Row]) -> dict[str, Estimate]:
        """Accuracy and accuracy+ over all questions and images (0 to 1), and the official sums over subtasks.

        accuracy+ and the sums rest on images both of whose questions were answered. A sum is None where no subtask of
        its kind was asked; only all 10 perception (4 cognition) subtasks give the published one, at most 2,000 (800).
        """
        images: dict[tuple[str, str], list[bool]] = {}
        for row in rows:
            right = mme.parsed(row.answer or "") == row.references[0]
            images.setdefault((row.group, row.image), []).append(right)
        pairs = {key: right for key, right in images.items() if len(right) == 2}
        return {
            "accuracy": mean((image, right) for (_, image), both in images.items() for right in both),
            "accuracy_plus": mean((image, all(both)) for (_, image), both in pairs.items()),
            "perception": _sum(pairs, mme.PERCEPTION),
            "cognition": _sum(pairs, mme.COGNITION),
        }


def _sum(pairs: dict[tuple[str, str], list[bool]], subtasks: Sequence[str]) -> Estimate:
    """Accuracy plus accuracy+ in percent, added up over the subtasks that were asked."""
    total = Estimate(0.0, 0, {}, high=0.0, reach=0.0)
    for subtask in subtasks:
        mine = [(image, both) for (name, image), both in pairs.items() if name == subtask]
        if mine:
            total += ratio((image, sum(both) / 2 + all(both), 2) for image, both in mine) * 200
    return total if total.n else Estimate(None, 0, {})


def _plain(question: str) -> str:
    return question.replace("Please answer yes or no.", "").strip()


def _questions(folder: Path) -> Iterator[tuple[str, int, str, str]]:
    """(name of the text file without suffix, row, question, answer) for each row of each text file of a subtask."""
    split = folder / "questions_answers_YN"
    texts = sorted((split if split.is_dir() else folder).glob("*.txt"))
    if not texts:
        raise DataError(f"MME: {folder} holds no question files (*.txt).")
    for path in texts:
        rows = [(number, line) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
        for number, line in rows:
            question, _, answer = (part.strip() for part in line.partition("\t"))
            if not question:
                raise DataError(f"{path}, row {number} has no question.")
            if answer.lower() not in ("yes", "no"):
                raise DataError(f"{path}, row {number} has no answer Yes or No behind a tab (found {answer!r:.60}).")
            yield path.stem, number, without_image(question, f"{path}, row {number}"), answer.lower()
        if len(rows) != 2:
            raise DataError(f"{path} has {len(rows)} questions; MME asks two on every image.")
