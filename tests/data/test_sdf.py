"""Molecules of SDF and MOL files."""

import numpy as np
import pytest

pytest.importorskip("ase")

from molkern.data import load_ase
from molkern.data.conditions import stated
from molkern.files import read_frames

V2000 = """{title}
  made by hand

  {count}  0  0  0  0  0  0  0  0  0999 V2000
{atoms}
{properties}M  END
"""


def line(symbol, place, code=0):
    return "".join(f"{x:10.4f}" for x in place) + f" {symbol:<3} 0{code:3d}  0  0"


def v2000(title, atoms, properties="", data=""):
    lines = "\n".join(line(*atom) for atom in atoms)
    return V2000.format(title=title, count=len(atoms), atoms=lines, properties=properties) + data


V3000 = """three
  made by hand

  0  0  0     0  0            999 V3000
M  V30 BEGIN CTAB
M  V30 COUNTS 2 1 0 0 0
M  V30 BEGIN ATOM
M  V30 1 N 0.5 -1.25 0.125 0 CHG=1
M  V30 2 H 1.5 -1.25 -
M  V30 0.125 0
M  V30 END ATOM
M  V30 BEGIN BOND
M  V30 1 1 1 2
M  V30 END BOND
M  V30 END CTAB
M  END
"""
WATER = [("O", (0, 0, 0)), ("H", (0.96, 0, 0)), ("H", (-0.24, 0.93, 0))]
END = "$$$$\n"


def test_all_molecules(tmp_path):
    path = tmp_path / "some.sdf"
    text = v2000("one", WATER, data="> <energy>\n-76.5\n\n> <gap>  (1)\n0.25\n\n") + END
    text += v2000("two", [("Cl", (0, 0, 1))], "M  CHG  1   1  -1\n", ">  <dipole>\n1 2 3\n\n") + END
    text += V3000 + END + v2000("", WATER[:1]) + END
    path.write_text(text)
    frames = list(read_frames(path))
    assert [atoms.get_chemical_formula() for atoms in frames] == ["H2O", "Cl", "HN", "O"]
    assert np.allclose(frames[0].positions, [place for _, place in WATER])
    assert np.allclose(frames[2].positions, [[0.5, -1.25, 0.125], [1.5, -1.25, 0.125]])
    assert [stated(atoms).get("total_charge", 0) for atoms in frames] == [0, -1, 1, 0]
    data = load_ase(path, progress=False)
    assert data.sizes.tolist() == [3, 1, 2, 1]
    assert data.properties["energy"][0] == -76.5
    assert np.isnan(data.properties["energy"][1:]).all()
    assert data.properties["gap"][0] == 0.25
    assert data.properties["dipole"][1].tolist() == [1, 2, 3]
    assert data.properties["total_charge"].tolist() == [0, -1, 1, 0]


def test_charges_of_both_kinds(tmp_path):
    """Lines of charges count more than codes in the lines of atoms."""
    atoms = [("N", (0, 0, 0), 3), ("O", (0, 0, 1), 5), ("C", (0, 0, 3), 1)]
    for properties, wanted in (("", 3), ("M  CHG  2   1   1   3   1\n", 2)):
        (tmp_path / "a.mol").write_text(v2000("a", atoms, properties))
        (found,) = read_frames(tmp_path / "a.mol")
        assert stated(found)["total_charge"] == wanted


@pytest.mark.parametrize("ending", ["sdf", "SDF", "sd", "mol"])
def test_without_an_end(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    path.write_text(v2000("a", WATER))
    assert len(list(read_frames(path))) == 1
    path.write_text(v2000("a", WATER) + END + "\n\n")
    assert len(list(read_frames(path))) == 1


def test_windows_and_hydrogen_isotopes(tmp_path):
    text = v2000("a", [("D", (0, 0, 0)), ("T", (0, 0, 1))]) + END
    (tmp_path / "a.sdf").write_bytes((text * 2).replace("\n", "\r\n").encode())
    assert [str(atoms.symbols) for atoms in read_frames(tmp_path / "a.sdf")] == ["H2", "H2"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (v2000("b", WATER)[:200], "ends within molecule 2"),
        (v2000("b", WATER).replace("M  END\n", ""), "ends within molecule 2"),
        (V3000.replace("COUNTS 2", "COUNTS 3"), "2 atoms, but 3 by its counts"),
        (V3000[:150], "ends within molecule 2"),
        (v2000("b", WATER).replace("0.9600", "0.96x0"), "molecule 2 cannot be read.*0.96x0"),
        (v2000("b", WATER, "M  CHG  1   9   1\n"), "3 atoms, but a charge of atom 9"),
        (v2000("b", [("R#", (0, 0, 0))]), "R#"),
        ("b\n\n\nwhat is this\n", "molecule 2 cannot be read"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, second, message):
    path = tmp_path / "some.sdf"
    path.write_text(v2000("a", WATER) + END + second)
    with pytest.raises(ValueError, match=rf"some\.sdf cannot be read after frame 0: .*{message}"):
        list(read_frames(path))


def test_an_empty_file(tmp_path):
    (tmp_path / "a.sdf").write_text("")
    with pytest.raises(ValueError, match="holds no structures"):
        list(read_frames(tmp_path / "a.sdf"))
