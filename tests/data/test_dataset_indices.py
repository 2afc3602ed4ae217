"""Choosing systems and frames as NumPy would, or with an error that says what to give."""

import numpy as np
import pytest
import torch

from molkern.data import Dataset, ethanol_frames
from molkern.data.shipped import Frames


@pytest.fixture
def data():
    """Five systems of 1 to 3 atoms."""
    sizes = np.array([2, 1, 3, 2, 1])
    atoms = sizes.sum()
    return Dataset(
        numbers=np.arange(1, atoms + 1),
        positions=np.arange(3.0 * atoms).reshape(-1, 3),
        ptr=np.concatenate([[0], np.cumsum(sizes)]),
        properties={"energy": np.arange(5.0), "forces": np.arange(3.0 * atoms).reshape(-1, 3)},
        ids=np.arange(10, 15),
    )


@pytest.fixture
def frames():
    numbers = torch.tensor([8, 1])
    positions = torch.arange(30.0).reshape(5, 2, 3)
    return Frames(numbers, positions, torch.arange(5.0), -positions)


MASK = [True, False, False, True, False]
CASES = [
    ([-2], [3]),
    ([-1, 0, -5], [4, 0, 0]),
    (3, [3]),
    (-1, [4]),
    (np.int64(-1), [4]),
    (np.uint8(2), [2]),
    (np.array(2), [2]),
    (torch.tensor(-1), [4]),
    (slice(None, None, -1), [4, 3, 2, 1, 0]),
    (slice(-2, None), [3, 4]),
    (slice(7, 9), []),
    (range(4, 0, -2), [4, 2]),
    (range(0), []),
    ([], []),
    ((), []),
    (np.array([], dtype=int), []),
    (torch.tensor([], dtype=torch.int64), []),
    (MASK, [0, 3]),
    (np.array(MASK), [0, 3]),
    (torch.tensor(MASK), [0, 3]),
    ([np.bool_(value) for value in MASK], [0, 3]),
    ([False] * 5, []),
    (np.array([1, 0], dtype=np.uint8), [1, 0]),
    (np.array([1, 0], dtype=">i2"), [1, 0]),
    (np.array([4], dtype=np.uint64), [4]),
    (torch.tensor([1, -1], dtype=torch.int8), [1, 4]),
    ([1, 1], [1, 1]),
]
WRONG = [
    ([5], IndexError, "there is no 5"),
    ([-6, 9], IndexError, "there is no -6"),
    (7, IndexError, "there are 5"),
    (range(3, 8), IndexError, "there is no 7"),
    (np.array([2**64 - 1], dtype=np.uint64), IndexError, "there is no 18446744073709551615"),
    ([True, False], IndexError, "a mask must have one bool for each of 5"),
    (np.ones(6, dtype=bool), IndexError, "mask"),
    (torch.ones(1, dtype=torch.bool), IndexError, "mask"),
    (np.ones((5, 1), dtype=bool), IndexError, "one axis"),
    ([[0, 1]], IndexError, "one axis"),
    ([0.0, 1.0], TypeError, "float64"),
    (np.array([]), TypeError, "float64"),
    (2.0, TypeError, "float"),
    (torch.tensor([1.0]), TypeError, "integers, a slice or a mask"),
    (torch.tensor([1, 0, 0, 1, 0], dtype=torch.uint8), TypeError, r"\.bool\(\).*\.long\(\)"),
    ([True, 2], TypeError, "mixes"),
    ("1", TypeError, "integers"),
    (["1"], TypeError, "integers"),
    (None, TypeError, "NoneType"),
]


@pytest.mark.parametrize(("index", "wanted"), CASES, ids=repr)
def test_data_sets(data, index, wanted):
    atoms = [k for s in wanted for k in range(data.ptr[s], data.ptr[s + 1])]
    sample = data.collate(index)
    assert sample.batch.numbers.tolist() == data.numbers[atoms].tolist()
    assert sample.batch.positions.tolist() == data.positions[atoms].tolist()
    assert sample.batch.num_systems == len(wanted)
    assert sample.targets["energy"].tolist() == wanted
    assert sample.targets["forces"].tolist() == data.properties["forces"][atoms].tolist()
    assert sample.indices.tolist() == wanted
    for part in (data.subset(index), data[list(index) if isinstance(index, tuple) else index]):
        assert part.ids.tolist() == [10 + k for k in wanted]
        assert part.numbers.tolist() == data.numbers[atoms].tolist()
        assert part.properties["forces"].tolist() == data.properties["forces"][atoms].tolist()
    assert data.atoms_of(index).tolist() == atoms
    assert data.rows("energy", index).tolist() == wanted
    assert data.rows("forces", index).tolist() == data.properties["forces"][atoms].tolist()


@pytest.mark.parametrize(("index", "error", "message"), WRONG, ids=repr)
@pytest.mark.parametrize("choose", ["collate", "subset", "__getitem__", "atoms_of"])
def test_indices_of_data_that_are_none(data, choose, index, error, message):
    with pytest.raises(error, match=message):
        getattr(data, choose)(index)


@pytest.mark.parametrize(
    ("index", "wanted"), [c for c in CASES if not isinstance(c[0], tuple)], ids=repr
)
def test_frames(frames, index, wanted):
    found = frames[index]
    assert found.energies.tolist() == wanted
    assert found.positions.tolist() == frames.positions[wanted].tolist()
    assert found.forces.tolist() == frames.forces[wanted].tolist()
    batch = found.batch()
    assert batch.num_systems == len(wanted)
    assert batch.positions.tolist() == frames.positions[wanted].reshape(-1, 3).tolist()


@pytest.mark.parametrize(("index", "error", "message"), WRONG, ids=repr)
def test_indices_of_frames_that_are_none(frames, index, error, message):
    with pytest.raises(error, match=message):
        frames[index]


def test_there_is_one_axis(frames, data):
    for values in (frames, data):
        with pytest.raises(TypeError, match="one axis"):
            values[0, 1]


def test_both_can_be_gone_through(data, frames):
    assert [len(system.numbers) for system in data] == [2, 1, 3, 2, 1]
    assert [float(frame.energies[0]) for frame in frames] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_labels_of_systems(data):
    assert data.label(-1) == "14"
    with pytest.raises(IndexError):
        data.label(5)


def test_one_line_each(data):
    for shown in (ethanol_frames()["test"], data, data.collate([0, 1])):
        assert "\n" not in repr(shown)
        assert len(repr(shown)) < 200
    assert repr(ethanol_frames()["test"]).startswith("Frames(800 of 9 atoms")


@pytest.mark.parametrize("numbers", [[1.5, 1.0, 8.0], [-1, 1, 8], [True, True, False]])
def test_atomic_numbers_of_other_types(numbers):
    with pytest.raises(ValueError, match="atomic numbers must be integers"):
        Dataset(np.array(numbers), np.zeros((3, 3)), np.array([0, 3]), {})


def test_properties_that_are_no_real_numbers():
    arrays = np.array([1]), np.zeros((1, 3)), np.array([0, 1])
    for values in (np.array([1j]), np.array(["a"]), np.array([None])):
        with pytest.raises(ValueError, match="gap must be real numbers"):
            Dataset(*arrays, {"gap": values})
