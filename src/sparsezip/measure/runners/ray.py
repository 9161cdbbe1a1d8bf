"""Answer on many GPUs or machines: a Ray actor on each, which opens the model once and is given one job at a time.

    with Ray(partial(make_worker, "testbed", methods, {}), workers=8, address="10.0.0.1:6379") as runner:
        runner.warm_up(first, tokens)
        for rows in runner.run(jobs): ...

Without an address Ray is started on this machine and ends with the block; an address joins a cluster. Where the cluster
has GPUs each worker has one, else a CPU. Jobs go out in order; that of a worker which died (killed, out of memory, its
machine lost) goes to the next free one, while a new worker takes the lost one's place and is warmed up like the others.

- Images, models and a user's own file are read where the work is done: they must lie under the same path on every
  machine, as on a shared disk. Sent from here they would all pass through one machine's network, for every method
  again. The warm-up looks at the first images, so that files out of reach are not recorded as broken, one by one.
- The last bit of a sum depends on the number of threads, so every worker has as many as this process. They sleep
  while they wait: more threads than cores that wait awake are more than ten times slower (docs/log.md).
- Only the process that asks writes anything; a worker that outlives it has nothing to write to.
- Ray sends Python objects by pickle: join no cluster of strangers.
"""

import importlib
import logging
import os
import platform
import re
import socket
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ... import errors
from ...errors import DataError, FailureError, SettingError, SparsezipError, UsageError
from ..records import Row, Sample
from ..session import RECORDED
from ..worker import Job, Worker

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a warning of something that is to come
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
        from ray.exceptions import RayError, RayTaskError
except ImportError:
    raise UsageError('The runner "ray" needs a package that is not here: pip install "sparsezip[ray]".') from None

PLACED_S = 120.0  # how long a worker may wait for a place on the cluster
REACHED_S = 5.0  # how long an address may take to answer
DEATHS = 3  # so many workers may one job cost; so often may a lost one's place be tried to fill
PACKAGE = Path(errors.__file__).parent
SOURCE = "sparsezip's source"
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # a greeting and empty settings
NEXT = {"place": "open", "open": "warm_up"}  # the steps to a worker's first job
log = logging.getLogger(__name__)


class Actor:
    """A worker where it works. Its errors come back as values: what Ray raises then means that the worker is lost."""

    def call(self, what: str, *given: Any) -> tuple[Any, SparsezipError | None]:
        """What the method of that name returns, or what it raised."""
        try:
            return getattr(self, what)(*given), None
        except Exception as error:
            return None, self._sendable(error)

    def place(self, asker: str, folder: str, installed: Mapping[str, str]) -> None:
        """Take up work for the process in `folder` on the machine `asker`, with the same packages `installed`.

        On that machine itself the source is the same folder, whoever writes to it meanwhile.
        """
        self._asker, self._here = asker, platform.node()
        with suppress(OSError):  # relative paths mean the same; if the folder is missing, the images will be
            os.chdir(folder)
        here = _installed()
        for name, there in installed.items():
            if here.get(name) != there and (name != SOURCE or self._here != asker):
                raise UsageError(
                    f"{self._here} has {name} {here.get(name, 'not')}, but {asker} has {there}, so that results would "
                    "not compare. Install the same on every machine."
                )

    def open(self, make: Callable[[], Worker]) -> dict[str, Any]:
        """Make the worker; returns what its model is."""
        self._worker = make()
        return self._worker.described()

    def warm_up(self, *rounds: tuple[Mapping[str, list[Sample]], Mapping[str, int]]) -> dict[str, str]:
        """Each round of Worker.warm_up, once the images are seen to be there."""
        refused: dict[str, str] = {}
        for first, tokens in rounds:
            for sample in (sample for samples in first.values() for sample in samples):
                if not sample.image.is_file():  # the runner gives sound ones only
                    raise DataError(
                        f"{self._here} has no image {sample.image.absolute()}, which {self._asker} has. Put the data "
                        "where every machine finds them under the same path."
                    )
            refused |= self._worker.warm_up(first, tokens)
        return refused

    def answer(self, job: Job) -> list[Row]:
        """The rows of a job."""
        return self._worker.answer(job)

    def _sendable(self, error: Exception) -> SparsezipError:
        """The error as one that can be raised anywhere: of this package, with all it has to say in its message."""
        kind = next((kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__), None)
        where = f"On {self._here}: " if self._here != self._asker else ""
        sent: SparsezipError = kind(f"{where}{error}") if kind else FailureError(f"{where}{_told(error)}")
        sent.add_note(traceback.format_exc())  # shown by SPARSEZIP_DEBUG=1
        return sent


@dataclass(eq=False)
class Place:
    """Room for one worker: who is there, what it does now, and how often in a row nobody could begin there."""

    actor: Any
    doing: str = ""
    job: Job | None = None
    missed: int = 0


class Ray:
    """Workers on a Ray cluster."""

    def __init__(self, make: Callable[[], Worker], workers: int, address: str | None = None) -> None:
        """`make` makes a worker, wherever it is called. address: HOST:PORT or "auto"; None: this machine alone.

        Raises SettingError for less than one worker, UsageError for an address that no Ray cluster answers at.
        """
        if workers < 1:
            raise SettingError(f"workers is {workers}, but must be 1 or more.")
        if address not in (None, "auto"):
            _reach(str(address))
        self._workers, self._address = workers, address
        self._steps: dict[str, tuple[Any, ...]] = {  # what a worker does before its first job, and with what
            "place": (platform.node(), os.getcwd(), _installed()),
            "open": (make,),
            "warm_up": (),
        }
        self._places: list[Place] = []
        self._described: dict[str, Any] = {}
        self._end: Callable[[], None] = lambda: None

    def __enter__(self) -> "Ray":
        """Start or join the cluster and open the model on every worker.

        Raises UsageError where the cluster lacks room or has other packages, FailureError where a worker is lost, and
        what `make` raises.
        """
        try:
            self._connect()
            self._needs = self._room()
            self._places = [Place(self._actor()) for _ in range(self._workers)]
            self._all("place", *self._steps["place"], timeout=PLACED_S)
            for described in self._all("open", *self._steps["open"]):
                self._accept(described)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers, and Ray if it was started or joined here."""
        for place in self._places:
            with suppress(RayError):
                ray.kill(place.actor)
        self._places = []
        self._end()

    def described(self) -> dict[str, Any]:
        """What the model is, on every worker."""
        return self._described

    def warm_up(self, first: Mapping[str, list[Sample]], tokens: Mapping[str, int]) -> dict[str, str]:
        """See Worker.warm_up; done by every worker, and by those that take a lost one's place."""
        found = self._all("warm_up", (first, tokens))
        self._steps["warm_up"] += ((first, tokens),)
        return {label: why for refused in found for label, why in refused.items()}

    def run(self, jobs: Iterable[Job]) -> Iterator[list[Row]]:
        """The rows of each job, as it gets done.

        A job that cost three workers ends as failures in its rows, once another job is answered: where every worker
        is lost, it is not the job. Raises FailureError where no worker is left, and what a worker raises.
        """
        ahead, again = iter(jobs), deque[Job]()
        idle, busy = deque(self._places), dict[Any, Place]()
        cost, lost = Counter[tuple[int, str]](), 0
        answered: list[list[Row]] = []
        given_up: list[list[Row]] = []
        while True:
            while idle and (job := again.popleft() if again else next(ahead, None)):
                place = idle.popleft()
                busy[self._ask(place, "answer", job)] = place
            yield from answered
            if idle and not any(place.job for place in busy.values()):
                break
            place, found = self._next(busy)
            answered, job = [], place.job
            if isinstance(found, Exception):
                lost += 1
                if lost > DEATHS * (self._workers + 1):
                    raise FailureError(f"{lost} workers were lost in a row, the last one because {_why(found)}.")
                if job:
                    cost[job.batch.number, job.label] += 1
                    gone = cost[job.batch.number, job.label] == DEATHS
                    (given_up.append(_failures(job, found)) if gone else again.append(job))
                if self._refill(place, found):
                    busy[self._ask(place, "place", *self._steps["place"])] = place
            elif job:
                idle.append(place)
                answered, given_up, lost = [found, *given_up], [], 0
            elif then := NEXT.get(place.doing):
                busy[self._ask(place, then, *self._steps[then])] = place
            else:
                idle.append(place)
                place.missed = 0
        yield from given_up

    def _next(self, busy: dict[Any, Place]) -> tuple[Place, Any]:
        """The first place of `busy` where something is done, taken out; what it found, or why its worker is lost."""
        if not busy:
            raise FailureError(f"No worker is left of {self._workers}.")
        placing = all(place.doing == "place" for place in busy.values())
        done, _ = ray.wait(list(busy), timeout=PLACED_S if placing else None)
        if not done:
            raise FailureError(f"No worker is left of {self._workers}, and none found a place in {PLACED_S:.0f} s.")
        place = busy.pop(done[0])
        try:
            found = _result(done[0])
            if place.doing == "open":
                self._accept(found)
        except RayError as error:
            return place, error
        except SparsezipError as error:
            if place.job:
                raise
            return place, error
        return place, found

    def _refill(self, place: Place, lost: Exception) -> bool:
        """Put a new worker in the place of a lost one; whether that is still worth a try."""
        with suppress(RayError):
            ray.kill(place.actor)  # one that is out of reach may still be there
        place.missed += place.job is None
        if place.missed == DEATHS:
            log.warning("A lost worker's place stays empty, because %s.", _why(lost))
            self._places.remove(place)
            return False
        log.warning(
            "A worker was lost, because %s. Another takes its place%s.",
            _why(lost),
            " and its questions" * bool(place.job),
        )
        place.actor = self._actor()
        return True

    def _ask(self, place: Place, what: str, *given: Any) -> Any:
        place.doing, place.job = what, given[0] if what == "answer" else None
        return place.actor.call.remote(what, *given)

    def _all(self, what: str, *given: Any, timeout: float | None = None) -> list[Any]:
        """What every worker finds, in any order."""
        waiting, found = [self._ask(place, what, *given) for place in self._places], []
        while waiting:
            done, waiting = ray.wait(waiting, timeout=timeout)
            if not done:
                raise UsageError(
                    f"{len(waiting)} of {self._workers} workers found no place within {timeout:.0f} s: the cluster is "
                    "busy. Ask for fewer, or later."
                )
            try:
                found.append(_result(done[0]))
            except RayError as error:
                raise FailureError(f"A worker was lost before it had begun, because {_why(error)}.") from None
        return found

    def _accept(self, described: dict[str, Any]) -> None:
        if described != (self._described or described):
            raise UsageError(f"Not all workers have the same model: {self._described} and {described}.")
        self._described = described

    def _connect(self) -> None:
        if ray.is_initialized():  # by whoever calls: it stays theirs
            return
        inner: Any = importlib.import_module("ray._private.worker")
        printed = getattr(inner, "print_to_stdstream", None)
        start: dict[str, Any] = (
            {"address": self._address} if self._address else {"address": "local", "include_dashboard": False}
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ray.init(**start, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            if self._address:
                raise UsageError(f"The Ray cluster at {self._address} cannot be joined ({_told(error)}).") from error
            raise FailureError(f"Ray does not start on this machine ({_told(error)}).") from error
        inner.print_to_stdstream = lambda *_, **__: None  # lost workers are told of here, and not on stdout

        def end() -> None:
            ray.shutdown()
            inner.print_to_stdstream = printed

        self._end = end

    def _room(self) -> dict[str, int]:
        """What each worker takes of the cluster. Raises UsageError where that is not there as often as asked for."""
        there = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's own
        kind = "GPU" if there.get("GPU") else "CPU"
        if self._workers > there.get(kind, 0):
            raise UsageError(
                f"{self._workers} workers were asked for, each on a {kind} of its own, but there are "
                f"{there.get(kind, 0):g} {kind}s. Ask for fewer workers."
            )
        return {"num_gpus": 1, "num_cpus": 0} if kind == "GPU" else {"num_cpus": 1}

    def _actor(self) -> Any:
        paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "OMP_WAIT_POLICY": "passive",
        }
        options = ray.remote(Actor).options(
            **self._needs, max_restarts=0, scheduling_strategy="SPREAD", runtime_env={"env_vars": variables}
        )
        return options.remote()


def _installed() -> dict[str, str]:
    """The versions of what answers depend on, and a hash of this package's source."""
    found = {}
    for package in RECORDED:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    sources = sorted(PACKAGE.rglob("*.py"))
    return found | {SOURCE: sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]}


def _reach(address: str) -> None:
    """Raise UsageError unless something like a Ray cluster answers at `address`; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) > 65535:
        raise SettingError(f'address is "{address}", but must be HOST:PORT as `ray start --head` tells it, or auto.')
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED_S) as line:
            line.sendall(HTTP2)
            if not os.environ.get("RAY_USE_TLS") and line.recv(9)[3:4] != b"\4":  # the settings of the other side
                raise OSError("what answers is no Ray cluster")
    except OSError as error:
        raise UsageError(
            f"No Ray cluster answers at {address} ({error}). Start one with `ray start --head`, which tells its "
            "address, or leave the address out to work on this machine alone."
        ) from None


def _result(ref: Any) -> Any:
    """What a worker found. Raises what it raised, RayError where it is lost."""
    try:
        found, error = ray.get(ref)
    except RayTaskError as failed:  # not even the call could be read or answered
        raise FailureError(f"A worker cannot work ({_told(failed.cause)}).") from failed
    if error is not None:
        raise error
    return found


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _why(error: Exception) -> str:
    """Why a worker is lost, for a sentence: Ray tells it in the middle of a page."""
    if isinstance(error, SparsezipError):
        return str(error).rstrip(".")
    said = re.search(r"because (.*?)\.", str(error))
    return said[1] if said else f"of a {type(error).__name__}"


def _failures(job: Job, lost: Exception) -> list[Row]:
    said = f"{DEATHS} workers were lost while they answered this, the last one because {_why(lost)}."
    return [
        Row.of(sample, benchmark=job.batch.benchmark, method=job.label, batch=job.batch.number, error=said)
        for sample in job.samples
    ]
