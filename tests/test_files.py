"""Files written whole or row by row: nothing is lost, followed, or opened to others."""

import os
import resource
import stat
from pathlib import Path

import numpy as np
import pytest

from molkern.appended import AppendedText
from molkern.files import (
    drop_parts,
    in_one_line,
    locked,
    locked_folder,
    replacing,
    writable_name,
    write_whole,
)
from molkern.md import MLIAPMolkern
from molkern.md.checkpoint import Checkpoint
from molkern.models import SchNet, load

NAMES = ["out.txt", "x" * 251 + ".txt", "µ" * 120, "-rf", ".hidden", "a b"]


@pytest.fixture
def umask():
    """Files are for their owner and group, if nothing else is said."""
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.fixture
def full_disk():
    """Sets after how many bytes a file can grow no more, ``full_disk(100)``."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("name", NAMES)
def test_files_of_any_name(tmp_path, umask, name):
    path = tmp_path / name
    for content in (b"one", b"two"):
        with locked(path):
            write_whole(path, content)
        assert path.read_bytes() == content
        assert list(tmp_path.iterdir()) == [path]
    assert mode(path) == 0o640


@pytest.mark.parametrize("kept", [0o600, 0o644, 0o755, 0o666])
def test_modes_are_kept(tmp_path, umask, kept):
    path = tmp_path / "secret"
    path.touch()
    path.chmod(kept)
    with replacing(path) as file:
        assert mode(tmp_path / os.path.basename(file.name)) == kept
        file.write(b"new")
    assert mode(path) == kept


def test_nobody_foresees_the_name(tmp_path, monkeypatch):
    """What somebody planted by a name that might be the next is not followed."""
    victim, path = tmp_path / "victim", tmp_path / "out.csv"
    victim.write_text("theirs")
    names = [f"{path.name}.part", f".{path.name}.part"]
    for name in names:
        (tmp_path / name).symlink_to(victim)
    write_whole(path, b"mine")
    with replacing(path) as first, replacing(path) as second:
        assert first.name != second.name
    monkeypatch.setattr("molkern.files.secrets.token_hex", lambda size: "known")
    (tmp_path / f".{path.name}.known.part").symlink_to(victim)
    with pytest.raises(OSError, match=r"out\.csv cannot be written: File exists"):
        write_whole(path, b"mine")
    assert victim.read_text() == "theirs"
    assert all((tmp_path / name).is_symlink() for name in names)


def test_a_link_is_replaced_and_not_followed(tmp_path):
    other, path = tmp_path / "other", tmp_path / "out"
    other.write_text("theirs")
    path.symlink_to(other)
    write_whole(path, b"mine")
    assert other.read_text() == "theirs"
    assert not path.is_symlink()
    assert path.read_bytes() == b"mine"


def test_what_is_no_file_is_written_into(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    with pytest.raises(OSError, match=f"{tmp_path} cannot be written: Is a directory"):
        write_whole(tmp_path, b"")


def test_files_that_are_not_to_be_written(tmp_path, monkeypatch):
    path = tmp_path / "model"
    path.write_text("as it was")
    monkeypatch.setattr("molkern.files.os.access", lambda path, how: False)
    with pytest.raises(OSError, match="model cannot be written: Permission denied"):
        write_whole(path, b"new")
    assert path.read_text() == "as it was"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, MemoryError, SystemExit])
def test_after_an_interruption_the_old_file_is_there(tmp_path, error):
    path = tmp_path / "out"
    path.write_text("old")

    def write():
        with replacing(path) as file:
            file.write(b"x" * 100_000)
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def _figure(path):
    pytest.importorskip("matplotlib")
    from molkern.plots.figures import new_figure, save

    save(new_figure(2, 2), path)


def _checkpoint(path):
    Checkpoint({}, {"positions": np.zeros((100, 3))}, {}).save(path)


def _split(path):
    pytest.importorskip("pydantic")
    from molkern.training.split import save_split

    save_split(path, {"train": np.arange(500)}, "digest")


SAVES = {
    "model": lambda path: SchNet(8, 8, 1, 8).save(path),
    "LAMMPS": lambda path: MLIAPMolkern(SchNet(8, 8, 1, 8, cutoff=4.0), ["H"]).save(path),
    "picture": _figure,
    "checkpoint": _checkpoint,
    "split": _split,
}


@pytest.mark.parametrize("what", SAVES)
def test_a_full_disk_loses_nothing(tmp_path, full_disk, what):
    path = tmp_path / "out.png"
    SAVES[what](path)
    before = path.read_bytes()
    full_disk(300)
    with pytest.raises(OSError, match=r"out\.png cannot be written: File too large"):
        SAVES[what](path)
    full_disk(resource.RLIM_INFINITY)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_pictures_have_an_ending(tmp_path):
    _figure(tmp_path / "plain")
    assert (tmp_path / "plain.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"what"):
        _figure(tmp_path / "a.what")
    assert [p.name for p in tmp_path.iterdir()] == ["plain.png"]


def test_saved_models_keep_their_mode(tmp_path):
    path = tmp_path / "m.safetensors"
    path.touch(0o600)
    SchNet(8, 8, 1, 8).save(path)
    assert mode(path) == 0o600
    assert load(path).cutoff == 10.0


def test_locks(tmp_path):
    for lock, path in ((locked, tmp_path / "out"), (locked_folder, tmp_path)):
        with lock(path):
            with pytest.raises(ValueError, match=f"{path} is being written by another"), lock(path):
                pass
            with locked(tmp_path / "other"):
                pass
        with lock(path):
            pass
    assert not list(tmp_path.iterdir())


def test_tables_are_nobody_elses(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "t.csv"
    victim.write_text("theirs")
    path.symlink_to(victim)
    table = AppendedText(path)
    for step in (table.lock, lambda: table.cut(0)):
        with pytest.raises(OSError, match=r"t\.csv cannot be written"):
            step()
    assert victim.read_text() == "theirs"
    path.unlink()
    table.cut(0)
    table.add("a\n")
    table.flush()
    with path.open("a") as file:
        file.write("somebody else's\n")
    for step in (lambda: table.flush(sync=True), table.mark):
        with pytest.raises(OSError, match=r"t\.csv was changed by somebody else .* 18 bytes"):
            step()
    path.unlink()
    table.add("b\n")
    with pytest.raises(OSError, match=r"t\.csv is gone"):
        table.flush()
    assert not path.exists()


def test_what_was_left_by_killed_processes_goes(tmp_path):
    outputs = [tmp_path / name for name in NAMES]
    left = []
    for path in outputs:
        with replacing(path) as file:
            os.link(file.name, f"{tmp_path}/kept")
            left.append(Path(file.name))
        os.rename(f"{tmp_path}/kept", left[-1])
    other = tmp_path / ".theirs.0123456789abcdef.part"
    other.touch()
    drop_parts(*outputs)
    assert not [path for path in left if path.exists()]
    assert other.exists()
    assert all(path.exists() for path in outputs)


def test_names_of_files():
    names = ["a/b", "a%2Fb", "..", "a\\b", "a\nb", "l" * 300, "l" * 301, "µ" * 200, "", "plain x"]
    found = [writable_name(name) for name in names]
    assert len(set(found)) == len(names)
    assert found[-1] == "plain x"
    for name in found:
        assert "/" not in name
        assert len(name.encode()) <= 120


def test_errors_are_one_line():
    assert in_one_line(ValueError("a\n  b\tc")) == "a b c"
    assert in_one_line(KeyError()) == "KeyError"
    assert len(in_one_line(ValueError("x" * 10_000))) == 200
