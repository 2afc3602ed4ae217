"""Frames in npz files of MD17 and its kind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import labels as known
from .conditions import named
from .dataset import Dataset
from .reading import Archive, atomic_numbers, energy_factor, require_angstrom, whole_numbers

Array = NDArray[Any]
#: Names that arrays go by: MD17 and sGDML, rMD17, PhysNet.
_NAMES = dict(
    numbers=("z", "nuclear_charges", "Z", "numbers"),
    positions=("R", "coords", "positions"),
    energy=("E", "energies", "energy"),
    forces=("F", "forces"),
    stress=("stress", "virial", "virials"),
    charges=("charges",),
    dipole=("D", "dipole"),
    total_charge=("Q",),  # and the names that frames have for it
    sizes=("N",),
    cell=("cell",),
    lattice=("lattice",),
    pbc=("pbc",),
)
#: What is no label.
_ATOMS = ("numbers", "positions", "sizes", "cell", "lattice", "pbc")
_UNITS = dict(
    e_unit=("e_unit", "E_unit", "energy_unit"),
    r_unit=("r_unit", "R_unit", "length_unit", "distance_unit"),
)


def load_npz(
    path: str | Path, energy_unit: str = "eV", labels: Mapping[str, str] | None = None
) -> Dataset:
    """Frames of one molecule or of several, from an npz.

    Layouts: MD17 and sGDML (``z``, ``R``, ``E``, ``F``), rMD17 (``nuclear_charges``, ``coords``,
    ``energies``, ``forces``), and PhysNet (``N``, ``Z``, ``R``, ``E``, ``F``, ``Q``, ``D``, with
    atoms padded to the largest molecule). Without ``N`` atoms of number 0 at a frame's end are
    taken for padding. Only arrays that are used are read, after all shapes were compared.

    Args:
        path: the file.
        energy_unit: of its energies (MD17 and rMD17 have kcal/mol, PhysNet's files eV); what the
            file itself says (``e_unit`` or ``energy_unit``) counts more. Lengths are Å.
        labels: names of arrays by label where they are others, ``{"energy": "E_dft"}``; also of
            ``numbers``, ``positions``, ``sizes``, ``cell`` and ``pbc``. Labels of one's own are
            numbers of frames, ``[M]`` or ``[M, 3]``. An array whose name contains ``virial`` is
            one, −V times the stress.

    Returns:
        ``"energy"`` in eV, ``"forces"`` in eV/Å; where the file has them ``"stress"`` in eV/Å³
        (``[M, 3, 3]``; six components in Voigt's order xx, yy, zz, yz, xz, xy), ``"charges"`` and
        ``"total_charge"`` in e, and ``"dipole"`` in e·Å, ``[M, 3]``. Periodic where it has lattice
        vectors: ``lattice`` in columns, as sGDML's, or ``cell`` in rows, one for all frames or
        one for each, with ``pbc``. Other arrays are listed in ``unused``.

    Raises:
        ValueError: a file that is damaged, lacks atoms, positions or energies, or has arrays that
            do not fit or are no numbers (naming them); another unit of length, an unknown one of
            energy.
        ImportError: ASE is not there; energies in eV do without.
    """
    frames = _Frames(Archive(path), known.checked_names(labels))
    require_angstrom(frames.unit("r_unit"), frames.path)
    factor = energy_factor(frames.unit("e_unit") or energy_unit, frames.path)
    return frames.dataset(factor)


class _Frames:
    """An npz whose arrays fit together, by their headers."""

    def __init__(self, archive: Archive, labels: dict[str, str]):
        self.archive, self.path = archive, archive.path
        self.names = self._chosen(labels)
        shape = self._shape("positions")
        if len(shape) != 3 or shape[2] != 3:
            raise self._error("positions", "[frames, atoms, 3]")
        if not all(shape):
            raise ValueError(f"{self.path} holds no frames: positions have shape {list(shape)}")
        self.count, self.width = shape[:2]
        for label in self.names:
            archive.require_numbers(self.names[label], _kinds(label))
            self._check_shape(label)
        self.notes: list[str] = []

    def _chosen(self, labels: dict[str, str]) -> dict[str, str]:
        present = self.archive.headers
        for label, name in labels.items():
            if name not in present:
                raise ValueError(
                    f"{self.path} has no {name!r} (data.labels: {label}): it holds "
                    f"{', '.join(present) or 'nothing'}"
                )
        found = dict(labels)
        for label, names in _NAMES.items():
            if label == "total_charge":  # not charges of atoms
                names = (*names, *(n for n in named(label, present) if len(present[n][0]) < 2))
            first = next((n for n in names if n in present and n not in labels.values()), None)
            if first is not None and label not in found:
                found[label] = first
        for label in ("numbers", "positions", "energy"):
            if label not in found and not (label == "energy" and set(labels) - set(_ATOMS)):
                raise ValueError(
                    f"{self.path} has no {label} (one of {', '.join(_NAMES[label])}, or another by "
                    f"data.labels): it holds {', '.join(present) or 'nothing'}"
                )
        return found

    def _shape(self, label: str) -> tuple[int, ...]:
        return self.archive.shape(self.names[label])

    def _error(self, label: str, needed: str) -> ValueError:
        name = self.names[label]
        what = label if name == label else f"{label} ({name})"
        return ValueError(
            f"{self.path}: {what} must have shape {needed}, got {list(self._shape(label))}"
        )

    def _check_shape(self, label: str) -> None:
        m, n, shape = self.count, self.width, self._shape(label)
        one_each = math.prod(shape) == m and sum(size != 1 for size in shape) <= 1
        one_each |= label == "total_charge" and math.prod(shape) == 1  # the same for all
        allowed: dict[str, list[tuple[int, ...]]] = dict(
            positions=[(m, n, 3)],
            numbers=[(n,), (m, n), (1, n)],
            forces=[(m, n, 3)],
            charges=[(m, n), (m, n, 1)],
            stress=[(m, 3, 3), (m, 6), (m, 9)],
            dipole=[(m, 3)],
            cell=[(3, 3), (m, 3, 3)],
            lattice=[(3, 3), (m, 3, 3)],
            pbc=[(), (3,), (m, 3)],
        )
        if label in allowed:
            fits = shape in allowed[label]
        else:
            fits = one_each or (shape == (m, 3) and label not in ("energy", "total_charge"))
        if not fits:
            shapes = allowed.get(label, [(m,)])
            raise self._error(label, " or ".join(str(list(one)) for one in shapes))

    def unit(self, kind: str) -> str:
        """What the file says of a unit; ``""`` where it says nothing."""
        return next((text for name in _UNITS[kind] if (text := self.archive.text(name))), "")

    def read(self, label: str) -> Array:
        return self.archive.numbers(self.names[label], _kinds(label))

    def dataset(self, factor: float) -> Dataset:
        numbers, sizes, mask = self._atoms()
        positions = self.read("positions")
        if positions.dtype not in (np.float32, np.float64):
            positions = positions.astype(np.float64)
        cell, pbc = self._periodicity()
        properties, units = dict[str, Array](), dict[str, str]()
        for label in self.names:
            if label in _ATOMS:
                continue
            values = self._values(label, mask, cell)
            properties[label] = values * factor if self._is_energy(label) else values
            unit = known.unit_of(label, self.names[label])
            if unit is not None:
                units[label] = unit
        used = {*self.names.values(), *(name for names in _UNITS.values() for name in names)}
        return Dataset(
            numbers=numbers,
            positions=positions.reshape(-1, 3) if mask is None else positions[mask],
            ptr=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            properties=properties,
            units=units,
            cell=cell,
            pbc=pbc,
            name=self.path.stem,
            sources={label: name for label, name in self.names.items() if label in properties},
            unused=[name for name in self.archive.headers if name not in used],
            notes=self.notes,
        )

    def _is_energy(self, label: str) -> bool:
        return known.is_energy(label, self.names[label])

    def _atoms(self) -> tuple[Array, Array, Array | None]:
        """Atomic numbers of all atoms, atoms of each frame, and where they are, ``[M, n]``."""
        name = f"{self.path}: {self.names['numbers']}"
        given = self.read("numbers").reshape(-1, self.width)
        if "sizes" in self.names:
            sizes = whole_numbers(
                self.read("sizes").reshape(-1), f"{self.path}: {self.names['sizes']}"
            )
            self._check_sizes(given, sizes)
        else:
            sizes = np.broadcast_to((given != 0).cumsum(1).argmax(1) + 1, (self.count,))
            sizes = np.where((given != 0).any(1), sizes, 0)
        mask = np.arange(self.width) < sizes[:, None]
        if not sizes.all():
            raise ValueError(f"{self.path}: frame {int(sizes.argmin())} has no atoms")
        if len(given) == 1:  # the same in all frames
            first = np.arange(self.width) < sizes.max()
            atoms = np.zeros((1, self.width), dtype=np.uint8)
            atoms[:, first] = atomic_numbers(given[:, first], name)
            numbers = np.broadcast_to(atoms, mask.shape)[mask]
        else:
            numbers = _numbers_of_frames(given, mask, name)
        if mask.all():
            return numbers, sizes, None
        if "sizes" not in self.names:
            self.notes.append(f"{int((~mask).sum()):,} atoms of number 0 are taken for padding")
        return numbers, sizes, mask

    def _check_sizes(self, given: Array, sizes: Array) -> None:
        outside = (sizes < 1) | (sizes > self.width)
        if outside.any():
            frame = int(outside.argmax())
            raise ValueError(
                f"{self.path}: frame {frame} has {int(sizes[frame])} atoms by "
                f"{self.names['sizes']}, but there is room for 1 to {self.width}"
            )
        beyond = (given != 0) & (np.arange(self.width) >= sizes[:, None])
        if len(given) == self.count and beyond.any():
            frame = int(beyond.any(1).argmax())
            raise ValueError(
                f"{self.path}: frame {frame} has {int(sizes[frame])} atoms by "
                f"{self.names['sizes']}, more by {self.names['numbers']}"
            )

    def _values(self, label: str, mask: Array | None, cell: Array | None) -> Array:
        values = self.read(label)
        if label == "forces":
            values = values.astype(np.float64)
            self._check_axes(values, mask)
            return values.reshape(-1, 3) if mask is None else values[mask]
        if label == "charges":
            values = values.reshape(self.count, self.width).astype(np.float64)
            return values.reshape(-1) if mask is None else values[mask]
        if label == "stress":
            values = known.tensors(values.astype(np.float64))
            if not known.is_virial(self.names[label]):
                return values
            if cell is None:
                raise ValueError(f"{self.path}: {self.names[label]} needs a cell to be a stress")
            return known.stress_of_virial(values, cell)
        if label == "total_charge" and values.size == 1:
            return np.full(self.count, values.item(), dtype=np.float64)
        width = (3,) if values.shape == (self.count, 3) and values.ndim == 2 else ()
        return values.reshape(self.count, *width).astype(np.float64)

    def _check_axes(self, forces: Array, mask: Array | None) -> None:
        """Refuses forces of three atoms whose axes are the wrong way round.

        Their shape does not tell, but forces of a molecule add up to zero.
        """
        if self.width != 3 or mask is not None or not np.isfinite(forces).all():
            return
        over_atoms, over_axes = (np.abs(forces.sum(axis)).max(initial=0.0) for axis in (1, 2))
        if over_axes < 1e-3 * over_atoms and over_atoms > 0.1 * np.abs(forces).max():
            raise ValueError(
                f"{self.path}: forces ({self.names['forces']}) add up to zero over their last "
                "axis, not over atoms: give them as [frames, atoms, 3]"
            )

    def _periodicity(self) -> tuple[Array | None, Array | None]:
        """Lattice vectors ``[M, 3, 3]`` and periodicity ``[M, 3]``, or None twice."""
        cell = self.read("cell") if "cell" in self.names else None
        if "lattice" in self.names:
            if "cell" in self.names:
                raise ValueError(f"{self.path} has both lattice and cell: leave one of them")
            cell = self.read("lattice").swapaxes(-1, -2)  # sGDML's vectors are columns
        pbc = self.read("pbc") if "pbc" in self.names else None
        if pbc is not None and not np.isin(pbc, (0, 1)).all():
            raise ValueError(f"{self.path}: {self.names['pbc']} must be 0 or 1, true or false")
        if cell is None or not cell.any():
            if pbc is not None and pbc.any():
                raise ValueError(f"{self.path}: {self.names['pbc']} is set, but there is no cell")
            return None, None
        cell = np.broadcast_to(cell, (self.count, 3, 3))
        if pbc is None:
            pbc = np.any(cell, axis=(1, 2))[:, None]
        return cell, np.broadcast_to(pbc.astype(bool), (self.count, 3))


def _kinds(label: str) -> str:
    return "fiub" if label == "pbc" else "fiu"


def _numbers_of_frames(given: Array, mask: Array, where: str) -> Array:
    """Atomic numbers where the mask holds; what is wrong is named by frame and atom."""
    checked = np.where(mask, given, 1)  # of padding anything goes
    return atomic_numbers(checked, f"{where} [frame, atom]")[mask]
