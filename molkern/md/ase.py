"""An ASE calculator around a potential."""

from __future__ import annotations

from typing import Any

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from ..graph import AtomicBatch
from ..models import Potential
from .verlet import VerletList


class ASECalculator(Calculator):
    """Energy, free energy, forces and stress of a molkern model for ASE, in eV and Å.

    Args:
        model: the potential, on its device and of its type; put in evaluation mode.
        skin: how much farther than the model's cutoff the neighbor list reaches, in Å. The list is
            reused until an atom has moved half of it; results do not depend on it.
        energy_unit: the model's unit of energy in eV (``ase.units.kcal / ase.units.mol``, say).

    >>> import ase.build, molkern
    >>> atoms = ase.build.molecule("CH3CH2OH")
    >>> model = molkern.models.SchNet(16, 16, 2, cutoff=5.0)
    >>> atoms.calc = molkern.md.ASECalculator(model)
    >>> atoms.get_forces().shape
    (9, 3)
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def __init__(
        self, model: Potential, *, skin: float = 0.5, energy_unit: float = 1.0, **options: Any
    ):
        super().__init__(**options)
        self.model = model.eval()
        self.energy_unit = energy_unit
        self.neighbors = VerletList(model.list_cutoff, skin)
        self._weight = next(model.parameters())

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        batch = AtomicBatch.from_ase(self.atoms, self._weight.dtype, self._weight.device)
        stress = "stress" in (properties or [])
        out = self.model(batch, forces=True, stress=stress, neighbors=self.neighbors(batch))
        energy = float(out["energy"]) * self.energy_unit
        forces = out["forces"].to("cpu", torch.float64).numpy() * self.energy_unit
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}
        if stress:
            full = out["stress"][0].to("cpu", torch.float64).numpy() * self.energy_unit
            self.results["stress"] = full_3x3_to_voigt_6_stress(full)
