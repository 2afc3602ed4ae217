"""Code that somebody planted in a file of any kind is not run by anything that reads files."""

import io
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("ase")
pytest.importorskip("pytorch_lightning")
from typer.testing import CliRunner

from molkern import interop
from molkern.cli import app
from molkern.data import ethanol_frames, load_ase, load_dataset, load_npz, load_qm9
from molkern.data.loading import META, open_dataset
from molkern.files import read_arrays, read_frames, read_json
from molkern.md.checkpoint import _HEAD, Checkpoint
from molkern.md.source import ModelSource
from molkern.models import load
from molkern.training.checkpoint import read_checkpoint
from molkern.training.config import read_config
from molkern.training.split import load_split


class Planted:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def archive(planted, *names):
    """An npz whose arrays hold it."""
    content = io.BytesIO()
    arrays = {name: np.array([planted], dtype=object) for name in names}
    np.savez(content, **arrays)
    return content.getvalue()


def saved(planted, **options):
    """A file of torch's with all that a checkpoint has, one entry of which holds it."""
    content = io.BytesIO()
    names = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks")
    whole = {**{name: {} for name in names}, "global_step": 1, "model_state_dict": {"a": planted}}
    torch.save(whole, content, **options)
    return content.getvalue()


def array(planted):
    content = io.BytesIO()
    np.save(content, np.array([planted], dtype=object))
    return content.getvalue()


def script(planted):
    return f"import pathlib\npathlib.Path({str(planted.marker)!r}).touch()\nimages = []\n".encode()


def yaml(planted):
    return (
        f"model: !!python/object/apply:pathlib.Path.touch [{planted.marker}]\n"
        f"data: !!python/object/apply:os.system ['touch {planted.marker}']\n"
    ).encode()


def old_trajectory(planted):
    """ASE's trajectories were pickles once."""
    return b"PickleTrajectory" + pickle.dumps(planted, 2)


def database(planted):
    """ASE's database as JSON, which makes objects of some dictionaries."""
    row = {"numbers": [1], "positions": {"__ase_objtype__": "os.system", "command": "touch x"}}
    row |= {"calculator": script(planted).decode(), "constraints": script(planted).decode()}
    return json.dumps({"1": row, "ids": [1], "nextid": 2}).encode()


def sealed(planted):
    """A checkpoint of dynamics with the right checksum."""
    import hashlib

    body = archive(planted, "array_positions", "settings", "state")
    return _HEAD + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


CONTENTS = {
    "pickle 0": lambda p: pickle.dumps(p, 0),
    "pickle 2": lambda p: pickle.dumps(p, 2),
    "pickle 5": lambda p: pickle.dumps(p, 5),
    "array": array,
    "archive of frames": lambda p: archive(p, "z", "R", "E", "F"),
    "archive of QM9": lambda p: archive(p, "N", "Z", "R", "id"),
    "archive of a split": lambda p: archive(p, "train", "validation", "test", "digest"),
    "archive of weights": lambda p: archive(p, *interop.RECIPES, "meta_json"),
    "torch": saved,
    "old torch": lambda p: saved(p, _use_new_zipfile_serialization=False),
    "YAML": yaml,
    "Python": script,
    "old trajectory": old_trajectory,
    "database": database,
    "checkpoint": sealed,
}


def command(line):
    """A command line that ends with an error of one line."""

    def read(path):
        result = CliRunner().invoke(app, [*line.format(path).split(), "--device", "cpu"])
        assert result.exit_code == 1
        assert "Traceback" not in result.stderr
        raise ValueError(result.stderr.strip().splitlines()[-1])

    return read


def mapped(path):
    """A data set of molkern's, as it is kept, whose arrays are the file."""
    arrays = {key: [path.name, None] for key in ("numbers", "positions", "ptr")}
    (path.parent / META).write_text(json.dumps(dict(arrays=arrays, units={}, name="n")))
    open_dataset(path.parent, verify=False)


READERS = {
    "models.load": load,
    "ModelSource": lambda path: ModelSource.open(str(path)).load(),
    "interop.load": interop.load,
    "from_asparagus": lambda path: interop.from_asparagus(path, {}),
    "from_asparagus, configuration": lambda path: interop.from_asparagus(
        {"input_module.atom_features.weight": torch.zeros(1)}, path
    ),
    "load_npz": load_npz,
    "load_ase": load_ase,
    "load_qm9": load_qm9,
    "load_dataset": lambda path: load_dataset(path, cache=path.parent / "cache"),
    "open_dataset": mapped,
    "read_config": read_config,
    "load_split": lambda path: load_split(path, None),
    "a checkpoint of training": read_checkpoint,
    "a checkpoint of dynamics": Checkpoint.load,
    "read_frames": lambda path: list(read_frames(path)),
    "read_arrays": lambda path: read_arrays(path, ["z"]),
    "read_json": read_json,
    "molkern md": command("md {} --model ethanol"),
    "molkern evaluate": command("evaluate {} --model ethanol"),
    "molkern train": command("train {} --out run"),
    "molkern train with data": command(
        "train schnet-ethanol-small --out run --set data.format=auto --set data.path={}"
    ),
}
ENDINGS = (".npz", ".xyz", ".extxyz", ".traj", ".json", ".db", ".py", ".pckl", ".gpw", ".cif", "")
#: Those that take what their files are from the ends of their names.
BY_ENDING = ("load_ase", "load_dataset", "read_frames")


@pytest.fixture
def marker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOLKERN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "planted"


def test_what_is_planted_would_be_seen(marker):
    pickle.loads(pickle.dumps(Planted(marker)))
    assert marker.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", CONTENTS)
def test_nothing_is_run(marker, kind, reader):
    if kind == "database" and reader == "read_json":
        return  # plain JSON
    content = CONTENTS[kind](Planted(marker))
    for ending in ENDINGS if reader in BY_ENDING else (".npz", ".pt"):
        path = marker.parent / f"file{ending}"
        path.write_bytes(content)
        foreign = (pickle.UnpicklingError, RuntimeError) if reader == "from_asparagus" else ()
        with pytest.raises((ValueError, OSError, *foreign)) as error:
            READERS[reader](path)
        text = str(error.value)
        assert not marker.exists(), ending
        if isinstance(error.value, foreign):
            continue  # what torch says
        assert "\n" not in text, ending
        assert len(text) < 1000
        assert path.name in text or "configuration" in reader, (ending, text)
        path.unlink()


def test_names_of_files_are_no_addresses(marker, monkeypatch):
    """ASE takes names that begin so for data bases of servers."""
    monkeypatch.setitem(sys.modules, "ase_db_backends", None)
    from ase import Atoms
    from ase.io import write

    frames = ethanol_frames()["test"]
    for name in ("postgres.xyz", "mysql.xyz"):
        write("in.xyz", Atoms(frames.numbers.numpy(), frames.positions[0].numpy()))
        Path("in.xyz").rename(name)
        assert len(list(read_frames(name))) == 1
