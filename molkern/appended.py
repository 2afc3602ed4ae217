"""Text files that grow, which one process writes and nobody else may change meanwhile."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .files import take_lock, writing


class AppendedText:
    """A text file that grows, kept in memory between calls of :meth:`flush`.

    Once it is begun nobody else may change it: what was taken away or cut would be missing from
    results without a word.

    Attributes:
        pending: bytes that are not written yet.
    """

    def __init__(self, path: Path):
        self.path, self.pending = path, 0
        self._parts: list[bytes] = []
        self._held: IO[bytes] | None = None
        self._stands: Stands | None = None  # once it is begun

    def lock(self) -> None:
        """Keeps other processes from writing the same file, until :meth:`close` or the end.

        Raises:
            ValueError: another one does.
        """
        with writing(self.path):
            self._held = self._open(os.O_CREAT)
        try:
            take_lock(self._held.fileno(), self.path)
        except ValueError:
            self.close()
            raise

    def _open(self, flags: int = 0) -> IO[bytes]:
        """Open to be added to; a symbolic link is not followed, which may lead anywhere."""
        flags |= os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW
        return open(self.path, "ab", opener=lambda name, _: os.open(name, flags, 0o666))

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
        """Writes what is pending; with ``sync`` it is on the disk afterwards.

        Raises:
            OSError: naming a file that cannot be written, or that somebody else changed.
        """
        if not self._parts and not sync:
            return
        if self._stands is not None:
            self._stands.check(self.path)
        with writing(self.path), self._open(os.O_CREAT if self._stands is None else 0) as file:
            file.write(b"".join(self._parts))
            file.flush()
            if sync:
                os.fsync(file.fileno())
            self._stands = Stands.of(file.fileno())
        self._parts, self.pending = [], 0

    def mark(self) -> int:
        """Where the file ends now, for :meth:`cut`."""
        if self._stands is None:
            return self.path.stat().st_size
        self._stands.check(self.path)
        return self._stands.size

    def cut(self, mark: int) -> None:
        """Takes away all that was written after a mark; 0 starts the file.

        Raises:
            ValueError: the file is shorter than that.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        require_length(self.path, size, mark, "bytes")
        with writing(self.path), self._open(os.O_CREAT) as file:
            file.truncate(mark)
            self._stands = Stands.of(file.fileno())


@dataclass(frozen=True)
class Stands:
    """How a file stands that only this process writes.

    Attributes:
        file: its device and number there.
        size: in bytes.
    """

    file: tuple[int, int, int]
    size: int

    @classmethod
    def of(cls, path: Path | int) -> Stands:
        # A link that has taken its place is another file, wherever it leads, though its number may
        # be that of the file before it
        found = os.stat(path) if isinstance(path, int) else os.lstat(path)
        return cls((found.st_dev, found.st_ino, stat.S_IFMT(found.st_mode)), found.st_size)

    def check(self, path: Path) -> None:
        """Refuses to go on where somebody else took the file away or changed it.

        Raises:
            OSError: naming the file.
        """
        try:
            found = Stands.of(path)
        except FileNotFoundError as error:
            raise OSError(
                f"{path} is gone: it was taken away while it was being written, and what it held "
                "is lost; start anew with --restart"
            ) from error
        if found != self:
            how = f"it has {found.size} bytes, not {self.size}"
            if found.file != self.file:
                how = "another file has taken its place"
            raise OSError(
                f"{path} was changed by somebody else while it was being written: {how}; go on "
                "from the last checkpoint with --resume, or start anew with --restart"
            )


def require_length(path: Path, found: int, needed: int, what: str) -> None:
    if found < needed:
        raise ValueError(
            f"{path} has {found} {what}, but the checkpoint was made when it had {needed}: bring "
            "the file back, or start anew with --restart"
        )
