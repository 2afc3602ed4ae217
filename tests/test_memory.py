"""Large results on the CPU reuse memory: never that of one still alive, and not without end."""

import threading
from pathlib import Path

import pytest
import torch

import molkern
from molkern.ops import radial_basis

pytestmark = pytest.mark.skipif(
    molkern.build_info()["cuda_emulation"], reason="the same for both builds, and slow here"
)
EDGES = 1 << 16


def values(scale: float = 1.0) -> torch.Tensor:
    """16 MiB of them."""
    centers = torch.linspace(0, 5, 64)
    d = torch.linspace(0, 4, EDGES) * scale
    return radial_basis(d, centers, torch.ones(64), cutoff_function="cosine", cutoff=5.0)


def test_memory_is_reused_once_it_is_free():
    first = values()
    address = first.data_ptr()
    second = values(0.5)
    assert second.data_ptr() != address
    view = first[1:]
    del first
    assert values().data_ptr() != address  # the view holds it
    del view
    assert values().data_ptr() == address


def test_what_is_alive_keeps_its_values():
    kept = [values(scale) for scale in (0.25, 0.5, 1.0)]
    for _ in range(3):
        values(0.1)
    for scale, result in zip((0.25, 0.5, 1.0), kept, strict=True):
        assert torch.equal(result, values(scale))


def test_threads_share_the_pool():
    expected, wrong = values(), []

    def work():
        for _ in range(5):
            if not torch.equal(values(), expected):
                wrong.append(True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_profiler_sees_it():
    result = values()
    with torch.profiler.profile(profile_memory=True) as profile:
        again = values(0.5)
    events = profile.profiler.kineto_results.events()
    taken = sum(event.nbytes() for event in events if event.name() == "[memory]")
    assert again.nbytes <= taken < 1.5 * again.nbytes
    assert result.nbytes == again.nbytes


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_idle_memory_is_bounded():
    results = [values() for _ in range(48)]  # 768 MiB
    before = resident()
    del results
    assert before - resident() > 200 << 20  # at most 512 MiB stay


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
