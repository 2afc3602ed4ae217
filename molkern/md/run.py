"""A run of molecular dynamics from its plan to its summary."""

from __future__ import annotations

import functools
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ..extras import require
from ..files import AppendedText, writing
from ..structures import check_frame
from . import report
from .group import DynamicsWorker, GroupReport
from .parallel import run_pieces
from .plan import Plan


@dataclass
class Stop:
    """A wish to stop: the signal that expressed it, if one did."""

    signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None


@contextmanager
def stopping_on_signals() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask to stop, in the main thread; a second one has its usual effect."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        stop.signal = number
        signal.signal(number, before[number])

    numbers = int(signal.SIGINT), int(signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in before:
        signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_structure(plan: Plan, name: str) -> None:
    """Refuses structures that cannot be run.

    Raises:
        ValueError: no atoms, constraints, positions that are not finite, a cell that is missing or
            singular, no velocities to keep, elements that the model does not know, masses that are
            not positive.
    """
    atoms = plan.atoms
    if len(atoms) == 0:
        raise ValueError(f"{name} has no atoms: give a structure with at least one")
    if atoms.constraints:
        kind = type(atoms.constraints[0]).__name__
        raise ValueError(f"{name} has constraints ({kind}), which are not kept here: remove them")
    if plan.settings.keep_velocities and not atoms.has("momenta"):
        raise ValueError(f"{name} has no velocities to keep: leave --keep-velocities out")
    check_frame(atoms, name)
    masses = atoms.get_masses()
    if not (masses > 0).all():
        atom = int((~(masses > 0)).argmax())
        raise ValueError(f"{name}: atom {atom} has mass {masses[atom]}, which must be positive")
    plan.source.load().check_elements(atoms.numbers, name, f"model {plan.source.name}")


def prepare_files(plan: Plan, resume: bool, restart: bool) -> None:
    """Sees to the files of an earlier run: goes on with them, takes them away, or refuses.

    Raises:
        ValueError: there are some and neither was asked for; both were; a trajectory to go on
            with that has no checkpoint; a run under way that was to be started anew.
    """
    if resume and restart:
        raise ValueError("--resume goes on and --restart starts anew: give one of them")
    if restart:
        _remove_checkpoints(plan)
        return
    for group, replicas in enumerate(plan.groups):
        checkpoint = plan.checkpoint(group)
        files = [plan.trajectory(r) for r in replicas]
        found = next((path for path in (checkpoint, *files) if path.exists()), None)
        if found is not None and not resume:
            raise ValueError(
                f"{found} exists: --resume goes on with it, --restart starts anew, or choose "
                "another --out"
            )
        elif found is not None and not checkpoint.exists():
            raise ValueError(
                f"{found} has no checkpoint ({checkpoint}) to go on from: bring it back, or start "
                "anew with --restart"
            )


def _remove_checkpoints(plan: Plan) -> None:
    """Takes them away, but for those of a run that is under way, which is refused."""
    groups = [k for k in range(len(plan.groups)) if plan.checkpoint(k).exists()]
    with ExitStack() as held:
        for group in groups:
            table = AppendedText(plan.energies(group))
            table.lock()
            held.callback(table.close)
        for group in groups:
            checkpoint = plan.checkpoint(group)
            with writing(checkpoint):
                checkpoint.unlink(missing_ok=True)


def run(
    plan: Plan,
    *,
    resume: bool = False,
    restart: bool = False,
    plot: Path | None = None,
    workers: int = 0,
    ray_address: str | None = None,
    name: str = "structure",
) -> tuple[dict[str, Any] | None, int | None]:
    """Does a run, or the rest of it, with a progress bar on stderr.

    Args:
        plan: the run.
        resume: goes on from checkpoints where there are some.
        restart: starts anew over files of an earlier run.
        plot: where the plot goes; by default beside the trajectory.
        workers: Ray's workers that share the groups; 0: this process does all.
        ray_address: of a cluster whose machines see the same files.
        name: of the structure in messages.

    Returns:
        The summary, which is also written as JSON; or None, and the signal that stopped the run
        after a checkpoint.

    Raises:
        ValueError: a plan, structure, checkpoint or files that do not fit, saying why.
        DynamicsError: energies that are not finite, or atoms that fly apart.
        OSError: naming a file that cannot be written.
    """
    require("md", "ase", "tqdm", "matplotlib")
    plan.settings.check()
    check_structure(plan, name)
    prepare_files(plan, resume, restart)
    factory = functools.partial(DynamicsWorker, plan)
    options: dict[str, Any] = {"workers": workers, "threads": plan.threads, "address": ray_address}
    options["gpus"] = int(plan.device.startswith("cuda"))
    with stopping_on_signals() as stop, _Bar(plan) as bar:
        groups = range(len(plan.groups))
        reports = list(run_pieces(factory, groups, bar.update, stop, **options))
    if len(reports) < len(plan.groups):
        return None, stop.signal
    at_once = min(max(workers, 1), len(plan.groups))
    seconds = sum(r.seconds for r in reports) / at_once  # without the start of workers
    return _finish(plan, reports, seconds, plot), None


class _Bar:
    """Steps of all replicas on stderr."""

    def __init__(self, plan: Plan):
        from tqdm import tqdm

        total = plan.settings.steps * plan.settings.replicas
        kind = plan.settings.ensemble.upper()
        self._sizes = [len(group) for group in plan.groups]
        self._steps: dict[int, int] = {}
        unit = "step" if plan.settings.replicas == 1 else "replica step"
        self._bar = tqdm(total=total, desc=f"{kind} dynamics", unit=unit, file=sys.stderr)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def update(self, group: int, stands: GroupReport) -> None:
        if group not in self._steps:  # what earlier runs did counts for no speed
            self._bar.initial += (stands.step - stands.steps) * self._sizes[group]
        self._steps[group] = stands.step
        done = sum(step * self._sizes[k] for k, step in self._steps.items())
        self._bar.update(done - self._bar.n)


def _finish(
    plan: Plan, reports: list[GroupReport], seconds: float, plot: Path | None
) -> dict[str, Any]:
    table = report.energies(plan)
    sizes = [len(group) for group in plan.groups]
    summary = report.summarise(
        plan,
        table,
        sum(r.steps * size for r, size in zip(reports, sizes, strict=True)),
        seconds,
        sum(r.builds for r in reports),
        (max(r.host_memory for r in reports), max(r.device_memory for r in reports)),
    )
    report.save_json(summary, plan.summary)
    report.plot(table, plot or plan.summary.with_suffix(".png"))
    return summary
