"""Answer in this process, one job after the other."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..records import Row, Sample
from ..worker import Job, Worker


class Local:
    """One worker, here."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def __enter__(self) -> "Local":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def described(self) -> dict[str, Any]:
        """What the model is."""
        return self._worker.described()

    def warm_up(self, first: Mapping[str, list[Sample]], tokens: Mapping[str, int]) -> dict[str, str]:
        """The methods that cannot meet their budget; see Worker.warm_up."""
        return self._worker.warm_up(first, tokens)

    def run(self, jobs: Iterable[Job]) -> Iterator[list[Row]]:
        """The rows of each job, in the order of `jobs`, each of which is asked for when the one before is done."""
        return map(self._worker.answer, jobs)
