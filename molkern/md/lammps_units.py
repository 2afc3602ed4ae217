"""LAMMPS's unit styles whose lengths are in Å."""

from __future__ import annotations

#: Energy per eV: eV, and kcal/mol by the SI of 2019.
_ENERGY_PER_EV = {"metal": 1.0, "real": 96.48533212331 / 4.184}


def energy_per_ev(style: str) -> float:
    """A unit style's energy per eV.

    Raises:
        ValueError: a style other than metal and real.
    """
    if style not in _ENERGY_PER_EV:
        raise ValueError(
            f"molkern takes LAMMPS's units metal (eV) and real (kcal/mol), but they are {style!r}"
        )
    return _ENERGY_PER_EV[style]
