"""Integrators of Newton's and Langevin's equations for a batch of systems."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..ops import segment_sum
from ..ops._modes import ordinary_tensors
from .evaluator import Evaluator

#: Units of ASE, which are eV, Å and amu: CODATA 2014, as ASE uses them.
BOLTZMANN = 8.617330337217213e-05  # eV/K
FEMTOSECOND = 0.09822694788464063  # Å sqrt(amu / eV)
#: Noise is drawn for that many steps at once.
_BLOCK = 16
#: Drift and rotation with less than this share of the kinetic energy were removed: the rest is what
#: files and forces of float32 round.
_WHOLE = 1e-4

Array = NDArray[np.float64]


class VelocityVerlet:
    """Steps at constant energy, for all systems of an evaluator at once.

    Swope et al., J. Chem. Phys. 76, 637 (1982): half a kick, a drift, forces, half a kick.
    Positions and velocities are float64 whatever the model's type. Each operation on them is
    rounded for itself, so a system's bits do not depend on the systems beside it, where those of
    its forces do not.

    Args:
        evaluator: of the systems.
        positions: ``[N, 3]``, Å; copied.
        velocities: ``[N, 3]``, Å per unit of time; copied.
        masses: ``[N]``, amu.
        time_step: in units of time, Å sqrt(amu / eV) (``FEMTOSECOND`` each).
        energy_unit: the model's unit of energy in eV.

    Raises:
        ValueError: shapes that are not the evaluator's, velocities that are not finite, masses, a
            time step or a unit that are not positive and finite.
        TypeError: positions, velocities or masses that are not real numbers.

    Attributes:
        positions, velocities, forces: ``[N, 3]`` float64 at the present step; forces in eV/Å.
        potential: energies of the systems, ``[B]`` float64, eV.
        heat: what a thermostat has given to each system, ``[B]`` float64, eV; 0 here.
        step: steps done.

    >>> import torch, molkern
    >>> from molkern.data import ethanol_frames, ethanol_model
    >>> frames = ethanol_frames()["test"][:2]
    >>> batch = frames.batch()
    >>> evaluator = molkern.md.Evaluator(ethanol_model(), batch)
    >>> masses = torch.where(batch.numbers == 1, 1.0, 2.0 * batch.numbers)
    >>> start = batch.positions, torch.zeros_like(batch.positions), masses
    >>> dynamics = VelocityVerlet(evaluator, *start, time_step=0.5 * FEMTOSECOND)
    >>> dynamics.compute()
    >>> before = dynamics.conserved()
    >>> for _ in range(10):
    ...     dynamics.advance()
    >>> bool(((dynamics.conserved() - before).abs() < 0.01).all())
    True
    """

    def __init__(
        self,
        evaluator: Evaluator,
        positions: Tensor,
        velocities: Tensor,
        masses: Tensor,
        time_step: float,
        energy_unit: float = 1.0,
    ):
        batch = evaluator.batch
        on: dict[str, Any] = {"device": batch.positions.device, "dtype": torch.float64}
        _check_start(batch.num_atoms, positions, velocities, masses)
        _check_positive(time_step=time_step, energy_unit=energy_unit)
        self.evaluator, self.time_step, self.energy_unit = evaluator, time_step, energy_unit
        self.step = 0
        with ordinary_tensors():  # steps write into them, and nothing is to be differentiated
            self.positions = positions.to(**on, copy=True)
            self.velocities = velocities.to(**on, copy=True)
            self.masses = masses.to(**on, copy=True).reshape(-1, 1)
            self.forces = torch.empty_like(self.positions)
            self.potential = torch.empty(batch.num_systems, **on)
            self.heat = torch.zeros(batch.num_systems, **on)
            self._kick = (0.5 * time_step) / self.masses
            self._change = torch.empty_like(self.positions)

    def compute(self) -> None:
        """Energies and forces at the present positions; must be called once before steps."""
        out = self.evaluator(self.positions)
        self.forces.copy_(out["forces"]).mul_(self.energy_unit)
        self.potential.copy_(out["energy"]).mul_(self.energy_unit)

    def advance(self) -> None:
        """Does one step."""
        self._kick_by_half()
        self._drift(self.time_step)
        self.compute()
        self._kick_by_half()
        self.step += 1

    def kinetic(self) -> Tensor:
        """Kinetic energies of the systems, ``[B]``, eV."""
        squares = self.velocities.square().mul_(self.masses)
        return segment_sum(squares, self.evaluator.batch.system_ptr).sum(1).mul_(0.5)

    def conserved(self) -> Tensor:
        """What the equations conserve, ``[B]``, eV: the energy less the heat taken up."""
        return self.potential + self.kinetic() - self.heat

    def _kick_by_half(self) -> None:
        self.velocities += torch.mul(self.forces, self._kick, out=self._change)

    def _drift(self, time: float) -> None:
        self.positions += torch.mul(self.velocities, time, out=self._change)


class Langevin(VelocityVerlet):
    """Steps at constant temperature, BAOAB.

    Leimkuhler & Matthews, Appl. Math. Res. Express 2013, 34 (2013): kick, drift, exact
    Ornstein-Uhlenbeck step of the velocities, drift, kick. Averages of positions are those of the
    temperature to high order in the time step; the kinetic energy of a mode of frequency ω is too
    low by (ω · time step)² / 4.

    Args:
        temperature: K.
        friction: per unit of time.
        noise: from a step's number to standard normal numbers, ``[N, 3]`` (:class:`ReplicaNoise`).

    Raises:
        ValueError, TypeError: as :class:`VelocityVerlet`; a temperature or friction that is
            negative or not finite.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        positions: Tensor,
        velocities: Tensor,
        masses: Tensor,
        time_step: float,
        energy_unit: float = 1.0,
        *,
        temperature: float,
        friction: float,
        noise: Callable[[int], Tensor],
    ):
        super().__init__(evaluator, positions, velocities, masses, time_step, energy_unit)
        _check_not_negative(temperature=temperature, friction=friction)
        keep = float(np.exp(-friction * time_step))
        self._keep, self._noise = keep, noise
        with ordinary_tensors():
            self._width = ((1 - keep**2) * BOLTZMANN * temperature / self.masses).sqrt()

    def advance(self) -> None:
        self._kick_by_half()
        self._drift(0.5 * self.time_step)
        before = self.kinetic()
        noise = self._noise(self.step).to(self.velocities.device)
        self.velocities *= self._keep
        self.velocities += torch.mul(self._width, noise, out=self._change)
        self.heat += self.kinetic() - before
        self._drift(0.5 * self.time_step)
        self.compute()
        self._kick_by_half()
        self.step += 1


def _check_start(count: int, positions: Tensor, velocities: Tensor, masses: Tensor) -> None:
    given = {"positions": positions, "velocities": velocities, "masses": masses}
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{name} must be real numbers, got {value.dtype}")
        shape = (count,) if name == "masses" else (count, 3)
        if value.shape != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, got {list(value.shape)}")
    moving = velocities.isfinite().all(1)
    if not bool(moving.all()):
        atom = int((~moving).nonzero()[0])
        raise ValueError(f"the velocity of atom {atom} is {velocities[atom].tolist()}: not finite")
    heavy = (masses > 0) & masses.isfinite()
    if not bool(heavy.all()):
        atom = int((~heavy).nonzero()[0])
        raise ValueError(
            f"masses must be positive and finite, that of atom {atom} is {float(masses[atom])}"
        )


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")


def _check_not_negative(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must not be negative and must be finite, got {value}")


def _generator(seed: int, replica: int, *place: int) -> np.random.Generator:
    sequence = np.random.SeedSequence(seed, spawn_key=(replica, *place))
    return np.random.Generator(np.random.Philox(sequence))


class ReplicaNoise:
    """Standard normal numbers that are a function of seed, replica and step alone.

    So a replica's are the same whichever replicas run beside it, and a run that goes on from a
    checkpoint needs no state of a generator.

    Args:
        seed: of all replicas.
        replicas: their numbers.
        atoms: of each replica, n.
    """

    def __init__(self, seed: int, replicas: Sequence[int], atoms: int):
        self.seed, self.replicas, self.atoms = seed, replicas, atoms
        self._block, self._numbers = -1, torch.empty(0, device="cpu")

    def __call__(self, step: int) -> Tensor:
        """Those of a step, ``[len(replicas) · n, 3]``, float64."""
        block, row = divmod(step, _BLOCK)
        if block != self._block:
            shape = _BLOCK, self.atoms, 3
            drawn = [
                _generator(self.seed, r, 0, block).standard_normal(shape) for r in self.replicas
            ]
            self._numbers = torch.from_numpy(np.concatenate(drawn, axis=1))
            self._block = block
        return self._numbers[row]


def initial_velocities(
    seed: int, replica: int, positions: Array, masses: Array, temperature: float, rotates: bool
) -> Array:
    """Velocities after Maxwell and Boltzmann, ``[n, 3]``, without net momentum.

    Args:
        seed, replica: what they are a function of.
        positions: ``[n, 3]``, Å.
        masses: ``[n]``, amu.
        temperature: K.
        rotates: whether the system could rotate (no periodicity), so that angular momentum is
            removed too.

    Raises:
        ValueError: a temperature that is negative or not finite.
    """
    _check_not_negative(temperature=temperature)
    drawn = _generator(seed, replica, 1).standard_normal(positions.shape)
    velocities = drawn * np.sqrt(BOLTZMANN * temperature / masses)[:, None]
    return stationary(velocities, positions, masses, rotates)


def stationary(velocities: Array, positions: Array, masses: Array, rotates: bool) -> Array:
    """Velocities ``[n, 3]`` less those of the whole: its drift and, if asked for, its rotation."""
    total = masses.sum()
    velocities = velocities - masses @ velocities / total
    if rotates:
        arms = positions - masses @ positions / total
        momentum = (masses[:, None] * np.cross(arms, velocities)).sum(0)
        # Of an atom or a line one moment or three are zero: no rotation about that axis
        rotation = np.linalg.pinv(_inertia(arms, masses), rcond=1e-10) @ momentum
        velocities = velocities - np.cross(rotation, arms)
    return velocities


def _inertia(arms: Array, masses: Array) -> Array:
    """Tensor of inertia, ``[3, 3]``, of atoms at ``arms`` from their centre."""
    squares = (masses * (arms**2).sum(1)).sum() * np.eye(3)
    return np.asarray(squares - (masses[:, None] * arms).T @ arms)


def degrees_of_freedom(
    positions: Array,
    masses: Array,
    rotates: bool,
    thermostat: bool,
    velocities: Array | None = None,
) -> int:
    """Of how many the kinetic energy is the sum, each with kT/2.

    All 3 n with a thermostat that acts on every atom; else less what is conserved and zero: the
    drift, and the rotations of what can rotate (two for a line, none for an atom).

    Args:
        positions: ``[n, 3]``, Å.
        masses: ``[n]``, amu.
        rotates: whether angular momentum is conserved (no periodicity).
        thermostat: whether one acts on every atom.
        velocities: ``[n, 3]``, of the start; what drifts or rotates by these counts. By default
            those of :func:`initial_velocities`, which do neither.
    """
    count = 3 * len(masses)
    if thermostat or count == 0:
        return count
    arms = positions - masses @ positions / masses.sum()
    inertia = _inertia(arms, masses)
    drifts = spins = False
    if velocities is not None:
        drifts, spins = _moves_as_a_whole(velocities, arms, masses, inertia)
    if not drifts:
        count -= 3
    if rotates and not spins:
        moments = np.linalg.eigvalsh(inertia)
        count -= int((moments > 1e-8 * max(moments.max(), 1.0)).sum())
    return max(count, 0)


def _moves_as_a_whole(
    velocities: Array, arms: Array, masses: Array, inertia: Array
) -> tuple[bool, bool]:
    """Whether more than rounding of the kinetic energy is that of drift, and that of rotation."""
    momentum = masses @ velocities
    drift = 0.5 * momentum @ momentum / masses.sum()
    angular = (masses[:, None] * np.cross(arms, velocities)).sum(0)
    spin = 0.5 * angular @ np.linalg.pinv(inertia, rcond=1e-10) @ angular
    least = _WHOLE * 0.5 * (masses @ velocities**2).sum()
    return bool(drift > least), bool(spin > least)
