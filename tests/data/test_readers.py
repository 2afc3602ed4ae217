"""Readers of files: layouts, units, and damaged files."""

import io
import subprocess
import sys
import tarfile
from importlib.util import find_spec

import numpy as np
import pytest

from molkern.data import ethanol_frames, load_ase, load_dataset, load_npz, load_qm9
from molkern.data.qm9 import HARTREE, UNITS, uncharacterized

KCAL = 0.0433641043


@pytest.fixture
def frames():
    """Five frames of water: numbers, positions, energies and forces."""
    rng = np.random.default_rng(1)
    shape = (5, 3, 3)
    return np.array([8, 1, 1]), rng.normal(size=shape), rng.normal(size=5), rng.normal(size=shape)


@pytest.mark.parametrize(
    ("names", "extra", "factor"),
    [
        ("z R E F", {}, KCAL),
        ("nuclear_charges coords energies forces", {}, KCAL),
        ("z R E F", {"e_unit": "eV", "r_unit": "Ang"}, 1.0),
        ("z R E F", {"e_unit": b"kcal/mol"}, KCAL),
    ],
)
def test_layouts_of_npz(frames, tmp_path, names, extra, factor):
    z, positions, energies, forces = frames
    arrays = dict(zip(names.split(), (z, positions, energies[:, None], forces), strict=True))
    np.savez(tmp_path / "md.npz", **arrays, **extra)
    data = load_npz(tmp_path / "md.npz", "kcal/mol")
    assert len(data) == 5
    assert data.sizes.tolist() == [3] * 5
    assert np.allclose(data.properties["energy"], energies * factor, rtol=1e-6)
    assert np.allclose(data.properties["forces"], forces.reshape(-1, 3) * factor, rtol=1e-6)
    assert data.numbers.tolist() == [8, 1, 1] * 5


def test_padded_layout_of_physnet(tmp_path):
    rng = np.random.default_rng(2)
    sizes, z = np.array([3, 2]), np.array([[8, 1, 1], [9, 1, 0]])
    positions, forces = rng.normal(size=(2, 2, 3, 3))
    np.savez(
        tmp_path / "p.npz",
        N=sizes,
        Z=z,
        R=positions,
        E=np.ones(2),
        F=forces,
        Q=np.array([0.0, 1.0]),
        D=rng.normal(size=(2, 3)),
    )
    data = load_dataset(tmp_path / "p.npz")
    assert data.numbers.tolist() == [8, 1, 1, 9, 1]
    assert np.array_equal(data.positions[3:], positions[1, :2])
    assert np.array_equal(data.properties["forces"][3:], forces[1, :2])
    assert data.properties["total_charge"].tolist() == [0.0, 1.0]
    assert data.properties["dipole"].shape == (2, 3)


def test_the_shipped_frames():
    data, frames = load_dataset(format="ethanol"), ethanol_frames()
    order = np.random.default_rng(0).permutation(2000)
    assert np.array_equal(data.properties["energy"][order[:1000]], frames["train"].energies)


def test_extended_xyz_with_a_label_missing(tmp_path, monkeypatch):
    ase = pytest.importorskip("ase")
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    monkeypatch.setenv("MOLKERN_CACHE", str(tmp_path / "cache"))
    atoms = [
        ase.Atoms("HF", [[0, 0, 0], [0, 0, 0.9 + k]], cell=[9, 9, 9], pbc=k > 0) for k in (0, 1)
    ]
    atoms[0].calc = SinglePointCalculator(atoms[0], energy=-3.5, forces=np.full((2, 3), 0.5))
    atoms[1].info["charge_state"] = 2.0
    write(tmp_path / "f.extxyz", atoms)
    for _ in range(2):  # read, then kept
        data = load_dataset(tmp_path / "f.extxyz")
        assert data.properties["energy"][0] == -3.5
        assert np.isnan(data.properties["energy"][1])
        assert np.isnan(data.properties["forces"][2:]).all()
        assert data.properties["charge_state"][1] == 2.0
        assert data.pbc.tolist() == [[False] * 3, [True] * 3]
    assert list(data.incomplete(["energy"])["energy"]) == [1]


def test_databases_of_ase(tmp_path):
    pytest.importorskip("ase")
    from ase import Atoms
    from ase.db import connect

    with connect(tmp_path / "s.db") as database:
        for k in range(3):
            database.write(Atoms("N2", [[0, 0, 0], [0, 0, 1 + k]]), gap=0.5 * k)
    data = load_ase(tmp_path / "s.db", progress=False)
    assert data.properties["gap"].tolist() == [0.0, 0.5, 1.0]
    assert data.positions[5, 2] == 3.0
    (tmp_path / "broken.db").write_bytes(b"no database" * 99)
    with pytest.raises(ValueError, match="cannot be read"):
        load_ase(tmp_path / "broken.db", progress=False)


RAW = """2
gdb {index}\t1\t2\t3\t1.5\t6.5\t-0.25\t0.125\t0.375\t20\t0.01\t-100.25\t-100\t-99\t-101\t7.0\t
H\t0.5\t1.0*^-6\t-2.0\t0.25
F\t0.0\t0.0\t1.0\t-0.25
100.0\t
H F\tHF\t
InChI\tInChI\t
"""


def raw_archive(path, indices):
    with tarfile.open(path, "w:bz2") as archive:
        for index in indices:
            content = RAW.format(index=index).encode()
            entry = tarfile.TarInfo(f"dsgdb9nsd_{index:06d}.xyz")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def test_the_raw_archive(tmp_path):
    path = tmp_path / "dsgdb9nsd.xyz.tar.bz2"
    raw_archive(path, [1, 57, 58, 59, 60, 61, 62])
    data = load_qm9(path, progress=False)
    assert data.ids.tolist() == [1, 57, 59, 60, 62]  # 58 and 61 are uncharacterised, to the number
    atoms = -0.500273 - 99.718730
    assert data.properties["U0"][0] == pytest.approx((-100.25 - atoms) * HARTREE, abs=1e-9)
    assert data.properties["homo"][0] == pytest.approx(-0.25 * HARTREE)
    assert data.properties["mu"][0] == 1.5
    assert data.properties["Cv"][0] == 7.0
    assert np.allclose(data.positions[0], [0.5, 1e-6, -2.0])
    assert data.properties["charges"].tolist() == [0.25, -0.25] * 5
    assert set(UNITS) <= set(data.properties)
    total = data.properties["U0"][0] + data.reference["U0"][data.numbers[:2]].sum()
    assert total == pytest.approx(-100.25 * HARTREE)


def test_a_damaged_archive(tmp_path):
    path = tmp_path / "dsgdb9nsd.xyz.tar.bz2"
    raw_archive(path, range(1, 40))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="is damaged"):
        load_qm9(path, progress=False)


def test_the_uncharacterised_molecules():
    known = uncharacterized()
    assert len(known) == 3054
    assert min(known) == 58
    assert sum(known) == 217_973_813


def test_a_copy_with_the_wrong_ones_left_out(tmp_path):
    """Some copies left out the neighbors of those molecules: numbers counted from 0."""
    wrong = {index - 1 for index in uncharacterized()}
    ids = np.array([k for k in range(1, 133_886) if k not in wrong])
    count = len(ids)
    np.savez(
        tmp_path / "qm9.npz",
        N=np.ones(count, dtype=int),
        Z=np.ones(count, dtype=int),
        R=np.zeros((count, 3)),
        id=ids,
        U0=np.zeros(count),
    )
    with pytest.warns(UserWarning, match="known error"):
        data = load_qm9(tmp_path / "qm9.npz")
    assert not set(data.ids) & uncharacterized()


@pytest.mark.parametrize("cut", [0, 100, -100])
def test_damaged_npz(frames, tmp_path, cut):
    path = tmp_path / "md.npz"
    np.savez(path, z=frames[0], R=frames[1], E=frames[2])
    content = path.read_bytes()
    path.write_bytes(content[:cut])
    with pytest.raises(ValueError, match="is damaged or no npz"):
        load_npz(path)


def test_what_an_npz_lacks(frames, tmp_path):
    np.savez(tmp_path / "md.npz", z=frames[0], R=frames[1])
    with pytest.raises(ValueError, match="has no energy"):
        load_npz(tmp_path / "md.npz")
    np.savez(tmp_path / "b.npz", z=frames[0], R=frames[1], E=frames[2], r_unit="bohr")
    with pytest.raises(ValueError, match="lengths in bohr"):
        load_npz(tmp_path / "b.npz")


def test_checksums_and_missing_files(frames, tmp_path):
    np.savez(tmp_path / "md.npz", z=frames[0], R=frames[1], E=frames[2])
    with pytest.raises(ValueError, match="has SHA-256"):
        load_dataset(tmp_path / "md.npz", sha256="0" * 64)
    with pytest.raises(ValueError, match="is not there"):
        load_dataset(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"data\.path is missing"):
        load_dataset(format="npz")


MEASURE = """
import resource, sys, time
import molkern.data, tqdm
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
data = molkern.data.load_dataset(sys.argv[1], format="qm9")
seconds = time.process_time() - start
used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(len(data), seconds, used)
"""


@pytest.fixture
def qm9(reference):
    """All of QM9, where it is at hand."""
    return reference.path("qm9.npz")


def test_all_of_qm9_in_seconds(qm9):
    path = qm9
    command = [sys.executable, "-c", MEASURE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, seconds, megabytes = done.stdout.split()
    assert int(count) == 130_831
    assert float(seconds) < 5
    assert float(megabytes) < 500


def test_a_part_of_qm9_against_all_of_it(qm9):
    few, everything = load_qm9(qm9.with_name("qm9_5k.npz")), load_qm9(qm9)
    places = np.searchsorted(everything.ids, few.ids)
    for name in UNITS:
        assert np.array_equal(few.properties[name], everything.properties[name][places]), name


def test_qm9pack_if_it_is_there(qm9, tmp_path, monkeypatch):
    if find_spec("qm9pack") is None:
        pytest.skip("qm9pack is not installed")
    monkeypatch.setenv("MOLKERN_CACHE", str(tmp_path))
    found, known = load_dataset(format="qm9"), load_qm9(qm9)
    assert np.array_equal(found.ids, known.ids)
    assert np.abs(found.properties["U0"] - known.properties["U0"]).max() < 1e-5
