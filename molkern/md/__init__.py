"""Molecular dynamics: evaluators and adapters to simulation packages."""

from typing import Any

from .evaluator import Evaluator

__all__ = ["ASECalculator", "Evaluator"]


def __getattr__(name: str) -> Any:
    """Imports an adapter, and with it its package, only when it is asked for."""
    if name == "ASECalculator":
        from .ase import ASECalculator

        return ASECalculator
    raise AttributeError(f"module 'molkern.md' has no attribute {name!r}")
