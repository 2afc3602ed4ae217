"""Molecular dynamics: evaluators and adapters to simulation packages."""

from importlib import import_module
from typing import Any

from . import dynamics
from .evaluator import Evaluator

#: Adapter: its module, and the extra that installs the package it is for.
_ADAPTERS = {
    "ASECalculator": ("ase", "md"),
    "TorchSimModel": ("torchsim", "torchsim"),
    "openmm_force": ("openmm", "openmm"),
    "MolkernPotential": ("openmmml", "openmm"),
    "LAMMPSFix": ("lammps", "lammps"),
    "start_lammps": ("lammps", "lammps"),
    "MLIAPMolkern": ("mliap", "lammps"),
}

__all__ = [
    "ASECalculator",
    "Evaluator",
    "LAMMPSFix",
    "MLIAPMolkern",
    "MolkernPotential",
    "TorchSimModel",
    "dynamics",
    "openmm_force",
    "start_lammps",
]


def __getattr__(name: str) -> Any:
    """Imports an adapter, and with it its package, only when it is asked for."""
    if name not in _ADAPTERS:
        raise AttributeError(f"module 'molkern.md' has no attribute {name!r}")
    module, extra = _ADAPTERS[name]
    try:
        return getattr(import_module(f".{module}", __name__), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("molkern"):
            raise
        raise ImportError(
            f'molkern.md.{name} needs {error.name}: pip install "molkern[{extra}]"',
            name=error.name,
        ) from error
