"""Sizes of splits by numbers and fractions, and files of splits."""

import numpy as np
import pytest

from molkern.training.config import Split, check_config, read_config
from molkern.training.split import PARTS, load_split, make_split, part_sizes, save_split


def sizes(count, train, validation, test=None):
    options = Split(train=train, validation=validation, test=test)
    split = make_split(options, np.arange(count), "d")
    members = np.concatenate([*split.values()])
    assert len(set(members.tolist())) == len(members)
    return [len(split[part]) for part in PARTS]


@pytest.mark.parametrize(
    "fractions",
    [
        (0.8, 0.1, 0.1),
        (0.7, 0.15, 0.15),
        (0.5, 0.25, 0.25),
        (0.6, 0.2, 0.2),
        (0.98, 0.01, 0.01),
        (0.333, 0.333, 0.334),
        (0.3333333, 0.3333333, 0.3333333),
        (0.8, 0.1, 0.1000001),
        (0.3, 0.3, 0.4),
        (1 / 3, 1 / 3, 1 / 3),
        (0.05, 0.9, 0.05),
    ],
)
def test_fractions_that_add_up_to_1(fractions):
    for count in [*range(3, 400), 999, 1001, 12_345, 133_885]:
        found = part_sizes(fractions, count)
        assert sum(found) == count
        assert min(found) >= 1
        most = 1.1 if min(fractions) * count >= 1 else 3  # where one system is given to each part
        assert np.abs(np.array(found) - np.array(fractions) * count).max() < most
    assert sizes(15, *fractions) == part_sizes(fractions, 15)


@pytest.mark.parametrize(
    ("count", "wanted", "found"),
    [
        (15, (0.8, 0.1, 0.1), [12, 2, 1]),
        (45, (0.8, 0.1, 0.1), [36, 5, 4]),
        (5, (0.8, 0.1, 0.1), [3, 1, 1]),
        (3, (0.8, 0.1, 0.1), [1, 1, 1]),
        (15, (0.8, 0.1, None), [12, 2, 1]),
        (2, (0.8, 0.1, None), [1, 1, 0]),
        (100, (0.5, 0.1, 0.1), [50, 10, 10]),
        (15, (0.5, 0.1, 0.1), [8, 1, 1]),
        (100, (60, 0.1, 0.1), [60, 10, 10]),
        (100, (60, 0.1, None), [60, 10, 30]),
        (100, (60, 0.25, 0.15), [60, 25, 15]),
        (100, (0.5, 20, 30), [50, 20, 30]),
        (100, (0.5, 0.25, 0), [50, 25, 0]),
        (7, (0.001, 0.001, 0.001), [1, 1, 1]),
        (99, (60.0, 10.0, 29.0), [60, 10, 29]),
    ],
)
def test_sizes(count, wanted, found):
    assert sizes(count, *wanted) == found


@pytest.mark.parametrize(
    ("count", "wanted", "message"),
    [
        (2, (0.8, 0.1, 0.1), "1 for training, 1 for validation and 1 for the test are more than"),
        (1, (0.5, 0.5, None), "1 for training, 1 for validation are more than the 1 systems"),
        (100, (60, 0.25, 0.16), "60 for training, 25 for validation and 16 for the test are more"),
        (100, (0.5, 0.1, 50), "50 for training, 10 for validation and 50"),
        (0, (0.5, 0.1, None), "more than the 0 systems"),
    ],
)
def test_more_than_there_is(count, wanted, message):
    with pytest.raises(ValueError, match=message):
        sizes(count, *wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{train: 0.8, validation: 0.2, test: 0.1}", r"data\.split: fractions add up to 1\.1"),
        ("{train: 0.95, validation: 0.1}", r"data\.split: fractions add up to 1\.05"),
        ("{train: 1.0, validation: 10}", r"data\.split\.train: must be a whole number.*: 1$"),
        ("{train: 10.5, validation: 10}", r"data\.split\.train: must be a whole number.*: 10\.5$"),
        ("{train: .inf, validation: 10}", r"data\.split\.train: must be a whole number"),
        ("{train: .nan, validation: 10}", r"data\.split\.train"),
        ("{train: 10, validation: 1, test: 1.5}", r"data\.split\.test: must be a whole number"),
        ("{train: 10, validation: 0}", r"data\.split\.validation"),
        ("{train: 10, validation: 1, test: -0.1}", r"data\.split\.test"),
    ],
)
def test_what_is_no_split(change, message):
    with pytest.raises(ValueError, match=message) as raised:
        read_config("schnet-ethanol-small", [f"data.split={change}"])
    assert "\n" not in str(raised.value)


def test_splits_of_a_configuration_are_read_again():
    config = read_config("schnet-ethanol-small", ["data.split.train=1e3", "data.split.test=0.1"])
    assert config.data.split.train == 1000
    assert check_config(config.model_dump(mode="json")) == config


@pytest.fixture
def split(tmp_path):
    """Writes parts as a file that a run could have saved, and reads it."""

    def split(systems=10, digest="one", **parts):
        parts = {"train": [0, 1], "validation": [2], "test": [], **parts}
        arrays = {"digest": np.array("one"), **{k: v for k, v in parts.items() if v is not None}}
        np.savez(tmp_path / "s.npz", **arrays)
        found = load_split(tmp_path / "s.npz", digest, systems)
        return {part: members.tolist() for part, members in found.items()}

    return split


MASK = [True, False, True, False, False, False, False, False, False, True]


def test_parts_by_masks_and_from_the_end(split):
    given = dict(train=MASK, validation=np.array([-2], dtype=np.int8), test=range(3, 5))
    assert split(**given) == dict(train=[0, 2, 9], validation=[8], test=[3, 4])
    found = split(train=np.array([0, 1], dtype=np.uint64), systems=None)
    assert found == dict(train=[0, 1], validation=[2], test=[])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(train=[0.0, 1.0]), "float64"),
        (dict(train=[0, 10]), "there are 10 systems, numbered from 0: there is no 10"),
        (dict(train=[-11]), "there is no -11"),
        (dict(train=[0, 1, 1]), r"system 1 is there twice \(in train\)"),
        (dict(validation=[1]), r"system 1 is there twice \(in train and validation\)"),
        (dict(train=[0, -1], test=[9]), "system 9 is there twice"),
        (dict(train=MASK[:5]), "a mask must have one bool for each of 10 systems"),
        (dict(train=[[0, 1]]), "one axis"),
        (dict(train=MASK, systems=None), "masks or negative numbers"),
        (dict(train=[-1], systems=None), "masks or negative numbers"),
        (dict(train=np.array([0, None])), "Python objects"),
        (dict(test=None), "it has no test"),
        (dict(digest="two"), "made for other data"),
    ],
)
def test_files_that_are_no_splits(split, given, message):
    with pytest.raises(ValueError, match=message) as raised:
        split(**given)
    assert "s.npz" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"words"])
def test_damaged_files(tmp_path, content):
    path = tmp_path / "s.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"s\.npz is not a split that a run saved"):
        load_split(path, "one")
    save_split(path, {part: np.arange(2) + 2 * k for k, part in enumerate(PARTS)}, "one")
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"s\.npz is not a split that a run saved"):
            load_split(path, "one")


def test_a_bare_array(tmp_path):
    np.save(tmp_path / "s.npy", np.arange(3))
    with pytest.raises(ValueError, match=r"s\.npy.*one array without a name"):
        load_split(tmp_path / "s.npy", "one")
