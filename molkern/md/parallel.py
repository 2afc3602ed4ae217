"""Work in pieces, here or shared among Ray's actors, with results in the order of the pieces."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ..extras import require

#: How often a piece is done again after the loss of a worker.
_TRIES = 3
#: Results that may wait for their turn, for each worker.
_AHEAD = 4
_OBJECT_STORE = 200 << 20  # bytes, of a Ray that is started here

_log = logging.getLogger(__name__)


class Worker(Protocol):
    """Who does the work. A piece is given again and again until it is done."""

    def work(self, piece: Any) -> tuple[bool, Any]:
        """Whether the piece is done, and its result or, until then, where it stands."""

    def pause(self) -> None:
        """Keeps on the disk what is under way; nothing more will be asked for."""


#: Makes a worker, in the process where it is to work; is pickled.
Factory = Callable[[], Worker]
#: Told of every answer: the piece, and its result or where it stands.
Progress = Callable[[Any, Any], None]


def run_here(
    factory: Factory, pieces: Iterable[Any], progress: Progress, stopped: Callable[[], bool]
) -> Iterator[Any]:
    """Results of all pieces, done by one worker in this process.

    Args:
        factory: makes the worker.
        pieces: looked at one by one.
        progress: told of every answer.
        stopped: once it is true, what is under way is paused and nothing follows.
    """
    worker = factory()
    for piece in pieces:
        done = False
        while not done:
            if stopped():
                worker.pause()
                return
            done, answer = worker.work(piece)
            progress(piece, answer)
        yield answer


class _Host:
    """The actor around a worker."""

    def __init__(self, factory: Factory):
        self._worker = factory()

    def work(self, piece: Any) -> tuple[bool, Any]:
        return self._worker.work(piece)

    def pause(self) -> None:
        self._worker.pause()

    def pid(self) -> int:
        return os.getpid()


@dataclass
class _Task:
    """A piece on its way."""

    index: int
    piece: Any
    actor: Any
    losses: int = 0


class RayPool:
    """Workers in processes of their own, on this machine or a cluster of Ray's.

    A worker that dies is replaced, and the piece that it had is done again by another, at most
    three times. Which worker does a piece has no influence on its result.

    Args:
        factory: makes a worker; what it holds must be there on every machine.
        workers: how many.
        threads: cores that each one takes.
        gpus: GPUs that each one takes.
        address: of a cluster (``"auto"``: the one this machine belongs to); None starts Ray here
            unless it runs in this process already, and stops it in the end.

    Raises:
        ImportError: without Ray, naming the extra.
        ValueError: fewer than one worker, or more of them than there are cores or GPUs for.
        ConnectionError: no cluster at this address.

    As in ``with RayPool(factory, workers=2) as pool: results = list(pool.run(pieces))``.
    """

    def __init__(
        self,
        factory: Factory,
        workers: int,
        threads: int = 1,
        gpus: int = 0,
        address: str | None = None,
    ):
        require("ray", "ray")
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self._owns = _connect(workers, threads, gpus, address)
        self._idle: list[Any] = []
        self._running: dict[Any, _Task] = {}
        import ray

        self._ray = ray
        errors = ray.exceptions
        #: What comes back in place of an answer where a worker or its machine is gone.
        self._lost = (errors.RayActorError, errors.OutOfMemoryError, errors.ObjectLostError)
        try:
            _check_room(workers, threads, gpus)
        except ValueError:
            self.close()
            raise
        options = {"num_cpus": threads, "num_gpus": gpus, "max_restarts": 0}
        self._class = ray.remote(_Host).options(**options)
        self._factory = ray.put(factory)
        self._workers = workers
        self._complete()

    def _complete(self) -> None:
        """Makes workers in place of those that were lost."""
        while len(self._idle) + len(self._running) < self._workers:
            self._idle.append(self._class.remote(self._factory))

    def pids(self) -> list[int]:
        """Process ids of the workers, idle ones first; waits for those that are busy."""
        actors = [*self._idle, *(task.actor for task in self._running.values())]
        return list(self._ray.get([actor.pid.remote() for actor in actors]))

    def close(self) -> None:
        """Ends the workers, and Ray where it was started for them."""
        for actor in [*self._idle, *(task.actor for task in self._running.values())]:
            self._ray.kill(actor)
        self._idle, self._running = [], {}
        if self._owns:
            self._ray.shutdown()

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(
        self,
        pieces: Iterable[Any],
        progress: Progress = lambda piece, answer: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Any]:
        """Results of all pieces, in their order; arguments as of :func:`run_here`.

        Raises:
            RuntimeError: a piece whose workers died again and again, or workers that fail to start.
            Exception: what a worker raised, as it raised it.
        """
        try:
            yield from self._run(pieces, progress, stopped)
        finally:  # after an error others may still be at work, for nobody
            for task in self._running.values():
                self._ray.kill(task.actor)
            self._running.clear()

    def _run(
        self, pieces: Iterable[Any], progress: Progress, stopped: Callable[[], bool]
    ) -> Iterator[Any]:
        waiting = enumerate(pieces)
        again: list[_Task] = []
        results: dict[int, Any] = {}
        turn = 0
        while True:
            if not stopped():
                self._give_out(waiting, again, len(results) < _AHEAD * self._workers)
            if not self._running:
                return
            for task, answer in self._answers(again, stopped):
                progress(task.piece, answer[1])
                if answer[0]:
                    results[task.index] = answer[1]
            while turn in results:
                yield results.pop(turn)
                turn += 1

    def _give_out(self, waiting: Iterator[tuple[int, Any]], again: list[_Task], room: bool) -> None:
        """Sends pieces to idle workers: lost ones, then new ones while there is room."""
        self._complete()
        while self._idle:
            if again:
                task = again.pop(0)
                task.actor = self._idle.pop()
            else:
                following = next(waiting, None) if room else None
                if following is None:
                    return
                task = _Task(*following, self._idle.pop())
            self._send(task)

    def _send(self, task: _Task) -> None:
        self._running[task.actor.work.remote(task.piece)] = task

    def _answers(
        self, again: list[_Task], stopped: Callable[[], bool]
    ) -> Iterator[tuple[_Task, tuple[bool, Any]]]:
        """What came back; pieces that are not done are sent on to where they were."""
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=0.5)
        for reference in ready:
            task = self._running.pop(reference)
            try:
                answer = self._ray.get(reference)
                if not answer[0] and stopped():
                    self._ray.get(task.actor.pause.remote())
            except self._lost as error:
                if getattr(error, "actor_init_failed", False):  # and would fail again
                    reason = str(error).rstrip().splitlines()[-1]
                    raise RuntimeError(f"a worker could not be made: {reason}") from error
                self._replace(task, error, again)
                continue
            except self._ray.exceptions.RayTaskError as error:
                self._idle.append(task.actor)
                raise error.cause from None
            if answer[0] or stopped():
                self._idle.append(task.actor)
            else:
                self._send(task)
            yield task, answer

    def _replace(self, task: _Task, error: Exception, again: list[_Task]) -> None:
        task.losses += 1
        if task.losses > _TRIES:
            reason = str(error).splitlines()[0]
            raise RuntimeError(
                f"piece {task.index} was lost {task.losses} times with its worker ({reason}): "
                "there may be too little memory; use smaller pieces or fewer workers"
            )
        _log.warning("a worker was lost; piece %d is done again by a new one", task.index)
        again.append(task)


def _connect(workers: int, threads: int, gpus: int, address: str | None) -> bool:
    """Connects to Ray; whether it was started for this."""
    import ray
    import torch

    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        try:
            ray.init(address=address, **quiet)
        except ConnectionError as error:
            raise ConnectionError(
                f"no Ray cluster at {address!r}: start one with `ray start --head`, or leave "
                "--ray-address out"
            ) from error
        return True
    if gpus and torch.cuda.device_count() < workers * gpus:
        raise ValueError(
            f"{workers} workers need a GPU each, but there are {torch.cuda.device_count()}: use "
            "fewer --workers, or --ray-address of a cluster"
        )
    check_shared_memory()
    ray.init(
        num_cpus=workers * threads,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE,
        **quiet,
    )
    return True


def check_shared_memory() -> None:
    """Refuses to start Ray where there is no shared memory: it would wait, or fail on its own.

    Raises:
        OSError: ``/dev/shm`` is missing or read-only, as in some containers.
    """
    if sys.platform == "linux" and not os.access("/dev/shm", os.W_OK):
        raise OSError(
            "Ray keeps its objects in /dev/shm, which is missing or read-only here: mount it "
            "(docker run --shm-size=1g), or leave --workers out"
        )


def _check_room(workers: int, threads: int, gpus: int) -> None:
    """Refuses more workers than Ray has room for: those that never start would be waited for."""
    import ray

    there = ray.cluster_resources()
    for name, kind, each in (("cores", "CPU", threads), ("GPUs", "GPU", gpus)):
        if there.get(kind, 0) < workers * each:
            raise ValueError(
                f"{workers} workers need {workers * each} {name}, but Ray has "
                f"{there.get(kind, 0):g}: use fewer --workers or --threads"
            )


def run_pieces(
    factory: Factory,
    pieces: Iterable[Any],
    progress: Progress,
    stopped: Callable[[], bool] = lambda: False,
    *,
    workers: int = 0,
    threads: int = 1,
    gpus: int = 0,
    address: str | None = None,
) -> Iterator[Any]:
    """Results in order, of this process (``workers=0``) or of a :class:`RayPool`."""
    if workers == 0:
        yield from run_here(factory, pieces, progress, stopped)
        return
    with RayPool(factory, workers, threads, gpus, address) as pool:
        yield from pool.run(pieces, progress, stopped)
