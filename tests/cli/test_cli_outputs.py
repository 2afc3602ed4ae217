"""Outputs: they take the place of no input and of nothing unasked, and two writers do not meet."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("ase")
import ase.build
import ase.io

from molkern.data import ethanol_model
from molkern.files import locked
from molkern.md import group
from molkern.models import SchNet

ROOT = Path(__file__).parents[2]
MD = "md {} --steps 4 --every 2"


def contents(folder):
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def as_link(kind, path, other):
    """Another name of a file."""
    if kind == "itself":
        path.rename(other)
    elif kind == "symbolic link":
        other.symlink_to(path.resolve())
    else:
        os.link(path, other)
    return other


LINKS = ["itself", "symbolic link", "hard link"]


@pytest.mark.parametrize("restart", ["", " --restart"])
@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("end", ["xyz", "csv", "json", "png", "checkpoint"])
def test_dynamics_over_its_inputs(molkern, ethanol, tmp_path, kind, end, restart):
    """Whichever of its files it is, the structure or the model."""
    form = "json" if end == "json" else "traj"  # the end of a name says no other
    ase.io.write(f"s.{form}", ase.io.read(ethanol))
    ethanol_model().save("m.safetensors")
    for what, source in (("structure", f"s.{form}"), ("model", "m.safetensors")):
        folder = tmp_path / what
        folder.mkdir()
        shutil.copy(source, folder / "in")
        other = as_link(kind, folder / "in", folder / f"S.{end}")
        names = {"structure": f"s.{form}", "model": "m.safetensors", what: other}
        before = contents(folder)
        command = MD.format(names["structure"]) + f" --out {folder}/S.xyz{restart}"
        error = molkern(command, code=1, model=str(names["model"]))
        assert f"is the {what} itself: choose another --out" in error
        assert contents(folder) == before


def test_dynamics_over_a_plot_or_replicas_of_other_runs(molkern, ethanol, tmp_path):
    shutil.copy(ethanol, "in_1.xyz")
    error = molkern(f"{MD.format('in_1.xyz')} --replicas 2 --out in.xyz --restart", code=1)
    assert "in_1.xyz is the structure itself" in error
    ethanol_model().save("m.png")
    error = molkern(f"{MD.format(ethanol)} --plot m.png --restart", code=1, model="m.png")
    assert "m.png is the model itself" in error
    Path("theirs.pdf").write_text("a picture")
    error = molkern(f"{MD.format(ethanol)} --plot theirs.pdf", code=1)
    assert "theirs.pdf exists" in error
    for end in ("csv", "json", "png"):
        Path(f"S.{end}").write_text("theirs")
        before = contents(tmp_path)
        for option in ("", " --resume"):
            error = molkern(f"{MD.format(ethanol)} --out S.xyz{option}", code=1)
            assert f"S.{end} " in error
            assert contents(tmp_path) == before
        Path(f"S.{end}").unlink()


def test_runs_of_other_replicas_with_the_same_names(molkern, ethanol, tmp_path):
    one, two = (f"{MD.format(ethanol)} --out S.xyz --replicas {k} --group 1" for k in (1, 2))
    molkern(one)
    before = contents(tmp_path)
    for option, text in (("", "S.checkpoint is of a run with other"), (" --resume", "other --out")):
        assert text in molkern(two + option, code=1)
        assert contents(tmp_path) == before
    molkern(f"{two} --restart")
    assert not Path("S.checkpoint").exists()
    assert "S.group0.checkpoint is of a run with other" in molkern(one, code=1)
    molkern(f"{two} --resume")


@pytest.mark.parametrize("option", ["", " --resume"])
def test_runs_that_were_killed_before_they_began(molkern, ethanol, option):
    """Their table is empty, and what they were about to write has another name."""
    Path("S.csv").touch()
    Path(".S.checkpoint.0123456789abcdef.part").touch()
    molkern(f"{MD.format(ethanol)} --out S.xyz{option}")
    assert not list(Path.cwd().glob("*.part"))


def test_runs_of_other_replicas_at_once(molkern, ethanol, monkeypatch):
    one, two = (f"{MD.format(ethanol)} --out S.xyz --replicas {k} --group 1" for k in (1, 2))
    plain, errors = group.GroupRun._step, []

    def step(run):
        plain(run)
        if not errors:
            errors.append("")
            errors[0] = molkern(f"{two} --restart", code=1)

    monkeypatch.setattr(group.GroupRun, "_step", step)
    molkern(one)
    assert "is being written by another run" in errors[0]
    assert not [p for p in Path.cwd().iterdir() if p.name.endswith((".lock", ".part"))]


@pytest.mark.parametrize("end", ["xyz", "traj", "csv"])
@pytest.mark.parametrize("how", ["gone", "cut", "a link"])
def test_files_that_are_changed_under_a_run(molkern, ethanol, monkeypatch, end, how):
    out = "S.traj" if end == "traj" else "S.xyz"
    path, held = Path(f"S.{end}"), []
    plain = group.GroupRun._step
    monkeypatch.setattr(group, "_FLUSH_BYTES", 0)

    def step(run):
        plain(run)
        if run.dynamics.step == 8:
            content = path.read_bytes()
            path.unlink()
            if how == "cut":
                path.write_bytes(content[:-7])
            if how == "a link":
                held.append(content)
                Path("elsewhere").write_bytes(content)
                path.symlink_to("elsewhere")

    monkeypatch.setattr(group.GroupRun, "_step", step)
    command = f"md {ethanol} --steps 20 --every 2 --checkpoint-every 5 --out {out}"
    error = molkern(command, code=1)
    assert f"S.{end} " in error
    said = {"gone": "is gone", "cut": "was changed by somebody else"}
    if how == "a link":  # is perhaps not even opened
        assert "another file has taken its place" in error or "cannot be written" in error
        assert Path("elsewhere").read_bytes() == held[0]
    else:
        assert said[how] in error


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "run")


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """A finished training."""
    pytest.importorskip("pytorch_lightning")
    from molkern.training.config import read_config
    from molkern.training.results import score
    from molkern.training.run import train

    changes = ["training.steps=2", "training.validate_every=2", "model.hidden_channels=8"]
    changes += ["model.num_filters=8", "model.num_interactions=1"]
    changes += ["data.split.train=40", "data.split.validation=8", "data.split.test=6"]
    folder = tmp_path_factory.mktemp("training") / "run"
    quiet = dict(progress=False, say=lambda _: None)
    train(read_config("schnet-ethanol-small", changes), folder, device="cpu", **quiet)
    score(folder, **quiet)
    return folder


COMMANDS = {
    "evaluate": "evaluate {source} --out {out}",
    "predict": "predict {run} {source} --out {out} --device cpu",
}


@pytest.mark.parametrize("restart", ["", " --restart"])
@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("command", COMMANDS)
def test_results_over_structures(molkern, ethanol, run, tmp_path, command, kind, restart):
    shutil.copy(ethanol, "in.extxyz")
    out = as_link(kind, Path("in.extxyz"), Path("out.extxyz"))
    before = contents(tmp_path)
    line = COMMANDS[command].format(source=out, out=out, run=run)
    assert "is the file of structures itself" in molkern(line + restart, code=1)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", LINKS)
def test_evaluate_over_its_model(molkern, ethanol, tmp_path, kind):
    ethanol_model().save("m")
    model = as_link(kind, Path("m"), Path("m.npz"))
    before = contents(tmp_path)
    line = f"evaluate {ethanol} --out m.npz --restart"
    assert "m.npz is the model itself" in molkern(line, code=1, model=str(model))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["test.npz", "split.npz", "metrics.csv"])
@pytest.mark.parametrize("kind", LINKS)
def test_predictions_over_a_run(molkern, ethanol, run, tmp_path, name, kind):
    out = run / name
    if kind != "itself":
        out = as_link(kind, run / name, tmp_path / f"other{out.suffix}")
    before = contents(tmp_path)
    error = molkern(f"predict {run} {ethanol} --out {out} --device cpu --restart", code=1)
    assert f"is the run's {name} itself" in error
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_results_are_written_anew_where_that_is_asked_for(molkern, ethanol, run, command):
    Path("out.csv").write_text("theirs")
    Path("out.csv").chmod(0o600)
    line = COMMANDS[command].format(source=ethanol, out="out.csv", run=run)
    assert "out.csv exists: --restart writes it anew" in molkern(line, code=1)
    assert Path("out.csv").read_text() == "theirs"
    molkern(f"{line} --restart")
    assert len(Path("out.csv").read_text().splitlines()) == 4
    assert Path("out.csv").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("command", COMMANDS)
def test_two_writers_of_the_same_results(molkern, ethanol, run, tmp_path, command):
    line = COMMANDS[command].format(source=ethanol, out="out.csv", run=run)
    with locked(tmp_path / "out.csv"):
        assert "out.csv is being written by another run" in molkern(line, code=1)
    molkern(line)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".out")]


def test_locks_are_between_processes(molkern, ethanol, run, tmp_path):
    """The other one is killed, which leaves nothing that would be in the way."""
    code = (
        "import time; from pathlib import Path; from molkern.files import locked, locked_folder\n"
        "with locked(Path('out.csv')), locked_folder(Path('run')):\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    lines = {
        f"evaluate {ethanol} --out out.csv": "out.csv",
        "train run --resume --device cpu": "run",
    }
    try:
        assert other.stdout.readline() == b"held\n"
        for line, name in lines.items():
            assert f"{name} is being written by another run" in molkern(line, code=1)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    for line in lines:
        molkern(line)


def test_pictures_over_models(molkern, run):
    shutil.copy(run / "best.safetensors", "m.png")
    before = Path("m.png").read_bytes()
    for what in ("filters", "basis"):
        assert "m.png is the model itself" in molkern(f"plot {what} m.png --out m.png", code=1)
        error = molkern(f"plot {what} run --out run/learning_curve.png", code=1)
        assert "is the run's learning_curve.png itself" in error
    assert Path("m.png").read_bytes() == before


@pytest.mark.parametrize("filters", ["exact", "spline"])
@pytest.mark.parametrize("end", ["csv", "npz", "extxyz"])
def test_results_that_are_no_numbers(molkern, ethanol, end, filters):
    model = ethanol_model()
    with torch.no_grad():
        model.interactions[0].filter_network.layers[0].weight[0] = np.nan
    model.save("nan.safetensors")
    line = f"evaluate {ethanol} --out e.{end} --filters {filters}"
    error = molkern(line, code=1, model="nan.safetensors")
    assert "frame" in error
    assert "weights of the model are NaN" in error
    assert not Path(f"e.{end}").exists()


def test_types_without_kernels(molkern, ethanol):
    SchNet(8, 8, 1, 8, num_elements=10).bfloat16().save("m.safetensors")
    for line in (f"evaluate {ethanol} --out e.csv", MD.format(ethanol)):
        error = molkern(line, code=1, model="m.safetensors")
        assert "model m.safetensors has weights of torch.bfloat16" in error
        assert "model.float()" in error


def test_time_is_not_waited_for(tmp_path):
    """Locks are refused at once."""
    with locked(tmp_path / "a"):
        before = time.monotonic()
        with pytest.raises(ValueError, match="being written"), locked(tmp_path / "a"):
            pass
        assert time.monotonic() - before < 1


def test_pictures_whose_names_have_no_ending(molkern, ethanol, run, tmp_path):
    """They get one, which is that of a model, or of what another run left."""
    shutil.copy(run / "best.safetensors", "m.png")
    before = Path("m.png").read_bytes()
    for what in ("filters", "basis"):
        assert "m.png is the model itself" in molkern(f"plot {what} m.png --out m", code=1)
        error = molkern(f"plot {what} run --out run/learning_curve", code=1)
        assert "is the run's learning_curve.png itself" in error
    error = molkern(f"{MD.format(ethanol)} --plot m --restart", code=1, model="m.png")
    assert "m.png is the model itself" in error
    assert Path("m.png").read_bytes() == before
    assert molkern("plot basis run --out new").strip() == "new.png"
    molkern(f"{MD.format(ethanol)} --plot theirs")
    assert Path("theirs.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "command",
    ["plot filters ethanol", "plot basis", "demo --steps 100", "md e.xyz --model ethanol --plot p"],
)
def test_places_of_pictures(molkern, ethanol, command):
    shutil.copy(ethanol, "e.xyz")
    place = "--plot" if command.startswith("md") else "--out"
    command = command.removesuffix("--plot p")
    for path, message in (
        ("a.what", "a.what ends in '.what': plots end in one of"),
        ("no/a.png", f"no is not a folder: make it, or choose another {place}"),
        ("no/a", f"no is not a folder: make it, or choose another {place}"),
    ):
        assert message in molkern(f"{command} {place} {path}", code=1)


@pytest.mark.parametrize("kind", LINKS)
def test_predictions_over_the_data_of_a_run(molkern, ethanol, tmp_path, kind):
    import yaml

    pytest.importorskip("pytorch_lightning")
    frames = [ase.build.molecule("H2O") for _ in range(4)]
    for k, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=k)
        atoms.info["energy"] = -float(k)
    ase.io.write("data.extxyz", frames)
    config = dict(
        model=dict(name="SchNet", num_elements=10, hidden_channels=8, num_basis=8, cutoff=4.0),
        data=dict(path=str(tmp_path / "data.extxyz"), split=dict(train=2, validation=2)),
        objective=dict(energy={}),
        training=dict(steps=1, batch_size=2, validate_every=1),
    )
    Path("c.yaml").write_text(yaml.safe_dump(config))
    molkern("train c.yaml --out r --device cpu")
    other = "data.extxyz" if kind == "itself" else as_link(kind, Path("data.extxyz"), Path("o.csv"))
    before = Path("data.extxyz").read_bytes()
    ase.io.write("in.xyz", frames[:1])
    error = molkern(f"predict r in.xyz --out {other} --restart --device cpu", code=1)
    assert f"{other} is the data itself: choose another --out" in error
    assert Path("data.extxyz").read_bytes() == before
