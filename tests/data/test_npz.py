"""What npz files hold: shapes compared before anything is read, padding, names, damaged files."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from molkern.data import load_dataset, load_npz, load_qm9
from molkern.data.reading import Archive

KCAL = 0.0433641043


def frames(count=4, atoms=5):
    """Arrays in MD17's layout."""
    rng = np.random.default_rng(3)
    shape = (count, atoms, 3)
    return dict(
        z=np.arange(1, atoms + 1),
        R=rng.normal(size=shape),
        E=rng.normal(size=count),
        F=rng.normal(size=shape),
    )


@pytest.fixture
def load(tmp_path):
    """Writes arrays and reads them, ``load(arrays, option=...)``."""

    def load(arrays, **options):
        np.savez(tmp_path / "f.npz", **arrays)
        return load_npz(tmp_path / "f.npz", **options)

    return load


def transposed(values):
    return np.swapaxes(values, 1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"F": transposed(a["F"])}, r"forces \(F\) must have shape \[4, 5, 3\], got"),
        (lambda a: {"F": a["F"].swapaxes(0, 1)}, r"forces \(F\) must .* got \[5, 4, 3\]"),
        (lambda a: {"F": a["F"].reshape(4, 15)}, r"forces \(F\) must"),
        (lambda a: {"F": a["F"].reshape(20, 3)}, r"forces \(F\) must"),
        (lambda a: {"R": transposed(a["R"])}, r"positions \(R\) must have shape \[frames, atoms"),
        (lambda a: {"R": a["R"][0]}, r"positions \(R\) must"),
        (lambda a: {"E": a["E"][:3]}, r"energy \(E\) must have shape \[4\], got \[3\]"),
        (lambda a: {"E": a["E"].reshape(2, 2)}, r"energy \(E\) must"),
        (lambda a: {"E": np.zeros((4, 5))}, r"energy \(E\) must"),
        (lambda a: {"E": np.zeros((4, 3))}, r"energy \(E\) must"),
        (lambda a: {"z": a["z"][:4]}, r"numbers \(z\) must have shape \[5\] or \[4, 5\]"),
        (lambda a: {"z": np.ones((5, 4), int)}, r"numbers \(z\) must"),
        (lambda a: {"z": np.ones(20, int)}, r"numbers \(z\) must"),
        (lambda a: {"D": np.zeros((3, 4))}, r"dipole \(D\) must have shape \[4, 3\], got \[3, 4\]"),
        (lambda a: {"D": np.zeros(12)}, r"dipole \(D\) must"),
        (lambda a: {"D": np.zeros(4)}, r"dipole \(D\) must"),
        (lambda a: {"Q": np.zeros((4, 5))}, r"total_charge \(Q\) must have shape \[4\]"),
        (lambda a: {"Q": np.zeros(3)}, r"total_charge \(Q\) must"),
        (lambda a: {"N": np.array([5, 5])}, r"sizes \(N\) must"),
        (lambda a: {"charges": np.zeros((5, 4))}, r"charges must have shape \[4, 5\]"),
        (lambda a: {"stress": np.zeros((3, 3, 4))}, r"stress must have shape \[4, 3, 3\] or"),
        (lambda a: {"cell": np.zeros((4, 6))}, r"cell must have shape"),
        (lambda a: {"cell": np.eye(3), "pbc": np.ones(4)}, r"pbc must have shape"),
        (lambda a: {"cell": np.eye(3), "pbc": np.full(3, 2)}, "pbc must be 0 or 1"),
        (lambda a: {"pbc": True}, "pbc is set, but there is no cell"),
        (lambda a: {"cell": np.eye(3), "lattice": np.eye(3)}, "both lattice and cell"),
        (lambda a: {"E": a["E"].astype(complex)}, "E has type complex128: save it as plain"),
        (lambda a: {"E": a["E"].astype(str)}, "E has type <U"),
        (lambda a: {"z": np.ones(5, dtype=bool)}, "z has type bool"),
        (lambda a: {"F": a["F"] > 0}, "F has type bool"),
        (lambda a: {"E": a["E"].astype(object)}, "E has Python objects, which are not read"),
        (lambda a: {"z": np.array(list("HCNOF"))}, "z has type <U1"),
        (lambda a: {"e_unit": np.arange(3)}, "e_unit must be a short text"),
    ],
)
def test_arrays_that_do_not_fit(load, tmp_path, change, message):
    arrays = frames()
    with pytest.raises(ValueError, match=message) as raised:
        load({**arrays, **change(arrays)})
    assert "f.npz" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_forces_of_three_atoms_the_wrong_way_round(load):
    """Their shape does not tell, their sum does."""
    arrays = frames(atoms=3)
    arrays["F"] -= arrays["F"].mean(1, keepdims=True)
    assert np.allclose(load(arrays).properties["forces"], arrays["F"].reshape(-1, 3))
    with pytest.raises(ValueError, match="not over atoms"):
        load({**arrays, "F": transposed(arrays["F"])})


@pytest.mark.parametrize("value", [262, -1, 0, 119, 6.9, np.nan, np.inf, 1e30])
@pytest.mark.parametrize("each", [False, True])
def test_numbers_that_are_no_elements(load, value, each):
    arrays = frames()
    z = arrays["z"].astype(float if isinstance(value, float) else np.int64)
    z[2] = value
    arrays["z"] = np.stack([z] * 4) if each else z
    with pytest.raises(ValueError, match=r"f\.npz: z.* is no atomic number \(at \[\d, 2\]\)"):
        load(arrays)


def test_positions_of_any_type(load):
    arrays = frames()
    for kind in (">f8", ">f4", "f2", np.longdouble, "i8"):
        data = load({**arrays, "R": arrays["R"].astype(kind)})
        found = data.collate([1, 0]).batch.positions
        assert np.allclose(found[:5], arrays["R"][1].astype(kind).astype(float), atol=1e-6)


def test_whole_numbers_of_any_type(load):
    for kind in (np.float32, np.int8, np.uint64, ">i4"):
        arrays = frames()
        data = load({**arrays, "z": arrays["z"].astype(kind)})
        assert data.numbers.tolist() == [1, 2, 3, 4, 5] * 4


PADDED = np.array([[8, 1, 1], [9, 1, 0], [2, 0, 0], [7, 1, 1]])


@pytest.mark.parametrize("extra", [{}, {"N": np.array([3, 2, 1, 3])}, {"N": [[3], [2], [1], [3]]}])
def test_padding(load, extra):
    arrays = {**frames(atoms=3), "z": PADDED, "charges": np.arange(12.0).reshape(4, 3), **extra}
    arrays["R"][PADDED == 0] = np.nan
    data = load(arrays)
    assert data.sizes.tolist() == [3, 2, 1, 3]
    assert data.numbers.tolist() == [8, 1, 1, 9, 1, 2, 7, 1, 1]
    assert np.array_equal(data.positions, arrays["R"][PADDED > 0])
    assert np.array_equal(data.properties["forces"], arrays["F"][PADDED > 0])
    assert data.properties["charges"].tolist() == [0, 1, 2, 3, 4, 6, 9, 10, 11]
    assert ("padding" in " ".join(data.notes)) == (not extra)


def test_padding_of_all_frames(load):
    data = load({**frames(atoms=3), "z": [8, 1, 0]})
    assert data.sizes.tolist() == [2] * 4
    assert data.numbers.tolist() == [8, 1] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(z=PADDED * [[1], [1], [0], [1]]), "frame 2 has no atoms"),
        (dict(z=np.where(PADDED == 9, 0, PADDED)), r"0 is no atomic number \(at \[1, 0\]\)"),
        (dict(N=[3, 2, 0, 3]), "frame 2 has 0 atoms by N"),
        (dict(N=[3, 2, 4, 3]), "frame 2 has 4 atoms by N, but there is room for 1 to 3"),
        (dict(N=[3, 1, 1, 3]), "frame 1 has 1 atoms by N, more by z"),
        (dict(N=[3, 3, 1, 3]), r"0 is no atomic number \(at \[1, 2\]\)"),
        (dict(N=[3, 2.5, 1, 3]), "N: 2.5 is no whole number"),
        (dict(N=[3, np.nan, 1, 3]), "N: nan is no whole number"),
    ],
)
def test_padding_that_contradicts(load, change, message):
    with pytest.raises(ValueError, match=message):
        load({**frames(atoms=3), "z": PADDED, **change})


def test_names_that_are_given(load):
    arrays = frames()
    own = dict(
        species=arrays["z"],
        xyz=arrays["R"],
        E_dft=arrays["E"][:, None],
        grad=arrays["F"],
        gap=np.arange(4.0),
        field=np.ones((4, 3)),
        formation_energy=np.ones(4),
        E=np.full(4, 99.0),
    )
    labels = dict(
        numbers="species",
        positions="xyz",
        energy="E_dft",
        forces="grad",
        homo="gap",
        field="field",
        formation_energy="formation_energy",
    )
    data = load(own, labels=labels, energy_unit="kcal/mol")
    assert np.allclose(data.properties["energy"], arrays["E"] * KCAL)
    assert np.allclose(data.properties["forces"], arrays["F"].reshape(-1, 3) * KCAL)
    assert data.properties["homo"].tolist() == [0, 1, 2, 3]
    assert np.allclose(data.properties["formation_energy"], KCAL)
    assert data.properties["field"].shape == (4, 3)
    assert data.units["formation_energy"] == "eV"
    assert "homo" not in data.units
    assert list(data.unused) == ["E"]
    with pytest.raises(ValueError, match=r"f\.npz has no 'E_ccsd' \(data\.labels: energy\)"):
        load(own, labels={"energy": "E_ccsd"})
    with pytest.raises(ValueError, match=r"homo \(field\) must have shape|homo \(z2\) must"):
        load({**arrays, "z2": np.zeros((4, 5))}, labels={"homo": "z2"})


def test_a_label_of_its_own_needs_no_energy(load):
    arrays = frames()
    del arrays["E"], arrays["F"]
    data = load({**arrays, "gap": np.arange(4.0)}, labels={"homo": "gap"})
    assert list(data.properties) == ["homo"]


def test_labels_say_that_it_is_no_qm9(load, tmp_path):
    arrays = {**frames(), "id": np.arange(4), "N": np.full(4, 5)}
    np.savez(tmp_path / "f.npz", **arrays)
    data = load_dataset(tmp_path / "f.npz", labels={"energy": "E"})
    assert np.allclose(data.properties["energy"], arrays["E"])


def test_units_by_other_names(load):
    arrays = frames()
    data = load({**arrays, "energy_unit": "kcal/mol", "length_unit": "Angstrom"})
    assert np.allclose(data.properties["energy"], arrays["E"] * KCAL)
    assert list(data.unused) == []
    for name in ("R_unit", "length_unit", "distance_unit"):
        with pytest.raises(ValueError, match="lengths in bohr"):
            load({**arrays, name: "bohr"})
    with pytest.raises(TypeError, match="labels must be names by label"):
        load(arrays, labels=["energy"])


def test_stress_and_virials(load):
    arrays, rng = frames(), np.random.default_rng(0)
    cell = rng.normal(size=(4, 3, 3)) + 5 * np.eye(3)
    stress = rng.normal(size=(4, 3, 3))
    stress = stress + transposed(stress)
    volume = np.abs(np.linalg.det(cell))[:, None, None]
    voigt = stress[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    for extra in (
        {"stress": stress},
        {"stress": voigt},
        {"stress": stress.reshape(4, 9)},
        {"virial": -volume * stress},
        {"virials": -volume[:, 0] * voigt},
    ):
        data = load({**arrays, "cell": cell, **extra}, energy_unit="kcal/mol")
        assert np.allclose(data.properties["stress"], stress * KCAL), extra.keys()
        assert data.units["stress"] == "eV/Å³"
    data = load(
        {**arrays, "cell": cell, "W_virial": -volume * stress}, labels={"stress": "W_virial"}
    )
    assert np.allclose(data.properties["stress"], stress)
    with pytest.raises(ValueError, match="virial needs a cell"):
        load({**arrays, "virial": stress})


def test_lattices_of_three_frames(load):
    """Columns of each frame's matrix, whatever the number of frames."""
    lattice = np.arange(27.0).reshape(3, 3, 3)
    data = load({**frames(3), "lattice": lattice})
    assert np.array_equal(data.cell, transposed(lattice))


def test_frames_without_a_cell_among_others(load):
    cell = np.stack([np.eye(3), np.zeros((3, 3)), np.eye(3), np.eye(3)])
    data = load({**frames(), "cell": cell})
    assert data.pbc[:, 0].tolist() == [True, False, True, True]


def test_what_is_not_used_is_listed(load):
    extra = dict(theory=np.array("PBE"), E_mean=np.ones(1), E_notes=np.array([{}, None]))
    data = load({**frames(), **extra, "e_unit": "eV"})
    assert list(data.unused) == ["theory", "E_mean", "E_notes"]


class Planted:
    """Writes a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickles_are_left_alone(load, tmp_path):
    place = tmp_path / "planted"
    planted = np.array([Planted(place)], dtype=object)
    data = load({**frames(), "note": planted})
    assert list(data.unused) == ["note"]
    for name in ("E", "z", "e_unit", "cell"):
        with pytest.raises(ValueError, match=name):
            load({**frames(), name: planted})
    assert not place.exists()


def test_arrays_that_are_not_used_are_not_unpacked(tmp_path):
    path = tmp_path / "bomb.npz"
    zeros = np.zeros(2_000_000)  # more than may be taken, and little in the file

    def check(read, message=None, **arrays):
        np.savez_compressed(path, **arrays)
        assert path.stat().st_size < 1_000_000
        tracemalloc.start()
        try:
            if message is None:
                read(path)
            else:
                with pytest.raises(ValueError, match=message):
                    read(path)
            assert tracemalloc.get_traced_memory()[1] < 5_000_000
        finally:
            tracemalloc.stop()

    check(load_npz, **frames(), bomb=zeros)
    check(load_npz, r"forces \(F\) must", **{**frames(), "F": zeros})
    check(load_npz, "e_unit", **frames(), e_unit=zeros)
    for read in (load_npz, load_qm9, load_dataset):
        check(read, "has no", bomb=zeros)


def member(shape, content, version=b"\x01\x00"):
    """An array of float64 whose header may lie."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = len(header).to_bytes(2 if version[0] == 1 else 4, "little")
    return b"\x93NUMPY" + version + length + header + content


@pytest.mark.parametrize(
    "content",
    [
        member((4,), bytes(8)),
        member((1,), bytes(32)),
        member((10**12,), bytes(32)),
        member((-4,), bytes(32)),
        member((4,), bytes(32), b"\x09\x00"),
        b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{",
        b"\x93NUM",
        b"",
    ],
)
def test_headers_that_lie(tmp_path, content):
    np.savez(tmp_path / "f.npz", **{k: v for k, v in frames().items() if k != "E"})
    with zipfile.ZipFile(tmp_path / "f.npz", "a") as archive:
        archive.writestr("E.npy", content)
    with pytest.raises(ValueError, match=r"f\.npz is damaged or no npz"):
        load_npz(tmp_path / "f.npz")


def test_a_member_whose_checksum_is_wrong(tmp_path):
    path = tmp_path / "f.npz"
    np.savez(path, **frames())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("F.npy")
    content = bytearray(path.read_bytes())
    content[info.header_offset + info.file_size - 50] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"f\.npz is damaged"):
        load_npz(path)


def test_one_array_without_a_name(tmp_path):
    np.save(tmp_path / "f.npy", np.zeros(3))
    (tmp_path / "g.npz").write_bytes((tmp_path / "f.npy").read_bytes())
    for path, read in ((tmp_path / "f.npy", load_dataset), (tmp_path / "g.npz", load_npz)):
        with pytest.raises(ValueError, match=f"{path.name}.*one array without a name"):
            read(path)


def test_other_versions_of_headers(tmp_path):
    content = io.BytesIO()
    np.lib.format.write_array(content, np.arange(3.0), version=(2, 0))
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        archive.writestr("a.npy", content.getvalue())
        archive.writestr("readme.txt", "words")
    found = Archive(tmp_path / "f.npz")
    assert found.numbers("a").tolist() == [0, 1, 2]
    assert list(found.headers) == ["a"]


QM9 = dict(N=[2, 1], Z=[1, 1, 8], R=np.zeros((3, 3)), id=[1, 2], U0=np.zeros(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(Z=[1, 257, 8]), "Z: 257 is no atomic number"),
        (dict(Z=[1, 1.5, 8]), "Z: 1.5 is no atomic number"),
        (dict(N=[2, 2]), "N adds up to 4, but Z has 3 atoms"),
        (dict(N=[4, -1]), "N adds up to"),
        (dict(N=[1.5, 1.5]), "N: 1.5 is no whole number"),
        (dict(id=[1, 2.5]), "id: 2.5 is no whole number"),
        (dict(R=np.zeros((9, 1))), r"R must have shape \[3, 3\]"),
        (dict(R=np.zeros((1, 3, 3))), "R must"),
        (dict(U0=np.zeros(3)), r"U0 must have shape \[2\]"),
        (dict(Q=np.zeros(2)), r"Q must have shape \[3\]"),
        (dict(U0=np.array([None, 1.0])), "U0 has Python objects"),
    ],
)
def test_arrays_of_qm9_that_do_not_fit(tmp_path, change, message):
    np.savez(tmp_path / "q.npz", **{**QM9, **change})
    with pytest.raises(ValueError, match=message):
        load_qm9(tmp_path / "q.npz")


def test_what_qm9_does_not_use(tmp_path):
    np.savez(tmp_path / "q.npz", **QM9, smiles=np.array(["C", "N"], dtype=object))
    data = load_qm9(tmp_path / "q.npz")
    assert list(data.unused) == ["smiles"]
    assert len(data) == 2
