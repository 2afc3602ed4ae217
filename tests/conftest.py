"""What the tests share: devices, the folder of reference data, and graphs to try things on."""

import gc
import os
import random
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from cuda_emulation.kernels import kernels, launched

import molkern

# These are imported as reference.NAME, not collected: some have the name of a folder of tests.
collect_ignore_glob = ["reference/*"]

# Tests are small: a second thread only waits. Those about threads set their own number.
torch.set_num_threads(1)

# The same examples on every machine. `make fuzz` takes the other profile: new ones every time, and
# what it finds becomes an example of its test, with @hypothesis.example. Tests take their number
# of examples from the profile's, 100 or 1,000.
_slow_is_fine = dict(deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
hypothesis.settings.register_profile("fixed", derandomize=True, database=None, **_slow_is_fine)
hypothesis.settings.register_profile("fuzz", database=None, max_examples=1000, **_slow_is_fine)
hypothesis.settings.load_profile("fixed")

# Code that torch.compile keeps does not run right where another capability was chosen for it.
_CAPABILITY = torch.backends.cpu.get_cpu_capability()
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR",
    str(Path(tempfile.gettempdir(), f"molkern-inductor-{os.getuid()}-{_CAPABILITY}")),
)

#: For ATEN_CPU_CAPABILITY=default, where torch.compile writes vector code that lacks its headers.
NO_INDUCTOR = pytest.mark.skip(reason="torch.compile's code does not compile without AVX2")

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() and molkern.build_info()["cuda"] else [])]


def pytest_collection_modifyitems(config, items):
    """The longest come first, so that no worker of pytest-xdist is left with one at the end."""
    seed = config.getoption("shuffle")
    if seed is not None:
        random.Random(seed).shuffle(items)
    items.sort(key=lambda item: item.path.name != "test_cuda_compile.py")
    if _CAPABILITY == "DEFAULT":
        for item in items:
            by_torch = item.path.name not in ("test_cuda_compile.py", "test_package.py")
            if by_torch and any(w in item.name for w in ("compile", "packaged", "inductor")):
                item.add_marker(NO_INDUCTOR)


def pytest_collection_finish():
    """The garbage collector need not go through all that was imported again and again."""
    gc.freeze()


LAUNCHED = pytest.StashKey[set]()


def pytest_addoption(parser):
    parser.addoption(
        "--every-kernel",
        action="store_true",
        help="fail if there is a CUDA kernel in csrc that no test launched (emulated builds)",
    )
    parser.addoption(
        "--shuffle", type=int, metavar="SEED", help="run the tests in the random order of a seed"
    )


def pytest_configure(config):
    config.stash[LAUNCHED] = set()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """A worker of pytest-xdist has ended: what it launched counts for the whole run."""
    launched = getattr(node, "workeroutput", {}).get("launched_kernels", [])
    node.config.stash[LAUNCHED].update(launched)


def never_launched(config):
    return [name for name in kernels() if name not in config.stash[LAUNCHED]]


def pytest_sessionfinish(session):
    config = session.config
    config.stash[LAUNCHED].update(launched())
    if hasattr(config, "workeroutput"):
        config.workeroutput["launched_kernels"] = sorted(config.stash[LAUNCHED])
    elif config.getoption("every_kernel") and never_launched(config) and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("every_kernel") and (names := never_launched(config)):
        terminalreporter.section("CUDA kernels that no test launched", red=True, bold=True)
        terminalreporter.line("\n".join(names))


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


def reference_file(name: str) -> Path:
    """The path of a file of reference data; skips the test where it is not at hand."""
    folder = os.environ.get("MOLKERN_REFERENCE_DATA")
    if not folder:
        pytest.skip(f"needs reference data: set MOLKERN_REFERENCE_DATA to a folder with {name}")
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"reference data not found: {path} (see MOLKERN_REFERENCE_DATA)")
    return path


@pytest.fixture(scope="session")
def reference():
    """Loads a file of reference data by name; skips where it is not at hand."""

    def load(name: str) -> dict:
        with np.load(reference_file(name), allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}

    load.path = reference_file
    return load


@pytest.fixture
def crystal():
    """Ten atoms in a small triclinic cell, cutoff beyond half of it, float64."""
    generator = torch.Generator().manual_seed(1)
    cell = torch.tensor([[4.0, 0.3, 0.0], [-0.8, 4.4, 0.5], [0.6, -0.2, 5.0]], dtype=torch.float64)
    positions = torch.rand(10, 3, generator=generator, dtype=torch.float64) @ cell
    numbers = torch.randint(1, 9, (10,), generator=generator)
    return numbers, positions, cell
