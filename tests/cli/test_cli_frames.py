"""What frames state is the same for every command; frames that cannot be computed are named."""

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("ase")
pytest.importorskip("pytorch_lightning")
import ase.build
import ase.io
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from molkern.data import load_ase, load_npz
from molkern.files import read_frames
from molkern.md import ASECalculator
from molkern.models import PhysNet, SchNet, load
from molkern.training.objective import evaluate, match_labels
from molkern.training.run import prepare
from molkern.units import energy_unit

CONFIG = dict(
    model=dict(name="PhysNet", num_elements=10, hidden_channels=8, num_basis=8, cutoff=4.0),
    data=dict(path="train.extxyz", split=dict(train=6, validation=2)),
    objective=dict(energy={}, forces={}),
    training=dict(steps=2, batch_size=3, validate_every=2),
)
CHARGES = [0.0, 1.0, -2.0, 1.0]


def charged():
    """Water in four frames that state their charges in four ways."""
    frames = []
    for k in range(4):
        atoms = ase.build.molecule("H2O")
        atoms.rattle(0.05, seed=k)
        atoms.info["gap"] = 1.0
        frames.append(atoms)
    frames[1].info["charge"] = 1
    frames[2].info["total_charge"] = -2
    frames[3].set_initial_charges([0.5, 0.25, 0.25])
    return frames


@pytest.fixture
def trained(molkern, tmp_path, monkeypatch):
    """A run of PhysNet in ``run``, on charged frames."""
    monkeypatch.setenv("MOLKERN_CACHE", str(tmp_path / "cache"))
    frames = charged() + charged()
    for k, atoms in enumerate(frames):
        forces = np.random.default_rng(k).normal(size=(3, 3))
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0 * k, forces=forces)
    ase.io.write("train.extxyz", frames)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    text = molkern("train c.yaml --out run --device cpu")
    assert "total_charge is stated by 6 of 8 frames; it is 0 in the others" in text
    return molkern


MODEL = "run/best.safetensors"


def columns(path):
    """The columns of a table by name."""
    return np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding=None)


def test_the_same_charges_everywhere(trained):
    ase.io.write("in.extxyz", charged())
    with connect("in.db") as database:
        for atoms in charged():
            charge = {k: v for k, v in atoms.info.items() if k == "charge"}
            kept = {k: v for k, v in atoms.info.items() if k == "total_charge"}
            database.write(atoms, key_value_pairs=charge, data=kept)
    model = load(MODEL)
    data = load_ase("in.extxyz", progress=False)
    config = prepare_config()
    with torch.no_grad():
        out = evaluate(model, match_labels(config), data.collate(range(4), ["total_charge"]))
    expected = out["energy"].numpy()
    neutral = model(data.collate(range(4), []).batch)["energy"].detach().numpy()
    assert np.abs(expected - neutral)[1:].min() > 1e-3  # charges matter
    assert data.properties["total_charge"].tolist() == CHARGES
    note = "total_charge is stated by 3 of 4 frames; it is 0 in the others"
    for name in ("in.extxyz", "in.db"):
        assert note in trained(
            f"predict run {name} --out p.csv --device cpu --batch-size 3 --restart"
        )
        assert np.allclose(columns("p.csv")["energy"], expected, atol=1e-5), name
        assert columns("p.csv")["total_charge"].tolist() == CHARGES
        assert note in trained(f"evaluate {name} --out e.csv --batch-size 6 --restart", model=MODEL)
        assert np.allclose(columns("e.csv")["energy_eV"], expected, atol=1e-5), name
        assert columns("e.csv")["total_charge"].tolist() == CHARGES
        for k in range(4):
            trained(f"md {name} --frame {k} --steps 0 --out m.xyz --restart", model=MODEL)
            first = columns("m.csv")["potential_eV"]
            assert float(first) == pytest.approx(expected[k], abs=1e-5)
        for k, atoms in enumerate(read_frames(name)):
            atoms.calc = ASECalculator(model)
            assert atoms.get_potential_energy() == pytest.approx(expected[k], abs=1e-5)


def prepare_config():
    from molkern.training.config import check_config

    return check_config(CONFIG)


def test_a_charge_by_another_name(trained, tmp_path):
    """Where training was told a name, predictions know it, and what they write is read again."""
    frames = [*charged(), *charged()]
    for k, atoms in enumerate(frames):
        atoms.info = {"ion": k % 3 - 1}
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0 * k, forces=np.zeros((3, 3)))
    ase.io.write("train.extxyz", frames)
    labels = "--set data.labels.total_charge=ion"
    trained(f"train c.yaml --out other --device cpu {labels}")
    trained("predict other train.extxyz --out p.csv --device cpu")
    assert columns("p.csv")["total_charge"].tolist() == [k % 3 - 1 for k in range(8)]
    trained("predict other train.extxyz --out p.extxyz --device cpu")
    trained("predict other p.extxyz --out q.csv --device cpu")
    assert columns("q.csv")["energy"].tolist() == columns("p.csv")["energy"].tolist()
    trained("evaluate p.extxyz --out e.csv", model="other/best.safetensors")
    assert np.allclose(columns("e.csv")["energy_eV"], columns("p.csv")["energy"], atol=1e-5)


def test_the_objective_of_training_has_them(trained):
    found = prepare(prepare_config())
    sample = found.data.collate([1], ["energy", "forces", "total_charge"])
    model = found.model.eval()
    given = evaluate(model, found.labels, sample)["energy"].item()
    wanted = model(sample.batch, total_charge=1.0)["energy"].item()
    assert given == pytest.approx(wanted, rel=1e-6)
    assert abs(model(sample.batch)["energy"].item() - wanted) > 1e-3


def test_what_is_written_keeps_them(trained):
    """Results can be put in again, with the same numbers."""
    ase.io.write("in.extxyz", charged())
    trained("evaluate in.extxyz --out e0.csv", model=MODEL)
    expected = columns("e0.csv")["energy_eV"]
    trained("predict run in.extxyz --out p.extxyz --device cpu")
    trained("predict run in.extxyz --out p.npz --device cpu")
    trained("evaluate in.extxyz --out r.extxyz", model=MODEL)
    trained("evaluate in.extxyz --out r.npz", model=MODEL)
    for name in ("p.npz", "r.npz"):
        with np.load(name) as content:
            assert content["total_charge"].tolist() == CHARGES
    for name in ("p.extxyz", "r.extxyz"):
        trained(f"evaluate {name} --out e1.csv --restart", model=MODEL)
        assert np.allclose(columns("e1.csv")["energy_eV"], expected, atol=1e-5)
        assert load_ase(name, progress=False).properties["total_charge"].tolist() == CHARGES
    trained("md in.extxyz --frame 2 --steps 2 --every 1 --out m.xyz", model=MODEL)
    trained("evaluate m.xyz --out e2.csv", model=MODEL)
    potential = columns("m.csv")["potential_eV"]
    assert np.allclose(columns("e2.csv")["energy_eV"], potential, atol=1e-5)


def test_a_charge_that_is_given_counts_more(molkern):
    torch.manual_seed(0)
    PhysNet(8, 8, cutoff=4.0, num_elements=10).save("m.safetensors")
    ase.io.write("in.extxyz", charged())
    text = molkern("evaluate in.extxyz --out e.extxyz --charge -1", model="m.safetensors")
    assert "total_charge: -1 as given, not what 3 of 4 frames state" in text
    data = load_ase("e.extxyz", progress=False)
    assert data.properties["total_charge"].tolist() == [-1.0] * 4
    molkern("evaluate e.extxyz --out f.extxyz", model="m.safetensors")
    again = load_ase("f.extxyz", progress=False)
    assert np.allclose(again.properties["energy"], data.properties["energy"], atol=1e-6)


def test_charges_that_are_no_numbers(trained):
    frames = charged()
    frames[2].info["total_charge"] = np.nan
    ase.io.write("in.extxyz", frames)
    message = "in.extxyz, frame 2: its total_charge is no finite number"
    assert message in trained("predict run in.extxyz --device cpu", code=1)
    assert message in trained("evaluate in.extxyz", code=1, model=MODEL)
    error = trained("md in.extxyz --frame 2 --steps 1", code=1, model=MODEL)
    assert "in.extxyz: its total_charge is no finite number" in error
    trained("evaluate in.extxyz --charge 0", model=MODEL)
    frames[2].calc = ASECalculator(load(MODEL))
    with pytest.raises(ValueError, match="no finite number"):
        frames[2].get_potential_energy()
    SchNet(8, 8, 1, num_basis=8, num_elements=10).save("s.safetensors")
    molkern_says = trained("evaluate in.extxyz --restart", model="s.safetensors")
    assert "total_charge" not in molkern_says  # which this model does not depend on


def test_the_calculator_sees_another_charge(molkern):
    model = PhysNet(8, 8, cutoff=4.0, num_elements=10)
    atoms = charged()[0]
    atoms.calc = ASECalculator(model)
    energies = [atoms.get_potential_energy()]
    for charge in (2, -1):
        atoms.info["charge"] = charge
        energies.append(atoms.get_potential_energy())
    atoms.info.pop("charge")
    atoms.set_initial_charges([-1.0, 0, 0])
    energies.append(atoms.get_potential_energy())
    atoms.set_initial_charges([0.0, 0, 0])
    energies.append(atoms.get_potential_energy())
    assert energies[0] == energies[4]
    assert energies[2] == energies[3]
    assert len(set(energies)) == 3
    given = charged()[1]
    given.calc = ASECalculator(model, conditions={"total_charge": 0.0})
    plain = given.copy()
    plain.info.clear()
    plain.calc = ASECalculator(model)
    assert given.get_potential_energy() == plain.get_potential_energy()


#: What dynamics says in its own words.
MD = {"it has no atoms": " has no atoms"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda atoms: atoms.positions.fill(np.nan), "atom 0 is at [nan, nan, nan]"),
        (lambda atoms: atoms.set_pbc(True), "it is periodic along a"),
        (lambda atoms: atoms.symbols.__setitem__(1, "X"), "atom 1 has number 0"),
        (lambda atoms: atoms.__delitem__(slice(None)), "it has no atoms"),
    ],
)
def test_frames_that_cannot_be_computed(trained, spoil, message):
    frames = charged()
    spoil(frames[2])
    ase.io.write("in.traj", frames)
    wanted = f"in.traj, frame 2: {message}"
    assert wanted in trained("evaluate in.traj --out e.csv", code=1, model=MODEL)
    assert wanted in trained("predict run in.traj --device cpu", code=1)
    assert f"in.traj{MD.get(message, f': {message}')}" in trained(
        "md in.traj --frame 2 --steps 1", code=1, model=MODEL
    )


def test_references_by_other_names(molkern):
    """Errors are told where a file's labels have the names that training knows."""
    frames = charged()
    for atoms in frames:
        atoms.info["REF_energy"] = 1.0
        atoms.arrays["REF_forces"] = np.ones((3, 3))
    ase.io.write("in.extxyz", frames)
    text = molkern("evaluate in.extxyz")
    assert "energy: MAE" in text
    assert "(4 frames)" in text
    assert "forces: MAE" in text
    found = ase.io.read("results.extxyz")
    assert found.info["reference_energy"] == 1.0
    assert found.arrays["reference_forces"].tolist() == np.ones((3, 3)).tolist()
    frames[1].info["REF_energy"] = np.nan
    frames[2].arrays["REF_forces"][1, 1] = np.nan
    ase.io.write("in.extxyz", frames)
    text = molkern("evaluate in.extxyz --restart")
    assert "(3 frames)" in text
    assert "nan" not in text


def test_all_molecules_of_an_sdf(molkern):
    text = "".join(
        f"m{k}\n\n\n  1  0  0  0  0  0  0  0  0  0999 V2000\n"
        f"    0.0000    0.0000    0.0000 {symbol}   0  0\nM  END\n> <energy>\n{k}.5\n\n$$$$\n"
        for k, symbol in enumerate("CHO")
    )
    with open("some.sdf", "w") as file:
        file.write(text)
    said = molkern("evaluate some.sdf")
    assert "3 structure(s)" in said
    assert "(3 frames)" in said
    assert [str(atoms.symbols) for atoms in ase.io.read("results.extxyz", ":")] == ["C", "H", "O"]


def test_npz_of_predictions_hold_labels_and_charges(trained):
    ase.io.write("in.extxyz", charged())
    trained("predict run in.extxyz --out p.npz --device cpu")
    with np.load("p.npz") as content:
        places = content["R"].reshape(4, 3, 3)
        arrays = dict(z=content["Z"][:3], R=places, E=content["energy"], Q=content["total_charge"])
    np.savez("again.npz", **arrays)
    assert load_npz("again.npz").properties["total_charge"].tolist() == CHARGES


@pytest.mark.parametrize("command", ["evaluate {}", "predict run {} --device cpu"])
def test_results_can_be_read_whatever_frames_hold(trained, command):
    """Texts of several lines, as in files of PubChem, and names that mean something else."""
    frames = charged()[:2]
    frames[0].info |= {"list": "two\nlines", "a=b": "c\rd", 7: 8, "none": None}
    frames[0].info |= {"Properties": "species:S:1", "Lattice": "1 0 0", "pbc": "T", "": 1}
    frames[0].info |= {"separated": "a\u2028b", "two words": 'say "no"', "nested": [[1], [2, 3]]}
    frames[1].info["virial"] = np.arange(6.0)
    ase.io.write("in.traj", frames)
    trained(command.format("in.traj") + " --out out.extxyz", model=MODEL)
    trained(command.format("in.traj") + " --out out.npz", model=MODEL)
    found = ase.io.read("out.extxyz", ":")
    for atoms, original in zip(found, frames, strict=True):
        assert atoms.get_chemical_symbols() == original.get_chemical_symbols()
        assert np.allclose(atoms.positions, original.positions)
        assert not atoms.pbc.any()
        assert not atoms.cell.any()
    with np.load("out.npz") as arrays:
        energies = arrays["energies" if "energies" in arrays else "energy"]
    assert np.allclose([atoms.get_potential_energy() for atoms in found], energies)
    assert found[0].info["list"] == "two lines"
    assert found[0].info["two words"] == 'say "no"'
    assert found[1].info["total_charge"] == 1.0
    assert found[1].info["virial"].tolist() == [[0, 5, 4], [5, 1, 3], [4, 3, 2]]


@pytest.mark.parametrize("value", ["nan", "inf", "-1e400"])
@pytest.mark.parametrize("command", ["evaluate in.extxyz", "md in.extxyz --steps 1"])
def test_a_charge_that_is_no_number_is_not_the_frames_fault(trained, command, value):
    ase.io.write("in.extxyz", charged()[:1])
    error = trained(f"{command} --charge={value} --out o.xyz", code=1, model=MODEL)
    assert error.startswith("molkern: total_charge must be a finite number, got")


@pytest.mark.parametrize("unit", ["kcal/mol", "Hartree", "eV"])
@pytest.mark.parametrize("kind", ["extxyz", "db"])
def test_references_in_other_units(trained, kind, unit):
    """Databases say theirs; of other files one is told."""
    factor = energy_unit(unit)
    frames = charged()
    for k, atoms in enumerate(frames):
        given = dict(energy=-float(k) / factor, forces=np.full((3, 3), k / factor))
        if kind == "db":
            atoms.info["given"] = given
        else:
            atoms.calc = SinglePointCalculator(atoms, **given)
    option = ""
    if kind == "db":
        with connect("in.db") as database:
            units = {"energy": unit, "forces": f"{unit}/Ang"}
            database.metadata = {"_property_unit_dict": units, "_distance_unit": "Ang"}
            for atoms in frames:
                given = atoms.info.pop("given")
                database.write(atoms, data={"energy": [given["energy"]], "forces": given["forces"]})
    else:
        ase.io.write("in.extxyz", frames)
        option = f" --reference-unit {unit}"
    lines = trained(f"evaluate in.{kind} --out o.extxyz{option}", model=MODEL).splitlines()
    found = ase.io.read("o.extxyz", ":")
    assert np.allclose([atoms.info["reference_energy"] for atoms in found], [0, -1, -2, -3])
    for k, atoms in enumerate(found):
        assert np.allclose(atoms.arrays["reference_forces"], k)
    errors = [atoms.get_potential_energy() + k for k, atoms in enumerate(found)]
    mean = 1e3 * np.abs(errors).mean()
    assert next(line for line in lines if line.startswith("energy:")).split()[2] == f"{mean:.4g}"


def test_an_unknown_unit_of_references(trained):
    ase.io.write("in.extxyz", charged())
    error = trained("evaluate in.extxyz --reference-unit eV/atom", code=1, model=MODEL)
    assert error == (
        "molkern: in.extxyz: energy unit 'eV/atom' is unknown: use one of eV, kcal/mol, kJ/mol, "
        "Hartree"
    )
