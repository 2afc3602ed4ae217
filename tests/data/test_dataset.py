"""Data sets: what batches hold, folders in memory, and clear words about what is wrong."""

import json

import numpy as np
import pytest
import torch

from molkern.data import Dataset, load_dataset, open_dataset, save_dataset


@pytest.fixture
def data():
    """Four molecules of 2, 1, 3 and 2 atoms."""
    rng = np.random.default_rng(0)
    return Dataset(
        numbers=np.array([1, 1, 2, 8, 1, 1, 6, 8], dtype=np.uint8),
        positions=rng.normal(size=(8, 3)),
        ptr=np.array([0, 2, 3, 6, 8]),
        properties={
            "energy": rng.normal(size=4),
            "dipole": rng.normal(size=(4, 3)),
            "forces": rng.normal(size=(8, 3)),
        },
        units={"energy": "eV"},
        ids=np.array([11, 12, 13, 14]),
        reference={"energy": np.arange(10.0)},
        name="made up",
    )


@pytest.mark.parametrize("chosen", [[2], [3, 0], [0, 1, 2, 3], [1, 1]])
def test_batches_hold_the_systems_asked_for(data, chosen):
    sample = data.collate(chosen, dtype=torch.float64)
    atoms = np.concatenate([np.arange(data.ptr[k], data.ptr[k + 1]) for k in chosen])
    assert sample.batch.numbers.tolist() == data.numbers[atoms].tolist()
    assert np.array_equal(sample.batch.positions, data.positions[atoms])
    assert sample.batch.system_ptr.diff().tolist() == [int(data.sizes[k]) for k in chosen]
    assert np.array_equal(sample.targets["energy"], data.properties["energy"][chosen])
    assert np.array_equal(sample.targets["forces"], data.properties["forces"][atoms])
    assert np.array_equal(sample.targets["dipole"], data.properties["dipole"][chosen])


def test_crystals_have_their_cells(data):
    cells = np.stack([np.eye(3) * k for k in (3, 4, 5, 6)])
    periodic = Dataset(
        data.numbers, data.positions, data.ptr, {}, cell=cells, pbc=np.ones((4, 3), dtype=bool)
    )
    batch = periodic.collate([2, 1]).batch
    assert np.array_equal(batch.cell, cells[[2, 1]].astype(np.float32))
    assert batch.pbc.all()


def test_subsets_keep_names_and_labels(data):
    part = data.subset([3, 1])
    assert part.ids.tolist() == [14, 12]
    assert part.numbers.tolist() == [6, 8, 2]
    assert np.array_equal(part.properties["energy"], data.properties["energy"][[3, 1]])


def test_labels_that_are_not_numbers_are_found(data):
    data.properties["energy"][2] = np.nan
    data.properties["forces"][0, 1] = np.inf
    found = data.incomplete(["energy", "forces", "dipole"])
    assert {name: systems.tolist() for name, systems in found.items()} == {
        "energy": [2],
        "forces": [0],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(ptr=np.array([0, 2, 1, 6, 8])), "not decrease"),
        (dict(ptr=np.array([0, 2, 3, 6, 7])), "do not fit"),
        (dict(properties={"energy": np.zeros(3)}), "energy has 3 rows, needs 4"),
        (dict(properties={"forces": np.zeros((4, 3))}), "forces has 4 rows, needs 8"),
        (dict(cell=np.zeros((3, 3))), "cell must have shape"),
    ],
)
def test_arrays_that_do_not_fit(data, change, message):
    arrays = dict(numbers=data.numbers, positions=data.positions, ptr=data.ptr, properties={}, **{})
    with pytest.raises(ValueError, match=message):
        Dataset(**{**arrays, **change})


def test_folders_give_back_what_was_saved(data, tmp_path):
    save_dataset(data, tmp_path / "kept")
    found = open_dataset(tmp_path / "kept")
    assert found.digest == data.digest
    assert isinstance(found.positions, np.memmap)
    assert found.units == data.units
    assert np.array_equal(found.reference["energy"], data.reference["energy"])
    assert load_dataset(tmp_path / "kept").label(1) == "12"
    with pytest.raises(ValueError, match="exists"):
        save_dataset(data, tmp_path / "kept")


def test_a_damaged_folder_is_named(data, tmp_path):
    folder = tmp_path / "kept"
    save_dataset(data, folder)
    file = max(folder.glob("*.npy"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file.name} is damaged or gone"):
        open_dataset(folder)
    (folder / "meta.json").unlink()
    with pytest.raises(ValueError, match="holds no data set"):
        open_dataset(folder)


@pytest.mark.parametrize(
    "arrays",
    [[], {"numbers": 1}, {"numbers": [], "positions": [], "ptr": []}, "words", None],
    ids=str,
)
def test_a_description_of_something_else(data, tmp_path, arrays):
    save_dataset(data, tmp_path / "kept")
    meta = {"arrays": arrays, "units": {}, "name": "x"}
    (tmp_path / "kept" / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="kept holds no data set of molkern's"):
        open_dataset(tmp_path / "kept")


def test_systems_begin_at_whole_numbers(data):
    with pytest.raises(ValueError, match="ptr must hold integers, got float64"):
        Dataset(data.numbers, data.positions, data.ptr.astype(float), {})


def test_digests_tell_data_apart(data):
    before = data.digest
    changed = data.subset(range(4))
    assert changed.subset(range(4)).digest == changed.digest
    changed.properties["energy"][0] += 1e-12
    assert Dataset(**{k: getattr(changed, k) for k in FIELDS}).digest != before


FIELDS = ("numbers", "positions", "ptr", "properties", "ids")
