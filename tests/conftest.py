"""What the tests share: devices, the folder of reference data, and graphs to try things on."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import molkern

# These are imported as reference.NAME, not collected: some have the name of a folder of tests.
collect_ignore_glob = ["reference/*"]

# Tests are small: a second thread only waits. Those about threads set their own number.
torch.set_num_threads(1)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() and molkern.build_info()["cuda"] else [])]


def pytest_collection_modifyitems(items):
    """What counts the kernels that ran comes last."""
    items.sort(key=lambda item: item.name == "test_every_kernel_was_launched")


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def threads():
    """Sets the number of threads for a test, ``threads(2)``, which small cases then use too."""
    before, grain = torch.get_num_threads(), molkern._C.set_thread_grain(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)
    molkern._C.set_thread_grain(grain)


def reference_folder() -> Path:
    default = Path(__file__).parents[2] / "shared" / "data"
    return Path(os.environ.get("MOLKERN_REFERENCE_DATA", default))


@pytest.fixture(scope="session")
def reference():
    """Loads a file of reference data by name; skips where the folder is not there."""

    def load(name: str) -> dict:
        path = reference_folder() / name
        if not path.exists():
            pytest.skip(f"reference data not found: {path} (set MOLKERN_REFERENCE_DATA)")
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}

    load.path = lambda name: reference_folder() / name
    return load


@pytest.fixture
def crystal():
    """Ten atoms in a small triclinic cell, cutoff beyond half of it, float64."""
    generator = torch.Generator().manual_seed(1)
    cell = torch.tensor([[4.0, 0.3, 0.0], [-0.8, 4.4, 0.5], [0.6, -0.2, 5.0]], dtype=torch.float64)
    positions = torch.rand(10, 3, generator=generator, dtype=torch.float64) @ cell
    numbers = torch.randint(1, 9, (10,), generator=generator)
    return numbers, positions, cell
