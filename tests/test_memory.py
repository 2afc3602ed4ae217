"""Large results on the CPU reuse memory: never that of one still alive, and not without end."""

import copy
import io
import os
import pickle
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

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


needs_linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")


@needs_linux
def test_idle_memory_is_bounded():
    results = [values() for _ in range(24)]  # 384 MiB
    before = resident()
    del results
    assert before - resident() > 200 << 20  # at most 128 MiB stay


@needs_linux
def test_idle_memory_can_be_given_back():
    values()
    before = resident()
    molkern.empty_cache()
    assert before - resident() > 12 << 20
    molkern.empty_cache()


LIMITED = """
import resource, torch
from molkern.ops import radial_basis

centers, distances = torch.linspace(0, 5, 64), torch.linspace(0, 4, 1 << 20)

def values(edges):
    d, widths = distances[:edges], torch.ones(64)
    return radial_basis(d, centers, widths, cutoff_function="none", cutoff=5.0)

values(100)
values(180_000)  # 44 MiB, idle now
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20), resource.RLIM_INFINITY))
print(list(values(220_000).shape))  # 54 MiB, more than is left
try:
    values(1 << 20)
except MemoryError:
    print("MemoryError")
"""


@needs_linux
def test_idle_memory_goes_before_an_allocation_fails():
    """Under a limit that the idle memory fills; what does not fit even then is an error."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LIMITED]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["[220000, 64]", "MemoryError"]


# Results are tensors like any other


def expected():
    return values().clone()


def grown(result):
    result.resize_(EDGES + 5, 64)
    return result[:EDGES]


def written_over(result):
    return torch.mul(torch.cat([expected(), expected()]), 1.0, out=result.resize_(0))[:EDGES]


def shared(result):
    result.share_memory_()
    assert result.is_shared()
    return result


def with_storage_of_another(result):
    source = expected()
    return result.set_(source.untyped_storage(), 0, source.shape)


def storage_resized(result):
    result.untyped_storage().resize_(2 * result.nbytes)
    return result


def saved(result):
    file = io.BytesIO()
    torch.save(result, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


MANNERS = {
    "resize_": grown,
    "out=": written_over,
    "share_memory_": shared,
    "set_": with_storage_of_another,
    "storage": storage_resized,
    "torch.save": saved,
    "pickle": lambda result: pickle.loads(pickle.dumps(result)),
    "deepcopy": copy.deepcopy,
    "lazy clone": torch._lazy_clone,
    "view": lambda result: result.view(-1, 8).view(EDGES, 64),
    "as_strided": lambda result: result.as_strided((EDGES, 64), (64, 1)),
    "detach": lambda result: result.detach_(),
    "NumPy": lambda result: torch.from_numpy(result.numpy()),
    "DLPack": torch.from_dlpack,
    "data": lambda result: result.data,
    "in place": lambda result: result.mul_(2).mul_(0.5),
}


@pytest.mark.parametrize("manner", MANNERS)
def test_results_are_tensors_like_any_other(manner):
    result = values()
    found = MANNERS[manner](result)
    assert torch.equal(found, expected())
    del result
    values(0.5)  # may lie where the result was
    assert torch.equal(found, expected())


def test_a_small_copy_shares_no_memory():
    result = values()
    lazy = torch._lazy_clone(result)
    lazy[0, 0] += 1
    assert torch.equal(result, expected())


def test_lists_and_gradients_can_grow():
    """Neighbor lists, messages and gradients of a large graph."""
    positions = (6 * torch.rand(3000, 3, generator=torch.Generator().manual_seed(0))).double()
    found = molkern.neighbor_list(positions, 1.5)
    weights = torch.rand(found.num_edges, 8, requires_grad=True)
    molkern.ops.cfconv(torch.rand(3000, 8), weights, found).sum().backward()
    for tensor in (found.senders, found.receivers, found.distances(positions), weights.grad):
        assert tensor.nbytes > 1 << 20
        before = tensor.clone()
        tensor.resize_(len(tensor) + 7, *tensor.shape[1:])
        assert torch.equal(tensor[: len(before)], before)


def test_results_go_to_other_processes():
    context = multiprocessing.get_context("spawn")
    queue, answer = context.Queue(), context.Queue()
    process = context.Process(target=doubled, args=(queue, answer))
    process.start()
    result = values()
    queue.put(result)
    assert answer.get(timeout=120) == "done"
    process.join()
    assert torch.equal(result, 2 * expected())  # its memory is shared


def doubled(queue, answer):
    queue.get().mul_(2)
    answer.put("done")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_processes_have_results_of_their_own():
    result = values()
    process = os.fork()
    if process == 0:
        values(0.5)
        result.zero_()
        molkern.empty_cache()
        os._exit(0)
    _, status = os.waitpid(process, 0)
    assert status == 0
    assert torch.equal(result, expected())


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
