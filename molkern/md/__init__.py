"""Molecular dynamics: evaluators and adapters to simulation packages."""

from importlib import import_module
from typing import Any

from .evaluator import Evaluator

#: Adapter: its module, and the extra that installs the package it is for.
_ADAPTERS = {
    "ASECalculator": ("ase", "md"),
    "TorchSimModel": ("torchsim", "torchsim"),
    "openmm_force": ("openmm", "openmm"),
    "MolkernPotentialFactory": ("openmmml", "openmm"),
    "LAMMPSFix": ("lammps", "lammps"),
    "start_lammps": ("lammps", "lammps"),
    "MLIAPMolkern": ("mliap", "lammps"),
}

__all__ = ["Evaluator", *_ADAPTERS]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """Imports an adapter, and with it its package, only when it is asked for."""
    if name not in _ADAPTERS:
        raise AttributeError(f"module 'molkern.md' has no attribute {name!r}")
    module, extra = _ADAPTERS[name]
    try:
        return getattr(import_module(f".{module}", __name__), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"molkern.md.{name} needs the package {error.name}: "
            f'pip install "molkern[{extra}]"',
            name=error.name,
        ) from error
