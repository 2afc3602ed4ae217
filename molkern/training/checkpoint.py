"""Checkpoints of training runs: written at a stroke, and read without running code of theirs."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from ..files import in_one_line, write_whole

#: What Lightning goes on from.
_NEEDED = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step")
_REMEDY = "bring back a copy, or start anew with --restart"


class RunFileError(ValueError):
    """A file of a run that it cannot go on from; names the file."""


class Checkpoints(TorchCheckpointIO):
    """How Lightning writes and reads checkpoints."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_whole(Path(path), content.getvalue())

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any | None = None,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Weights and plain values, whatever is asked for.

        Raises:
            RunFileError: a file that is not there, is empty, damaged or something else.
        """
        return read_checkpoint(Path(path), map_location or (lambda storage, _place: storage))


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """What is in a checkpoint: see :meth:`Checkpoints.load_checkpoint`."""
    try:
        with zipfile.ZipFile(path) as archive:
            if (bad := archive.testzip()) is not None:  # torch does not look at checksums
                raise ValueError(f"the checksum of {bad} is wrong")
        found = torch.load(path, map_location, weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:  # torch's own words advise to run it
        raise RunFileError(
            f"{path} is no checkpoint of molkern's: it holds something else than weights and plain "
            f"values, which is not read; {_REMEDY}"
        ) from error
    except Exception as error:  # damaged archives raise anything
        raise RunFileError(
            f"{path} is damaged or no checkpoint ({in_one_line(error)}): {_REMEDY}"
        ) from error
    missing = [key for key in _NEEDED if not isinstance(found, dict) or key not in found]
    if missing:
        raise RunFileError(f"{path} is no checkpoint of a run (no {missing[0]}): {_REMEDY}")
    return found


def does_not_fit(path: Path, error: BaseException) -> RunFileError:
    """The error for a checkpoint with which Lightning or torch cannot do anything."""
    reason = in_one_line(error) if isinstance(error, ValueError | RuntimeError) else repr(error)
    return RunFileError(f"{path} does not fit this run ({reason[:200]}): {_REMEDY}")
