"""MME: two yes/no questions on each of 1,187 images in 14 subtasks; one of the two is a yes.

Source: https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models, branch Evaluation (Fu et al.
2023), on request; subtasks keep image and text side by side or in the folders images/ and questions_answers_YN/.
Licence: research only, images under their owners' terms.
Official scorer: its eval_tool/calculation.py (accuracy and accuracy+ per subtask, in percent, added up); checked here
against lmms-eval and VLMEvalKit. As there, a prompt of ours replaces "Please answer yes or no.".
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from ...errors import DataError
from ..metrics import mme
from ..metrics.interval import Estimate, mean, ratio
from ..records import Row
from .base import Benchmark, Entry, chosen, first_existing, read_text, without_image

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
    columns: ClassVar = {
        "accuracy": "acc %",
        "accuracy_plus": "acc+ %",
        "perception": "perception",
        "cognition": "cognition",
    }
    headline = "accuracy"
    together = 2  # accuracy+ is about both questions on an image
    image_folders = ("", "MME_Benchmark_release_version")

    def read(self, roots: Sequence[Path], only: Sequence[str]) -> list[Entry]:
        """The questions of the subtask folders, which may lie in a folder MME_Benchmark_release_version."""
        roots = [root / folder for root in roots for folder in self.image_folders]
        root = first_existing((root / name for root in roots for name in SUBTASKS), "MME: a subtask folder").parent
        present = [subtask for subtask in SUBTASKS if (root / subtask).is_dir()]
        return [
            Entry(
                id=f"{subtask}/{stem}#{number}",
                image=f"{subtask}/{stem}",
                question=question.replace("Please answer yes or no.", "").strip(),
                references=[answer],
                group=subtask,
            )
            for subtask in chosen(present, only, f"subtask of MME in {root}")
            for stem, number, question, answer in _questions(root / subtask)
        ]

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
            f"MME: perception and cognition add up {len(groups)} subtasks of {len(SUBTASKS)}; published sums have all."
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
                raise DataError(f'{path}, row {number} has no answer Yes or No behind a tab (found "{answer}").')
            yield path.stem, number, without_image(question, f"{path}, row {number}"), answer.lower()
        if len(rows) != 2:
            raise DataError(f"{path} has {len(rows)} questions; MME asks two on every image.")
