"""Allocations that fail within parallel regions are errors; none ends the process.

In a process of its own, whose address space is bounded anew for each attempt: from almost nothing
upward, so that every allocation of an operator fails once.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import molkern
from molkern import ops

CSRC = Path(__file__).parents[1] / "csrc"
MIB = 1 << 20


def test_parallel_regions_have_one_entrance():
    """An exception that leaves an OpenMP region ends the process: parallel_for carries it out."""
    pragma = re.compile(r"#\s*pragma\s+omp|_Pragma\s*\(\s*\"omp|omp_[gs]et_")
    found = {
        path.name
        for path in CSRC.rglob("*")
        if path.suffix in {".cpp", ".h"} and pragma.search(path.read_text())
    }
    assert found == {"parallel.h"}


def star(atoms: int) -> molkern.NeighborList:
    """The first atom exchanges messages with all others: rows of very different lengths."""
    others = torch.arange(1, atoms)
    first = torch.zeros_like(others)
    pairs = torch.stack([torch.cat([others, first]), torch.cat([first, others])])
    return molkern.NeighborList.from_edge_index(pairs, atoms)


def triplets():
    graph = star(2000)
    edges = graph.num_edges
    x, radial = torch.rand(edges, 64).requires_grad_(), torch.rand(edges, 2, 2)
    vectors = torch.randn(edges, 3).requires_grad_()

    def run():
        y = ops.triplet_sum(x, radial, vectors, graph, method="moments")
        (g,) = torch.autograd.grad(y.sum(), vectors, create_graph=True)
        torch.autograd.grad(g.sum(), x)

    return run


def dtnn():
    graph, grid = molkern.neighbor_list(torch.rand(40, 3) * 4, 3.0), ops.SplineGrid(0.0, 3.0, 8)
    x, table, weight = torch.rand(40, 2), torch.rand(grid.rows, 2), torch.rand(50000, 2)
    distances = (torch.rand(graph.num_edges) * 3).requires_grad_()

    def run():
        y = ops.dtnn_message(x, table, distances, weight, graph, grid)
        torch.autograd.grad(y.sum(), distances)

    return run


def dense():
    x, weight = torch.rand(160, 2), torch.rand(20000, 2)
    gate = torch.rand(160, 2), torch.rand(20000, 2)
    return lambda: ops.dense(x, weight, gate=gate)


def neighbors():
    """Memory is kept between searches, so that each asks for more than the one before."""
    positions, cutoff = torch.rand(4000, 3) * 20, [2.0]

    def run():
        cutoff[0] += 0.2
        molkern.neighbor_list(positions, cutoff[0])

    return run


#: Each with the room for its first attempts, in steps of which it grows.
OPERATORS = {"triplets": 2 * MIB, "dtnn": 2 * MIB, "dense": 2 * MIB, "neighbors": MIB}


def address_space() -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmSize:\s+(\d+)", text).group(1))


def attempts(name: str) -> None:
    """Prints how each attempt ended."""
    import resource

    torch.manual_seed(0)
    torch.set_num_threads(2)
    molkern._C.set_thread_grain(1)
    run = globals()[name]()
    run()  # starts the threads, which takes memory too
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    for room in range(0, 20 * OPERATORS[name], OPERATORS[name]):
        resource.setrlimit(resource.RLIMIT_AS, (address_space() + room, unlimited[1]))
        try:
            run()
            result = "done"
        except MemoryError:
            result = "MemoryError"
        except RuntimeError as error:  # torch's own allocations
            if "allocate memory" not in str(error):
                raise
            result = "torch"
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
        print(result)


@pytest.mark.skipif(sys.platform != "linux", reason="bounds the address space as Linux does")
@pytest.mark.skipif(molkern.build_info()["cuda_emulation"], reason="kernels of the CPU")
@pytest.mark.parametrize("name", OPERATORS)
def test_failing_allocations(name):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "MALLOC_MMAP_THRESHOLD_": "65536",  # what is freed goes back, and is asked for again
        "OMP_NUM_THREADS": "2",
    }
    code = f"import test_failing_memory as t; t.attempts({name!r})"
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    ends = process.stdout.split()
    assert "MemoryError" in ends
    assert "done" in ends
