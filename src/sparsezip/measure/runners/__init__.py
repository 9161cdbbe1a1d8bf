"""Where the jobs of a run are answered."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from ..records import Row, Sample
from ..worker import Job


@runtime_checkable
class Runner(Protocol):
    """One or several workers, which end with the `with` block of the runner."""

    def __enter__(self) -> "Runner":
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """End what was begun."""

    def described(self) -> dict[str, Any]:
        """What the model is."""

    def warm_up(self, first: Mapping[str, list[Sample]], tokens: Mapping[str, int]) -> dict[str, str]:
        """See Worker.warm_up; done by every worker."""

    def run(self, jobs: Iterable[Job]) -> Iterator[list[Row]]:
        """The rows of each job: whole jobs, in any order."""
