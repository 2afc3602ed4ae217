"""Labels in extended XYZ and databases: by usual names or given ones, in their shapes and units."""

import numpy as np
import pytest

pytest.importorskip("ase")
import ase
import ase.io
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from molkern.data import load_ase, load_dataset

KCAL = 0.0433641043
CELL = np.array([[4.0, 0.5, 0], [0, 5, 0.25], [0.125, 0, 6]])
VOLUME = abs(np.linalg.det(CELL))
STRESS = np.array([[1.0, 0.5, 0.25], [0.5, 2.0, 0.75], [0.25, 0.75, -3.0]])
ENERGIES, FORCES = np.array([-3.5, -2.5]), np.arange(12.0).reshape(2, 2, 3)
CHARGES = np.array([[0.25, -0.25], [0.5, -0.5]])


def crystals():
    """Two frames of two atoms, without labels."""
    return [ase.Atoms("HF", [[0, 0, 0], [0, 0, 0.9 + k]], cell=CELL, pbc=True) for k in (0, 1)]


@pytest.fixture
def load(tmp_path):
    """Writes frames as extended XYZ and reads them."""

    def load(frames, **options):
        ase.io.write(tmp_path / "f.extxyz", frames)
        return load_ase(tmp_path / "f.extxyz", progress=False, **options)

    return load


def labelled(prefix="", energy="energy", forces="forces", stress="stress", charges="charges"):
    frames = crystals()
    for k, atoms in enumerate(frames):
        atoms.info[prefix + energy] = ENERGIES[k]
        atoms.arrays[prefix + forces] = FORCES[k]
        atoms.arrays[prefix + charges] = CHARGES[k]
        virial = "virial" in stress
        atoms.info[prefix + stress] = -VOLUME * STRESS if virial else STRESS
    return frames


def check(data, factor=1.0):
    assert np.allclose(data.properties["energy"], ENERGIES * factor)
    assert np.allclose(data.properties["forces"], FORCES.reshape(-1, 3) * factor)
    assert np.allclose(data.properties["stress"], [STRESS * factor] * 2)
    assert np.allclose(data.properties["charges"], CHARGES.reshape(-1))
    assert data.units["energy"] == "eV"
    assert data.units["forces"] == "eV/Å"
    assert data.units["stress"] == "eV/Å³"


@pytest.mark.parametrize("prefix", ["", "REF_", "ref_", "dft_", "DFT_"])
@pytest.mark.parametrize("forces", ["forces", "force"])
@pytest.mark.parametrize("stress", ["stress", "virial", "virials"])
def test_usual_names(load, prefix, forces, stress):
    frames = labelled(prefix, forces=forces, stress=stress)
    check(load(frames))
    check(load(frames, energy_unit="kcal/mol"), KCAL)
    data = load(frames)
    assert data.sources["energy"] == prefix + "energy"
    assert list(data.unused) == []
    assert set(data.properties) == {"energy", "forces", "stress", "charges"}


def test_names_that_are_given(load):
    frames = labelled("my", energy="E", forces="F", stress="_virial", charges="q")
    for atoms in frames:
        atoms.info["energy"] = 77.0
    labels = {"energy": "myE", "forces": "myF", "stress": "my_virial", "charges": "myq"}
    data = load(frames, labels=labels)
    check(data)
    assert list(data.unused) == ["energy"]
    check(load(frames, labels=labels, energy_unit="kcal/mol"), KCAL)
    data = load(frames, labels={"U": "myE"})
    assert np.allclose(data.properties["U"], ENERGIES)
    assert "myE" not in data.properties
    with pytest.raises(ValueError, match=r"f\.extxyz has no 'E0' \(data\.labels: energy\): it has"):
        load(frames, labels={"energy": "E0"})


def test_a_name_that_is_given_to_something_else(load):
    frames = labelled()
    for atoms in frames:
        atoms.info |= {"gap": 1.0, "homo": 2.0, "total_charge": 5.0, "ion": 1.0}
    data = load(frames, labels={"homo": "gap", "total_charge": "ion"})
    assert data.properties["homo"].tolist() == [1.0, 1.0]
    assert data.properties["total_charge"].tolist() == [1.0, 1.0]
    assert set(data.unused) == {"homo", "total_charge"}


def test_one_method_does_not_meet_another(load):
    """Energies of one method and forces of another are no labels together."""
    frames = labelled("REF_")
    for atoms in frames:
        atoms.info["energy"] = 77.0
    data = load(frames)
    assert data.properties["energy"].tolist() == [77.0, 77.0]
    assert "forces" not in data.properties
    assert set(data.unused) == {"REF_forces", "REF_stress", "REF_charges"}
    assert np.allclose(data.properties["REF_energy"], ENERGIES)
    check(load(frames, labels={"energy": "REF_energy"}))
    check(load(frames, labels={"forces": "REF_forces"}))


def test_plain_names_beside_the_only_energy(load):
    """A virial without a prefix belongs to the energy that has one, where there is no other."""
    frames = labelled("REF_")
    for atoms in frames:
        del atoms.info["REF_stress"]
        atoms.info["virial"] = -VOLUME * STRESS
    data = load(frames)
    check(data)
    assert "stress is read from virial, the negative of volume times stress" in data.notes
    for atoms in frames:
        atoms.info["energy"] = 77.0
    data = load(frames, labels={"energy": "REF_energy"})
    assert "stress" not in data.properties
    check(load(frames, labels={"energy": "REF_energy", "stress": "virial"}))


def test_a_label_that_is_given_beside_plain_ones(load):
    frames = labelled()
    for atoms in frames:
        atoms.info["E0"] = ENERGIES[0]
        atoms.arrays["slopes"] = 2 * FORCES[0]
    data = load(frames, labels={"forces": "slopes"})
    assert np.allclose(data.properties["energy"], ENERGIES)
    assert np.allclose(data.properties["forces"], np.concatenate([2 * FORCES[0]] * 2))
    assert "forces" in data.unused


def test_energies_by_other_names_are_in_ev_too(load):
    frames = crystals()
    for atoms in frames:
        atoms.info |= {"xtb_energy": 2.0, "Energy_per_atom": 1.0, "gap": 3.0}
    data = load(frames, energy_unit="kcal/mol")
    assert np.allclose(data.properties["xtb_energy"], 2 * KCAL)
    assert np.allclose(data.properties["Energy_per_atom"], KCAL)
    assert data.properties["gap"].tolist() == [3.0, 3.0]
    assert data.units == {"xtb_energy": "eV", "Energy_per_atom": "eV"}


def test_results_of_calculators(load):
    frames = crystals()
    for k, atoms in enumerate(frames):
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=ENERGIES[k],
            free_energy=-99.0,
            forces=FORCES[k],
            stress=STRESS[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]],
            charges=CHARGES[k],
            magmom=1.5,
        )
    data = load(frames)
    check(data)
    assert {"free_energy", "magmom"} <= set(data.unused)
    free = load(frames, labels={"energy": "free_energy"})
    assert free.properties["energy"].tolist() == [-99.0, -99.0]


def test_stress_of_six_and_nine_components(load):
    voigt = STRESS[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    lopsided = np.arange(9.0).reshape(3, 3)
    for written, wanted in (
        (voigt, STRESS),
        (STRESS, STRESS),
        (STRESS.reshape(9), STRESS),
        (lopsided.reshape(9, order="F"), lopsided),
        (lopsided, lopsided),
    ):
        frames = crystals()
        for atoms in frames:
            atoms.info["REF_stress"] = written
        assert np.allclose(load(frames).properties["stress"], [wanted] * 2)


def test_virials_without_a_cell_are_no_labels(load):
    frames = labelled(stress="virial")
    frames[1] = ase.Atoms(frames[1].symbols, frames[1].positions)
    frames[1].info |= {"energy": ENERGIES[1], "virial": STRESS}
    data = load(frames)
    assert np.allclose(data.properties["stress"][0], STRESS)
    assert np.isnan(data.properties["stress"][1]).all()


def test_what_is_not_used_is_listed(load):
    frames = labelled()
    for atoms in frames:
        atoms.info |= {"config_type": "bulk", "tensor": np.ones((2, 2)), "done": True, "gap": 1.0}
        atoms.set_momenta(FORCES[0])
        atoms.arrays["spins"] = np.ones((2, 3))
    data = load(frames)
    assert set(data.unused) == {"config_type", "tensor", "done", "momenta", "spins"}
    assert "gap" in data.properties


def test_lists_survive_the_cache(tmp_path):
    frames = labelled("REF_")
    for k, atoms in enumerate(frames):
        atoms.info |= {"config_type": "bulk", **({"charge": 1} if k else {})}
    path = tmp_path / "f.extxyz"
    ase.io.write(path, frames)
    options = dict(cache=tmp_path / "cache", progress=False)
    for _ in range(2):
        data = load_dataset(path, **options)
        assert list(data.unused) == ["config_type"]
        assert data.sources["energy"] == "REF_energy"
        assert any("total_charge is stated by 1 of 2 frames" in note for note in data.notes)
    other = load_dataset(path, labels={"U": "REF_energy"}, **options)
    assert "U" in other.properties
    assert "U" not in load_dataset(path, **options).properties


def test_a_copy_of_a_file_in_the_cache_has_its_own_name(tmp_path):
    for name in ("one", "two"):
        ase.io.write(tmp_path / f"{name}.extxyz", labelled())
        path, cache = tmp_path / f"{name}.extxyz", tmp_path / "cache"
        assert load_dataset(path, cache=cache, progress=False).where(1) == f"{name}: frame 1"


def test_labels_of_formats_with_names_of_their_own(tmp_path):
    with pytest.raises(ValueError, match=r"data\.labels: data of format ethanol"):
        load_dataset(format="ethanol", labels={"energy": "E"})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("energy", np.array([1.0, 2.0]), r"frame 1: energy: energy must have shape \[\], got \[2"),
        ("REF_energy", "n/a", "frame 1: energy: REF_energy is no number"),
        ("stress", np.ones(5), r"frame 1: stress: stress must have shape \[3, 3\], \[6\] or \[9\]"),
        ("REF_stress", np.ones((2, 3)), "frame 1: stress: REF_stress must"),
        ("dipole", np.ones(4), r"frame 1: dipole: dipole must have shape \[3\], got \[4\]"),
    ],
)
def test_labels_of_other_shapes(tmp_path, name, value, message):
    frames = crystals()
    for atoms, given in zip(frames, (1.0, value), strict=True):
        fits = {"energy": 1.0, "stress": STRESS, "dipole": np.ones(3)}[name.removeprefix("REF_")]
        atoms.info[name] = fits if given is not value else value
    ase.io.write(tmp_path / "a.traj", frames)  # a format that keeps them as they are
    with pytest.raises(ValueError, match=rf"a\.traj, {message}"):
        load_ase(tmp_path / "a.traj", progress=False)


@pytest.mark.parametrize(
    ("name", "shape"), [("force", (2, 2)), ("REF_forces", (2,)), ("REF_charges", (2, 2))]
)
def test_columns_of_other_shapes(load, name, shape):
    frames = crystals()
    frames[1].arrays[name] = np.ones(shape)
    for atoms in frames:
        atoms.info["REF_energy" if "REF" in name else "energy"] = 1.0
    with pytest.raises(ValueError, match=rf"frame 1: \w+: {name} must have shape"):
        load(frames)


def test_properties_whose_shape_changes_are_not_used(load):
    frames = crystals()
    frames[0].info["gap"], frames[1].info["gap"] = 1.0, np.ones(3)
    data = load(frames)
    assert "gap" not in data.properties
    assert list(data.unused) == ["gap"]
    with pytest.raises(ValueError, match=r"frame 1: gap: gap has shape \[3\], but \[\]"):
        load(frames, labels={"gap": "gap"})


def test_labels_that_some_frames_lack(load):
    frames = labelled("REF_")
    del frames[1].arrays["REF_forces"], frames[1].info["REF_energy"]
    data = load(frames)
    assert np.isnan(data.properties["forces"][2:]).all()
    assert np.isnan(data.properties["energy"][1])
    assert np.allclose(data.properties["forces"][:2], FORCES[0])


@pytest.mark.parametrize("number", [0, 119, 262, -1])
def test_numbers_that_are_no_elements(tmp_path, number):
    frames = crystals()
    frames[1].numbers[1] = number
    ase.io.write(tmp_path / "a.traj", frames)
    with pytest.raises(ValueError, match=rf"a\.traj, frame 1: {number} is no atomic number"):
        load_ase(tmp_path / "a.traj", progress=False)


NUMBERED = """2
energy=-1 Properties={properties}
{first}
{second}
"""


@pytest.mark.parametrize(
    ("properties", "atom"),
    [("pos:R:3:Z:R:1", "0 0 {k} {z}"), ("tag:S:1:numbers:R:1:pos:R:3", "a {z} 0 0 {k}")],
)
def test_numbers_that_are_not_whole(tmp_path, properties, atom):
    path = tmp_path / "f.extxyz"

    def write(z):
        lines = dict(first=atom.format(k=0, z="1.0"), second=atom.format(k=1, z=z))
        whole = dict(first=atom.format(k=0, z="1"), second=atom.format(k=1, z="9.0"))
        frames = [whole, lines]
        path.write_text("".join(NUMBERED.format(properties=properties, **f) for f in frames))

    write("8.0")
    assert load_ase(path, progress=False).numbers.tolist() == [1, 9, 1, 8]
    for wrong in ("6.9", "nan"):
        write(wrong)
        message = rf"f\.extxyz cannot be read.*: frame 1: atom 1 has number {wrong}"
        with pytest.raises(ValueError, match=message):
            load_ase(path, progress=False)


@pytest.mark.parametrize("ending", ["db", "json"])
def test_databases(tmp_path, ending):
    """Their own names, key-value pairs and data, with units of their own."""
    path = tmp_path / f"s.{ending}"
    with connect(path) as database:
        for k, atoms in enumerate(crystals()):
            data = {"REF_forces": FORCES[k], "REF_charges": CHARGES[k], "basis": "def2"}
            data["REF_virial"] = -VOLUME * STRESS
            database.write(atoms, data=data, REF_energy=ENERGIES[k], gap=1.0, charge=k)
    data = load_ase(path, progress=False)
    check(data)
    assert data.properties["total_charge"].tolist() == [0.0, 1.0]
    assert data.ids.tolist() == [1, 2]
    assert list(data.unused) == ["basis"]
    check(load_ase(path, progress=False, energy_unit="kcal/mol"), KCAL)


@pytest.mark.parametrize(
    ("unit", "factor"), [("Debye", 0.2081943), ("e*Ang", 1.0), ("a.u.", 0.5291772), ("esu", None)]
)
def test_units_of_dipoles_in_a_database(tmp_path, unit, factor):
    path = tmp_path / "s.db"
    with connect(path) as database:
        database.write(crystals()[0], data={"dipole": np.array([1.0, 2.0, 3.0])})
        database.metadata = {"_property_unit_dict": {"dipole": unit}}
    if factor is None:
        with pytest.raises(ValueError, match="dipoles in esu"):
            load_ase(path, progress=False)
        return
    data = load_ase(path, progress=False)
    assert np.allclose(data.properties["dipole"], [[factor, 2 * factor, 3 * factor]])
    assert data.units["dipole"] == "e·Å"


@pytest.mark.parametrize(
    "labels", [["energy"], "energy", {"energy": 3}, {"energy": None}, {1: "E"}]
)
def test_names_that_are_none(load, labels):
    with pytest.raises(TypeError, match="labels must be names by label"):
        load(labelled(), labels=labels)


def test_units_of_a_database_by_its_names(tmp_path):
    path = tmp_path / "s.db"
    with connect(path) as database:
        for k, atoms in enumerate(crystals()):
            database.write(atoms, data={"E": np.array([ENERGIES[k]]), "my_forces": FORCES[k]})
        units = {"E": "kcal/mol", "my_forces": "kcal/mol/Ang"}
        database.metadata = {"_property_unit_dict": units, "_distance_unit": "Ang"}
    labels = {"energy": "E", "forces": "my_forces"}
    data = load_ase(path, progress=False, labels=labels)
    assert np.allclose(data.properties["energy"], ENERGIES * KCAL)
    assert np.allclose(data.properties["forces"], FORCES.reshape(-1, 3) * KCAL)


@pytest.mark.parametrize("label", ["energy", "dipole", "own"])
@pytest.mark.parametrize(("kind", "name"), [("xyz", "mine"), ("traj", "magmoms")])
def test_columns_of_atoms_are_no_labels_of_frames(tmp_path, label, kind, name):
    """Three atoms have as many numbers as a vector has, one atom as many as a frame."""
    for atoms in (ase.Atoms("OHH", np.eye(3)), ase.Atoms("O")):
        atoms.info["total"] = 1.0
        if kind == "xyz":
            atoms.set_array(name, np.arange(1.0, 1.0 + len(atoms)))
        else:
            atoms.calc = SinglePointCalculator(atoms, magmoms=np.arange(1.0, 1.0 + len(atoms)))
        ase.io.write(tmp_path / f"f.{kind}", atoms)
        with pytest.raises(ValueError, match=f"frame 0: {label}: {name} holds values of atoms"):
            load_ase(tmp_path / f"f.{kind}", progress=False, labels={label: name})


def test_unknown_elements_are_called_so(tmp_path):
    (tmp_path / "f.xyz").write_text("1\n\nQq 0 0 0\n")
    with pytest.raises(ValueError, match=r"f\.xyz cannot be read: unknown 'Qq'"):
        load_ase(tmp_path / "f.xyz", progress=False)
