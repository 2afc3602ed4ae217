"""Units of energy by their names."""

from __future__ import annotations


def energy_unit(name: str) -> float:
    """A unit of energy in eV: eV, kcal/mol, kJ/mol or Hartree.

    Raises:
        ValueError: another name.
    """
    from ase import units

    known = {
        "eV": 1.0,
        "kcal/mol": units.kcal / units.mol,
        "kJ/mol": units.kJ / units.mol,
        "Hartree": units.Hartree,
    }
    for key, value in known.items():
        if key.lower() == name.lower():
            return float(value)
    raise ValueError(f"energy unit {name!r} is unknown: use one of {', '.join(known)}")
