"""Small configurations of the shipped ethanol frames and of made-up molecules."""

import copy

import numpy as np
import pytest

pytest.importorskip("pytorch_lightning")
pytest.importorskip("pydantic")

TINY = dict(
    model=dict(
        name="SchNet",
        hidden_channels=8,
        num_filters=8,
        num_interactions=1,
        num_basis=8,
        cutoff=4.0,
        num_elements=10,
    ),
    data=dict(format="ethanol", split=dict(train=40, validation=16, test=8)),
    objective=dict(energy=dict(weight=0.01), forces=dict(weight=1.0)),
    optimizer=dict(learning_rate=5e-3),
    schedule=dict(name="cosine"),
    training=dict(steps=12, batch_size=8, validate_every=3, ema=0.9, clip=10.0),
)


def merged(base, changes):
    """A configuration with some keys changed, ``{"training.steps": 3}``."""
    content = copy.deepcopy(base)
    for key, value in changes.items():
        *parents, last = key.split(".")
        section = content
        for parent in parents:
            section = section[parent]
        section[last] = value
    return content


@pytest.fixture(scope="session")
def tiny():
    """Makes a configuration that trains in a second."""
    from molkern.training.config import check_config

    return lambda **changes: check_config(
        merged(TINY, {key.replace("__", "."): value for key, value in changes.items()})
    )


@pytest.fixture
def molecules(tmp_path):
    """A file in QM9's layout, of 60 made-up molecules, some of whose labels are known sums."""
    rng = np.random.default_rng(3)
    sizes = rng.integers(2, 7, size=60)
    numbers = rng.choice([1, 6, 8], size=sizes.sum())
    positions = np.concatenate([_places(rng, size) for size in sizes])
    starts = np.cumsum(sizes) - sizes
    sums = np.add.reduceat(np.array([0, -1.0, 0, 0, 0, 0, -5.0, 0, -7.0])[numbers], starts)
    noise = 0.01 * rng.normal(size=60)
    path = tmp_path / "small.npz"
    np.savez(
        path,
        N=sizes,
        Z=numbers,
        R=positions,
        id=np.arange(1001, 1061),
        U0=sums + noise,
        homo=sums / sizes + noise,
        mu=np.abs(noise) + 1,
    )
    return path


def _places(rng, size):
    return np.cumsum(rng.normal(size=(size, 3)) + np.array([1.0, 0, 0]), axis=0)
