"""What the benchmarks share."""

import pytest
import torch
from peers import Mode


def pytest_configure(config):
    options = config.option
    Mode.smoke = options.benchmark_disable and not options.benchmark_enable


def pytest_generate_tests(metafunc):
    if "threads" in metafunc.fixturenames:
        counts = [1] if Mode.smoke else [1, 2]
        names = [f"{count}thread{'s' if count > 1 else ''}" for count in counts]
        metafunc.parametrize("threads", counts, ids=names, indirect=True)


@pytest.fixture
def threads(request):
    """Sets torch's number of threads for a test, which molkern's kernels take too."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield 1
    torch.set_num_threads(before)
