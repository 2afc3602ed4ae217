"""``molkern evaluate`` and ``molkern info``."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("ase")
import ase.build
import ase.io
from ase.calculators.singlepoint import SinglePointCalculator

from molkern.graph import AtomicBatch
from molkern.models import DTNN, DimeNetPlusPlus, PhysNet, SchNet


@pytest.fixture
def mixed(molkern):
    """Molecules and crystals in turn, some with energies and forces; a model; their results."""
    model = SchNet(8, 8, 1, num_basis=8, cutoff=4.0, num_elements=20, mean=-2.0).eval()
    model.save("m.safetensors")
    frames, expected = [], []
    rng = np.random.default_rng(0)
    for k in range(12):
        name = ["CH3CH2OH", "H2O", "C6H6"][k % 3]
        atoms = ase.build.molecule(name) if k % 4 else ase.build.bulk("NaCl", "rocksalt", a=5.6)
        atoms.rattle(0.05, seed=k)
        periodic = bool(atoms.pbc.any())
        out = model(AtomicBatch.from_ase(atoms), forces=True, stress=periodic)
        out = {key: value.numpy() for key, value in out.items()}
        if k != 5:
            noise = rng.normal(size=out["forces"].shape)
            energy = float(out["energy"][0]) + 0.1 * (-1) ** k
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=out["forces"] + noise)
        atoms.info["name"] = f"frame{k}"
        frames.append(atoms)
        expected.append(out)
    ase.io.write("mixed.extxyz", frames)
    return frames, expected


def test_results_in_order(molkern, mixed):
    frames, expected = mixed
    text = molkern("evaluate mixed.extxyz --stress --batch-size 20", model="m.safetensors")
    found = ase.io.read("results.extxyz", index=":")
    assert [a.info["name"] for a in found] == [f"frame{k}" for k in range(12)]
    for atoms, frame, out in zip(found, frames, expected, strict=True):
        assert atoms.get_potential_energy() == pytest.approx(float(out["energy"][0]), abs=1e-5)
        np.testing.assert_allclose(atoms.get_forces(), out["forces"], atol=1e-5)
        assert ("stress" in atoms.calc.results) == ("stress" in out)
        if "stress" in out:
            stress = atoms.get_stress(voigt=False)
            np.testing.assert_allclose(stress, out["stress"][0], atol=1e-6)
        if frame.calc is not None:
            assert atoms.info["reference_energy"] == pytest.approx(frame.calc.results["energy"])
            assert atoms.arrays["reference_forces"].shape == (len(frame), 3)
    assert "energy: MAE 100 meV, RMSE 100 meV (11 frames)" in text
    assert "forces: MAE " in text
    assert "12 structure(s): results.extxyz" in text
    assert not list(Path.cwd().glob("*.part"))


def test_formats_and_batches(molkern, mixed):
    """The same numbers in every format, and for batches and edges of any number."""
    _, expected = mixed
    molkern("evaluate mixed.extxyz --out a.npz --stress", model="m.safetensors")
    data = np.load("a.npz")
    energies = np.array([float(out["energy"][0]) for out in expected])
    np.testing.assert_allclose(data["energies"], energies, atol=1e-5)
    forces = np.concatenate([out["forces"] for out in expected])
    np.testing.assert_allclose(data["forces"], forces, atol=1e-5)
    assert data["atoms"].tolist() == [len(out["forces"]) for out in expected]
    assert np.isnan(data["stress"][1]).all()
    assert np.isfinite(data["stress"][0]).all()
    command = "evaluate mixed.extxyz --batch-size 1000 --max-edges 60 --out"
    molkern(f"{command} b.csv", model="m.safetensors")
    table = np.loadtxt("b.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(table[:, 2], energies, atol=1e-5)
    assert table[:, 0].tolist() == list(range(12))
    molkern(f"{command} c.npz --energy-unit Hartree", model="m.safetensors")
    np.testing.assert_allclose(np.load("c.npz")["energies"], 27.211386 * energies, rtol=1e-5)


def test_refusals(molkern, tmp_path):
    good = ase.build.molecule("CH3CH2OH")
    ase.io.write("in.extxyz", [good, good, ase.build.molecule("CH3NO2")])
    before = Path("in.extxyz").read_bytes()
    Path("empty.xyz").write_text("")
    Path("binary.xyz").write_bytes(bytes(range(256)))
    Path("cut.xyz").write_text("1\n\nH 0 0 0\n3\n\nH 0 0 0\n")
    Path("what.ever").write_text("?")
    for arguments, text in (
        (
            "in.extxyz",
            "in.extxyz, frame 2: atom 1 is N (7), which model ethanol does not know: it ",
        ),
        ("none.xyz", "none.xyz is not a file"),
        (".", ". is not a file"),
        ("empty.xyz", "empty.xyz"),
        ("binary.xyz", "binary.xyz cannot be read"),
        ("cut.xyz", "cut.xyz cannot be read"),
        ("what.ever", "what.ever cannot be read"),
        ("in.extxyz --out in.extxyz", "in.extxyz is the file of structures itself"),
        ("in.extxyz --out x.pdf", "results end in one of .xyz, .extxyz, .csv, .npz"),
        ("in.extxyz --out no/x.xyz", "no is not a folder"),
        ("in.extxyz --device cuda:99", "device 'cuda:99' cannot be used"),
    ):
        assert text in molkern(f"evaluate {arguments}", code=1), arguments
    assert Path("in.extxyz").read_bytes() == before
    assert not list(tmp_path.glob("results*"))


def test_a_full_disk(molkern, mixed, tmp_path):
    """Results of an earlier run stay, and nothing half-written is left."""
    Path("results.extxyz").write_text("of an earlier run")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    try:
        error = molkern("evaluate mixed.extxyz", code=1, model="m.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "results.extxyz cannot be written: File too large" in error
    assert Path("results.extxyz").read_text() == "of an earlier run"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [(PhysNet, {}), (DTNN, {}), (DimeNetPlusPlus, {"num_blocks": 1})],
)
def test_other_models(molkern, kind, sizes):
    """Energies of a file, and a few steps, at constant energy as far as so few tell."""
    torch.manual_seed(1)
    model = kind(cutoff=4.0, **sizes).double().eval()
    model.save("m.safetensors")
    atoms = ase.build.molecule("H2O")
    ase.io.write("water.xyz", atoms)
    charge, conditions = "", {}
    if kind is PhysNet:
        charge, conditions = " --charge 1", {"total_charge": 1.0}
    molkern(f"evaluate water.xyz --out e.csv{charge}", model="m.safetensors")
    out = model(AtomicBatch.from_ase(atoms, torch.float64), **conditions)
    found = np.loadtxt("e.csv", delimiter=",", skiprows=1)[2]
    assert found == pytest.approx(out["energy"].item(), rel=1e-6)
    molkern(f"md water.xyz --steps 5 --every 1 --replicas 2{charge}", model="m.safetensors")
    conserved = np.loadtxt("traj.csv", delimiter=",", skiprows=1)[:, 5].reshape(-1, 2)
    assert np.ptp(conserved, axis=0).max() < 1e-3


def test_reference_energies_tell_elements(molkern):
    """Elements of the table that have none among others that do."""
    reference = [0.0, -0.5, 0, 0, 0, 0, -37.8, 0, -75.0, 0]
    SchNet(8, 8, 1, num_basis=8, num_elements=10, reference=reference).save("m.safetensors")
    ase.io.write("n.xyz", ase.build.molecule("NH3"))
    error = molkern("evaluate n.xyz", code=1, model="m.safetensors")
    assert "n.xyz, frame 0: atom 0 is N (7)" in error
    assert "it knows H, C, O" in error


def test_elements_that_one_insists_on(molkern):
    ase.io.write("n.xyz", ase.build.molecule("NH3"))
    model = SchNet(8, 8, 1, num_basis=8, cutoff=4.0, num_elements=10)
    model.elements = [1, 6]
    model.save("m.safetensors")
    assert "elements: H, C" in molkern("info --model m.safetensors")
    for command in ("evaluate n.xyz --out e.csv", "md n.xyz --steps 2 --every 1"):
        error = molkern(command, code=1, model="m.safetensors")
        assert "atom 0 is N (7), which model m.safetensors does not know: it knows H, C" in error
        assert "--allow-unknown-elements" in error
        molkern(f"{command} --allow-unknown-elements", model="m.safetensors")
    energy = np.loadtxt("e.csv", delimiter=",", skiprows=1)[2]
    model.elements = None
    batch = AtomicBatch.from_ase(ase.build.molecule("NH3"))
    assert energy == pytest.approx(model.eval()(batch)["energy"].item(), rel=1e-5)


def test_info(molkern):
    text = molkern("info --model ethanol")
    for part in ("cpu_instruction_sets", "threads: ", "GPUs: ", "class: SchNet", "cutoff: 5.0 Å"):
        assert part in text
    assert "elements: H, C, O" in text
    assert "parameters: 58,817" in text
    assert "3 tables of degree 5" in text
    SchNet(8, 8, 1, num_basis=8, num_elements=90).double().save("m.safetensors")
    text = molkern("info --model m.safetensors")
    assert "elements: H to Ac, 89 elements" in text
    assert "type: float64" in text
    assert "model none cannot be read" in molkern("info --model none", code=1)
