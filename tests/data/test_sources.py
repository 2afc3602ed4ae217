"""Readers of files: numbers counted from 0, files cut short, units of their own, and the cache."""

import gzip
import io
import stat
import sys
import tarfile

import numpy as np
import pytest
import torch

from molkern.data import (
    Dataset,
    load_ase,
    load_dataset,
    load_npz,
    load_qm9,
    open_dataset,
    save_dataset,
)
from molkern.data import loading as loading_module
from molkern.data.qm9 import ATOMS, HARTREE, UNITS, uncharacterized

KCAL = 0.0433641043
SYMBOLS = {1: "H", 6: "C", 7: "N", 8: "O", 9: "F"}
NAMES = list(UNITS)


def add(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


class Molecules:
    """Molecules with made-up values, in the units of the raw files."""

    def __init__(self, ids):
        rng = np.random.default_rng(0)
        self.ids = ids
        self.numbers = [rng.choice([1, 6, 7, 8, 9], size=3 + k % 4) for k in range(len(ids))]
        self.positions = [rng.normal(size=(len(z), 3)).round(4) for z in self.numbers]
        self.charges = [rng.normal(size=len(z)).round(6) for z in self.numbers]
        self.values = rng.normal(size=(len(ids), 15)).round(6)

    def raw(self, k):
        """A raw file; its small numbers are written as QM9 writes them."""
        values = "\t".join(f"{v:.6e}".replace("e", "*^") for v in self.values[k])
        lines = [str(len(self.numbers[k])), f"gdb {self.ids[k]}\t{values}\t"]
        for z, r, q in zip(self.numbers[k], self.positions[k], self.charges[k], strict=True):
            lines.append("\t".join([SYMBOLS[z], *(f"{x:.10f}" for x in (*r, q))]))
        return "\n".join([*lines, "1.0\t2.0", "C\tC", "InChI=1S\tInChI=1S", ""]).encode()

    def tar(self, path, mode="w"):
        with tarfile.open(path, mode) as archive:
            for k, index in enumerate(self.ids):
                add(archive, f"dsgdb9nsd_{index:06d}.xyz", self.raw(k))

    def sdf(self):
        """As DeepChem's gdb9.sdf, V2000."""
        text = ""
        for k, z in enumerate(self.numbers):
            text += f"gdb_{self.ids[k]}\n  -OEChem-\n\n"
            text += f"{len(z):3d}  0  0     0  0  0  0  0  0999 V2000\n"
            for number, r in zip(z, self.positions[k], strict=True):
                text += "".join(f"{x:10.4f}" for x in r) + f" {SYMBOLS[number]:<3} 0  0  0\n"
            text += "M  END\n$$$$\n"
        return text.encode()

    def sdf_table(self):
        header = "mol_id,A,B,C,mu,alpha,homo,lumo,gap,r2,zpve,u0,u298,h298,g298,cv,u0_atom"
        rows = [
            ",".join([f"gdb_{index}", *(f"{v:.6f}" for v in values), "0.0"])
            for index, values in zip(self.ids, self.values, strict=True)
        ]
        return "\n".join([header, *rows, ""]).encode()

    def table(self):
        """As the tables of qm9pack."""
        columns = (
            "RotA_GHz,RotB_GHz,RotC_GHz,Dipole_debye,Polarizability_bohr3,HOMO_au,LUMO_au,"
            "HOMO_LUMO_gap_au,R2_bohr2,ZPVE_au,InternalEnergy_0K_au,InternalEnergy_298K_au,"
            "Enthalphy_298K_au,GibbsFreeEnergy_298K_au,Heatcapacity_Cv_cal_mol_K"
        )
        lines = [f"Index,Elements,XYZ_Ang,Mulliken_pop,{columns}"]
        for k, index in enumerate(self.ids):
            elements = str([SYMBOLS[z] for z in self.numbers[k]])
            parts = [elements, str(self.positions[k].tolist()), str(self.charges[k].tolist())]
            quoted = ",".join(f'"{part}"' for part in parts)
            lines.append(f"{index},{quoted}," + ",".join(map(str, self.values[k])))
        return "\n".join([*lines, ""]).encode()

    def npz(self, path, first=1):
        """DimeNet's layout, with atomization energies in eV."""
        values = self.values.copy()
        for column in (5, 6, 7, 9, 10, 11, 12, 13):
            values[:, column] *= HARTREE
        for k, z in enumerate(self.numbers):
            for column in range(4):
                values[k, 10 + column] -= sum(ATOMS[int(a)][column] for a in z) * HARTREE
        np.savez(
            path,
            N=[len(z) for z in self.numbers],
            Z=np.concatenate(self.numbers),
            R=np.concatenate(self.positions),
            id=np.array(self.ids) - 1 + first,
            **dict(zip(NAMES, values.T, strict=True)),
        )


IDS = [1, 57, 58, 59, 60, 61, 62, 133_885]
KEPT = [1, 57, 59, 60, 62, 133_885]


def test_the_four_sources_of_qm9_agree(tmp_path):
    made = Molecules(IDS)
    made.tar(tmp_path / "raw.tar.gz", "w:gz")
    with tarfile.open(tmp_path / "gdb9.tar.gz", "w:gz") as archive:
        add(archive, "gdb9.sdf", made.sdf())
        add(archive, "gdb9.sdf.csv", made.sdf_table())
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "qm9_part1.csv").write_bytes(made.table())
    (tmp_path / "files").mkdir()
    for k, index in enumerate(IDS):
        (tmp_path / "files" / f"dsgdb9nsd_{index:06d}.xyz").write_bytes(made.raw(k))
    (tmp_path / "sdf").mkdir()
    (tmp_path / "sdf" / "gdb9.sdf").write_bytes(made.sdf())
    (tmp_path / "sdf" / "gdb9.sdf.csv").write_bytes(made.sdf_table())
    made.npz(tmp_path / "qm9.npz")
    expected = load_qm9(tmp_path / "qm9.npz")
    assert expected.ids.tolist() == KEPT
    for name in ("raw.tar.gz", "gdb9.tar.gz", "tables", "files", "sdf"):
        data = load_qm9(tmp_path / name, progress=False)
        assert np.array_equal(data.ids, expected.ids), name
        assert np.array_equal(data.numbers, expected.numbers), name
        assert np.abs(data.positions - expected.positions).max() < 1e-6, name
        assert ("charges" in data.properties) == ("db9" not in name and name != "sdf")
        for key in UNITS:
            assert np.allclose(data.properties[key], expected.properties[key], rtol=1e-12), key
            assert data.units[key] == UNITS[key]


def test_an_sdf_and_a_table_that_do_not_belong_together(tmp_path):
    (tmp_path / "gdb9.sdf").write_bytes(Molecules([1, 2]).sdf())
    with pytest.raises(ValueError, match=r"has no gdb9\.sdf\.csv"):
        load_qm9(tmp_path, progress=False)
    (tmp_path / "gdb9.sdf.csv").write_bytes(Molecules([1, 3]).sdf_table())
    with pytest.raises(ValueError, match=r"molecule 2 of .* is gdb_2, but gdb_3 in its table"):
        load_qm9(tmp_path, progress=False)
    (tmp_path / "gdb9.sdf.csv").write_bytes(Molecules([1, 2, 3]).sdf_table())
    with pytest.raises(ValueError, match="2 molecules, its table 3"):
        load_qm9(tmp_path, progress=False)
    (tmp_path / "gdb9.sdf").write_bytes(Molecules([1, 2]).sdf()[:-60])
    with pytest.raises(ValueError, match="ends within molecule 2"):
        load_qm9(tmp_path, progress=False)


def test_tables_whose_columns_do_not_belong_together(tmp_path):
    """Of two molecules with as many atoms together as there are positions."""
    for name in ("positions", "charges"):
        made = Molecules([1, 2])
        values = getattr(made, name)
        values[0], values[1] = values[1], values[0]
        (tmp_path / "qm9_part1.csv").write_bytes(made.table())
        with pytest.raises(ValueError, match="molecule 1 has 3 elements, positions"):
            load_qm9(tmp_path, progress=False)


def test_ids_that_count_from_0(tmp_path):
    made = Molecules(IDS)
    made.npz(tmp_path / "qm9.npz", first=0)
    assert load_qm9(tmp_path / "qm9.npz").ids.tolist() == KEPT


def test_the_published_npz_of_dimenet(tmp_path):
    """Its ids count from 0, and the numbers of the list, which count from 1, were taken as such."""
    ids = np.array([k for k in range(133_885) if k not in uncharacterized()])
    ones = np.ones(len(ids), dtype=int)
    np.savez(tmp_path / "qm9.npz", N=ones, Z=ones, R=np.zeros((len(ids), 3)), id=ids, U0=0.5 * ids)
    with pytest.warns(UserWarning, match="uncharacterised molecules"):
        data = load_qm9(tmp_path / "qm9.npz")
    assert not set(data.ids.tolist()) & uncharacterized()
    assert np.array_equal(data.properties["U0"], 0.5 * (data.ids - 1))


@pytest.mark.parametrize("name", ["raw.tar", "raw.tar.gz"])
def test_an_archive_cut_between_two_files(tmp_path, name):
    whole, path = tmp_path / "whole.tar", tmp_path / name
    Molecules(IDS).tar(whole)
    with tarfile.open(whole) as archive:
        end = archive.getmembers()[4].offset
    content = whole.read_bytes()[:end]
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(ValueError, match="is damaged"):
        load_qm9(path, progress=False)


@pytest.mark.parametrize("mode", ["", "gz", "bz2", "xz"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_an_archive_cut_anywhere(tmp_path, mode, share):
    path = tmp_path / "raw.tar"
    Molecules(IDS).tar(path, f"w:{mode}")
    content = path.read_bytes().rstrip(b"\0") if not mode else path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"is damaged|is no raw file") as raised:
        load_qm9(path, progress=False)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_archive_with_a_damaged_header(tmp_path):
    path = tmp_path / "raw.tar"
    Molecules(IDS).tar(path)
    with tarfile.open(path) as archive:
        place = archive.getmembers()[4].offset
    content = bytearray(path.read_bytes())
    content[place + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        load_qm9(path, progress=False)


def test_a_damaged_checksum_of_gzip(tmp_path):
    path = tmp_path / "raw.tar.gz"
    Molecules(IDS).tar(path, "w:gz")
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        load_qm9(path, progress=False)


def test_a_cell_of_sgdml(tmp_path):
    """Lattice vectors are its columns."""
    lattice = np.array([[4.0, 1, 0], [0, 5, 0], [0, 0, 6]])
    arrays = dict(z=[1, 1], R=np.zeros((3, 2, 3)), E=np.zeros(3))
    np.savez(tmp_path / "a.npz", lattice=lattice, **arrays)
    data = load_npz(tmp_path / "a.npz")
    assert np.array_equal(data.cell, np.stack([lattice.T] * 3))
    assert data.pbc.all()
    np.savez(tmp_path / "b.npz", cell=np.stack([lattice, lattice, 2 * lattice]), **arrays)
    assert np.array_equal(load_npz(tmp_path / "b.npz").cell[2], 2 * lattice)
    np.savez(tmp_path / "c.npz", cell=np.ones((2, 2)), **arrays)
    with pytest.raises(ValueError, match="cell must have shape"):
        load_npz(tmp_path / "c.npz")


def test_units_of_an_npz(tmp_path):
    arrays = dict(z=[1, 1], R=np.zeros((1, 2, 3)), E=np.ones(1))
    np.savez(tmp_path / "a.npz", e_unit="Ha", **arrays)
    assert load_npz(tmp_path / "a.npz").properties["energy"][0] == pytest.approx(HARTREE)
    np.savez(tmp_path / "b.npz", e_unit="Rydberg", **arrays)
    with pytest.raises(ValueError, match=r"b\.npz: energy unit 'Rydberg' is unknown"):
        load_npz(tmp_path / "b.npz")


def test_energies_in_ev_need_no_ase(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "ase"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ase", None)
    assert len(load_dataset(format="ethanol")) == 2000


def test_units_of_extended_xyz(tmp_path):
    ase = pytest.importorskip("ase")
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    atoms = ase.Atoms("HF", [[0, 0, 0], [0, 0, 0.9]], cell=[9, 9, 9], pbc=True)
    stress = np.arange(6.0)
    atoms.calc = SinglePointCalculator(
        atoms, energy=-3.5, forces=np.full((2, 3), 0.5), stress=stress, dipole=[1.0, 2, 3]
    )
    write(tmp_path / "f.extxyz", [atoms, atoms])
    cache = tmp_path / "cache"
    plain = load_dataset(tmp_path / "f.extxyz", cache=cache, progress=False)
    data = load_dataset(tmp_path / "f.extxyz", energy_unit="kcal/mol", cache=cache, progress=False)
    for name in ("energy", "forces", "stress"):
        assert np.allclose(data.properties[name], plain.properties[name] * KCAL, rtol=1e-6), name
    assert data.properties["stress"].shape == (2, 3, 3)
    assert data.properties["stress"][0, 1, 2] == pytest.approx(3 * KCAL)
    assert np.array_equal(data.properties["dipole"], [[1.0, 2, 3]] * 2)


@pytest.mark.parametrize("unit", ["kcal/mol", "eV"])
def test_a_database_of_schnetpack(tmp_path, unit):
    """Labels are arrays in the rows' data, their units in the metadata."""
    ase = pytest.importorskip("ase")
    from ase.db import connect

    path, rng = tmp_path / "md.db", np.random.default_rng(0)
    forces = [rng.normal(size=(size, 3)) for size in (3, 2, 1)]
    with connect(path) as database:
        for k, values in enumerate(forces):
            atoms = ase.Atoms("H" * len(values), rng.normal(size=values.shape))
            database.write(atoms, data={"energy": np.array([1.0 + k]), "forces": values})
        units = {"energy": unit, "forces": f"{unit}/Ang", "gap": "Hartree"}
        database.metadata = {"_property_unit_dict": units, "_distance_unit": "Ang"}
    data, factor = load_ase(path, progress=False), KCAL if unit == "kcal/mol" else 1.0
    assert np.allclose(data.properties["energy"], np.array([1.0, 2, 3]) * factor, rtol=1e-6)
    assert np.allclose(data.properties["forces"], np.concatenate(forces) * factor, rtol=1e-6)
    assert data.ids.tolist() == [1, 2, 3]
    with connect(path) as database:
        database.metadata = {"_property_unit_dict": units, "_distance_unit": "Bohr"}
    with pytest.raises(ValueError, match="lengths in Bohr"):
        load_ase(path, progress=False)


def test_a_database_without_labels_of_some_rows(tmp_path):
    ase = pytest.importorskip("ase")
    from ase.db import connect

    with connect(tmp_path / "a.db") as database:
        database.write(ase.Atoms("H2"), data={"forces": np.ones((2, 3))}, gap=1.0)
        database.write(ase.Atoms("H2"))
    data = load_ase(tmp_path / "a.db", progress=False)
    assert np.isnan(data.properties["forces"][2:]).all()
    assert np.isfinite(data.properties["forces"][:2]).all()
    assert np.isnan(data.properties["gap"][1])


@pytest.fixture
def data():
    values = {"energy": np.array([1.0, 2.0]), "none": np.zeros((2, 0))}
    return Dataset(np.array([1, 1, 8]), np.zeros((3, 3)), np.array([0, 2, 3]), values)


def test_a_folder_that_others_may_read(data, tmp_path):
    save_dataset(data, tmp_path / "a")
    (tmp_path / "b").mkdir()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "b")}
    assert len(modes) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    found = open_dataset(tmp_path / "a")
    assert found.properties["none"].shape == (2, 0)
    assert found.collate([0]).batch.positions.dtype == torch.float32


def test_a_description_that_lacks_something(data, tmp_path):
    save_dataset(data, tmp_path / "a")
    (tmp_path / "a" / "meta.json").write_text('{"arrays": {}}')
    with pytest.raises(ValueError, match="holds no data set of molkern's"):
        open_dataset(tmp_path / "a")


def test_an_array_that_is_cut_short_without_verification(data, tmp_path):
    save_dataset(data, tmp_path / "a")
    file = tmp_path / "a" / "0.npy"
    file.write_bytes(file.read_bytes()[:70])
    with pytest.raises(ValueError, match=r"0\.npy is damaged or gone"):
        open_dataset(tmp_path / "a", verify=False)


def test_two_that_read_the_same_file_at_once(tmp_path, monkeypatch):
    """The one that is slower finds the other's folder in its way."""
    pytest.importorskip("ase")
    (tmp_path / "f.xyz").write_text("1\n\nH 0 0 0\n")

    def late(found, folder):
        save_dataset(found, folder)
        save_dataset(found, folder)

    monkeypatch.setattr(loading_module, "save_dataset", late)
    found = load_dataset(tmp_path / "f.xyz", cache=tmp_path / "cache", progress=False)
    assert found.numbers.tolist() == [1]


def test_another_release_of_qm9pack_is_read_anew(tmp_path, monkeypatch):
    package = tmp_path / "site" / "qm9pack"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('is not to be imported')\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("MOLKERN_CACHE", str(tmp_path / "cache"))
    table = package / "data" / "qm9_part1.csv"
    for ids in ([1, 2], [1, 2], [1, 2, 3]):
        table.write_bytes(Molecules(ids).table())
        assert load_dataset(format="qm9", progress=False).ids.tolist() == ids
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_qm9_that_is_nowhere(monkeypatch):
    monkeypatch.setattr("molkern.data.qm9.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"figshare.*npz.*pip install qm9pack"):
        load_dataset(format="qm9")


def test_the_cache_is_not_trusted(tmp_path):
    made, path, cache = Molecules(IDS), tmp_path / "raw.tar", tmp_path / "cache"
    made.tar(path)
    first = load_dataset(path, cache=cache, progress=False).digest
    file = max(cache.rglob("*.npy"), key=lambda found: found.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert load_dataset(path, cache=cache, progress=False).digest == first
    made.values += 1.0
    made.tar(path)
    assert load_dataset(path, cache=cache, progress=False).digest != first
