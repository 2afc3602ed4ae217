"""Code that somebody planted in a file of any kind is not run by anything that reads files."""

import json
import pickle
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("ase")
pytest.importorskip("pytorch_lightning")
from planted import CONTENTS, Planted
from typer.testing import CliRunner

from molkern import interop
from molkern.cli import app
from molkern.data import ethanol_frames, load_ase, load_dataset, load_npz, load_qm9
from molkern.data.loading import META, open_dataset
from molkern.files import read_frames, read_json
from molkern.md.checkpoint import Checkpoint
from molkern.md.source import ModelSource
from molkern.models import load
from molkern.training.checkpoint import read_checkpoint
from molkern.training.config import read_config
from molkern.training.split import load_split


def command(line):
    """A command line that ends with an error of one line."""

    def read(path):
        result = CliRunner().invoke(app, line.format(path).split())
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
    "read_json": read_json,
    "molkern md": command("md {} --model ethanol --device cpu"),
    "molkern md with a model": command("md in.xyz --model {} --device cpu"),
    "molkern evaluate": command("evaluate {} --model ethanol --device cpu"),
    "molkern evaluate with a model": command("evaluate in.xyz --model {} --device cpu"),
    "molkern info": command("info --model {}"),
    "molkern plot": command("plot filters {}"),
    "molkern train": command("train {} --out run --device cpu"),
    "molkern train with data": command(
        "train schnet-ethanol-small --out run --device cpu "
        "--set data.format=auto --set data.path={}"
    ),
    "molkern train with a split": command(
        "train schnet-ethanol-small --out run --device cpu --set data.split.file={}"
    ),
}
ENDINGS = (".npz", ".xyz", ".extxyz", ".traj", ".json", ".db", ".py", ".pckl", ".gpw", ".cif", "")
#: Those that take what their files are from the ends of their names.
BY_ENDING = ("load_ase", "load_dataset", "read_frames")


@pytest.fixture
def marker(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOLKERN_CACHE", str(tmp_path / "cache"))
    Path("in.xyz").write_text("2\n\nH 0 0 0\nH 0 0 0.8\n")
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
        with pytest.raises((ValueError, OSError)) as error:
            READERS[reader](path)
        text = str(error.value)
        assert not marker.exists(), ending
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
