"""Frames of simulations: npz of MD17 and its kind, and whatever ASE reads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .dataset import Dataset
from .reading import arrays_of, progress_over

if TYPE_CHECKING:
    from ase import Atoms

Array = NDArray[Any]
#: Names that the arrays of an npz go by: MD17 and sGDML, rMD17, PhysNet.
_NAMES = dict(
    numbers=("z", "nuclear_charges", "Z", "numbers"),
    positions=("R", "coords", "positions"),
    energy=("E", "energies", "energy"),
    forces=("F", "forces"),
    sizes=("N",),
    total_charge=("Q", "total_charge"),
    dipole=("D", "dipole"),
)


def load_npz(path: str | Path, energy_unit: str = "eV") -> Dataset:
    """Frames of one molecule or of several, from an npz.

    Layouts: MD17 and sGDML (``z``, ``R``, ``E``, ``F``), rMD17 (``nuclear_charges``, ``coords``,
    ``energies``, ``forces``), and PhysNet (``N``, ``Z``, ``R``, ``E``, ``F``, ``Q``, ``D``, with
    atoms padded to the largest molecule).

    Args:
        path: the file.
        energy_unit: of its energies (MD17 and rMD17 have kcal/mol, PhysNet's files eV); what the
            file itself says (``e_unit``) counts more. Lengths are Å.

    Returns:
        ``"energy"`` in eV, ``"forces"`` in eV/Å; where the file has them ``"total_charge"`` in e
        and ``"dipole"`` in e·Å, ``[M, 3]``.

    Raises:
        ValueError: a file that is damaged, lacks atoms, positions or energies, or has arrays that
            do not fit; another unit of length.
    """
    path = Path(path)
    content = arrays_of(path)
    found = _named(path, content)
    factor = _energy_factor(content, path, energy_unit)
    numbers, positions, energy = found["numbers"], found["positions"], found["energy"]
    frames, atoms = _frames_of(path, positions)
    mask = None
    if "sizes" in found:
        sizes = found["sizes"].reshape(-1).astype(np.int64)
        mask = np.arange(atoms) < sizes.reshape(-1, 1)
        numbers = numbers[mask]
    else:
        sizes = np.full(frames, atoms)
        numbers = np.tile(numbers.reshape(-1), frames) if numbers.ndim == 1 else numbers.reshape(-1)
    properties = {"energy": energy.reshape(-1).astype(np.float64) * factor}
    units = {"energy": "eV"}
    if "forces" in found:
        properties["forces"] = _flat(found["forces"], mask).astype(np.float64) * factor
        units["forces"] = "eV/Å"
    for name, unit, width in (("total_charge", "e", 1), ("dipole", "e·Å", 3)):
        values = found.get(name)
        if values is not None and values.size == frames * width:
            shape = (frames,) if width == 1 else (frames, width)
            properties[name] = values.reshape(shape).astype(np.float64)
            units[name] = unit
    return Dataset(
        numbers=numbers.astype(np.uint8),
        positions=_flat(positions, mask),
        ptr=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        properties=properties,
        units=units,
        name=path.stem,
    )


def _named(path: Path, content: dict[str, Array]) -> dict[str, Array]:
    """The arrays by their names here."""
    found = {
        name: next(content[key] for key in keys if key in content)
        for name, keys in _NAMES.items()
        if any(key in content for key in keys)
    }
    for name in ("numbers", "positions", "energy"):
        if name not in found:
            raise ValueError(
                f"{path} has no {name} (one of {', '.join(_NAMES[name])}): it holds "
                f"{', '.join(content) or 'nothing'}"
            )
    return found


def _frames_of(path: Path, positions: Array) -> tuple[int, int]:
    if positions.ndim != 3 or positions.shape[2] != 3:
        raise ValueError(
            f"{path}: positions must have shape [frames, atoms, 3], got {list(positions.shape)}"
        )
    return positions.shape[0], positions.shape[1]


def _flat(values: Array, mask: Array | None) -> Array:
    return values.reshape(-1, 3) if mask is None else values[mask]


def _energy_factor(content: dict[str, Array], path: Path, energy_unit: str) -> float:
    """From the file's unit of energy to eV."""
    from ..md.source import energy_unit as in_ev

    length = _text(content.get("r_unit"))
    if length not in ("", "Ang", "Angstrom", "A", "Å"):
        raise ValueError(f"{path} has lengths in {length}: molkern takes Å, convert it first")
    own = _text(content.get("e_unit"))
    return in_ev(own or energy_unit)


def _text(value: Array | None) -> str:
    if value is None:
        return ""
    found = value.item() if value.ndim == 0 else str(value)
    return found.decode() if isinstance(found, bytes) else str(found)


def load_ase(path: str | Path, progress: bool = True) -> Dataset:
    """Structures of any file that ASE reads, extended XYZ and ASE's databases above all.

    Args:
        path: the file.
        progress: whether a progress bar is shown.

    Returns:
        ``"energy"`` in eV, ``"forces"`` in eV/Å, ``"stress"`` in eV/Å³ ``[M, 3, 3]``, and numbers
        by name in the frames' ``info`` (or a database's key-value pairs and data); what a frame
        lacks that others have is NaN. Cells where a frame is periodic.

    Raises:
        ValueError: no such file, or one that cannot be read.
        ImportError: ASE is not there.
    """
    from ..md.extras import require
    from ..md.files import read_frames

    require("train", "ase")
    path = Path(path)
    frames: list[Atoms] = []
    rows: list[dict[str, Any]] = []
    source = _database(path) if path.suffix == ".db" else _labelled(read_frames(path))
    for atoms, values in progress_over(source, f"reading {path.name}", "structure", progress):
        frames.append(atoms)
        rows.append(values)
    if not frames:
        raise ValueError(f"{path} holds no structures")
    sizes = np.array([len(atoms) for atoms in frames])
    periodic = any(atoms.pbc.any() for atoms in frames)
    properties = _columns(rows, sizes)
    units = dict(energy="eV", forces="eV/Å", stress="eV/Å³")
    return Dataset(
        numbers=np.concatenate([atoms.numbers for atoms in frames]).astype(np.uint8),
        positions=np.concatenate([atoms.positions for atoms in frames]),
        ptr=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        properties=properties,
        units={name: units[name] for name in properties if name in units},
        cell=np.stack([atoms.cell.array for atoms in frames]) if periodic else None,
        pbc=np.stack([atoms.pbc for atoms in frames]) if periodic else None,
        name=path.stem,
    )


def _labelled(frames: Iterable[Atoms]) -> Iterable[tuple[Atoms, dict[str, Any]]]:
    for atoms in frames:
        yield atoms, {**_numbers_in(atoms.info), **_calculated(atoms)}


def _database(path: Path) -> Iterable[tuple[Atoms, dict[str, Any]]]:
    from ase.db import connect

    if not path.is_file():
        raise ValueError(f"{path} is not a file: give a database of ASE's")
    try:
        for row in connect(str(path)).select():
            atoms = row.toatoms()
            values = {**_numbers_in(row.data), **_numbers_in(row.key_value_pairs)}
            yield atoms, {**values, **_calculated(atoms)}
    except Exception as error:  # sqlite and ASE raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read: {reason}") from error


def _calculated(atoms: Atoms) -> dict[str, Any]:
    results = {} if atoms.calc is None else atoms.calc.results
    found = {name: results[name] for name in ("energy", "forces", "dipole") if name in results}
    if "stress" in results:
        found["stress"] = atoms.get_stress(voigt=False)
    return {name: np.asarray(value, dtype=np.float64) for name, value in found.items()}


def _numbers_in(content: Any) -> dict[str, Any]:
    """Entries that are numbers or small vectors."""
    found = {}
    for name, value in content.items():
        if isinstance(value, bool | str) or value is None:
            continue
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            continue
        if array.size == 1 or array.shape == (3,):
            found[name] = array.reshape(array.shape if array.shape == (3,) else ())
    return found


def _columns(rows: list[dict[str, Any]], sizes: Array) -> dict[str, Array]:
    """Arrays by name, with NaN where a row has no value."""
    found = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        shape = next(row[name].shape for row in rows if name in row)
        if name == "forces":
            empty = [np.full((size, 3), np.nan) for size in sizes]
            found[name] = np.concatenate(
                [row.get(name, blank) for row, blank in zip(rows, empty, strict=True)]
            )
            continue
        blank = np.full(shape, np.nan)
        values = [row.get(name, blank) for row in rows]
        if all(value.shape == shape for value in values):
            found[name] = np.stack(values)
    return found
