"""Structures in files, one after the other: ASE's readers, and what these leave out."""

from __future__ import annotations

import io
import itertools
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from .files import safe_to_read

if TYPE_CHECKING:
    from ase import Atoms

#: Databases of ASE's by the end of their names.
DATABASES = (".db", ".json")
_SDF = (".sdf", ".sd", ".mol")
_XYZ = (".xyz", ".extxyz")
_COMPRESSED = (".gz", ".bz2", ".xz")
#: What the comment line of extended XYZ says of atoms and cell, so that nothing else may.
_OF_THE_FORMAT = ("properties", "lattice", "pbc")
#: Columns of extended XYZ with atomic numbers as real numbers.
_REAL_NUMBERS = re.compile(rb"Properties=\"?((?:[^\s\":]+:[RISL]:\d+:)*?)(?:Z|numbers):R:1\b")


def structures(path: Path) -> Iterator[Atoms]:
    """All structures of a file; raises what the readers raise.

    Of an SDF ASE reads the first molecule, of a database it leaves the rows' key-value pairs and
    data out: these are in ``info`` here.
    """
    if is_database(path):
        for _, atoms in rows(path):
            yield atoms
    elif ending(path) in _SDF:
        yield from _molecules(path)
    else:
        from ase.io import iread

        if ending(path) in _XYZ:
            _check_xyz(path)
        yield from iread(**safe_to_read(path), index=":")


def ending(path: Path) -> str:
    """How a file's name ends, in lower case, without what says that it is compressed."""
    name = path.with_suffix("") if path.suffix in _COMPRESSED else path
    return name.suffix.lower()


def is_database(path: Path) -> bool:
    """Whether a file is a database of ASE's by the end of its name."""
    return path.suffix.lower() in DATABASES


def connected(path: Path) -> Any:
    """A database of ASE's, opened."""
    from ase.db import connect

    return connect(str(path), type=path.suffix.lower()[1:], serial=True)


def _opened(path: Path) -> IO[bytes]:
    """A file's bytes, unpacked."""
    from ase.io.formats import open_with_compression

    file: IO[bytes] = open_with_compression(str(path), "rb")
    return file


def _check_xyz(path: Path) -> None:
    """Refuses what ASE's reader of extended XYZ leaves out, cuts off or does not come to an end of.

    Raises:
        ValueError: naming the frame: fewer atoms than it says, atomic numbers that are not whole,
            or frames after an empty line.
    """
    with _opened(path) as file:
        for frame in itertools.count():
            header = file.readline()
            while header.lstrip().startswith(b"VEC"):
                header = file.readline()
            if not header.strip().isdigit():
                break
            atoms, comment = int(header), file.readline()
            lines = itertools.islice(file, min(atoms, sys.maxsize))
            found = _REAL_NUMBERS.search(comment)
            count = sum(1 for _ in lines) if found is None else _whole(lines, found[1], frame)
            if count < atoms:
                raise ValueError(f"frame {frame} has {count} atoms, but {atoms} by its first line")
        if header and not header.strip() and any(line.strip() for line in file):
            raise ValueError(f"an empty line stands before frame {frame}: remove it")


def _whole(lines: Iterable[bytes], before: bytes, frame: int) -> int:
    """How many lines of atoms there are, whose numbers stand after the columns ``before``."""
    column = sum(int(width) for width in before.split(b":")[2::3])
    count = 0
    for atom, line in enumerate(lines):
        number = float(line.split()[column])
        if not number.is_integer():
            raise ValueError(f"frame {frame}: atom {atom} has number {number}")
        count += 1
    return count


def rows(path: Path) -> Iterator[tuple[int, Atoms]]:
    """Numbers and structures of the rows of a database of ASE's."""
    for row in connected(path).select():
        atoms = row.toatoms()
        pairs = dict(row.key_value_pairs)
        # Rows have properties, charge and volume among them, that hide pairs of the same name
        pairs |= {name: vars(row)[name] for name in pairs if name in vars(row)}
        atoms.info = {**dict(row.data), **pairs}
        yield row.id, atoms


def _molecules(path: Path) -> Iterator[Atoms]:
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    from .data.sdf import molecules

    with _opened(path) as file, io.TextIOWrapper(file, "utf-8", errors="replace") as text:
        for molecule in molecules(text):
            info: dict[str, Any] = {k: _number(text) for k, text in molecule.data.items()}
            if molecule.title:
                info.setdefault("title", molecule.title)
            if molecule.charges.any():
                info.setdefault("total_charge", int(molecule.charges.sum()))
            energy = info.pop("energy", None)
            symbols = ["H" if symbol in ("D", "T") else symbol for symbol in molecule.symbols]
            atoms = Atoms(symbols, molecule.positions, info=info)
            if energy is not None:
                atoms.calc = SinglePointCalculator(atoms, energy=energy)
            yield atoms


def _number(text: str) -> Any:
    """What data of an SDF mean: a number, several of them, or a text."""
    try:
        values = np.array([float(word) for word in text.split()])
    except ValueError:
        return text
    if not values.size:
        return text
    return float(values[0]) if values.size == 1 else values


def write_frame(file: Any, atoms: Atoms) -> None:
    """Writes a structure as extended XYZ that can be read again, whatever its ``info`` holds.

    Names of entries become texts of one line without ``=``; so do texts, and what is neither a
    number nor a rectangular array. Entries that would say something else of the atoms or the cell,
    and virials of no known shape, are left out.

    Args:
        file: a text file.
        atoms: the structure, which may be changed.
    """
    from ase.io.extxyz import write_xyz

    named = {_line(name).replace("=", "_"): value for name, value in atoms.info.items()}
    info = {name: _readable(name, value) for name, value in named.items()}
    atoms.info = {
        name: value
        for name, value in info.items()
        if name and value is not None and name.lower() not in _OF_THE_FORMAT
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Skipping unhashable information")
        write_xyz(file, atoms)


def _readable(name: str, value: Any) -> Any:
    """A value that ASE reads again in a comment line; None for one that means nothing there."""
    from .data.labels import tensors

    if name in ("stress", "virial"):  # these are matrices there
        array = np.asarray(value)
        return tensors(array) if array.shape in ((6,), (9,), (3, 3)) else None
    if isinstance(value, str):
        return _line(value)
    try:
        np.asarray(value)
    except ValueError:  # lists of different lengths
        return _line(value)
    return value


def _line(text: object) -> str:
    """A text without line breaks."""
    return " ".join(str(text).splitlines())


def fault(numbers: Any, positions: Any, cell: Any = None, pbc: Any = None) -> str | None:
    """Why nothing can be computed for a structure, in a few words; None where it can.

    Args:
        numbers, positions: ``[n]`` and ``[n, 3]``.
        cell, pbc: lattice vectors as rows ``[3, 3]`` and periodicity ``[3]``; None without.
    """
    if not len(numbers):
        return "it has no atoms"
    wrong = (numbers < 1) | (numbers > 118)
    if wrong.any():
        atom = int(wrong.argmax())
        return f"atom {atom} has number {int(numbers[atom])}, which is no element"
    finite = np.isfinite(positions).all(1)
    if not finite.all():
        atom = int((~finite).argmax())
        return f"atom {atom} is at {[float(x) for x in positions[atom]]}, which is not finite"
    if cell is not None and not np.isfinite(cell).all():
        return "its cell is not finite"
    if pbc is None or not np.any(pbc):
        return None
    if cell is None:
        return "it is periodic, but has no cell"
    vectors = np.asarray(cell, dtype=np.float64)[np.asarray(pbc, dtype=bool)]
    lengths = np.linalg.norm(vectors, axis=1)
    if not lengths.all():
        axis = "abc"[int(np.flatnonzero(pbc)[lengths.argmin()])]
        return f"it is periodic along {axis}, where its cell has no length: give it a cell"
    # As neighbor lists judge it: less than 1e-8 of the volume of perpendicular vectors
    if not np.linalg.svd(vectors / lengths[:, None], compute_uv=False).prod() > 1e-8:
        return "its lattice vectors do not span its periodic axes (a singular cell)"
    return None


def check_frame(atoms: Atoms, where: str) -> None:
    """Refuses a structure for which nothing can be computed.

    Raises:
        ValueError: naming it (``where``) and what is wrong.
    """
    reason = fault(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    if reason is not None:
        raise ValueError(f"{where}: {reason}")
