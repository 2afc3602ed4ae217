"""What predictions depend on besides atoms, read from frames: in one place for all commands."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

#: Conditions that files state, with the names they go by in a frame's ``info``.
NAMES: dict[str, tuple[str, ...]] = dict(
    total_charge=("total_charge", "charge", "Q", "tot_charge", "net_charge")
)
CONDITIONS = tuple(NAMES)


def stated(atoms: Atoms, names: Mapping[str, str] | None = None) -> dict[str, float]:
    """Conditions that a frame states, NaN for those that are no finite number.

    The total charge is ``total_charge`` or ``charge`` (or another of :data:`NAMES`, in small or
    capital letters) of the frame's ``info``, or else the sum of ASE's initial charges where they
    add up to a whole number other than 0.

    Args:
        atoms: the frame.
        names: in ``info``, by condition, where it is none of the usual ones.

    Raises:
        ValueError: two that contradict each other.
    """
    found = {}
    for condition in NAMES:
        own = (names or {}).get(condition)
        names_here = [n for n in atoms.info if n == own] if own else named(condition, atoms.info)
        values = {n: _number(atoms.info[n]) for n in names_here if n != "Q" or _is_one(atoms, n)}
        if len({repr(value) for value in values.values()}) > 1:
            pairs = ", ".join(f"{name}={value:g}" for name, value in values.items())
            raise ValueError(f"{pairs} contradict each other: leave one {condition}")
        if values:
            found[condition] = next(iter(values.values()))
    if "total_charge" not in found and "total_charge" not in (names or {}):
        initial = _initial_charge(atoms)
        if initial:
            found["total_charge"] = initial
    return found


def named(condition: str, present: Iterable[Any]) -> list[str]:
    """Those of the names that are there that a condition goes by, whatever their case.

    ``Q`` is a charge, ``q`` may be anything.
    """
    own = {n: n if n == "Q" else n.lower() for n in present if isinstance(n, str)}
    return [n for usual in NAMES[condition] for n, name in own.items() if name == usual]


def _is_one(atoms: Atoms, name: str) -> bool:
    """Whether an entry is one number: Q is a charge then, and a quadrupole otherwise."""
    return np.size(atoms.info[name]) == 1


def _number(value: Any) -> float:
    """A number, or what is written as one; otherwise NaN."""
    try:
        found = np.asarray(value)
        if found.size != 1 or found.dtype.kind not in "iufSU":
            return math.nan
        number = float(found.reshape(-1)[0])
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _initial_charge(atoms: Atoms) -> float | None:
    charges = atoms.arrays.get("initial_charges")
    if charges is None or not charges.any():
        return None
    total = float(charges.sum())
    # Charges of atoms are rounded: their sum is a whole number to a hundredth only
    whole = float(np.rint(total))
    return whole if abs(total - whole) < 0.01 else math.nan


def require_finite(condition: str, value: float, where: str) -> None:
    """Refuses a condition that is no number.

    Raises:
        ValueError: naming the frame (``where``).
    """
    if not math.isfinite(value):
        raise ValueError(
            f"{where}: its {condition} is no finite number: write {condition}=0, say, in its "
            "comment line (or initial charges that add up to a whole number), or give one for all"
        )


class ConditionReader:
    """Conditions of frames, one frame after the other.

    Args:
        wanted: conditions that a model depends on (:attr:`molkern.models.Potential.conditions`).
        given: values that count for all frames, whatever these state.
        names: in ``info``, by condition, that are looked for before the usual ones.
    """

    def __init__(
        self,
        wanted: Iterable[str],
        given: Mapping[str, float] | None = None,
        names: Mapping[str, str] | None = None,
    ):
        self.wanted = [name for name in wanted if name in NAMES]
        self.given = dict(given or {})
        self._names = {k: v for k, v in (names or {}).items() if k in NAMES}
        self._frames = 0
        self._stated = dict.fromkeys(self.wanted, 0)
        self._overruled = dict.fromkeys(self.wanted, 0)

    def read(self, atoms: Atoms, where: str) -> dict[str, float]:
        """Those of a frame: what is given, or what it states, or 0.

        Raises:
            ValueError: naming the frame (``where``): no finite number, or a contradiction.
        """
        self._frames += 1
        if not self.wanted:
            return {}
        try:
            own = stated(atoms)
            if self._names:
                own |= stated(atoms, self._names)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        found = {}
        for name in self.wanted:
            value = self.given.get(name, own.get(name, 0.0))
            require_finite(name, value, where)
            self._stated[name] += name in own
            self._overruled[name] += name in self.given and own.get(name, value) != value
            found[name] = value
        return found

    def notes(self) -> list[str]:
        """Sentences about frames that state nothing where others do, and about overruled ones."""
        return [
            *(
                note
                for name, count in self._stated.items()
                if name not in self.given
                for note in missing(name, count, self._frames)
            ),
            *(
                f"{name}: {self.given[name]:g} as given, not what {count:,} of {self._frames:,} "
                "frames state"
                for name, count in self._overruled.items()
                if count
            ),
        ]


def missing(condition: str, count: int, frames: int) -> list[str]:
    """A sentence about frames that do not state a condition where some do; or none."""
    if not 0 < count < frames:
        return []
    return [f"{condition} is stated by {count:,} of {frames:,} frames; it is 0 in the others"]


def write_into(atoms: Atoms, values: Mapping[str, float]) -> None:
    """Puts conditions into a frame's ``info``, where :func:`stated` finds them again."""
    for condition, value in values.items():
        for name in named(condition, atoms.info):
            del atoms.info[name]
        atoms.info[condition] = value
