"""molkern's models as potentials of OpenMM-ML."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import openmm
import torch
from openmm import app
from openmmml.mlpotential import MLPotentialImpl

from ..models import Potential, load
from .openmm import openmm_force


class MolkernPotential(MLPotentialImpl):
    """A molkern model for ``createSystem`` and ``createMixedSystem`` of OpenMM-ML.

    ``openmmml.MLPotential("molkern", ...)`` makes it, from the arguments that follow the name.

    Args:
        model_path: a file that a model's ``save`` wrote, or
        model: the model itself, in eV and Å.
        device: where the model is to be; by default where it is, for files the CPU.
        energy_unit, skin, conditions: see :func:`molkern.md.openmm_force`.
        allow_unknown_elements: whether elements that the model was not trained on are computed
            too; by default what the model says.

    Raises:
        ValueError: a model and a path, or neither; a file that is not of molkern's.

    >>> import openmmml, molkern
    >>> model = molkern.models.SchNet(16, 16, 2, cutoff=5.0)
    >>> potential = openmmml.MLPotential("molkern", model=model)
    """

    def __init__(
        self,
        model_path: str | Path | None = None,
        *,
        model: Potential | None = None,
        device: torch.device | str | None = None,
        energy_unit: float = 1.0,
        skin: float = 0.5,
        conditions: dict[str, Any] | None = None,
        allow_unknown_elements: bool | None = None,
    ):
        if (model_path is None) == (model is None):
            raise ValueError(
                'MLPotential("molkern", ...) needs model_path="file.safetensors" or model=..., '
                "one of them"
            )
        if model is None:
            assert model_path is not None
            model = load(model_path)
        self.model = model if device is None else model.to(device)
        if allow_unknown_elements is not None:
            self.model.allow_unknown_elements = allow_unknown_elements
        self.options: dict[str, Any] = {
            "energy_unit": energy_unit,
            "skin": skin,
            "conditions": conditions,
        }

    def addForces(
        self,
        topology: app.Topology,
        system: openmm.System,
        atoms: Iterable[int] | None,
        forceGroup: int,
    ) -> None:
        """Adds the force to a system, for some atoms of the topology or, given None, for all."""
        periodic = topology.getPeriodicBoxVectors() is not None
        force = openmm_force(
            self.model,
            topology,
            periodic=periodic or system.usesPeriodicBoundaryConditions(),
            particles=atoms if atoms is None else list(atoms),
            **self.options,
        )
        force.setForceGroup(forceGroup)
        system.addForce(force)

    def getMLLongRange(self) -> bool:
        """No model sums over lattices: what it has of electrostatics ends at its cutoff."""
        return False
