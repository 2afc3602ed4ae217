"""From files to training: labels by name, charges, frames that cannot be computed."""

import numpy as np
import pytest

pytest.importorskip("ase")
import ase
import ase.io

from molkern.data import Dataset, load_dataset
from molkern.training import run

PHYSNET = dict(name="PhysNet", num_elements=10, hidden_channels=8, num_basis=8, cutoff=4.0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOLKERN_CACHE", str(tmp_path / "cache"))


def water(k, **info):
    rng = np.random.default_rng(k)
    places = np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    return ase.Atoms("OH2", places + 0.05 * rng.normal(size=(3, 3)), info=info)


def frames(count=12, **changes):
    made = [water(k, REF_energy=-0.5 * k) for k in range(count)]
    for k, atoms in enumerate(made):
        atoms.arrays["REF_forces"] = np.random.default_rng(k).normal(size=(3, 3))
    for key, value in changes.items():
        made[int(key[1:])].info |= value
    return made


def prepared(tiny, path, **changes):
    options = dict(path=str(path), split=dict(train=8, validation=4), **changes.pop("data", {}))
    return run.prepare(tiny(data=options, training__batch_size=4, **changes))


def test_labels_by_name(tiny, tmp_path):
    path = tmp_path / "f.extxyz"
    made = frames()
    for atoms in made:
        atoms.info |= {"E": 2 * atoms.info["REF_energy"], "config_type": "liquid", "gap": 1.0}
    ase.io.write(path, made)
    found = prepared(tiny, path)
    assert found.data.properties["energy"].tolist() == [-0.5 * k for k in range(12)]
    assert found.notes == [
        "f: energy is read from REF_energy",
        "f: forces is read from REF_forces",
        "f has more than is used: E, gap, config_type",
    ]
    labels = dict(energy="E", forces="REF_forces")
    found = prepared(tiny, path, data=dict(labels=labels))
    assert found.data.properties["energy"].tolist() == [-1.0 * k for k in range(12)]
    assert found.notes == ["f has more than is used: REF_energy, gap, config_type"]
    with pytest.raises(ValueError, match=r"f\.extxyz has no 'E0' \(data\.labels: energy\)"):
        prepared(tiny, path, data=dict(labels=dict(energy="E0")))


def test_labels_that_are_missing_are_looked_for(tiny, tmp_path):
    path = tmp_path / "f.extxyz"
    ase.io.write(path, frames())
    message = "has no such label, it has energy, forces; its REF_energy is energy here"
    with pytest.raises(ValueError, match=message):
        prepared(tiny, path, objective=dict(REF_energy={}, forces={}))
    made = frames()
    for atoms in made:
        atoms.arrays["slopes"] = atoms.arrays.pop("REF_forces")
    ase.io.write(path, made)
    with pytest.raises(ValueError, match=r"objective\.forces: .*data\.labels may name: slopes"):
        prepared(tiny, path)


def test_forces_and_energies_in_different_units(tiny, tmp_path):
    path = tmp_path / "f.extxyz"
    made = frames()
    for atoms in made:
        atoms.info["U0"] = atoms.info.pop("REF_energy")
    ase.io.write(path, made)
    objective = dict(U0={}, forces={})
    prepared(tiny, path, objective=objective)
    with pytest.raises(ValueError, match=r"name it as the energy, data\.labels: \{energy: U0\}"):
        prepared(tiny, path, objective=objective, data=dict(energy_unit="kcal/mol"))
    options = dict(energy_unit="kcal/mol", labels=dict(energy="U0"))
    found = prepared(tiny, path, data=options)
    assert np.allclose(found.data.properties["energy"], [-0.5 * k * 0.0433641 for k in range(12)])


def at(place):
    return lambda atoms: atoms.positions.__setitem__(1, place)


def cell(value, pbc=True):
    return lambda atoms: (atoms.set_cell(value), atoms.set_pbc(pbc))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (at([np.nan, 0, 0]), r"atom 1 is at \[nan, 0.0, 0.0\], which is not finite"),
        (at([0, np.inf, 0]), "atom 1 is at"),
        (cell(None), "it is periodic along a, where its cell has no length"),
        (cell([9, 9, 0]), "it is periodic along c"),
        (cell([9, 0, 9], [False, True, False]), "it is periodic along b"),
        (cell([[9, 0, 0], [0, 9, 0], [9, 9, 0]]), ".*singular"),
        (cell([[9, 0, 0], [0, 9, np.nan], [0, 0, 9]]), "its cell is not finite"),
    ],
)
def test_frames_that_cannot_be_computed(tiny, tmp_path, change, message):
    path = tmp_path / "f.extxyz"
    made = frames()
    change(made[7])
    ase.io.write(path, made)
    with pytest.raises(ValueError, match=rf"^f: frame 7: {message}"):
        prepared(tiny, path)
    made = frames()
    change(made[7])
    change(made[3])
    ase.io.write(path, made)
    with pytest.raises(ValueError, match=r"^f: frame 3: .*\(and 1 more: 7\)"):
        prepared(tiny, path)


def test_cells_that_are_fine(tiny, tmp_path):
    made = frames()
    cell([9, 9, 0], [True, True, False])(made[1])
    cell([9, 9, 9])(made[2])
    cell([[0, 9, 0], [0, 0, 9], [9, 0, 0]])(made[3])
    cell([0, 0, 9], [False, False, True])(made[4])
    ase.io.write(tmp_path / "f.extxyz", made)
    assert len(prepared(tiny, tmp_path / "f.extxyz").data) == 12


def test_frames_of_an_npz_that_cannot_be_computed(tiny, tmp_path):
    places = np.stack([atoms.positions for atoms in frames()])
    places[5, 2, 1] = np.nan
    arrays = dict(z=[8, 1, 1], R=places, E=np.arange(12.0), F=np.zeros((12, 3, 3)))
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(ValueError, match="f: frame 5: atom 2 is at"):
        prepared(tiny, tmp_path / "f.npz")


def test_systems_without_atoms_and_with_ids():
    data = Dataset(
        np.array([1, 0, 120]),
        np.zeros((3, 3)),
        np.array([0, 1, 1, 2, 3, 3]),
        {},
        ids=np.array([11, 12, 13, 14, 15]),
    )
    assert {data.label(k): reason for k, reason in data.faults(range(5)).items()} == {
        "12": "it has no atoms",
        "13": "atom 0 has number 0, which is no element",
        "14": "atom 0 has number 120, which is no element",
        "15": "it has no atoms",
    }
    assert data.where(2) == "data: system 13"
    assert not data.faults([0])
    assert not data[[]].faults([])


def test_charges_are_trained_on(tiny, tmp_path):
    path = tmp_path / "f.extxyz"
    ase.io.write(path, frames(_1={"charge": 1}, _4={"total_charge": -1}))
    found = prepared(tiny, path, model=PHYSNET)
    assert found.data.properties["total_charge"].tolist() == [0, 1, 0, 0, -1, *[0.0] * 7]
    assert "f: total_charge is stated by 2 of 12 frames; it is 0 in the others" in (found.notes)
    assert not any("more than is used" in note for note in found.notes)
    unused = prepared(tiny, path).notes
    assert "f has more than is used: total_charge" in unused


def test_charges_that_are_no_numbers(tiny, tmp_path):
    path = tmp_path / "f.extxyz"
    ase.io.write(path, frames(_4={"charge": np.nan}))
    with pytest.raises(ValueError, match="f: frame 4: its total_charge is no finite number"):
        prepared(tiny, path, model=PHYSNET)
    prepared(tiny, path)  # whose model does not depend on it
    arrays = dict(z=[8, 1, 1], R=np.stack([atoms.positions for atoms in frames()]))
    arrays |= dict(E=np.zeros(12), F=np.ones((12, 3, 3)), Q=np.arange(12.0))
    arrays["Q"][3] = np.nan
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(ValueError, match="f: frame 3: its total_charge is no finite number"):
        prepared(tiny, tmp_path / "f.npz", model=PHYSNET)


def test_what_is_not_used_is_said(tiny, tmp_path):
    said = []
    ase.io.write(tmp_path / "f.extxyz", frames(_1={"gap": 1}))
    data = dict(path=str(tmp_path / "f.extxyz"), split=dict(train=8, validation=4))
    config = tiny(data=data, training__steps=3, training__batch_size=4)
    run.train(config, tmp_path / "other", progress=False, device="cpu", say=said.append)
    assert [text for text in said if "used" in text] == ["f has more than is used: gap"]
    assert "gap" in load_dataset(tmp_path / "f.extxyz", progress=False).properties
