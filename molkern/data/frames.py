"""Frames of simulations: npz of MD17 and its kind, and whatever ASE reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .dataset import PER_ATOM, Dataset
from .reading import arrays_of, energy_factor, progress_over, require_angstrom

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
#: Labels of ASE that are energies, whole or by length, with their units here.
_ENERGIES = dict(energy="eV", forces="eV/Å", stress="eV/Å³")
#: An energy by a length: ``kcal/mol/Ang``, ``eV/Ang^3``.
_LENGTH = re.compile(r"(.*?)(?:/(Ang|Angstrom|A|Å|Bohr|nm)(?:\^3|\*\*3|³)?)?", re.IGNORECASE)


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
        and ``"dipole"`` in e·Å, ``[M, 3]``. Periodic where it has lattice vectors: ``lattice`` in
        columns, as sGDML's, or ``cell`` in rows, one for all frames or one for each, with ``pbc``.

    Raises:
        ValueError: a file that is damaged, lacks atoms, positions or energies, or has arrays that
            do not fit; another unit of length, an unknown one of energy.
        ImportError: ASE is not there; energies in eV do without.
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
    cell, pbc = _periodicity(path, content, frames)
    return Dataset(
        numbers=numbers.astype(np.uint8),
        positions=_flat(positions, mask),
        ptr=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        properties=properties,
        units=units,
        cell=cell,
        pbc=pbc,
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


def _periodicity(
    path: Path, content: dict[str, Array], frames: int
) -> tuple[Array | None, Array | None]:
    """Lattice vectors ``[M, 3, 3]`` and periodicity ``[M, 3]``, or None twice."""
    cell = content.get("cell")
    if "lattice" in content:
        cell = content["lattice"].T  # sGDML's vectors are columns
    if cell is None or not cell.any():
        return None, None
    if cell.shape not in ((3, 3), (frames, 3, 3)):
        raise ValueError(
            f"{path}: cell must have shape [3, 3] or [{frames}, 3, 3], got {list(cell.shape)}"
        )
    pbc = content.get("pbc", np.ones(3)).astype(bool)
    if pbc.shape not in ((), (3,), (frames, 3)):
        raise ValueError(f"{path}: pbc must have shape [3] or [{frames}, 3], got {list(pbc.shape)}")
    return np.broadcast_to(cell, (frames, 3, 3)), np.broadcast_to(pbc, (frames, 3))


def _energy_factor(content: dict[str, Array], path: Path, energy_unit: str) -> float:
    """From the file's unit of energy to eV."""
    require_angstrom(_text(content.get("r_unit")), path)
    return energy_factor(_text(content.get("e_unit")) or energy_unit, path)


def _text(value: Array | None) -> str:
    if value is None:
        return ""
    found = value.item() if value.ndim == 0 else str(value)
    return found.decode() if isinstance(found, bytes) else str(found)


def load_ase(path: str | Path, progress: bool = True, energy_unit: str = "eV") -> Dataset:
    """Structures of any file that ASE reads, extended XYZ and ASE's databases above all.

    Args:
        path: the file.
        progress: whether a progress bar is shown.
        energy_unit: of energies, forces (per Å) and stress (per Å³) in the file; what a database
            says of its own, as SchNetPack's do, counts more.

    Returns:
        ``"energy"`` in eV, ``"forces"`` in eV/Å, ``"stress"`` in eV/Å³ ``[M, 3, 3]``, and numbers
        by name in the frames' ``info`` (or a database's key-value pairs and data) as they are;
        what a frame lacks that others have is NaN. Cells where a frame is periodic. The ids of a
        database are its rows'.

    Raises:
        ValueError: no such file, one that cannot be read, an unknown unit of energy, or another
            unit of length.
        ImportError: ASE is not there.
    """
    from ..extras import require
    from ..files import read_frames

    require("train", "ase")
    path = Path(path)
    frames: list[Atoms] = []
    rows: list[dict[str, Any]] = []
    database = path.suffix == ".db"
    units, ids = dict.fromkeys(_ENERGIES, energy_unit), list[int]()
    if database:
        units |= _units_of(path)
    factors = {name: energy_factor(units[name], path) for name in _ENERGIES}
    source = _database(path, ids) if database else _labelled(read_frames(path))
    for atoms, values in progress_over(source, f"reading {path.name}", "structure", progress):
        frames.append(atoms)
        rows.append(values)
    if not frames:
        raise ValueError(f"{path} holds no structures")
    sizes = np.array([len(atoms) for atoms in frames])
    periodic = any(atoms.pbc.any() for atoms in frames)
    properties = _columns(rows, sizes)
    for name in properties.keys() & factors.keys():
        properties[name] *= factors[name]
    units |= _ENERGIES
    return Dataset(
        numbers=np.concatenate([atoms.numbers for atoms in frames]).astype(np.uint8),
        positions=np.concatenate([atoms.positions for atoms in frames]),
        ptr=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        properties=properties,
        units={name: units[name] for name in properties if name in units},
        cell=np.stack([atoms.cell.array for atoms in frames]) if periodic else None,
        pbc=np.stack([atoms.pbc for atoms in frames]) if periodic else None,
        ids=np.array(ids) if database else None,
        name=path.stem,
    )


def _labelled(frames: Iterable[Atoms]) -> Iterable[tuple[Atoms, dict[str, Any]]]:
    for atoms in frames:
        yield atoms, {**_numbers_in(atoms.info, len(atoms)), **_calculated(atoms)}


def _units_of(path: Path) -> dict[str, str]:
    """What a database says of its units, as SchNetPack's do; of energies per length the energy.

    Raises:
        ValueError: a file that is no database, or a unit of length other than Å.
    """
    with _opened(path) as database:
        metadata = database.metadata
    require_angstrom(str(metadata.get("_distance_unit", "")), path)
    units = {name: str(unit) for name, unit in metadata.get("_property_unit_dict", {}).items()}
    for name in ("forces", "stress"):
        if name in units:
            energy_by_length = _LENGTH.fullmatch(units[name])
            if energy_by_length is None:
                raise ValueError(f"{path} has {name} in {units[name]!r}, which is no unit")
            units[name], length = energy_by_length.groups()
            require_angstrom(length or "", path)
    return {name: unit for name, unit in units.items() if unit}


def _database(path: Path, ids: list[int]) -> Iterable[tuple[Atoms, dict[str, Any]]]:
    """Rows one by one; their numbers are appended to ``ids``."""
    with _opened(path) as database:
        for row in database.select():
            atoms = row.toatoms()
            ids.append(row.id)
            values = {**_numbers_in(row.data, len(atoms)), **_numbers_in(row.key_value_pairs)}
            yield atoms, {**values, **_calculated(atoms)}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A database of ASE's; what is raised while it is read names the file."""
    from ase.db import connect

    if not path.is_file():
        raise ValueError(f"{path} is not a file: give a database of ASE's")
    try:
        yield connect(str(path))
    except Exception as error:  # sqlite and ASE raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read: {reason}") from error


def _calculated(atoms: Atoms) -> dict[str, Any]:
    results = {} if atoms.calc is None else atoms.calc.results
    found = {name: results[name] for name in ("energy", "forces", "dipole") if name in results}
    if "stress" in results:
        found["stress"] = atoms.get_stress(voigt=False)
    return {name: np.asarray(value, dtype=np.float64) for name, value in found.items()}


def _numbers_in(content: Any, atoms: int = 0) -> dict[str, Any]:
    """Entries that are numbers or small vectors, and what belongs to atoms, of their number."""
    found = {}
    for name, value in content.items():
        if isinstance(value, bool | str) or value is None:
            continue
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            continue
        if name in PER_ATOM:
            if array.ndim and len(array) == atoms:
                found[name] = array.reshape(_per_atom(name, atoms))
        elif array.size == 1 or array.shape == (3,):
            found[name] = array.reshape(array.shape if array.shape == (3,) else ())
    return found


def _per_atom(name: str, atoms: int) -> tuple[int, ...]:
    """Shape of a property of atoms."""
    return (atoms, 3) if name == "forces" else (atoms,)


def _columns(rows: list[dict[str, Any]], sizes: Array) -> dict[str, Array]:
    """Arrays by name, with NaN where a row has no value."""
    found = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        shape = next(row[name].shape for row in rows if name in row)
        if name in PER_ATOM:
            empty = [np.full(_per_atom(name, size), np.nan) for size in sizes]
            found[name] = np.concatenate(
                [row.get(name, blank) for row, blank in zip(rows, empty, strict=True)]
            )
            continue
        blank = np.full(shape, np.nan)
        values = [row.get(name, blank) for row in rows]
        if all(value.shape == shape for value in values):
            found[name] = np.stack(values)
    return found
