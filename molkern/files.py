"""Structures from files, and files written whole or row by row; errors of one line name them.

Every file that molkern writes goes through :func:`replacing` or :class:`AppendedText`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ase import Atoms

#: Formats of ASE's that are code, or that are read from elsewhere than the file.
_UNSAFE = ("py", "gpw", "postgresql", "mysql", "bundletrajectory")
#: What the readers of NumPy's archives raise for damaged ones.
DAMAGED = (
    *(OSError, EOFError, KeyError, TypeError, ValueError, AttributeError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, SyntaxError),  # the header of an array is parsed as Python
)
_LONGEST = 200
#: How names of files end that are to take another's place.
_PART = re.compile(r"\.[0-9a-f]{16}\.part\Z")


def in_one_line(error: BaseException) -> str:
    """What an error says, without line breaks and cut to a few hundred characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


# Reading


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
        what = "unknown " * isinstance(error, KeyError)  # an element, say
        raise ValueError(f"{path} cannot be read{where}: {what}{in_one_line(error)}") from error


def read_frames(path: str | Path) -> Iterator[Atoms]:
    """All structures of a file in any format of ASE's, one after the other.

    Raises:
        ValueError: no such file, no structures, a file that cannot be read, or in a format whose
            reader would run code or look elsewhere.
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


def safe_to_read(path: str | Path) -> dict[str, Any]:
    """Arguments for ASE's readers with which they read nothing but a file, and run none of it.

    Raises:
        ValueError: a format whose reader would, or that ASE does not know.
    """
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    whole = str(Path(path).absolute())  # a name alone may be taken for that of a data base
    try:
        kind = filetype(whole)
    except UnknownFileTypeError as error:
        raise ValueError("ASE knows no such format: convert it to extended XYZ first") from error
    if kind not in ioformats:
        raise ValueError(f"ASE knows no format {kind!r}: convert it to extended XYZ first")
    if kind in _UNSAFE:
        raise ValueError(f"format {kind!r} may run code: convert it to extended XYZ first")
    return {"filename": whole, "format": kind, "do_not_split_by_at_sign": True}


def read_frame(path: str | Path, frame: int = -1) -> Atoms:
    """One structure of a file; negative numbers count from the end.

    Raises:
        ValueError: as :func:`read_frames`, or too few frames.
    """
    frames = list(read_frames(path))
    if not -len(frames) <= frame < len(frames):
        raise ValueError(f"{path} has {len(frames)} frame(s), numbered from 0; there is no {frame}")
    return frames[frame]


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: a file that is not there, is damaged, or holds something else.
    """
    try:
        found = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no JSON: {in_one_line(error)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no object with keys and values")
    return found


# What must not be overwritten


def require_not_inputs(outputs: Iterable[Path], inputs: Mapping[str, str | Path | None]) -> None:
    """Refuses outputs that are an input, by whatever name or link.

    Args:
        outputs: files that are to be written.
        inputs: files by what they are (``"the structure"``); None and missing ones do not matter.

    Raises:
        ValueError: naming the output.
    """
    known = {what: os.stat(path) for what, path in inputs.items() if path and os.path.exists(path)}
    for output in outputs:
        if not output.exists():
            continue
        found = os.stat(output)
        for what, other in known.items():
            if os.path.samestat(found, other):
                raise ValueError(f"{output} is {what} itself: choose another --out")


def require_new(outputs: Iterable[Path], restart: bool) -> None:
    """Refuses outputs that are there already, unless they are to be written anew.

    Raises:
        ValueError: naming the output and the switch.
    """
    for output in outputs:
        if os.path.lexists(output) and not restart:
            raise ValueError(f"{output} exists: --restart writes it anew, or choose another --out")


def require_folder(output: Path, option: str = "--out") -> None:
    """Refuses an output whose folder is not there.

    Raises:
        ValueError: naming the folder.
    """
    if not output.parent.is_dir():
        raise ValueError(f"{output.parent} is not a folder: make it, or choose another {option}")


def writable_name(text: str) -> str:
    """A text as a part of a file's name: what file systems refuse is replaced by its code."""
    refused = '%/\\:*?"<>|'
    name = "".join(f"%{ord(c):02X}" if c in refused or ord(c) < 32 else c for c in text)
    if len(name.encode()) > 120:
        name = f"{name.encode()[:100].decode(errors='ignore')}-{_digest(text)}"
    return name


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]


# Writing


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Gives what the system says about a file that cannot be written the file's name."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"{path} cannot be written: {reason}") from error


def _hidden(path: Path, ending: str) -> Path:
    """A name beside a file, hidden, that is no longer than names may be."""
    name = path.name if len(os.fsencode(path.name)) <= 200 else _digest(path.name)
    return path.with_name(f".{name}.{ending}")


def _open_part(path: Path) -> IO[bytes]:
    """A new file beside one that it is to replace, with the mode of that.

    Nobody can foresee the name, and what is there by that name is not opened.
    """
    old = os.lstat(path) if os.path.lexists(path) else None
    if old is not None and stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    kept = old if old is not None and stat.S_ISREG(old.st_mode) else None
    if kept is not None and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    mode = 0o666 if kept is None else 0o600  # by the umask, or for nobody else until it is known
    part = _hidden(path, f"{secrets.token_hex(8)}.part")
    file = _created(part, mode)
    if kept is not None:
        with suppress(OSError):  # another's file stays so where the system lets us
            if (kept.st_uid, kept.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), kept.st_uid, kept.st_gid)
        os.fchmod(file.fileno(), kept.st_mode & 0o777)
    return file


def _created(path: Path, mode: int) -> IO[bytes]:
    return open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode))


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes a file's place at a stroke when the block ends without an error.

    After an error or an interruption the old file is there as it was, and nothing else. The mode
    of the old file is kept; a symbolic link is replaced, not followed. Until the end of the block
    the file's ``name`` is that of the new one.

    Raises:
        OSError: naming the file.
    """
    if path.exists() and not path.is_file() and not path.is_dir():  # /dev/stdout, a pipe
        with writing(path):
            stream = path.open("wb")
        with stream:
            yield stream
        return
    with writing(path):
        file = _open_part(path)
    try:
        yield file
        with writing(path):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(file.name, path)
    except BaseException:
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            os.unlink(file.name)
        raise
    _sync_folder(path.parent)


def drop_parts(*outputs: Path) -> None:
    """Removes what processes that were killed left of outputs, which nobody may be writing now."""
    names = {_hidden(path, "part").name for path in outputs}
    for folder in {path.parent for path in outputs}:
        for entry in os.scandir(folder):
            if names & {_PART.sub(".part", entry.name)} - {entry.name}:
                with suppress(OSError):
                    os.unlink(entry.path)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that after an interruption the old or the new one is there, complete.

    Raises:
        OSError: naming the file; the old one is as it was.
    """
    with replacing(path) as file, writing(path):
        file.write(content)


def _sync_folder(folder: Path) -> None:
    """Makes a rename last; not every file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# Locks: one process at a time writes a file


def take_lock(handle: int, path: Path) -> None:
    """Takes the lock of an open file or folder.

    Raises:
        ValueError: another process has it.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(
            f"{path} is being written by another run: wait for it, or choose another --out"
        ) from error
    except OSError:  # not every file system has locks
        pass


@contextmanager
def locked(path: Path, shown: Path | None = None) -> Iterator[None]:
    """Keeps other processes that ask for the same from writing a file, which need not be there.

    Args:
        path: the file.
        shown: what stands for it in messages.

    Raises:
        ValueError: another one does.
        OSError: naming a file in a folder that cannot be written.
    """
    name = _hidden(path, "lock")
    while True:
        with writing(path):
            flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            handle = os.open(name, flags, 0o666)
        try:
            take_lock(handle, shown or path)
            if os.path.exists(name) and os.path.samestat(os.stat(name), os.fstat(handle)):
                break
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the one before took it away in between
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(name)
        os.close(handle)


@contextmanager
def new_output(path: Path, restart: bool) -> Iterator[None]:
    """Keeps a file, which may be there already for a restart only, for this process to write.

    Raises:
        ValueError: it is there, or another process is at it.
        OSError: naming a file in a folder that cannot be written.
    """
    with locked(path):
        require_new([path], restart)
        drop_parts(path)
        yield


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """As :func:`locked`, for all that is in a folder."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        take_lock(handle, folder)
        yield
    finally:
        os.close(handle)
