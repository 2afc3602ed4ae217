"""What readers of files share: clear errors, checksums, progress."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..extras import require
from ..units import energy_unit

Item = TypeVar("Item")
#: How files also call units of energy.
_UNITS = {"ev": "eV", "ha": "Hartree", "a.u.": "Hartree", "kcal mol^-1": "kcal/mol"}


def arrays_of(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an npz, whose own checksums are looked at.

    Raises:
        ValueError: a file that is not there, is damaged, or is no npz.
    """
    try:
        with np.load(path) as content:
            if not isinstance(content, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array without a name")
            return {name: content[name] for name in content.files}
    except FileNotFoundError as error:
        raise ValueError(f"{path} is not there: check data.path") from error
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged or no npz ({reason}): fetch it again") from error


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


def progress_over(items: Iterable[Item], what: str, unit: str, shown: bool) -> Iterator[Item]:
    """With a progress bar, where tqdm is there and somebody looks."""
    if shown:
        try:
            from tqdm import tqdm
        except ImportError:
            pass
        else:
            items = tqdm(items, desc=what, unit=unit, disable=None, leave=False)
    yield from items
