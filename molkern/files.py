"""Structures from files, and files written whole or row by row; errors of one line name them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from ase import Atoms


@contextmanager
def reading(path: str | Path, where: str = "") -> Iterator[None]:
    """Gives what parsers say about a file that cannot be read the file's name.

    Args:
        path: the file.
        where: how far they came.

    Raises:
        ValueError: in place of anything that a parser raises, but for the system's own errors.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # parsers raise anything
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} cannot be read{where}: {reason}") from error


def read_frames(path: str | Path) -> Iterator[Atoms]:
    """All structures of a file in any format of ASE's, one after the other.

    Raises:
        ValueError: no such file, no structures, or a file that cannot be read.
    """
    from .structures import structures

    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file: give one that ASE can read")
    count, source = 0, structures(Path(path))
    while True:
        with reading(path, f" after frame {count - 1}" if count else ""):
            atoms = next(source, None)
        if atoms is None:
            break
        yield atoms
        count += 1
    if count == 0:
        raise ValueError(f"{path} holds no structures: give a file with at least one frame")


def read_frame(path: str | Path, frame: int = -1) -> Atoms:
    """One structure of a file; negative numbers count from the end.

    Raises:
        ValueError: as :func:`read_frames`, or too few frames.
    """
    frames = list(read_frames(path))
    if not -len(frames) <= frame < len(frames):
        raise ValueError(f"{path} has {len(frames)} frame(s), numbered from 0; there is no {frame}")
    return frames[frame]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Gives what the system says about a file that cannot be written the file's name."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"{path} cannot be written: {reason}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that after an interruption the old or the new one is there, complete.

    Raises:
        OSError: naming the file; the old one is as it was.
    """
    part = path.with_name(path.name + ".part")
    with writing(path):
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a rename last; not every file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class AppendedText:
    """A text file that grows, kept in memory between calls of :meth:`flush`.

    Attributes:
        pending: bytes that are not written yet.
    """

    def __init__(self, path: Path):
        self.path, self.pending = path, 0
        self._parts: list[bytes] = []
        self._held: IO[bytes] | None = None

    def lock(self) -> None:
        """Keeps other processes from writing the same file, until :meth:`close` or the end.

        Raises:
            ValueError: another one does.
        """
        with writing(self.path):
            self._held = self.path.open("ab")
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise ValueError(
                f"{self.path} is being written by another run: wait for it, or choose another --out"
            ) from error
        except OSError:  # not every file system has locks
            self.close()

    def drop_if_empty(self) -> None:
        """Removes the file where nothing was written to it."""
        if self.path.exists() and self.path.stat().st_size == 0:
            self.path.unlink()

    def close(self) -> None:
        """Gives up the lock."""
        if self._held is not None:
            self._held.close()
            self._held = None

    def add(self, text: str) -> None:
        self._parts.append(text.encode())
        self.pending += len(self._parts[-1])

    def flush(self, sync: bool = False) -> None:
        """Writes what is pending; with ``sync`` it is on the disk afterwards."""
        if not self._parts and not sync:
            return
        with writing(self.path), self.path.open("ab") as file:
            file.write(b"".join(self._parts))
            file.flush()
            if sync:
                os.fsync(file.fileno())
        self._parts, self.pending = [], 0

    def mark(self) -> int:
        """Where the file ends now, for :meth:`cut`."""
        return self.path.stat().st_size

    def cut(self, mark: int) -> None:
        """Takes away all that was written after a mark; 0 starts the file.

        Raises:
            ValueError: the file is shorter than that.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        require_length(self.path, size, mark, "bytes")
        with writing(self.path), self.path.open("ab") as file:
            file.truncate(mark)


def require_length(path: Path, found: int, needed: int, what: str) -> None:
    if found < needed:
        raise ValueError(
            f"{path} has {found} {what}, but the checkpoint was made when it had {needed}: bring "
            "the file back, or start anew with --restart"
        )
