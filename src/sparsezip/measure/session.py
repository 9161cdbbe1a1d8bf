"""When, where and with what something was measured."""

import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RECORDED = ("torch", "transformers", "numpy", "pillow", "sparsezip")


def session() -> dict[str, Any]:
    """The time, the machine, the commit of this source folder and the versions of what results depend on."""
    versions = {}
    for package in RECORDED:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a source folder that is not installed
            versions[package] = "unknown"
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "commit": _commit(),
        **versions,
    }


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
