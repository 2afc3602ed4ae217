"""The total charge that frames state."""

import math

import numpy as np
import pytest

pytest.importorskip("ase")
import ase
import ase.io

from molkern.data import load_ase, load_npz
from molkern.data.conditions import ConditionReader, stated, write_into


def frame(initial=None, **info):
    return ase.Atoms("HF", [[0, 0, 0], [0, 0, 1]], info=info, charges=initial)


@pytest.mark.parametrize(
    ("info", "wanted"),
    [
        (dict(total_charge=1), 1),
        (dict(charge=-2.0), -2),
        (dict(Q=np.int64(1)), 1),
        (dict(charge="+1"), 1),
        (dict(charge=np.array([1.0])), 1),
        (dict(charge=1, total_charge=1.0), 1),
        (dict(charge=0), 0),
        (dict(initial=[0.5, 0.503]), 1),
        (dict(initial=[0.5, 0.5], charge=0), 0),
        (dict(initial=[0.5, -0.5]), None),
        (dict(initial=[0, 0]), None),
        (dict(spin=1), None),
        (dict(Q=np.eye(3)), None),
    ],
)
def test_what_is_stated(info, wanted):
    assert stated(frame(**info)) == ({} if wanted is None else {"total_charge": wanted})


@pytest.mark.parametrize(
    "info",
    [
        dict(charge=math.nan),
        dict(charge=math.inf),
        dict(charge="n/a"),
        dict(charge=[1, 0]),
        dict(charge=True),
        dict(initial=[0.2, 0.2]),
        dict(initial=[np.nan, 0.0]),
    ],
)
def test_what_is_no_number(info):
    assert math.isnan(stated(frame(**info))["total_charge"])
    with pytest.raises(ValueError, match="f, frame 3: its total_charge is no finite number"):
        ConditionReader(["total_charge"]).read(frame(**info), "f, frame 3")
    assert ConditionReader([]).read(frame(**info), "f, frame 3") == {}
    given = ConditionReader(["total_charge"], {"total_charge": 2.0})
    assert given.read(frame(**info), "f") == {"total_charge": 2.0}


def test_contradictions():
    with pytest.raises(ValueError, match="total_charge=1, charge=0 contradict each other"):
        stated(frame(charge=0, total_charge=1))
    with pytest.raises(ValueError, match="f, frame 3: total_charge=1, charge=0"):
        ConditionReader(["total_charge"]).read(frame(charge=0, total_charge=1), "f, frame 3")


def test_notes():
    reader = ConditionReader(["total_charge"])
    for info in ({}, dict(charge=1), {}):
        assert reader.read(frame(**info), "f") == {"total_charge": info.get("charge", 0)}
    assert reader.notes() == ["total_charge is stated by 1 of 3 frames; it is 0 in the others"]
    reader = ConditionReader(["total_charge"], {"total_charge": 0.0})
    for info in ({}, dict(charge=1), dict(charge=0)):
        assert reader.read(frame(**info), "f") == {"total_charge": 0.0}
    assert reader.notes() == ["total_charge: 0 as given, not what 1 of 3 frames state"]
    for frames in ([{}, {}], [dict(charge=1)] * 2):
        reader = ConditionReader(["total_charge"])
        for info in frames:
            reader.read(frame(**info), "f")
        assert reader.notes() == []


def test_what_is_written_is_found_again():
    atoms = frame(charge=1, Q=1, gap=2.0, initial=[1.0, 1.0])
    write_into(atoms, {"total_charge": -1.0})
    assert atoms.info == {"gap": 2.0, "total_charge": -1.0}
    assert stated(atoms) == {"total_charge": -1.0}


def test_data_sets(tmp_path):
    frames = [frame(charge=1), frame(), frame(initial=[-0.5, -0.5]), frame(Q=2)]
    ase.io.write(tmp_path / "f.traj", frames)
    data = load_ase(tmp_path / "f.traj", progress=False)
    assert data.properties["total_charge"].tolist() == [1.0, 0.0, -1.0, 2.0]
    assert set(data.properties) == {"total_charge"}
    assert data.units["total_charge"] == "e"
    assert list(data.notes) == ["total_charge is stated by 3 of 4 frames; it is 0 in the others"]
    assert list(data.unused) == []


def test_names_that_are_given(tmp_path):
    frames = [frame(charge=1, ion=-1), frame(charge=1)]
    ase.io.write(tmp_path / "f.extxyz", frames)
    data = load_ase(tmp_path / "f.extxyz", progress=False, labels={"total_charge": "ion"})
    assert data.properties["total_charge"].tolist() == [-1.0, 0.0]
    with pytest.raises(ValueError, match="has no 'jon'"):
        load_ase(tmp_path / "f.extxyz", progress=False, labels={"total_charge": "jon"})
    arrays = dict(z=[1, 9], R=np.zeros((2, 2, 3)), E=np.zeros(2), ion=[[1], [0]])
    np.savez(tmp_path / "f.npz", **arrays)
    data = load_npz(tmp_path / "f.npz", labels={"total_charge": "ion"})
    assert data.properties["total_charge"].tolist() == [1.0, 0.0]


def test_frames_that_contradict_are_named(tmp_path):
    ase.io.write(tmp_path / "f.extxyz", [frame(), frame(charge=1, total_charge=0)])
    with pytest.raises(ValueError, match=r"f\.extxyz, frame 1: .* contradict each other"):
        load_ase(tmp_path / "f.extxyz", progress=False)


@pytest.mark.parametrize("name", ["Charge", "CHARGE", "Total_Charge", "NET_CHARGE"])
def test_names_in_capital_letters(tmp_path, name):
    atoms = frame(**{name: -1})
    assert stated(atoms) == {"total_charge": -1.0}
    with pytest.raises(ValueError, match=f"charge=1, {name}=-1 contradict|{name}=-1, charge=1"):
        stated(frame(**{name: -1, "charge": 1}))
    ase.io.write(tmp_path / "f.xyz", [atoms, frame(), frame(q=0.3)])
    data = load_ase(tmp_path / "f.xyz", progress=False)
    assert data.properties["total_charge"].tolist() == [-1.0, 0.0, 0.0]
    assert name not in data.properties
    write_into(atoms, {"total_charge": 2.0})
    assert atoms.info == {"total_charge": 2.0}


@pytest.mark.parametrize("name", ["Q", "charge", "Charge", "total_charge", "net_charge"])
@pytest.mark.parametrize(
    ("value", "wanted"),
    [([1, -1], [1, -1]), ([[1], [-1]], [1, -1]), (-1, [-1, -1]), ([2], [2, 2])],
)
def test_arrays_by_the_names_of_frames(tmp_path, name, value, wanted):
    arrays = dict(z=np.array([8, 1, 1]), R=np.zeros((2, 3, 3)), E=np.zeros(2))
    np.savez(tmp_path / "f.npz", **arrays, **{name: np.array(value)})
    if np.shape(value) == (2, 1) and name != "Q":  # as charges of atoms of a frame would be
        assert load_npz(tmp_path / "f.npz").unused == [name]
        return
    assert load_npz(tmp_path / "f.npz").properties["total_charge"].tolist() == wanted
