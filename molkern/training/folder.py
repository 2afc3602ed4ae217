"""A run's folder: made, taken up again or cleared, and by one process at a time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..files import drop_parts, locked_folder, require_not_inputs, write_whole
from .config import Config, data_path, read_config
from .records import BEST, FACTS, LAST, METRICS
from .split import PARTS

CONFIG, SPLIT = "config.yaml", "split.npz"


def rank() -> int:
    """This process's number in a distributed run, 0 before it has one."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def open_folder(folder: Path, config: Config, resume: bool, restart: bool) -> bool:
    """Makes a run's folder; gives back whether the run goes on from a checkpoint.

    Raises:
        ValueError: a folder with a run, without ``resume`` or ``restart``; a run of another
            configuration, which cannot go on as this one.
    """
    if rank() > 0:  # the first process does that
        return resume and (folder / LAST).exists()
    there = _holds_run(folder)
    others = [path for path in folder.glob("*") if path.suffix != ".part"]
    if others and not there:
        raise ValueError(f"{folder} is a folder with other files: choose another --out")
    if there and not (resume or restart):
        raise ValueError(
            f"{folder} holds a run: go on with --resume, start anew with --restart, or choose "
            "another --out"
        )
    if there and not restart:
        _same(config, folder)
        return (folder / LAST).exists()
    _clear(folder, config)
    folder.mkdir(parents=True, exist_ok=True)
    if not _is_there(config, folder):  # as somebody wrote it, perhaps with comments
        write_whole(folder / CONFIG, config.dump().encode())
    return False


def _holds_run(folder: Path) -> bool:
    """Whether there is a run, and not just another program's file of the same name."""
    path = folder / CONFIG
    if any((folder / name).exists() for name in (LAST, METRICS, SPLIT)):
        return path.exists()
    with suppress(ValueError):
        return path.exists() and read_config(path) is not None
    return False


def _clear(folder: Path, config: Config) -> None:
    """Takes an earlier run's files away.

    Raises:
        ValueError: one of them is what this run is to be made of.
    """
    ours = (LAST, BEST, METRICS, SPLIT, FACTS, "learning_curve.png")
    ends = (".json", ".npz", "_parity_*.png", "_errors_*.png")
    of_parts = (f"{part}{end}" for part in PARTS for end in ends)
    found = [path for pattern in (*ours, *of_parts) for path in folder.glob(pattern)]
    require_not_inputs(found, inputs_of(config))
    for path in found:
        path.unlink()


def inputs_of(config: Config) -> dict[str, str | Path | None]:
    """The files that a run is made of, by what they are."""
    return {"the data": data_path(config), "data.split.file": config.data.split.file}


def _is_there(config: Config, folder: Path) -> bool:
    try:
        return read_config(folder / CONFIG) == config
    except ValueError:
        return False


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Makes a run's folder and keeps other processes from training in it; its own take part.

    Raises:
        ValueError: a file, or another process that does.
    """
    if rank() > 0:
        yield
        return
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with locked_folder(folder):
        drop_parts(*(folder / name for name in (CONFIG, SPLIT, BEST, LAST, FACTS)))
        yield


def _same(config: Config, folder: Path) -> None:
    old = _flat(read_config(folder / CONFIG).model_dump(mode="json"))
    new = _flat(config.model_dump(mode="json"))
    for key in {**new, **old}:
        value = new.get(key)
        if old.get(key) != value:
            raise ValueError(
                f"{folder} holds a run with {key}: {old.get(key)}, which cannot go on with "
                f"{value}: choose another --out, or start anew with --restart"
            )


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return found


def settings_digest(config: Config) -> str:
    """Tells configurations apart, but for where files are, and for what is as by default."""
    settings = config.model_dump(mode="json", exclude_defaults=True)
    settings["data"].pop("path", None)
    settings["data"]["split"].pop("file", None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
