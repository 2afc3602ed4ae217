"""QM9: 133,885 small molecules, less the 3,054 that were not what they were meant to be."""

from __future__ import annotations

import csv
import io
import json
import lzma
import math
import re
import tarfile
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..progress import progress_over
from .dataset import Dataset
from .reading import Archive, atomic_numbers, whole_numbers
from .sdf import Molecule, molecules

Array = NDArray[Any]

#: One Hartree in eV.
HARTREE = 27.211386245988
#: Properties in the order of the raw files' second line, with their units here.
UNITS = dict(
    A="GHz",
    B="GHz",
    C="GHz",
    mu="D",
    alpha="a0^3",
    homo="eV",
    lumo="eV",
    gap="eV",
    r2="a0^2",
    zpve="eV",
    U0="eV",
    U="eV",
    H="eV",
    G="eV",
    Cv="cal/mol/K",
)
_IN_HARTREE = ("homo", "lumo", "gap", "zpve", "U0", "U", "H", "G")
#: Energies of free atoms (U0, U, H, G), Hartree, of the file ``atomref.txt`` of QM9.
ATOMS = {
    1: (-0.500273, -0.498857, -0.497912, -0.510927),
    6: (-37.846772, -37.845355, -37.844411, -37.861317),
    7: (-54.583861, -54.582445, -54.581501, -54.598897),
    8: (-75.064579, -75.063163, -75.062219, -75.079532),
    9: (-99.718730, -99.717314, -99.716370, -99.733544),
}
MOLECULES, UNCHARACTERIZED = 133_885, 3_054
_SYMBOLS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
HOW = (
    "give data.path: the archive dsgdb9nsd.xyz.tar.bz2 of figshare (10.6084/m9.figshare.978904) or "
    "an npz in DimeNet's layout; or pip install qm9pack"
)


@cache
def uncharacterized() -> frozenset[int]:
    """Numbers (from 1, as in the files' names) of the 3,054 molecules whose geometry relaxed to
    another molecule."""
    text = (files("molkern.data") / "qm9_uncharacterized.txt").read_text()
    return frozenset(int(number) for number in text.split())


def load_qm9(path: str | Path | None = None, progress: bool = True) -> Dataset:
    """QM9 with all its targets; uncharacterised molecules are left out.

    Args:
        path: the archive of raw files as published (``dsgdb9nsd.xyz.tar.bz2``, another tar or a
            folder of them), DeepChem's ``gdb9.tar.gz`` (or a folder with ``gdb9.sdf`` and
            ``gdb9.sdf.csv``), an npz in the layout of DimeNet's, whose ids count from 0 where one
            is 0, or a folder with qm9pack's tables; None for the installed package qm9pack.
        progress: whether a progress bar is shown while text is read.

    Returns:
        Energies in eV; U0, U, H and G are atomization energies (the total less the free atoms,
        whose energies are the data set's ``reference``); ids count from 1, as in the raw files.
        Lengths are in Å, other units in the data set's ``units``. Mulliken charges are in
        ``"charges"``, where the source has them (DeepChem's has not, and its positions have four
        decimals).

    Raises:
        ValueError: no such file, or one that is no QM9 or is damaged.

    Ramakrishnan et al., Sci. Data 1, 140022 (2014).
    """
    if path is None:
        return _from_tables(installed_tables(), progress)
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} is not there: {HOW}")
    if path.suffix == ".npz":
        return _from_npz(path)
    if path.is_dir() and list(path.glob("qm9_part*.csv")):
        return _from_tables(path, progress)
    return _from_raw(path, progress)


def installed_tables() -> Path:
    """The folder of qm9pack's tables; the package, which needs others, is not imported.

    Raises:
        ValueError: it is not installed.
    """
    found = find_spec("qm9pack")
    if found is None or not found.submodule_search_locations:
        raise ValueError(f"QM9 is not here: {HOW}")
    return Path(next(iter(found.submodule_search_locations))) / "data"


def _reference() -> dict[str, Array]:
    """Energies of free atoms by property and atomic number, eV."""
    found = {name: np.zeros(10) for name in ("U0", "U", "H", "G")}
    for number, energies in ATOMS.items():
        for name, energy in zip(found, energies, strict=True):
            found[name][number] = energy * HARTREE
    return found


def _dataset(
    path: Path, ids: Array, sizes: Array, numbers: Array, positions: Array, values: dict[str, Array]
) -> Dataset:
    """Of all molecules of a source those that are what they were meant to be."""
    data = Dataset(
        numbers=atomic_numbers(numbers, str(path)),
        positions=positions,
        ptr=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        properties=values,
        units={name: unit for name, unit in {**UNITS, "charges": "e"}.items() if name in values},
        ids=ids,
        reference=_reference(),
        name="QM9",
    )
    known = np.array(sorted(uncharacterized()))
    bad = np.isin(ids, known)
    if not bad.any():
        return data
    if 0 < bad.sum() < UNCHARACTERIZED and len(ids) > MOLECULES - 2 * UNCHARACTERIZED:
        warnings.warn(
            f"{path} holds {int(bad.sum()):,} of QM9's uncharacterised molecules (a known error of "
            f"some copies, which left out others in their place): they are left out here",
            stacklevel=4,
        )
    return data.subset(np.flatnonzero(~bad))


def _from_npz(path: Path) -> Dataset:
    archive = Archive(path)
    needed = ("N", "Z", "R", "id")
    missing = [name for name in needed if name not in archive]
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(missing)}: it is no QM9 in DimeNet's layout (N, Z, R, id)"
        )
    count, atoms = math.prod(archive.shape("id")), math.prod(archive.shape("Z"))
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys([*needed, *UNITS], (count,))
    shapes |= {"Z": (atoms,), "R": (atoms, 3), "Q": (atoms,)}
    present = [name for name in shapes if name in archive]
    for name in present:
        archive.require_numbers(name)
        if archive.shape(name) != shapes[name]:
            raise ValueError(
                f"{path}: {name} must have shape {list(shapes[name])}, as others have, got "
                f"{list(archive.shape(name))}"
            )
    sizes = whole_numbers(archive.numbers("N"), f"{path}: N")
    if (sizes < 0).any() or sizes.sum() != atoms:
        raise ValueError(f"{path}: N adds up to {sizes.sum():,}, but Z has {atoms:,} atoms")
    values = {name: archive.numbers(name).astype(np.float64) for name in UNITS if name in archive}
    if "Q" in archive:
        values["charges"] = archive.numbers("Q")
    ids = whole_numbers(archive.numbers("id"), f"{path}: id")
    if (ids == 0).any():  # DimeNet's own file counts from 0, the raw files from 1
        ids += 1
    numbers = atomic_numbers(archive.numbers("Z"), f"{path}: Z")
    data = _dataset(path, ids, sizes, numbers, archive.numbers("R"), values)
    data.unused = [name for name in archive.headers if name not in present]
    return data


class _Molecules:
    """Molecules one by one, in the raw files' units."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.sizes: list[int] = []
        self.numbers: list[int] = []
        self.positions: list[Array] = []
        self.charges: list[Array] = []
        self.values: list[list[float]] = []

    def add(
        self, index: int, numbers: list[int], positions: Any, charges: Any, values: list[float]
    ) -> None:
        if index in uncharacterized():
            return
        if np.shape(positions) != (len(numbers), 3) or len(charges) not in (0, len(numbers)):
            raise ValueError(
                f"molecule {index} has {len(numbers)} elements, positions "
                f"{list(np.shape(positions))} and {len(charges)} charges"
            )
        self.ids.append(index)
        self.sizes.append(len(numbers))
        self.numbers += numbers
        self.positions.append(np.asarray(positions, dtype=np.float64).astype(np.float32))
        self.charges.append(np.asarray(charges, dtype=np.float32))
        self.values.append(values)

    def dataset(self, path: Path) -> Dataset:
        if not self.ids:
            raise ValueError(f"{path} holds no molecules of QM9: {HOW}")
        order = np.argsort(self.ids, kind="stable")
        ids, sizes = np.array(self.ids), np.array(self.sizes)
        table = np.array(self.values)
        values = {name: table[:, k].copy() for k, name in enumerate(UNITS)}
        for name in _IN_HARTREE:
            values[name] *= HARTREE
        numbers = np.array(self.numbers)
        starts = np.cumsum(sizes) - sizes
        for name, energies in _reference().items():
            values[name] -= np.add.reduceat(energies[numbers], starts)
        if sum(map(len, self.charges)):
            values["charges"] = np.concatenate(self.charges)
        data = _dataset(path, ids, sizes, numbers, np.concatenate(self.positions), values)
        return data if (np.diff(ids) > 0).all() else data.subset(order)


def _from_raw(path: Path, progress: bool) -> Dataset:
    """Raw files, or DeepChem's sdf with its table, of an archive or a folder."""
    found, pairs = _Molecules(), _Structures(path)
    try:
        for name, text in progress_over(_raw_files(path), "reading QM9", "file", progress):
            with _parsing(path, name):
                if name.endswith(".xyz"):
                    _read_raw(found, text.read())
                else:
                    pairs.read(name, progress_over(text, f"reading {name}", "line", progress))
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise ValueError(f"{path} is damaged or no archive ({reason}): fetch it again") from error
    pairs.add_to(found)
    return found.dataset(path)


@contextmanager
def _parsing(path: Path, name: str) -> Iterator[None]:
    """Gives what is wrong with a text the names of its file and of the archive."""
    try:
        yield
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{path}: {name} is no raw file of QM9 ({error})") from error


def _raw_files(path: Path) -> Iterator[tuple[str, io.TextIOBase]]:
    """Names and texts of the files of interest, each to be read before the next."""
    if path.is_dir():
        for pattern in ("dsgdb9nsd_*.xyz", "gdb9.sdf*"):
            for file in sorted(path.glob(pattern)):
                with file.open() as text:
                    yield file.name, text
        return
    with tarfile.open(path) as archive:
        for member in archive:
            wanted = member.name.endswith((".xyz", *_Structures.FILES))
            content = archive.extractfile(member) if wanted else None
            if content is not None:
                yield Path(member.name).name, io.TextIOWrapper(content)
        _require_end(archive)


def _require_end(archive: tarfile.TarFile) -> None:
    """Refuses an archive that ends without the blocks of zeros that mark its end.

    tarfile takes a damaged header, or no header at all, for the end. The rest is read for the
    checksum of gzip, which comes last.

    Raises:
        tarfile.ReadError: the archive does not end where its files do.
    """
    stream: Any = archive.fileobj
    stream.seek(archive.offset)
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no header and no end at byte {archive.offset:,}")
    while stream.read(1 << 20):
        pass


def _read_raw(found: _Molecules, text: str) -> None:
    """One raw file: atoms, then ``gdb INDEX`` and fifteen values, then element, place, charge."""
    lines = text.replace("*^", "e").splitlines()
    count = int(lines[0])
    _, index, *values = lines[1].split()
    if len(values) < len(UNITS) or len(lines) < 2 + count:
        raise ValueError("it is cut short")
    rows = [line.split() for line in lines[2 : 2 + count]]
    found.add(
        int(index),
        [_SYMBOLS[row[0]] for row in rows],
        [[float(value) for value in row[1:4]] for row in rows],
        [float(row[4]) for row in rows],
        [float(value) for value in values[: len(UNITS)]],
    )


class _Structures:
    """DeepChem's copy: structures in an sdf (V2000), their values in a table in the same order."""

    FILES = ("gdb9.sdf", "gdb9.sdf.csv")
    #: Columns in the order of UNITS.
    COLUMNS = (*tuple(UNITS)[:10], "u0", "u298", "h298", "g298", "cv")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: set[str] = set()
        self.molecules: list[Molecule] = []
        self.rows: list[tuple[str, list[float]]] = []

    def read(self, name: str, lines: Iterator[str]) -> None:
        """One of the two files."""
        self.seen.add(name)
        if name == self.FILES[0]:
            self.molecules += molecules(lines)
        elif name == self.FILES[1]:
            for row in csv.DictReader(lines):
                self.rows.append((row["mol_id"], [float(row[key]) for key in self.COLUMNS]))

    def add_to(self, found: _Molecules) -> None:
        """Pairs structures with values.

        Raises:
            ValueError: one of the files is not there, or they do not belong together.
        """
        for name in self.FILES:
            if self.seen and name not in self.seen:
                raise ValueError(f"{self.path} has no {name}: it belongs to the other file")
        if len(self.molecules) != len(self.rows):
            raise ValueError(
                f"{self.path}: gdb9.sdf has {len(self.molecules):,} molecules, its table "
                f"{len(self.rows):,}: take both from one archive"
            )
        pairs = zip(self.molecules, self.rows, strict=True)
        for k, (molecule, (label, values)) in enumerate(pairs, 1):
            index, known = _index(label), _index(molecule.title)
            if index is None or known not in (None, index):
                raise ValueError(
                    f"{self.path}: molecule {k} of gdb9.sdf is {molecule.title}, but {label} in "
                    "its table: take both from one archive"
                )
            numbers = [_SYMBOLS[symbol] for symbol in molecule.symbols]
            found.add(index, numbers, molecule.positions, [], values)


def _index(label: str) -> int | None:
    """The number in ``gdb_1`` or ``gdb 1``."""
    match = re.fullmatch(r"gdb[_\s]+(\d+)", label.strip())
    return int(match[1]) if match else None


#: Columns of qm9pack's tables in the order of UNITS.
_COLUMNS = (
    "RotA_GHz",
    "RotB_GHz",
    "RotC_GHz",
    "Dipole_debye",
    "Polarizability_bohr3",
    "HOMO_au",
    "LUMO_au",
    "HOMO_LUMO_gap_au",
    "R2_bohr2",
    "ZPVE_au",
    "InternalEnergy_0K_au",
    "InternalEnergy_298K_au",
    "Enthalphy_298K_au",
    "GibbsFreeEnergy_298K_au",
    "Heatcapacity_Cv_cal_mol_K",
)


def _from_tables(folder: Path, progress: bool) -> Dataset:
    """qm9pack's tables, read as text: the package itself needs what it does not declare."""
    found = _Molecules()
    for row in progress_over(_table_rows(folder), "reading QM9", "molecule", progress):
        try:
            found.add(
                int(row["Index"]),
                [_SYMBOLS[symbol] for symbol in json.loads(row["Elements"].replace("'", '"'))],
                _numbers(row["XYZ_Ang"]).reshape(-1, 3),
                _numbers(row["Mulliken_pop"]),
                [float(row[name]) for name in _COLUMNS],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder} holds no tables of qm9pack ({error!r})") from error
    return found.dataset(folder)


def _table_rows(folder: Path) -> Iterable[dict[str, str]]:
    tables = sorted(folder.glob("qm9_part*.csv"))
    if not tables:
        raise ValueError(f"{folder} holds no qm9_part1.csv and so on: install qm9pack again")
    for table in tables:
        with table.open(newline="") as file:
            yield from csv.DictReader(io.TextIOWrapper(file.buffer, newline=""))


def _numbers(text: str) -> Array:
    flat = text.replace("[", " ").replace("]", " ").replace(",", " ")
    return np.array(flat.split(), dtype=np.float64)
