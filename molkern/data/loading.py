"""Data sets by path and format; what takes long to read is kept, memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np

from ..files import DAMAGED
from ..structures import ending
from .dataset import Dataset
from .frames import load_ase
from .labels import checked_names
from .npz import load_npz
from .qm9 import installed_tables, load_qm9
from .reading import Archive, sha256_of

FORMATS = ("auto", "qm9", "npz", "ase", "molkern", "ethanol")
META = "meta.json"
#: Raised where the way a reader understands files changes, so that nothing old is found.
VERSION = 2


def load_dataset(
    path: str | Path | None = None,
    *,
    format: str = "auto",
    energy_unit: str = "eV",
    sha256: str | None = None,
    labels: Mapping[str, str] | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Dataset:
    """A data set, by the format of its file.

    Args:
        path: the file or folder; may be None for ``"qm9"`` (the package qm9pack) and is not used
            for ``"ethanol"`` (the shipped frames).
        format: ``"qm9"`` (:func:`load_qm9`), ``"npz"`` (:func:`load_npz`), ``"ase"``
            (:func:`load_ase`), ``"molkern"`` (:func:`open_dataset`), ``"ethanol"``, or ``"auto"``:
            by the look of the file.
        energy_unit: of an npz or a file of ASE's that does not say.
        sha256: what the file's checksum must be.
        labels: what an npz or a file of ASE's calls labels, by label, ``{"energy": "REF_energy"}``;
            see :func:`load_npz` and :func:`load_ase`.
        cache: where data are kept that take long to read; by default ``MOLKERN_CACHE`` of the
            environment, or ``molkern`` in the user's cache folder.
        progress: whether progress bars are shown.

    Raises:
        ValueError: a file that is not there, damaged, or not the one that is wanted; names of
            labels for a format that has its own.

    >>> from molkern.data import load_dataset
    >>> len(load_dataset(format="ethanol"))
    2000
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    labels = checked_names(labels)
    if labels and format in ("qm9", "molkern", "ethanol"):
        raise ValueError(f"data.labels: data of format {format} have names of their own: leave it")
    if format == "ethanol":
        return _ethanol()
    if path is None:
        if format != "qm9":
            raise ValueError("data.path is missing: say where the data are")
        path = installed_tables()
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} is not there: check data.path")
    if sha256 is not None and (found := sha256_of(path)) != sha256.lower():
        raise ValueError(
            f"{path} has SHA-256 {found}, not {sha256}: it is damaged or another file; fetch it "
            "again, or leave data.sha256 out"
        )
    if format == "auto":
        return load_dataset(
            path,
            format=_guess(path, bool(labels)),
            energy_unit=energy_unit,
            labels=labels,
            cache=cache,
            progress=progress,
        )
    if format == "molkern":
        return open_dataset(path)
    if format == "npz":
        return load_npz(path, energy_unit, labels)
    if format == "ase":
        read = partial(load_ase, path, progress, energy_unit, labels)
        options = json.dumps([energy_unit, sorted(labels.items()), path.suffix])
        return _kept(path, f"ase-{hashlib.sha256(options.encode()).hexdigest()[:8]}", read, cache)
    if path.suffix == ".npz":
        return load_qm9(path, progress)
    return _kept(path, "qm9", partial(load_qm9, path, progress), cache)


def _guess(path: Path, labels: bool) -> str:
    if path.is_dir():
        return "molkern" if (path / META).exists() else "qm9"
    if path.suffix in (".npz", ".npy"):
        with suppress(ValueError):
            return "qm9" if not labels and {"id", "N"} <= Archive(path).headers.keys() else "npz"
        return "npz"
    packed = ".tar" in path.name or path.suffix == ".tgz"
    return "qm9" if packed or (path.suffix == ".bz2" and not ending(path)) else "ase"


def _ethanol() -> Dataset:
    with as_file(files("molkern.data") / "ethanol_gfn2_500K.npz") as path:
        data = load_npz(path)
    data.name = "ethanol"
    return data


def _kept(
    path: Path, format: str, read: Callable[[], Dataset], cache: str | Path | None
) -> Dataset:
    """What was read from a file of the same content before, or else what is read now."""
    folder = _cache_folder(cache) / f"{format}-{VERSION}-{sha256_of(path)[:32]}"
    if folder.exists():
        try:
            found = open_dataset(folder)
            found.name = path.stem if found.name != "QM9" else found.name  # copies are the same
            return found
        except ValueError:  # damaged: read it again
            shutil.rmtree(folder, ignore_errors=True)
    data = read()
    # No room or no right to write, or another process was first: then without.
    with suppress(OSError, ValueError):
        save_dataset(data, folder)
        return open_dataset(folder, verify=False)
    return data


def _cache_folder(cache: str | Path | None) -> Path:
    if cache is not None:
        return Path(cache)
    if own := os.environ.get("MOLKERN_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "molkern"


def save_dataset(data: Dataset, folder: str | Path) -> None:
    """Writes a data set as a folder that :func:`open_dataset` maps into memory.

    Raises:
        OSError: the folder cannot be written; there is nothing then.
        ValueError: there is something at that place.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists: choose another place, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    part = holder / "part"  # mkdtemp's own folder is closed to others, this is not
    try:
        part.mkdir()
        arrays = {"numbers": data.numbers, "positions": data.positions, "ptr": data.ptr}
        arrays |= {k: v for k in ("cell", "pbc", "ids") if (v := getattr(data, k)) is not None}
        arrays |= {f"properties.{k}": v for k, v in data.properties.items()}
        arrays |= {f"reference.{k}": v for k, v in data.reference.items()}
        sums = {}
        for number, (name, values) in enumerate(arrays.items()):
            file = part / f"{number}.npy"
            np.save(file, np.ascontiguousarray(values))
            sums[name] = [file.name, sha256_of(file)]
        meta = dict(version=VERSION, name=data.name, units=dict(data.units), arrays=sums)
        meta |= dict(sources=dict(data.sources), unused=list(data.unused), notes=list(data.notes))
        (part / META).write_text(json.dumps(meta, indent=1))
        part.rename(folder)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def open_dataset(folder: str | Path, verify: bool = True) -> Dataset:
    """Maps a folder that :func:`save_dataset` wrote into memory.

    Args:
        folder: its path.
        verify: whether the checksums of the arrays are looked at, which reads them once.

    Raises:
        ValueError: no such folder, or a file that is damaged or gone.
    """
    folder = Path(folder)
    try:
        meta = json.loads((folder / META).read_text())
        names, units, name = meta["arrays"], meta["units"], meta["name"]
        about = {key: meta[key] for key in ("sources", "unused", "notes") if key in meta}
        if not {"numbers", "positions", "ptr"} <= names.keys():
            raise ValueError(f"{META} lists no atoms")
        places = {key: (_beside(folder, file), wanted) for key, (file, wanted) in names.items()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder} holds no data set of molkern's ({error})") from error
    arrays = {
        key: _mapped(file, wanted if verify else None) for key, (file, wanted) in places.items()
    }
    try:
        return _dataset(arrays, units, name, about)
    except (TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{folder} is damaged ({error}): remove it, and make it again") from error


def _beside(folder: Path, name: str) -> Path:
    """A file of the folder and of no other."""
    if Path(name).name != name:
        raise ValueError(f"{name!r} is no name of a file in it")
    return folder / name


def _dataset(
    arrays: dict[str, Any], units: dict[str, str], name: str, about: dict[str, Any]
) -> Dataset:
    return Dataset(
        numbers=arrays["numbers"],
        positions=arrays["positions"],
        ptr=np.asarray(arrays["ptr"]),
        properties=_under("properties.", arrays),
        units=units,
        cell=arrays.get("cell"),
        pbc=arrays.get("pbc"),
        ids=arrays.get("ids"),
        reference=_under("reference.", arrays),
        name=name,
        **about,
    )


def _mapped(path: Path, wanted: str | None) -> Any:
    """An array in a file, not read yet unless its checksum is wanted."""
    try:
        if wanted is not None and sha256_of(path) != wanted:
            raise ValueError("another checksum")
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(found, np.ndarray):
            raise ValueError("it is no array")
        return found
    except DAMAGED as error:
        raise ValueError(
            f"{path} is damaged or gone ({error}): remove {path.parent}, and make it again"
        ) from error


def _under(prefix: str, arrays: dict[str, Any]) -> dict[str, Any]:
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
