"""Trajectories in files, to which frames are added and from which they are taken away."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..appended import AppendedText, Stands, require_length
from ..files import replacing, writing

if TYPE_CHECKING:
    from ase import Atoms

#: Formats of trajectories by the end of their name.
XYZ, TRAJ = (".xyz", ".extxyz"), (".traj",)


class XYZFrames(AppendedText):
    """Frames as extended XYZ."""

    def add_frame(self, atoms: Atoms) -> None:
        from ase.io.extxyz import write_xyz

        text = io.StringIO()
        write_xyz(text, atoms)
        self.add(text.getvalue())


class TrajFrames:
    """Frames as a trajectory of ASE's, with the same calls as :class:`XYZFrames`."""

    def __init__(self, path: Path):
        self.path, self.pending, self._count = path, 0, 0
        self._frames: list[Atoms] = []
        self._stands: Stands | None = None  # once it is begun

    def add_frame(self, atoms: Atoms) -> None:
        self._frames.append(atoms)
        self.pending += 100 * len(atoms)

    def flush(self, sync: bool = False) -> None:
        from ase.io.trajectory import Trajectory

        if self._stands is not None:
            self._stands.check(self.path)
        with writing(self.path):
            if self._frames:
                mode = "a" if self._count else "w"
                with Trajectory(str(self.path), mode) as file:
                    for atoms in self._frames:
                        file.write(atoms)
                self._count += len(self._frames)
                self._stands = Stands.of(self.path)
            if sync and self.path.exists():
                with self.path.open("rb") as file:
                    os.fsync(file.fileno())
        self._frames, self.pending = [], 0

    def mark(self) -> int:
        if self._stands is not None:
            self._stands.check(self.path)
        return self._count

    def cut(self, mark: int) -> None:
        from ase.io.trajectory import Trajectory

        if mark == 0:
            with writing(self.path):
                self.path.unlink(missing_ok=True)
            return
        with (
            replacing(self.path) as part,
            writing(self.path),
            _reading(self.path),
            Trajectory(str(self.path)) as old,
        ):
            require_length(self.path, len(old), mark, "frames")
            with Trajectory(part.name, "w") as new:
                for k in range(mark):
                    new.write(old[k])
        self._count, self._stands = mark, Stands.of(self.path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:  # ASE's readers raise anything
        raise ValueError(
            f"{path} cannot be read ({error}): start anew with --restart, or bring it back"
        ) from error


def trajectory_file(path: Path) -> XYZFrames | TrajFrames:
    """A trajectory to be written, in the format that the end of its name says.

    Raises:
        ValueError: another ending.
    """
    if path.suffix in XYZ:
        return XYZFrames(path)
    if path.suffix in TRAJ:
        return TrajFrames(path)
    endings = ", ".join((*XYZ, *TRAJ))
    raise ValueError(f"{path} ends in {path.suffix!r}: trajectories end in one of {endings}")
