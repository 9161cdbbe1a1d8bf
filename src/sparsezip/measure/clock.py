"""How long things take: the spread of latencies, and the time a run still needs."""

import time
from collections.abc import Iterable
from types import TracebackType

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def spread(values: Iterable[int | float | None]) -> dict[str, float] | None:
    """{"median", "p10", "p90"} of what was measured; None where nothing was."""
    measured = [value for value in values if value is not None]
    if not measured:
        return None
    p10, median, p90 = (float(value) for value in np.percentile(measured, [10, 50, 90]))
    return {"median": median, "p10": p10, "p90": p90}


class Countdown:
    """Shows how far a run is: a bar with the time left on a terminal, a plain line per tenth elsewhere."""

    def __init__(self, console: Console | None, total: int, done: int = 0) -> None:
        """Count answers up to `total`, of which `done` are there already. Without a console nothing is shown."""
        self._console, self.total, self._done, self._first = console, total, done, done
        self._started = time.monotonic()
        self._bar: Progress | None = None
        if console is not None and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("answers", total=total, completed=done)

    def __enter__(self) -> "Countdown":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, answers: int, what: str) -> None:
        """`answers` more are on disk; `what` is being asked."""
        before, self._done = self._done, self._done + answers
        if self._bar:
            self._bar.update(self._task, completed=self._done, total=self.total, description=what)
        elif self._console and before * 10 // self.total < self._done * 10 // self.total:
            seconds = (time.monotonic() - self._started) / (self._done - self._first) * (self.total - self._done)
            self._console.print(f"{what}: {self._done:,} of {self.total:,} answers, {seconds / 60:.1f} min left")
