"""Frames of whatever ASE reads, extended XYZ and ASE's databases above all."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..files import read_frames, reading
from ..progress import progress_over
from ..structures import check_frame, connected, is_database, rows
from . import labels as known
from .conditions import NAMES, ConditionReader, missing, named, stated, write_into
from .dataset import PER_ATOM, Dataset
from .reading import atomic_numbers, dipole_factor, energy_factor, require_angstrom

if TYPE_CHECKING:
    from ase import Atoms

    from ..models import Potential

Array = NDArray[Any]
#: An energy by a length: ``kcal/mol/Ang``, ``eV/Ang^3``.
_LENGTH = re.compile(r"(.*?)(?:/(Ang|Angstrom|A|Å|Bohr|nm)(?:\^3|\*\*3|³)?)?", re.IGNORECASE)
#: What calculators give that is a label.
_RESULTS = ("energy", "forces", "stress", "charges", "dipole")
_RESULTS_OF_ATOMS = ("forces", "charges", "magmoms", "energies", "stresses")
#: What is said of virials.
VIRIAL = ", the negative of volume times stress"
#: Arrays of ASE's that are no labels.
_OF_ATOMS = ("numbers", "positions")


def load_ase(
    path: str | Path,
    progress: bool = True,
    energy_unit: str = "eV",
    labels: Mapping[str, str] | None = None,
) -> Dataset:
    """Structures of any file that ASE reads, extended XYZ, SDF and ASE's databases above all.

    Labels are looked for by their usual names: ``energy``, ``forces`` (or ``force``), ``stress``
    (or ``virial``, ``virials``), ``charges``, ``dipole``, all of them also with ``REF_``, ``ref_``,
    ``dft_`` or ``DFT_`` before, where there is no plain energy. What a name with ``virial`` in it
    holds is −V times the stress, which it becomes here.

    Args:
        path: the file.
        progress: whether a progress bar is shown.
        energy_unit: of energies, forces (per Å), stress (per Å³) and virials in the file, and of
            all numbers with ``energy`` in their name; what a database says of its own, as
            SchNetPack's do, counts more.
        labels: names in the file by label where they are others, ``{"energy": "E0"}``: keys of
            comment lines, columns of atoms, key-value pairs or data of a database, results of
            calculators. Labels of one's own are numbers of frames or vectors of three.

    Returns:
        ``"energy"`` in eV, ``"forces"`` in eV/Å, ``"stress"`` in eV/Å³ ``[M, 3, 3]`` (positive
        where the system pulls together, as ASE's; six components in ASE's order xx, yy, zz, yz,
        xz, xy), ``"charges"`` in e, ``"total_charge"`` in e (see
        :func:`molkern.data.conditions.stated`; 0 where a frame does not state it and others do),
        and numbers and vectors of three by name in the frames' ``info`` as they are; what a frame
        lacks that others have is NaN. Cells where a frame is periodic. The ids of a database are
        its rows'. What else there is is listed in ``unused``.

    Raises:
        ValueError: no such file, one that cannot be read, an unknown unit of energy, or another
            unit of length; naming the frame: a label of another shape, an atomic number that is
            none, charges that contradict each other.
        ImportError: ASE is not there.
    """
    from ..extras import require

    require("train", "ase")
    path, database = Path(path), is_database(Path(path))
    ids, frames = list[int](), list["Atoms"]()
    source = _database(path, ids) if database else read_frames(path)
    units = units_of(path)
    for atoms in progress_over(source, f"reading {path.name}", "structure", progress):
        frames.append(atoms)
    if not frames:
        raise ValueError(f"{path} holds no structures")
    table = _Table(path, frames, known.checked_names(labels))
    periodic = any(atoms.pbc.any() for atoms in frames)
    sizes = [len(atoms) for atoms in frames]
    return Dataset(
        numbers=_numbers(path, frames),
        positions=np.concatenate([atoms.positions for atoms in frames]),
        ptr=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        properties=table.properties(units, energy_unit),
        units=table.units(units),
        cell=np.stack([atoms.cell.array for atoms in frames]) if periodic else None,
        pbc=np.stack([atoms.pbc for atoms in frames]) if periodic else None,
        ids=np.array(ids) if database else None,
        name=path.stem,
        sources=table.sources,
        unused=table.unused,
        notes=table.notes,
    )


def _database(path: Path, ids: list[int]) -> Iterable[Atoms]:
    """Rows one by one; their numbers are appended to ``ids``."""
    with reading(path):
        for number, atoms in rows(path):
            ids.append(number)
            yield atoms


def units_of(path: Path) -> dict[str, str]:
    """What a database says of its units, as SchNetPack's do; of energies per length the energy.

    Other files say nothing.

    Raises:
        ValueError: a file that is no database, or a unit of length other than Å.
    """
    if not is_database(path):
        return {}
    if not path.is_file():
        raise ValueError(f"{path} is not a file: give a database of ASE's")
    with reading(path):
        metadata = connected(path).metadata
    require_angstrom(str(metadata.get("_distance_unit", "")), path)
    units = {name: str(unit) for name, unit in metadata.get("_property_unit_dict", {}).items()}
    for name, unit in units.items():
        if name.lower().endswith(("forces", "force", "stress")):
            energy_by_length = _LENGTH.fullmatch(unit)
            if energy_by_length is None:
                raise ValueError(f"{path} has {name} in {unit!r}, which is no unit")
            units[name], length = energy_by_length.groups()
            require_angstrom(length or "", path)
    return {name: unit for name, unit in units.items() if unit}


def _numbers(path: Path, frames: list[Atoms]) -> Array:
    found = np.concatenate([atoms.numbers for atoms in frames])
    try:
        return atomic_numbers(found, str(path))
    except ValueError:
        for number, atoms in enumerate(frames):
            atomic_numbers(atoms.numbers, f"{path}, frame {number}")
        raise


def frames_for(
    model: Potential, path: Path, name: str, conditions: ConditionReader
) -> Iterator[Atoms]:
    """Structures of a file that a model is to compute, with their conditions in ``info``.

    Args:
        model: to be used.
        path: the file.
        name: of the model, for messages.
        conditions: reads what the model depends on.

    Raises:
        ValueError: a file that cannot be read; naming the frame: one that cannot be computed, an
            element that the model does not know, conditions that are no numbers or contradict.
    """
    for number, atoms in enumerate(read_frames(path)):
        where = f"{path}, frame {number}"
        check_frame(atoms, where)
        model.check_elements(atoms.numbers, where, f"model {name}")
        write_into(atoms, conditions.read(atoms, where))
        yield atoms


def entries(atoms: Atoms) -> dict[str, Array | None]:
    """What a frame holds besides atoms, by name; None for what is no real numbers."""
    found: dict[str, Any] = {**atoms.info}
    found |= {name: array for name, array in atoms.arrays.items() if name not in _OF_ATOMS}
    if atoms.calc is not None:
        results = {k: v for k, v in atoms.calc.results.items() if v is not None}
        found |= {k: v for k, v in results.items() if k in _RESULTS or k not in found}
    return {str(name): _real(value) for name, value in found.items() if value is not None}


def _is_of_atoms(name: str, atoms: Atoms) -> bool:
    """Whether an entry is a column of atoms, which may look like a vector of three."""
    return name in atoms.arrays or (name in _RESULTS_OF_ATOMS and name not in atoms.info)


def _real(value: Any) -> Array | None:
    if isinstance(value, bool | str):
        return None
    try:
        array = np.asarray(value)
        return array.astype(np.float64) if array.dtype.kind in "fiu" else None
    except (TypeError, ValueError):
        return None


class _Table:
    """Labels of frames by name, and what else there is.

    Attributes:
        sources: names in the file by label.
        unused: names of what is not used.
        notes: sentences about what was found.
    """

    def __init__(self, path: Path, frames: list[Atoms], given: dict[str, str]):
        self.path, self.frames = path, frames
        content = [entries(atoms) for atoms in frames]
        present = dict.fromkeys(name for row in content for name in row)
        self.sources = known.choose(present, given, str(path), extra=NAMES)
        self.notes = [
            f"{label} is read from {name}" + (VIRIAL if known.is_virial(name) else "")
            for label, name in self.sources.items()
            if name != label and label not in given
        ]
        self._columns = {
            label: self._labels(label, name, content) for label, name in self.sources.items()
        }
        conditions = self._conditions({k: v for k, v in given.items() if k in NAMES}, present)
        taken = {*self.sources.values(), *conditions}
        for name in [name for name in present if name not in taken]:
            hidden = name in self._columns  # another column is given this name
            column = None if hidden else self._others(name, content)
            if column is not None:
                self._columns[name] = column
                taken.add(name)
        self.unused = [name for name in present if name not in taken]

    def _labels(self, label: str, name: str, content: list[dict[str, Array | None]]) -> Array:
        """A label of all frames; NaN where one lacks it."""
        found: list[Any] = []
        for number, (atoms, row) in enumerate(zip(self.frames, content, strict=True)):
            if name not in row:
                found.append(None)
                continue
            value = row[name]
            try:
                if value is None:
                    raise ValueError(f"{name} is no number")
                if label not in PER_ATOM and _is_of_atoms(name, atoms):
                    raise ValueError(f"{name} holds values of atoms, not one of the frame")
                value = known.of_frame(label, name, value, len(atoms))
            except ValueError as error:
                raise ValueError(f"{self.path}, frame {number}: {label}: {error}") from error
            if label == "stress" and known.is_virial(name):
                value = known.stress_of_virial(value, atoms.cell.array)
            found.append(value)
        if label in PER_ATOM:
            width = (3,) if label == "forces" else ()
            return np.concatenate(
                [
                    np.full((len(atoms), *width), np.nan) if value is None else value
                    for atoms, value in zip(self.frames, found, strict=True)
                ]
            )
        shape = next(value.shape for value in found if value is not None)
        for number, value in enumerate(found):
            if value is not None and value.shape != shape:
                raise ValueError(
                    f"{self.path}, frame {number}: {label}: {name} has shape "
                    f"{list(value.shape)}, but {list(shape)} in frames before"
                )
        return np.stack([np.full(shape, np.nan) if value is None else value for value in found])

    def _conditions(self, given: dict[str, str], present: Collection[str]) -> set[str]:
        """Puts conditions among the columns; the names that they were read from."""
        for label, name in given.items():
            if name not in present:
                known.choose(present, {label: name}, str(self.path))  # says what there is
        read = []
        for number, atoms in enumerate(self.frames):
            try:
                read.append(stated(atoms, given))
            except ValueError as error:
                raise ValueError(f"{self.path}, frame {number}: {error}") from error
        used = set[str]()
        for condition in NAMES:
            count = sum(condition in row for row in read)
            if not count:
                continue
            self._columns[condition] = np.array([row.get(condition, 0.0) for row in read])
            self.notes += missing(condition, count, len(read))
            own = given.get(condition)
            used |= {own} if own is not None else set(named(condition, present))
            used |= {"initial_charges"} - used if condition not in given else set()
        return used

    def _others(self, name: str, content: list[dict[str, Array | None]]) -> Array | None:
        """Numbers, or vectors of three, of frames; None for anything else."""
        if name in known.NAMES or any(name in atoms.arrays for atoms in self.frames):
            return None
        if not any(name in atoms.info for atoms in self.frames):  # a calculator's
            return None
        found = [row.get(name) for row in content]
        shapes = {
            (3,) if value.shape == (3,) else () if value.size == 1 else None
            for value in found
            if value is not None
        }
        if len(shapes) != 1 or None in shapes:
            return None
        (shape,) = shapes
        assert shape is not None
        blank = np.full(shape, np.nan)
        return np.stack([blank if value is None else value.reshape(shape) for value in found])

    def properties(self, units: Mapping[str, str], energy_unit: str) -> dict[str, Array]:
        """All columns, energies in eV."""
        found = {}
        for label, values in self._columns.items():
            name = self.sources.get(label, label)
            if known.is_energy(label, name):
                values = values * energy_factor(units.get(name, energy_unit), self.path)
            elif label == "dipole":
                values = values * dipole_factor(units.get(name, ""), self.path)
            found[label] = values
        return found

    def units(self, given: Mapping[str, str]) -> dict[str, str]:
        """Units of the columns, where they are known."""
        found = {}
        for label in self._columns:
            name = self.sources.get(label, label)
            unit = known.unit_of(label, name) or given.get(name)
            if unit is not None:
                found[label] = unit
        return found
