"""``molkern md``: files, interruptions, refusals."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

pytest.importorskip("ase")
import ase.build
import ase.io
from ase.constraints import FixAtoms
from cli_files import arrays

from molkern import files
from molkern.data import ethanol_model
from molkern.md import group
from molkern.md.checkpoint import Checkpoint
from molkern.models import DimeNetPlusPlus, SchNet, load

ROOT = Path(__file__).parents[2]


def outputs(folder, stem="traj"):
    """Trajectories and tables of a run, as bytes, by name."""
    found = sorted(p for p in folder.glob(f"{stem}*") if p.suffix in (".xyz", ".csv"))
    return {p.name.removeprefix(stem): p.read_bytes() for p in found}


def test_trajectories_and_summary(molkern, ethanol, tmp_path):
    out = molkern(f"md {ethanol} --steps 40 --every 8 --replicas 2 --ensemble nvt --out a")
    assert "ns/day" in out
    assert "mean temperature" in out
    structure = ase.io.read(ethanol)
    for replica in range(2):
        frames = ase.io.read(tmp_path / f"a_{replica}.xyz", index=":")
        assert [frame.info["step"] for frame in frames] == [0, 8, 16, 24, 32, 40]
        assert frames[0].info["replica"] == replica
        np.testing.assert_allclose(frames[0].positions, structure.positions, atol=1e-7)
        assert frames[1].get_velocities().shape == frames[1].get_forces().shape == (9, 3)
        model = ethanol_model()
        batch = group.AtomicBatch.from_ase(frames[-1])
        expected = model(batch, forces=True)
        assert frames[-1].get_potential_energy() == pytest.approx(float(expected["energy"]))
        np.testing.assert_allclose(frames[-1].get_forces(), expected["forces"].numpy(), atol=1e-4)
    summary = json.loads((tmp_path / "a.json").read_text())
    assert summary["steps"] == 40
    assert summary["replica_steps_per_second"] == pytest.approx(2 * summary["steps_per_second"])
    assert summary["ns_per_day_together"] == pytest.approx(2 * summary["ns_per_day"])
    assert summary["neighbor_lists"] >= 1
    assert summary["threads"] == 1
    assert summary["versions"]["torch"] == torch.__version__
    assert 50 < summary["mean_temperature_K"] < 600
    assert (tmp_path / "a.png").stat().st_size > 10_000
    table = np.loadtxt(tmp_path / "a.csv", delimiter=",", skiprows=1)
    assert table.shape == (12, 7)
    assert table[-1, :3].tolist() == [40, 20, 1]


def test_frames_velocities_and_plot(molkern, tmp_path):
    frames = [ase.build.molecule("CH3CH2OH") for _ in range(3)]
    frames[1].rattle(0.05, seed=1)
    frames[1].set_velocities(np.full((9, 3), 0.01))
    ase.io.write("in.traj", frames)
    molkern("md in.traj --frame 1 --steps 2 --every 1 --keep-velocities --plot p.pdf --out b.traj")
    written = ase.io.read("b.traj", index=":")
    assert len(written) == 3
    np.testing.assert_array_equal(written[0].positions, frames[1].positions)
    np.testing.assert_allclose(written[0].get_velocities(), frames[1].get_velocities())
    assert Path("p.pdf").read_bytes().startswith(b"%PDF")


def test_crystals_and_units(molkern, tmp_path):
    crystal = ase.build.bulk("NaCl", "rocksalt", a=5.6).repeat(2)
    crystal.rattle(0.02, seed=0)
    ase.io.write("nacl.extxyz", crystal)
    SchNet(8, 8, 1, num_basis=8, cutoff=4.0, num_elements=20).save("m.safetensors")
    command = "md nacl.extxyz --steps 4 --every 4 --out c.xyz --energy-unit kcal/mol"
    molkern(command, model="m.safetensors")
    first, last = ase.io.read("c.xyz", index=":")
    np.testing.assert_allclose(first.cell, last.cell)
    assert last.pbc.all()
    table = np.loadtxt("c.csv", delimiter=",", skiprows=1)
    model = load("m.safetensors")
    energy = model(group.AtomicBatch.from_ase(crystal))["energy"].item()
    assert table[0, 3] == pytest.approx(energy * 0.0433641, rel=1e-4)


RUN = "--steps 400 --every 7 --checkpoint-every 50 --replicas 2 --ensemble nvt --friction 5"


def test_a_killed_run_goes_on(molkern, ethanol, tmp_path):
    """SIGKILL between checkpoints; files and final state are those of a run in one go."""
    command = [sys.executable, "-m", "molkern", "md", ethanol, *RUN.split(), "--out", "k.xyz"]
    command += ["--model", "ethanol", "--threads", "1"]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "k.checkpoint"
    deadline = time.monotonic() + 60
    while not (checkpoint.exists() and Checkpoint.load(checkpoint).state["step"] >= 100):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = Checkpoint.load(checkpoint).state["step"]
    assert 100 <= step < 400
    with (tmp_path / "k_1.xyz").open("a") as file:
        file.write("9\nwhat was written after the checkpoint, cut sho")
    molkern(f"md {ethanol} {RUN} --out k.xyz --resume")
    molkern(f"md {ethanol} {RUN} --out traj.xyz")
    assert outputs(tmp_path, "k") == outputs(tmp_path)
    assert arrays(checkpoint) == arrays(tmp_path / "traj.checkpoint")


def at_step(monkeypatch, step, action):
    """Does something within a run, once."""
    plain, pending = group.GroupRun._step, [action]

    def stepping(self):
        plain(self)
        if self.dynamics.step == step and pending:
            pending.pop()()

    monkeypatch.setattr(group.GroupRun, "_step", stepping)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_after_a_checkpoint(molkern, ethanol, tmp_path, monkeypatch, number):
    """Also of runs with groups, and with ASE's trajectories."""
    handler = signal.getsignal(number)
    command = f"md {ethanol} --steps 40 --every 4 --replicas 3 --group 2 --filters exact"
    at_step(monkeypatch, 22, lambda: os.kill(os.getpid(), number))
    monkeypatch.setattr(group.DynamicsWorker.__init__, "__defaults__", (0.01,))
    out = molkern(f"{command} --out s.traj", code=128 + number)
    assert "--resume goes on" in out
    assert signal.getsignal(number) is handler
    step = Checkpoint.load(tmp_path / "s.group0.checkpoint").state["step"]
    assert 22 <= step < 40
    molkern(f"{command} --out s.traj --resume")
    molkern(f"{command} --out whole.traj")
    for k in range(3):
        found, expected = (ase.io.read(f"{n}_{k}.traj", index=":") for n in ("s", "whole"))
        assert found == expected
        assert len(found) == 11
        assert all(
            np.array_equal(a.positions, b.positions) for a, b in zip(found, expected, strict=True)
        )
    assert arrays(tmp_path / "s.group1.checkpoint") == arrays(tmp_path / "whole.group1.checkpoint")


def test_a_run_stopped_before_its_first_step(molkern, ethanol, tmp_path):
    molkern(f"md {ethanol} --steps 0 --out none.xyz")
    assert len(ase.io.read("none.xyz", index=":")) == 1
    molkern(f"md {ethanol} --steps 20 --out none.xyz --resume")
    molkern(f"md {ethanol} --steps 20")
    assert outputs(tmp_path, "none") == outputs(tmp_path)


def test_a_full_disk(molkern, ethanol, tmp_path):
    """A limit on files' sizes, which writing meets as it would a full disk."""
    command = f"md {ethanol} --steps 100 --every 2 --checkpoint-every 20 --out traj.xyz"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        error = molkern(command, code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "traj.xyz cannot be written: File too large" in error
    assert Checkpoint.load(tmp_path / "traj.checkpoint").state["step"] > 0
    molkern(f"{command} --resume")
    found = outputs(tmp_path)
    molkern(f"{command} --restart")
    assert outputs(tmp_path) == found


def test_a_checkpoint_that_cannot_be_written(molkern, ethanol, tmp_path, monkeypatch):
    command = f"md {ethanol} --steps 40 --checkpoint-every 10 --out traj.xyz"
    plain = files.os.fsync

    def full(handle):
        if os.readlink(f"/proc/self/fd/{handle}").endswith("checkpoint.part"):
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(handle)

    at_step(monkeypatch, 25, lambda: monkeypatch.setattr(files.os, "fsync", full))
    error = molkern(command, code=1)
    assert "traj.checkpoint cannot be written: No space left on device" in error
    assert not list(tmp_path.glob("*.part"))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert Checkpoint.load(tmp_path / "traj.checkpoint").state["step"] == 20
    molkern(f"{command} --resume")


def test_checkpoints_of_other_runs(molkern, ethanol, tmp_path):
    command = f"md {ethanol} --steps 4 --every 2"
    molkern(command)
    error = molkern(command, code=1)
    assert "exists: --resume goes on with it, --restart starts anew" in error
    assert "give one of them" in molkern(f"{command} --resume --restart", code=1)
    for option, text in (
        ("--time-step 0.25", "time step is 0.5 there and 0.25 here"),
        ("--frame 0", "structure is C2H6O"),
        ("--temperature 200", "temperature is 300.0 there and 200.0 here"),
        ("--ensemble nvt", "ensemble is nve there and nvt here"),
        ("--seed 1", "seed is 0 there and 1 here"),
        ("--filters exact", "filters is spline there and exact here"),
    ):
        assert text in molkern(f"{command} --resume {option}", code=1)
    model = ethanol_model()
    with torch.no_grad():
        next(model.parameters()).mul_(1.001)
    model.save("other.safetensors")
    assert "model is ethanol (" in molkern(f"{command} --resume", code=1, model="other.safetensors")
    # More steps of the same run are what checkpoints are for
    molkern(f"md {ethanol} --steps 10 --every 2 --resume")
    found = outputs(tmp_path)
    molkern(f"md {ethanol} --steps 10 --every 2 --resume")
    molkern(f"md {ethanol} --steps 10 --every 2 --restart")
    assert outputs(tmp_path) == found


def test_damaged_files(molkern, ethanol, tmp_path):
    command = f"md {ethanol} --steps 4 --every 2"
    molkern(command)
    checkpoint = tmp_path / "traj.checkpoint"
    whole = checkpoint.read_bytes()
    for content, text in (
        (whole[:300] + bytes([whole[300] ^ 1]) + whole[301:], "its checksum is wrong"),
        (whole[:-40], "its checksum is wrong"),
        (b"", "is damaged or no checkpoint"),
        (b"something else\n", "is damaged or no checkpoint"),
    ):
        checkpoint.write_bytes(content)
        error = molkern(f"{command} --resume", code=1)
        assert f"{checkpoint} is damaged" in error
        assert text in error
        assert checkpoint.read_bytes() == content
    checkpoint.write_bytes(whole)
    os.truncate(tmp_path / "traj.xyz", 100)
    assert "traj.xyz has 100 bytes, but the checkpoint" in molkern(f"{command} --resume", code=1)
    checkpoint.unlink()
    assert "has no checkpoint" in molkern(f"{command} --resume", code=1)


def test_two_runs_of_the_same_files(molkern, ethanol, tmp_path, monkeypatch):
    command = f"md {ethanol} --steps 30 --every 10"
    errors = []
    at_step(monkeypatch, 20, lambda: errors.append(molkern(f"{command} --resume", code=1)))
    molkern(command)
    assert "traj.csv is being written by another run" in errors[0]
    molkern(f"{command} --resume")


def test_a_restart_leaves_a_run_under_way_alone(molkern, ethanol, tmp_path, monkeypatch):
    command, found = f"md {ethanol} --steps 30 --every 10 --checkpoint-every 10", []

    def start_anew():
        found.append(molkern(f"{command} --restart", code=1))
        found.append((tmp_path / "traj.checkpoint").exists())

    at_step(monkeypatch, 25, start_anew)
    molkern(command)
    assert "traj.csv is being written by another run" in found[0]
    assert found[1]


def test_runs_that_cannot_go_on(molkern, ethanol, tmp_path):
    command = f"md {ethanol} --replicas 2 --steps 50"
    error = molkern(f"{command} --time-step 15", code=1)
    assert "atoms fly apart in replica" in error
    assert "at step" in error
    model = ethanol_model()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    model.save("nan.safetensors")
    error = molkern(f"{command} --out n --filters exact", code=1, model="nan.safetensors")
    assert "the energy is nan in replica 0 at step 0" in error
    box = ase.Atoms("O", pbc=True)
    ase.io.write("box.traj", box)
    error = molkern("md box.traj --steps 5 --out box.xyz", code=1)
    assert "box.traj: it is periodic along a, where its cell has no length" in error
    # What could not begin left nothing that would refuse the next try
    assert not [*tmp_path.glob("n.*"), *tmp_path.glob("n_*"), *tmp_path.glob("box.[!t]*")]


def test_atoms_that_leave(molkern, tmp_path):
    pair = ase.Atoms("H2", [[0, 0, 0], [0, 0, 1.5]])
    pair.set_velocities([[0, 0, 0], [0, 0, 3.0]])
    ase.io.write("pair.traj", pair)
    SchNet(8, 8, 1, num_basis=8, cutoff=2.0, num_elements=4).save("m.safetensors")
    command = "md pair.traj --steps 20 --keep-velocities --every 5"
    error = molkern(command, code=1, model="m.safetensors")
    assert "atoms fly apart in replica 0 at step" in error
    assert "--allow-dissociation" in error
    molkern(f"{command} --restart --allow-dissociation", model="m.safetensors")


def test_refusals(molkern, ethanol, tmp_path, monkeypatch):
    fixed = ase.build.molecule("CH3CH2OH")
    fixed.set_constraint(FixAtoms([0]))
    ase.io.write("fixed.traj", fixed)
    ase.io.write("nitrogen.xyz", ase.build.molecule("CH3NO2"))
    ase.io.write("nowhere.traj", ase.Atoms("H2", [[0, 0, 0], [0, 0, np.inf]]))
    Path("empty.xyz").write_text("")
    Path("broken.xyz").write_text("3\n\nH 0 0\n")
    SchNet(8, 8, 1, num_elements=10, prediction="dipole_moment").save("dipole.safetensors")
    DimeNetPlusPlus(num_targets=3).save("several.safetensors")
    Path("text.safetensors").write_text("not a model")
    description = json.dumps({"format": 99, "model": "SchNet", "config": {}})
    metadata = {"molkern": description}
    safetensors.torch.save_file({"embedding": torch.zeros(1)}, "newer.safetensors", metadata)
    for arguments, text in (
        ("none.xyz", "none.xyz is not a file"),
        ("empty.xyz", "empty.xyz"),
        ("broken.xyz", "broken.xyz cannot be read"),
        ("fixed.traj", "has constraints (FixAtoms)"),
        ("nowhere.traj", "nowhere.traj: atom 1 is at [0.0, 0.0, inf], which is not finite"),
        ("nitrogen.xyz", "nitrogen.xyz: atom 1 is N (7), which model ethanol does not know"),
        (f"{ethanol} --keep-velocities", "has no velocities to keep"),
        (f"{ethanol} --frame 3", "has 3 frame(s), numbered from 0; there is no 3"),
        (f"{ethanol} --out x.pdb", "x.pdb ends in '.pdb': trajectories end in one of .xyz"),
        (f"{ethanol} --out no/x.xyz", "no is not a folder"),
        (f"{ethanol} --plot x.what", "plots end in one of"),
        (f"{ethanol} --time-step 0", "time step must be positive and finite, got 0.0 fs"),
        (f"{ethanol} --temperature nan", "temperature must be finite and not negative, got nan"),
        (f"{ethanol} --device abacus", "device 'abacus' is unknown"),
        (f"{ethanol} --energy-unit cal", "energy unit 'cal' is unknown"),
        ("nitrogen.xyz --out nitrogen.xyz --restart", "nitrogen.xyz is the structure itself"),
        (f"{ethanol} --ray-address auto", "--ray-address auto needs --workers"),
        (f"{ethanol} --charge 1", "model ethanol takes no total_charge, got 1.0"),
    ):
        assert text in molkern(f"md {arguments}", code=1), arguments
    for model, text in (
        ("none.safetensors", "model none.safetensors cannot be read"),
        ("dipole.safetensors", "predicts dipole_moment, not an energy"),
        ("several.safetensors", "predicts 3 properties, not an energy"),
        ("text.safetensors", "text.safetensors is not a safetensors file"),
        ("newer.safetensors", "newer.safetensors holds a SchNet in format 99"),
    ):
        assert text in molkern(f"md {ethanol}", code=1, model=model)
    assert not list(tmp_path.glob("traj*"))
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert "pip install 'molkern[md]'" in molkern(f"md {ethanol}", code=1)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "tqdm")
    assert "pip install 'molkern[ray]'" in molkern(f"md {ethanol} --workers 2", code=1)


README = re.search(r"## Command line\n(.*?)\n## ", (ROOT / "README.md").read_text(), re.DOTALL)[1]
COMMANDS = re.findall(r"^molkern (.*?)(?: +#.*)?$", README, re.MULTILINE)


def test_readme(molkern, tmp_path):
    """The README's commands run as they stand, one after the other."""
    ase.io.write("ethanol.xyz", ase.build.molecule("CH3CH2OH"))
    for command in COMMANDS:
        molkern(command.replace(" --model ethanol", "") if "info" not in command else command)
    assert len(COMMANDS) == 4
    assert len(ase.io.read("run_3.xyz", index=":")) == 41
    assert len(ase.io.read("energies.extxyz", index=":")) == 41
