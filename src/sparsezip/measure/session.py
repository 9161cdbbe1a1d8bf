"""When, where, with what and on which data something was measured."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import DataError, UsageError
from .benchmarks.base import HUB_FILE
from .records import Sample

RECORDED = ("torch", "transformers", "numpy", "pillow", "rapidfuzz", "sparsezip")
WHERE_THERE = ("pycocoevalcap", "datasets", "ray")  # the optional extras
ENDS = 4096  # bytes of an image that its fingerprint reads at either end


def session() -> dict[str, Any]:
    """The time, the machine, the commit of this source folder and the versions of what results depend on."""
    versions = {}
    for package in RECORDED:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a source folder that is not installed
            versions[package] = "unknown"
    versions |= {package: version(package) for package in WHERE_THERE if find_spec(package)}
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "commit": _commit(),
        **versions,
    }


def data_of(samples: Sequence[Sample], folders: Sequence[Path], own: Path | None = None) -> dict[str, Any]:
    """What makes the data of a benchmark what they are, wherever they lie.

    "questions": how many; "fingerprint"; "source": the Hub's data set and its revision, where they were exported from
    there; "file": the sha256 of the user's `own` file, which reads and scores them.
    """
    about: dict[str, Any] = {"questions": len(samples), "fingerprint": fingerprint(samples)}
    exported = next((folder for folder in folders if (folder / HUB_FILE).is_file()), None)
    if exported and (source := exported / "source.json").is_file():
        try:
            about["source"] = json.loads(source.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{source} is damaged ({error}). Export the data set again.") from None
    return about | ({"file": file_hash(own)} if own else {})


def fingerprint(samples: Sequence[Sample]) -> str:
    """A hash of the questions, their references and their images: of each its name, its size and both its ends.

    Where the data say which patches bear an answer, that is in it too.

    To read whole images would take longer than to begin a run, and finds no more than these: an image that is encoded
    anew has another size, one whose download broke off has not its end.
    """
    digest = sha256()
    for sample in samples:
        parts: list[Any] = [sample.id, sample.image_id, sample.question, sample.references, sample.group]
        if bearing := sample.answer_patches:
            parts += [bearing.grid, bearing.cells]
        digest.update(json.dumps(parts).encode())
    for name, path in {sample.image_id: sample.image for sample in samples}.items():
        size, ends = 0, b""
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                ends = file.read(ENDS)
                file.seek(max(size - ENDS, 0))
                ends += file.read(ENDS)
        except OSError:  # a recorded failure when its turn comes
            pass
        digest.update(json.dumps((name, size)).encode() + ends)
    return digest.hexdigest()[:16]


def file_hash(path: Path) -> str:
    """The sha256 of a file that the user wrote. Raises UsageError where there is none."""
    try:
        return sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).") from None


def commit_shown(session: dict[str, Any]) -> str:
    """The commit of a session in words, "-dirty" behind it where files differed; nothing outside of git."""
    whole, dirty, _ = (session.get("commit") or "").partition("-dirty")
    return f", commit {whole[:7]}{dirty}" if whole else ""


def _commit() -> str | None:
    """The commit of the source folder this runs from, "-dirty" behind it when files differ; None outside of git."""
    git, here = shutil.which("git"), Path(__file__).parent
    if git is None:
        return None

    def said(*words: str) -> str | None:
        done = subprocess.run([git, "-C", here, *words], capture_output=True, text=True, check=False)  # noqa: S603 - fixed words
        return done.stdout.strip() if done.returncode == 0 else None

    if not said("ls-files", Path(__file__).name):  # installed inside somebody else's repository
        return None
    return f"{said('rev-parse', 'HEAD')}{'-dirty' if said('status', '--porcelain', '--', str(here.parent)) else ''}"
