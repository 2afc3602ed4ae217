"""An OpenMM force around a potential."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import openmm
import torch
from openmm import app, unit

from ..data.indices import as_indices
from ..elements import atomic_numbers
from ..models import Potential
from ..ops._arguments import checked
from .kept import KeptEvaluators, finite_energy

#: kJ/mol per eV: e · N_A / 1000, exact in the SI of 2019.
_KJ_PER_EV = 96.48533212331
_ANGSTROM_PER_NM = 10.0


class OpenMMCompute:
    """From an OpenMM state to energy and forces: what :func:`openmm_force` hands to OpenMM.

    It can be pickled, with the model and its weights, so that OpenMM can write a system as XML.

    Args:
        model: the potential, on its device and of its type; put in evaluation mode.
        numbers: atomic numbers, ``[N]``.
        energy_unit: the model's unit of energy in eV.
        periodic: whether states have a box.
        skin: in Å, see :class:`molkern.md.Evaluator`.
        conditions: what else the model's prediction depends on.

    Raises:
        ValueError: atoms that the model does not know, and what :func:`openmm_force` says.
    """

    def __init__(
        self,
        model: Potential,
        numbers: Sequence[int],
        *,
        energy_unit: float = 1.0,
        periodic: bool = False,
        skin: float = 0.5,
        conditions: dict[str, Any] | None = None,
    ):
        self.model = model.eval()
        self.numbers = torch.tensor(list(numbers), dtype=torch.int64, device="cpu")
        self.model.check_elements(self.numbers)
        self.energy_unit, self.periodic = energy_unit, periodic
        self.options = {"skin": skin, **(conditions or {})}
        self._prepare()
        # In a step OpenMM would show this error in its own words
        self.kept.check(self.numbers)

    def _prepare(self) -> None:
        self.kept = KeptEvaluators(self.model, **self.options)
        # Contexts of one system share an evaluator, and may run in threads
        self._lock = threading.Lock()

    def __call__(self, state: Any) -> tuple[float, np.ndarray]:
        """Energy in kJ/mol and forces ``[N, 3]`` in kJ/mol/nm, of a state in nm.

        Raises:
            ValueError: positions or a box that are not finite, another number of particles.
            RuntimeError: an energy that is not finite.
        """
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        if len(positions) != len(self.numbers):
            raise ValueError(
                f"this force is for {len(self.numbers)} particles, the state has "
                f"{len(positions)}: give numbers of all, or the indices of some with particles="
            )
        place = torch.from_numpy(_ANGSTROM_PER_NM * positions)
        cell = pbc = None
        if self.periodic:
            box = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.nanometer)
            cell = torch.from_numpy(_ANGSTROM_PER_NM * box).unsqueeze(0)
            pbc = torch.ones(1, 3, dtype=torch.bool, device="cpu")
        scale = self.energy_unit * _KJ_PER_EV
        with self._lock:
            out = self.kept.find(self.numbers, place, cell, pbc)(place, cell)
            forces = out["forces"].to("cpu", torch.float64).numpy() * (scale * _ANGSTROM_PER_NM)
            return finite_energy(out["energy"]) * scale, forces

    def __getstate__(self) -> dict[str, Any]:
        own = ("kept", "_lock")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()


@checked
def openmm_force(
    model: Potential,
    atoms: app.Topology | Iterable[int | str],
    *,
    energy_unit: float = 1.0,
    periodic: bool | None = None,
    skin: float = 0.5,
    conditions: dict[str, Any] | None = None,
    particles: Iterable[int] | None = None,
) -> openmm.PythonForce:
    """A force for ``System.addForce`` that computes a molkern model, which is in eV and Å.

    OpenMM works in kJ/mol and nm; units are converted. The force is saved with the system by
    ``XmlSerializer``, weights included. Like every pickle, such a file runs code when it is read.

    Args:
        model: the potential, on its device and of its type; put in evaluation mode.
        atoms: an OpenMM topology, or the atomic numbers (or symbols) of all particles of the
            system.
        energy_unit: the model's unit of energy in eV (0.0433641 for kcal/mol).
        periodic: whether the force sees the system's box, along all three axes; by default if the
            topology has one. With atomic numbers it must be given.
        skin: how much farther than the model's cutoff the neighbor list reaches, in Å, see
            :class:`molkern.md.Evaluator`.
        conditions: what else the model's prediction depends on (``total_charge``, say).
        particles: indices of the particles that the model is for, or a mask of all; by default all
            of them.

    Raises:
        ValueError: an atom of the topology without an element, an index outside the atoms or given
            twice, numbers without ``periodic``, a negative skin, an element that the model does not
            know, a model of something other than energies.
        TypeError: numbers or indices that are not integers.
        IndexError: a mask of another length.

    >>> import openmm, molkern
    >>> model = molkern.models.SchNet(16, 16, 2, cutoff=5.0)
    >>> system = openmm.System()
    >>> for mass in (15.999, 1.008, 1.008):
    ...     index = system.addParticle(mass)
    >>> index = system.addForce(molkern.md.openmm_force(model, [8, 1, 1], periodic=False))
    >>> platform = openmm.Platform.getPlatformByName("Reference")
    >>> context = openmm.Context(system, openmm.VerletIntegrator(0.0005), platform)
    >>> context.setPositions([[0.0, 0, 0], [0.096, 0, 0], [-0.024, 0.093, 0]])
    >>> context.getState(forces=True).getForces(asNumpy=True).shape
    (3, 3)
    """
    chosen = None if particles is None else list(particles)
    if isinstance(atoms, app.Topology):
        chosen = None if chosen is None else _places(chosen, atoms.getNumAtoms())
        numbers = _topology_numbers(atoms, chosen)
        periodic = atoms.getPeriodicBoxVectors() is not None if periodic is None else periodic
    else:
        numbers = atomic_numbers(atoms)
        chosen = None if chosen is None else _places(chosen, len(numbers))
        if periodic is None:
            raise ValueError(
                "atomic numbers do not tell whether the system is periodic: give periodic=True "
                "(the force sees the box) or periodic=False, or a topology in place of numbers"
            )
    if chosen is not None:
        numbers = [numbers[index] for index in chosen]
    compute = OpenMMCompute(
        model,
        numbers,
        energy_unit=energy_unit,
        periodic=bool(periodic),
        skin=skin,
        conditions=conditions,
    )
    force = openmm.PythonForce(compute)
    force.setUsesPeriodicBoundaryConditions(bool(periodic))
    if chosen is not None:
        force.setParticles(chosen)
    return force


def _topology_numbers(topology: app.Topology, particles: Iterable[int] | None) -> list[int]:
    """Atomic numbers, 0 for atoms without one that the model is not for."""
    wanted = None if particles is None else set(particles)
    numbers = []
    for atom in topology.atoms():
        if atom.element is None and (wanted is None or atom.index in wanted):
            raise ValueError(
                f"atom {atom.index} ({atom.name}) has no element: give the topology elements, or "
                "leave the atom out with particles="
            )
        numbers.append(0 if atom.element is None else atom.element.atomic_number)
    return numbers


def _places(particles: list[Any], count: int) -> list[int]:
    """Indices of particles, or a mask of them, as indices that are each there once."""
    for index in particles:
        if not isinstance(index, bool | np.bool_) and not 0 <= index < count:
            raise ValueError(f"particle {index} is not among the {count} atoms given")
    places: list[int] = as_indices(particles, count, "particles").tolist()
    if not places:
        raise ValueError("particles= chooses none: leave the force out, or particles=")
    twice = [index for index, times in Counter(places).items() if times > 1]
    if twice:
        raise ValueError(f"particle {twice[0]} is given twice: each counts once")
    return places
