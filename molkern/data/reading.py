"""What readers of files share: clear errors, checksums."""

from __future__ import annotations

import hashlib
import io
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..extras import require
from ..files import in_one_line
from ..units import energy_unit

#: How files also call units of energy.
_UNITS = {"ev": "eV", "ha": "Hartree", "a.u.": "Hartree", "kcal mol^-1": "kcal/mol"}


class Archive:
    """An npz whose arrays are read one by one: shapes and types are known from their headers.

    Pickled arrays (of type object) are never read.

    Args:
        path: the file.

    Attributes:
        headers: shape and type of each array by its name.

    Raises:
        ValueError: a file that is not there, is damaged, or is no npz.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.headers: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        with self._opened() as archive:
            for member in archive.infolist():
                if member.filename.endswith(".npy"):
                    name = member.filename.removesuffix(".npy")
                    self.headers[name] = _header(archive, member)

    def __contains__(self, name: str) -> bool:
        return name in self.headers

    def shape(self, name: str) -> tuple[int, ...]:
        """An array's shape, from its header."""
        return self.headers[name][0]

    def require_numbers(self, name: str, kinds: str = "fiu") -> None:
        """Refuses an array that holds no real numbers, without reading it.

        Args:
            name: of the array.
            kinds: that are fine, as NumPy abbreviates them (``"b"`` for bools).

        Raises:
            ValueError: naming the file and the array.
        """
        kind = self.headers[name][1]
        if kind.kind not in kinds:
            what = "Python objects, which are not read" if kind.hasobject else f"type {kind}"
            raise ValueError(f"{self.path}: {name} has {what}: save it as plain numbers")

    def numbers(self, name: str, kinds: str = "fiu") -> NDArray[Any]:
        """An array of real numbers, see :meth:`require_numbers`.

        Raises:
            ValueError: an array of something else, or a damaged file.
        """
        self.require_numbers(name, kinds)
        return self._read(name)

    def text(self, name: str) -> str:
        """A text, ``""`` where there is no such array.

        Raises:
            ValueError: an array of something else, or a damaged file.
        """
        if name not in self.headers:
            return ""
        shape, kind = self.headers[name]
        if kind.kind not in "SU" or math.prod(shape) != 1 or kind.itemsize > 1000:
            raise ValueError(f"{self.path}: {name} must be a short text, not {list(shape)} {kind}")
        found = self._read(name).item()
        return found.decode(errors="replace") if isinstance(found, bytes) else str(found)

    def _read(self, name: str) -> NDArray[Any]:
        with self._opened() as archive, archive.open(f"{name}.npy") as file:
            found = np.asarray(np.lib.format.read_array(file, allow_pickle=False))
        return found.astype(found.dtype.newbyteorder("="), copy=False)

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        """Gives what is wrong with the file its name."""
        try:
            with self.path.open("rb") as file:
                if file.read(6) == b"\x93NUMPY":
                    raise ValueError("it holds one array without a name: write it with np.savez")
                with zipfile.ZipFile(file) as archive:
                    yield archive
        except FileNotFoundError as error:
            raise ValueError(f"{self.path} is not there: check its name") from error
        except (
            *(OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError),
            *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
        ) as error:
            raise ValueError(
                f"{self.path} is damaged or no npz ({in_one_line(error)}): fetch it again"
            ) from error


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    """Shape and type of an array in an npz; the size that they say must be that of the member."""
    with archive.open(member) as file:
        start = io.BytesIO(file.read(1 << 14))  # NumPy refuses longer headers
    version = np.lib.format.read_magic(start)
    if version == (1, 0):
        shape, _, kind = np.lib.format.read_array_header_1_0(start)
    else:  # of version 3 only the names of fields differ
        shape, _, kind = np.lib.format.read_array_header_2_0(start)
    size = member.file_size - start.tell()
    if not kind.hasobject and math.prod(shape) * kind.itemsize != size:
        raise ValueError(
            f"{member.filename} is {list(shape)} {kind} by its header, not by its size"
        )
    return shape, kind


def atomic_numbers(values: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """Values as atomic numbers, uint8.

    Raises:
        ValueError: naming the first that is no whole number from 1 to 118.
    """
    wrong = ~((values >= 1) & (values <= 118) & (values == np.floor(values)))
    if wrong.any():
        place = tuple(int(k) for k in np.argwhere(wrong)[0])
        raise ValueError(
            f"{where}: {values[place]} is no atomic number (at {list(place)}): they are whole "
            "numbers from 1 to 118"
        )
    return values.astype(np.uint8)


def whole_numbers(values: NDArray[Any], where: str) -> NDArray[np.int64]:
    """Values as int64.

    Raises:
        ValueError: naming the first that is not whole.
    """
    wrong = ~(np.isfinite(values) & (values == np.floor(values)) & (np.abs(values) < 2**53))
    if wrong.any():
        raise ValueError(f"{where}: {values[wrong][0]} is no whole number")
    return values.astype(np.int64)


def energy_factor(unit: str, path: Path) -> float:
    """A file's unit of energy in eV.

    Raises:
        ValueError: an unknown unit, with the file's name.
        ImportError: ASE is not there; eV does without.
    """
    name = _UNITS.get(unit.lower(), unit)
    if name == "eV":
        return 1.0
    require("train", "ase")
    try:
        return energy_unit(name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def dipole_factor(unit: str, path: Path) -> float:
    """A file's unit of dipole moments in e·Å; ``""`` where it does not say.

    Raises:
        ValueError: an unknown unit, with the file's name.
    """
    name = unit.lower().replace(" ", "").replace("*", "").replace("·", "")
    for names, factor in (
        (("", "eang", "eangstrom", "ea", "eå"), 1.0),
        (("d", "debye"), 0.20819433),
        (("a.u.", "au", "ebohr", "ea0"), 0.529177210903),
    ):
        if name in names:
            return factor
    raise ValueError(f"{path} has dipoles in {unit}: molkern takes e·Å, Debye or e·Bohr")


def require_angstrom(unit: str, path: Path) -> None:
    """Refuses a file with another unit of length; ``""`` where it does not say.

    Raises:
        ValueError: naming the file and the unit.
    """
    if unit.lower() not in ("", "ang", "angstrom", "a", "å"):
        raise ValueError(f"{path} has lengths in {unit}: molkern takes Å, convert it first")


def sha256_of(path: Path) -> str:
    """Of a file, or of all files in a folder with their names."""
    found = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not file.is_file():
            continue
        if path.is_dir():
            found.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                found.update(chunk)
    return found.hexdigest()
