"""Replicas that are computed together: from step to step, with frames and checkpoints."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..appended import AppendedText
from ..graph import AtomicBatch, neighbor_list
from ..models import Potential
from ..nn.precision import network_tensor
from .checkpoint import Checkpoint
from .dynamics import (
    BOLTZMANN,
    FEMTOSECOND,
    Langevin,
    ReplicaNoise,
    VelocityVerlet,
    degrees_of_freedom,
    initial_velocities,
)
from .evaluator import Evaluator
from .plan import Plan
from .trajectories import trajectory_file

if TYPE_CHECKING:
    from ase import Atoms

SKIN = 0.5  # Å
#: An atom that moves farther than this in one step does not follow forces any more, Å.
_LONGEST_STEP = 0.5
#: What is not written yet is written when it is so much, or so old.
_FLUSH_BYTES, _FLUSH_SECONDS = 8 << 20, 5.0
_COLUMNS = "step,time_fs,replica,potential_eV,kinetic_eV,conserved_eV,temperature_K"


class DynamicsError(RuntimeError):
    """A run that cannot go on: energies that are not finite, atoms that fly apart."""


@dataclass(frozen=True)
class GroupReport:
    """Where a group stands.

    Attributes:
        group, step: its number and steps done in all.
        steps, seconds: done by this process, and the time they took.
        builds: neighbor lists made in all.
        host_memory, device_memory: largest use of memory by this process, bytes.
    """

    group: int
    step: int
    steps: int
    seconds: float
    builds: int
    host_memory: int
    device_memory: int


class GroupRun:
    """A group's run, from its checkpoint if it has one.

    The state is positions, velocities and heat, and the positions that the neighbor list was made
    for: with exact filters the last bit depends on the list, so the same one is made again.

    Args:
        plan: the run.
        group: which of its groups.
        model: the plan's model, on its device.

    Raises:
        ValueError: a checkpoint that is damaged or of another run; files shorter than it says.
    """

    def __init__(self, plan: Plan, group: int, model: Potential):
        self.plan, self.group, self.replicas = plan, group, plan.groups[group]
        self.atoms_each = len(plan.atoms)
        self._masses = plan.atoms.get_masses()
        self._rotates = not plan.atoms.pbc.any()
        settings = plan.settings
        self._freedom = degrees_of_freedom(
            plan.atoms.positions,
            self._masses,
            self._rotates,
            settings.thermostat and settings.friction > 0,
            plan.atoms.get_velocities() if settings.keep_velocities else None,
        )
        self._template = _bare(plan.atoms)
        self._table = AppendedText(plan.energies(group))
        self._frames = [trajectory_file(plan.trajectory(r)) for r in self.replicas]
        self._flushed = time.monotonic()
        self.seconds, self._builds_before = 0.0, 0
        self._table.lock()
        try:
            self._start(model)
        except BaseException:
            self._table.drop_if_empty()  # the lock made it
            self.close()
            raise

    def _start(self, model: Potential) -> None:
        path = self.plan.checkpoint(self.group)
        found = Checkpoint.load(path) if path.exists() else None
        if found is not None:
            found.require(self.plan.identity(self.group), path)
        self._reach = float(model.cutoff) + SKIN
        first = neighbor_list(torch.from_numpy(self.plan.atoms.positions), self._reach)
        self._alone = int((first.row_ptr.diff() == 0).sum())
        self.dynamics = self._dynamics(model)
        self._go_on(found) if found is not None else self._begin()
        self._first = self.dynamics.step

    def _dynamics(self, model: Potential) -> VelocityVerlet:
        settings, count = self.plan.settings, len(self.replicas)
        weight = network_tensor(model)
        batch = AtomicBatch.from_ase([self.plan.atoms] * count, weight.dtype, weight.device)
        conditions: dict[str, Any] = dict(self.plan.source.conditions)
        self.evaluator = Evaluator(model, batch, skin=SKIN, **conditions)
        positions = torch.from_numpy(np.tile(self.plan.atoms.positions, (count, 1)))
        masses = torch.from_numpy(np.tile(self._masses, count))
        step = settings.time_step * FEMTOSECOND
        arguments = (self.evaluator, positions, self._velocities(), masses, step)
        if not settings.thermostat:
            return VelocityVerlet(*arguments, settings.energy_unit)
        return Langevin(
            *arguments,
            settings.energy_unit,
            temperature=settings.temperature,
            friction=settings.friction / (1000 * FEMTOSECOND),
            noise=ReplicaNoise(settings.seed, self.replicas, self.atoms_each),
        )

    def _velocities(self) -> Tensor:
        settings, atoms = self.plan.settings, self.plan.atoms
        if settings.keep_velocities:
            return torch.from_numpy(np.tile(atoms.get_velocities(), (len(self.replicas), 1)))
        drawn = [
            initial_velocities(
                settings.seed,
                replica,
                atoms.positions,
                self._masses,
                settings.temperature,
                self._rotates,
            )
            for replica in self.replicas
        ]
        return torch.from_numpy(np.concatenate(drawn))

    def _begin(self) -> None:
        self._listed, self._builds = self.dynamics.positions.clone(), -1
        self._compute()  # what cannot be computed leaves no file
        # Before any file grows: what is found later with a checkpoint belongs to it
        self._save([0] * (1 + len(self._frames)))
        for file in (self._table, *self._frames):
            file.cut(0)
        self._table.add(_COLUMNS + "\n")
        self._record()

    def _go_on(self, found: Checkpoint) -> None:
        dynamics, arrays, state = self.dynamics, found.arrays, found.state
        for file, mark in zip((self._table, *self._frames), state["files"], strict=True):
            file.cut(mark)
        dynamics.step = state["step"]
        dynamics.velocities.copy_(torch.from_numpy(arrays["velocities"]))
        dynamics.heat.copy_(torch.from_numpy(arrays["heat"]))
        dynamics.positions.copy_(torch.from_numpy(arrays["list_positions"]))
        self._builds = -1
        self._compute()
        self._builds_before = max(state["builds"] - self.evaluator.builds, 0)
        dynamics.positions.copy_(torch.from_numpy(arrays["positions"]))
        self._compute()
        if not any(state["files"]):  # made before the first frame
            self._table.add(_COLUMNS + "\n")
            self._record()
        elif self.done:
            self._record_end()

    # Steps

    @property
    def done(self) -> bool:
        return self.dynamics.step >= self.plan.settings.steps

    def advance(self, seconds: float) -> GroupReport:
        """Does steps for about so long, or to the end.

        Raises:
            DynamicsError: naming replica and step; frames until then are written.
            OSError: naming a file that cannot be written; the last checkpoint is as it was.
        """
        settings, start = self.plan.settings, time.perf_counter()
        ends = start + seconds
        try:
            while not self.done and time.perf_counter() < ends:
                self._step()
                step = self.dynamics.step
                if step % settings.every == 0:
                    self._record()
                if step % settings.checkpoint_every == 0 or self.done:
                    self.checkpoint()
                if self.done:
                    self._record_end()
        except DynamicsError:
            self._flush()
            raise
        if self.done and self._table.pending:
            self.checkpoint()
        elif self._due():
            self._flush()
        self.seconds += time.perf_counter() - start
        return self.report()

    def _step(self) -> None:
        try:
            self.dynamics.advance()
        except ValueError as error:
            raise DynamicsError(f"step {self.dynamics.step + 1}: {error}") from error
        self._after_forces()

    def _compute(self) -> None:
        self.dynamics.compute()
        self._after_forces()

    def _after_forces(self) -> None:
        dynamics = self.dynamics
        longest = (_LONGEST_STEP / dynamics.time_step) ** 2
        speeds = dynamics.velocities.square().sum(1)
        # Not a number compares as false
        good = torch.isfinite(dynamics.potential).all() & (speeds < longest).all()
        if not bool(good):
            raise DynamicsError(self._what_is_wrong(speeds, longest))
        if self.evaluator.builds != self._builds:
            self._builds = self.evaluator.builds
            self._listed = dynamics.positions.clone()
            self._check_alone()

    def _what_is_wrong(self, speeds: Tensor, longest: float) -> str:
        dynamics = self.dynamics
        lost = (~torch.isfinite(dynamics.potential)).nonzero()
        remedy = "use a shorter --time-step, or a structure the model knows"
        if len(lost):
            system = int(lost[0])
            energy = float(dynamics.potential[system])
            return f"the energy is {energy} in {self._place(system)}: {remedy}"
        atom = int((~(speeds < longest)).nonzero()[0])
        moved = float(speeds[atom].sqrt()) * dynamics.time_step
        place = self._place(atom // self.atoms_each)
        atom %= self.atoms_each
        if moved != moved:
            return f"the velocity of atom {atom} is nan in {place}: {remedy}"
        return f"atoms fly apart in {place}: atom {atom} moves {moved:.3g} Å in a step: {remedy}"

    def _place(self, system: int) -> str:
        return f"replica {self.replicas[system]} at step {self.dynamics.step}"

    def _check_alone(self) -> None:
        """Refuses atoms of a molecule that are beyond the reach of all others."""
        neighbors = self.evaluator.neighbors
        if not self._rotates or self.plan.settings.dissociation or neighbors is None:
            return
        degrees = neighbors.row_ptr.diff().reshape(len(self.replicas), self.atoms_each)
        more = ((degrees == 0).sum(1) > self._alone).nonzero()
        if len(more):
            raise DynamicsError(
                f"atoms fly apart in {self._place(int(more[0]))}: one has no other within "
                f"{self._reach:g} Å; --allow-dissociation goes on all the same"
            )

    # Writing

    def _record(self) -> None:
        dynamics, settings = self.dynamics, self.plan.settings
        kinetic = dynamics.kinetic()
        energies = torch.stack([dynamics.potential, kinetic, dynamics.conserved()], 1).tolist()
        shape = len(self.replicas), self.atoms_each, 3
        vectors = [dynamics.positions, dynamics.velocities, dynamics.forces]
        states = zip(*(v.cpu().reshape(shape).numpy() for v in vectors), strict=True)
        fs = round(dynamics.step * settings.time_step, 6)
        rows = zip(self.replicas, energies, states, self._frames, strict=True)
        for replica, (potential, kinetic_energy, conserved), state, file in rows:
            temperature = 2 * kinetic_energy / (max(self._freedom, 1) * BOLTZMANN)
            self._table.add(
                f"{dynamics.step},{fs},{replica},{potential!r},{kinetic_energy!r},{conserved!r},"
                f"{temperature!r}\n"
            )
            info = {"step": dynamics.step, "time_fs": fs, "replica": replica}
            info |= dict(self.plan.source.conditions)  # so that the frames mean the same again
            file.add_frame(_frame(self._template, state, potential, info))

    def _record_end(self) -> None:
        """Records the last state where no frame is due: after the checkpoint, so that a longer run
        that goes on from there takes it away again, and has the frames of a run in one go."""
        if self.dynamics.step % self.plan.settings.every:
            self._record()
            self._flush(sync=True)

    def _due(self) -> bool:
        pending = sum(file.pending for file in (self._table, *self._frames))
        return pending > _FLUSH_BYTES or time.monotonic() - self._flushed > _FLUSH_SECONDS

    def _flush(self, sync: bool = False) -> None:
        for file in (self._table, *self._frames):
            file.flush(sync)
        self._flushed = time.monotonic()

    def checkpoint(self) -> None:
        """Writes what is pending, and then a checkpoint that counts on it.

        Raises:
            OSError: naming the file; the last checkpoint is as it was.
        """
        self._flush(sync=True)
        self._save([file.mark() for file in (self._table, *self._frames)])

    def close(self) -> None:
        """Lets other processes go on with the group."""
        self._table.close()

    def _save(self, marks: list[int]) -> None:
        dynamics = self.dynamics
        arrays = {
            "positions": dynamics.positions,
            "velocities": dynamics.velocities,
            "heat": dynamics.heat,
            "list_positions": self._listed,
        }
        state = {"step": dynamics.step, "files": marks, "builds": self._all_builds()}
        Checkpoint(
            self.plan.identity(self.group),
            {key: value.cpu().numpy() for key, value in arrays.items()},
            state,
        ).save(self.plan.checkpoint(self.group))

    def _all_builds(self) -> int:
        return self._builds_before + self.evaluator.builds

    def report(self) -> GroupReport:
        """Where the group stands."""
        device = self.dynamics.positions.device
        return GroupReport(
            self.group,
            self.dynamics.step,
            self.dynamics.step - self._first,
            self.seconds,
            self._all_builds(),
            host_memory(),
            torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
        )


def host_memory() -> int:
    """The largest memory of this process so far, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _bare(atoms: Atoms) -> Atoms:
    """Elements, cell and masses only."""
    from ase import Atoms

    masses = atoms.get_masses() if atoms.has("masses") else None
    return Atoms(atoms.numbers, atoms.positions, masses=masses, cell=atoms.cell, pbc=atoms.pbc)


def _frame(template: Atoms, state: tuple[Any, ...], energy: float, info: dict[str, Any]) -> Atoms:
    """A frame of positions, velocities and forces, which it does not keep hold of."""
    from ase.calculators.singlepoint import SinglePointCalculator

    positions, velocities, forces = state
    frame = template.copy()
    frame.positions[:] = positions
    frame.set_velocities(velocities)
    frame.info = info
    frame.calc = SinglePointCalculator(frame, energy=energy, forces=np.array(forces))
    return frame


class DynamicsWorker:
    """Advances groups of a plan, one at a time, a slice of time per call."""

    def __init__(self, plan: Plan, slice_seconds: float = 0.3):
        self.plan, self.slice = plan, slice_seconds
        self._model = plan.source.load(plan.device)
        self._run: GroupRun | None = None

    def work(self, group: int) -> tuple[bool, GroupReport]:
        """Goes on with a group: whether it is done, and where it stands."""
        if self._run is None:
            self._run = GroupRun(self.plan, group, self._model)
        run, done = self._run, True
        try:
            report = run.advance(self.slice)
            done = run.done
        finally:
            if done:  # or failed
                run.close()
                self._run = None
        return done, report

    def pause(self) -> None:
        """Makes a checkpoint of what is under way."""
        if self._run is not None:
            self._run.checkpoint()
            self._run.close()
            self._run = None
