"""An ASE calculator around a potential."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    all_changes,
)
from ase.stress import full_3x3_to_voigt_6_stress

from ..data.conditions import ConditionReader, stated
from ..graph import AtomicBatch
from ..models import Potential
from ..nn.fingerprint import Fingerprint
from ..nn.precision import network_tensor
from ..ops._arguments import checked
from ..ops._library import as_tensor
from .evaluator import Evaluator
from .exclusive import Exclusive
from .kept import finite_energy, require_energy


class ASECalculator(Calculator):
    """Energy, free energy, forces and stress of a molkern model for ASE, in eV and Å.

    Args:
        model: the potential, on its device and of its type; put in evaluation mode.
        skin: how much farther than the model's cutoff the neighbor list reaches, in Å, see
            :class:`molkern.md.Evaluator`.
        energy_unit: the model's unit of energy in eV (``ase.units.kcal / ase.units.mol``, say).
        conditions: what else the model's prediction depends on (``total_charge``, say). A total
            charge that is not given here is what the atoms state, in ``info`` or by their initial
            charges (:func:`molkern.data.conditions.stated`), or 0.

    Raises:
        ValueError: a model of something other than energies; on calculating, a charge that is no
            number.

    Calculations raise a RuntimeError where the energy is not finite, and where another thread is at
    work: threads that run at the same time need a calculator each.

    >>> import ase.build, molkern
    >>> atoms = ase.build.molecule("CH3CH2OH")
    >>> model = molkern.models.SchNet(16, 16, 2, cutoff=5.0)
    >>> atoms.calc = molkern.md.ASECalculator(model)
    >>> atoms.get_forces().shape
    (9, 3)
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    @checked
    def __init__(
        self,
        model: Potential,
        *,
        skin: float = 0.5,
        energy_unit: float = 1.0,
        conditions: dict[str, Any] | None = None,
        **options: Any,
    ):
        super().__init__(**options)
        require_energy(model)
        self.model = model.eval()
        self.skin, self.energy_unit = skin, energy_unit
        self.conditions = conditions or {}
        self._exclusive = Exclusive("threads that run at the same time need an ASECalculator each")
        #: Of the atoms that were calculated last; None before.
        self.evaluator: Evaluator | None = None
        self._numbers = self._pbc = np.empty(0)
        self._conditions, self._skin = dict[str, Any](), skin  # of the evaluator
        self._made: tuple[Any, ...] | None = None  # what the last results were computed with

    @property
    def _wanted(self) -> list[str]:
        """What the model depends on and nobody gave: the atoms are asked."""
        return [name for name in self.model.conditions if name not in self.conditions]

    def _setting(self) -> tuple[Any, ...]:
        """What results depend on besides the atoms and the model."""
        model = self.model
        admitted = model.elements, model.allow_unknown_elements
        return self.energy_unit, self.skin, repr(self.conditions), admitted

    def _holds(self) -> bool:
        """Whether model and settings are those of the last results."""
        made = self._made
        return (
            made is not None
            and made[0] is self.model
            and made[1] == self._setting()
            and made[2].holds()
        )

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        with self._exclusive:
            self._calculate(atoms, properties, system_changes)

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        # Between calculation and reading, too, results are of one thread's atoms
        with self._exclusive:
            return super().get_property(name, atoms, allow_calculation)

    def _calculate(
        self, atoms: Atoms | None, properties: list[str] | None, system_changes: list[str]
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        evaluator = self._evaluator_for(self.atoms)
        stress = "stress" in (properties or [])
        if stress and evaluator.batch.cell is None:
            raise PropertyNotImplementedError(
                "stress needs a cell that repeats: atoms.set_cell(...), atoms.pbc = True"
            )
        positions = as_tensor(self.atoms.positions)
        cell = None
        if evaluator.batch.cell is not None:
            cell = as_tensor(self.atoms.cell.array)
        out = evaluator(positions, cell, stress=stress)
        energy = finite_energy(out["energy"]) * self.energy_unit
        forces = out["forces"].to("cpu", torch.float64).numpy() * self.energy_unit
        if not self._holds():
            self._made = self.model, self._setting(), Fingerprint(self.model)
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}
        if stress:
            full = out["stress"][0].to("cpu", torch.float64).numpy() * self.energy_unit
            self.results["stress"] = full_3x3_to_voigt_6_stress(full)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation, to the bit: ASE's own takes long.

        Everything, where the model is not as it was.
        """
        known = self.atoms
        if known is None:
            return list(all_changes)
        pairs: dict[str, tuple[Any, Any]] = {
            name: (known.arrays.get(name), atoms.arrays.get(name))
            for name in ("positions", "numbers", "initial_charges", "initial_magmoms")
        }
        pairs["cell"], pairs["pbc"] = (known.cell.array, atoms.cell.array), (known.pbc, atoms.pbc)
        watched = [name for name in all_changes if name not in self.ignored_changes]
        changed = [name for name in watched if not _same(*pairs[name])]
        if self._wanted and "initial_charges" not in changed and stated(known) != stated(atoms):
            changed.append("initial_charges")  # by info
        # In most steps atoms have moved, and the model need not be looked at
        return changed if changed or self._holds() else list(all_changes)

    def __getstate__(self) -> dict[str, Any]:
        # A copy makes an evaluator of its own, whose memory is no data
        own = {"evaluator": None, "_exclusive": copy.copy(self._exclusive)}
        return {**self.__dict__, **own, "_made": self._holds()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        held = state["_made"]
        self._made = (self.model, self._setting(), Fingerprint(self.model)) if held else None

    def _evaluator_for(self, atoms: Atoms) -> Evaluator:
        numbers, pbc = atoms.numbers, atoms.pbc
        known = np.array_equal(numbers, self._numbers) and np.array_equal(pbc, self._pbc)
        conditions = dict(self.conditions)
        if self._wanted:
            conditions |= ConditionReader(self._wanted).read(atoms, "the atoms")
        known = known and repr(conditions) == repr(self._conditions) and self.skin == self._skin
        if self.evaluator is None or not known or not self.evaluator.serves(self.model):
            weight = network_tensor(self.model)
            batch = AtomicBatch.from_ase(atoms, weight.dtype, weight.device)
            self.evaluator = Evaluator(self.model, batch, skin=self.skin, **conditions)
            self._conditions, self._skin = conditions, self.skin
            self._numbers, self._pbc = numbers.copy(), pbc.copy()
        return self.evaluator


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether two arrays are the same bytes; NumPy's comparison takes several times as long."""
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
