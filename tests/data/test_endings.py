"""Files by the ends of their names: in capital letters, compressed, or of no known format."""

import bz2
import gzip
import lzma
import shutil

import pytest

pytest.importorskip("ase")
import ase.build
import ase.io
from ase.db import connect
from test_sdf import END, WATER, v2000

from molkern.data import load_ase, load_dataset
from molkern.files import read_frames

PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
ENERGY = "> <energy>\n{}\n\n" + END


@pytest.mark.parametrize("name", ["m.sdf", "m.SDF", "m.sd"])
@pytest.mark.parametrize("end", ["", *PACK])
def test_all_molecules_of_an_sdf(tmp_path, name, end):
    text = "".join(v2000("water", WATER, data=ENERGY.format(k)) for k in (-1.5, -2.5))
    path = tmp_path / (name + end)
    path.write_bytes(PACK.get(end, bytes)(text.encode()))
    data = load_dataset(path, cache=tmp_path / "cache", progress=False)
    assert data.properties["energy"].tolist() == [-1.5, -2.5]


@pytest.mark.parametrize("end", ["", *PACK])
def test_extended_xyz(tmp_path, end):
    text = "1\nProperties=Z:R:1:pos:R:3 energy=-{0}\n{0} 0 0 0\n"
    path = tmp_path / f"f.XYZ{end}"
    path.write_bytes(PACK.get(end, bytes)((text.format(1) + text.format(8)).encode()))
    data = load_dataset(path, cache=tmp_path / "cache", progress=False)
    assert data.numbers.tolist() == [1, 8]
    assert data.properties["energy"].tolist() == [-1.0, -8.0]
    path.write_bytes(PACK.get(end, bytes)((text.format(1) + text.format(6.9)).encode()))
    with pytest.raises(ValueError, match=r"frame 1: atom 0 has number 6\.9"):
        list(read_frames(path))


def test_databases(tmp_path):
    with connect(str(tmp_path / "d.db")) as database:
        database.write(ase.build.molecule("H2O"), key_value_pairs={"gap": 1.5})
    shutil.copy(tmp_path / "d.db", tmp_path / "D.DB")
    data = load_ase(tmp_path / "D.DB", progress=False)
    assert data.properties["gap"].tolist() == [1.5]
    assert data.ids.tolist() == [1]


def test_titles_in_other_alphabets(tmp_path):
    """Latin-1, say, which programs for molecules still write."""
    path = tmp_path / "m.sdf"
    path.write_bytes(v2000("Müller", WATER, data=END).encode("latin-1"))
    assert [len(atoms) for atoms in read_frames(path)] == [3]


@pytest.mark.parametrize("name", ["f.h5", "f.hdf5", "f.what", "f"])
def test_formats_that_nobody_knows(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(ValueError, match="convert it to extended XYZ first") as error:
        list(read_frames(path))
    assert str(path) in str(error.value)


WATER_XYZ = "3\n\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n"


def frames_of(tmp_path, text):
    (tmp_path / "f.xyz").write_text(text)
    return list(read_frames(tmp_path / "f.xyz"))


@pytest.mark.parametrize("between", ["\n", "\n\n", "  \n", "\r\n"])
def test_frames_after_an_empty_line(tmp_path, between):
    """ASE's reader ends there, without a word."""
    assert len(frames_of(tmp_path, WATER_XYZ + WATER_XYZ)) == 2
    assert len(frames_of(tmp_path, WATER_XYZ + between)) == 1
    with pytest.raises(ValueError, match="an empty line stands before frame 1: remove it"):
        frames_of(tmp_path, WATER_XYZ + between + WATER_XYZ)
    with pytest.raises(ValueError, match="an empty line stands before frame 0: remove it"):
        frames_of(tmp_path, between + WATER_XYZ)


@pytest.mark.parametrize("atoms", [4, 99_999_999_999, 10**30])
@pytest.mark.parametrize("columns", ["", "Properties=Z:R:1:pos:R:3"])
def test_frames_of_fewer_atoms_than_they_say(tmp_path, atoms, columns):
    """Nothing counts as far as a file says."""
    text = WATER_XYZ + f"{atoms}\n{columns}\n8 0 0 0\n1 0 0 1\n"
    with pytest.raises(ValueError, match=f"frame 1 has 2 atoms, but {atoms} by its first line"):
        frames_of(tmp_path, text)


def test_vectors_behind_atoms(tmp_path):
    """An old way to write a cell."""
    cell = "VEC1 9 0 0\nVEC2 0 9 0\nVEC3 0 0 9\n"
    found = frames_of(tmp_path, WATER_XYZ + cell + WATER_XYZ)
    assert [atoms.cell.rank for atoms in found] == [3, 0]
    with pytest.raises(ValueError, match="before frame 2"):
        frames_of(tmp_path, WATER_XYZ + cell + WATER_XYZ + "\n" + WATER_XYZ)
