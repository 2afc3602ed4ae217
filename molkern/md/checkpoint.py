"""Checkpoints of a run: one file, written as a whole, which knows whether it is intact."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import DAMAGED, in_one_line, write_whole

_HEAD = b"molkern checkpoint 1 "


@dataclass
class Checkpoint:
    """What a run goes on from.

    Attributes:
        settings: what the run must have in common with the one that made it, JSON values.
        arrays: positions, velocities and so on.
        state: counters and the lengths of files, JSON values.
    """

    settings: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    state: dict[str, Any]

    def save(self, path: Path) -> None:
        """Replaces the file at a stroke.

        Raises:
            OSError: naming the file; the old one is as it was.
        """
        content = io.BytesIO()
        texts = {"settings": json.dumps(self.settings), "state": json.dumps(self.state)}
        arrays: dict[str, Any] = {f"array_{key}": value for key, value in self.arrays.items()}
        np.savez(content, **arrays, **texts)  # type: ignore[arg-type]
        body = content.getvalue()
        write_whole(path, _HEAD + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Reads a file that :meth:`save` wrote.

        Raises:
            ValueError: another file, or one that is damaged.
            OSError: a file that cannot be read.
        """
        head, _, body = path.read_bytes().partition(b"\n")
        if not head.startswith(_HEAD):
            raise ValueError(
                f"{path} is damaged or no checkpoint of this version: start anew with --restart"
            )
        if hashlib.sha256(body).hexdigest().encode() != head[len(_HEAD) :]:
            raise ValueError(
                f"{path} is damaged (its checksum is wrong): bring back a copy, or start anew "
                "with --restart"
            )
        try:
            with np.load(io.BytesIO(body), allow_pickle=False) as data:
                arrays = {k[6:]: data[k] for k in data.files if k.startswith("array_")}
                settings, state = json.loads(str(data["settings"])), json.loads(str(data["state"]))
            if not isinstance(settings, dict) or not isinstance(state, dict):
                raise ValueError("settings and state have no keys")
        except DAMAGED as error:
            raise ValueError(
                f"{path} is no checkpoint of molkern's ({in_one_line(error)}): start anew with "
                "--restart"
            ) from error
        return cls(settings, arrays, state)

    def require(self, settings: Mapping[str, Any], path: Path) -> None:
        """Refuses to go on with other settings than those of the run that made it.

        Raises:
            ValueError: naming the first that differs, with both values.
        """
        for key, value in settings.items():
            before = self.settings.get(key)
            if before != value:
                raise ValueError(
                    f"{path} belongs to another run: {key} is {before} there and {value} here; "
                    "give the same, another --out, or start anew with --restart"
                )
