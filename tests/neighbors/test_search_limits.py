"""Far atoms do not slow the search of the others, and too many edges are noticed before they fill
the memory."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.neighbors import neighbor_list

import molkern

FIELDS = ("row_ptr", "senders", "receivers", "shifts", "reverse")
EMULATED = molkern.build_info()["cuda_emulation"]
on_cpu = pytest.mark.skipif(EMULATED, reason="the CPU's search")

#: Periodicity; some atoms go far along an axis that is not periodic, or within a long cell.
PERIODIC = {
    "molecule": [False, False, False],
    "wire": [True, False, False],
    "slab": [True, True, False],
    "slab of x": [False, True, True],
    "crystal": [True, True, True],
}


def scattered(pbc, distance, far, dtype, count=40):
    """A few atoms far away from the others, some of them close together."""
    generator = torch.Generator().manual_seed(4)
    positions = torch.rand(count, 3, generator=generator, dtype=dtype) * 6
    cell = torch.diag(torch.tensor([6.0, 6.5, 7.0], dtype=dtype))
    axis = 2 if all(pbc) or not pbc[2] else 0
    if pbc[axis]:  # far is within a long cell
        cell[axis] *= distance / 6
    else:
        cell[0, 1] = 0.0 if axis == 1 else 0.3
    for k in range(far):
        positions[k, axis] += distance * (0.4, -0.3, 0.4)[k % 3] + (0.0, 0.0, 2.0)[k % 3]
    return positions, cell if any(pbc) else None


def found_if_counted(positions, cell, pbc, algorithm, distance):
    """The list; None where kernels for GPUs refuse, by name, what their bins cannot count."""
    try:
        return molkern.neighbor_list(
            positions, 3.0, cell, pbc if any(pbc) else None, algorithm=algorithm
        )
    except ValueError as error:
        if EMULATED and distance == 1e12 and "wrap the positions into the cell" in str(error):
            return None
        raise


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", [1e3, 1e5, 1e8, 1e12])
@pytest.mark.parametrize("name", PERIODIC)
def test_far_atoms_equal_brute_force(name, distance, dtype):
    pbc = PERIODIC[name]
    for far in (1, 3, 20):
        positions, cell = scattered(pbc, distance, far, dtype)
        expected = neighbor_list(
            positions.numpy(), 3.0, None if cell is None else cell.numpy(), np.array(pbc)
        )
        for algorithm in ("direct", "cell_list"):
            found = found_if_counted(positions, cell, pbc, algorithm, distance)
            if found is None:
                continue
            edges = torch.stack([found.receivers, found.senders], 1)
            shifts = found.senders.new_zeros(len(edges), 3)
            shifts = shifts if found.shifts is None else found.shifts
            assert np.array_equal(torch.cat([edges, shifts], 1).numpy(), expected)
            found.check()  # also that reverse edges are


@on_cpu
@pytest.mark.parametrize("name", ["molecule", "wire", "slab"])
def test_far_atoms_cost_little(name, threads):
    """One atom at 10^8 made this take thousands of times as long."""
    threads(1)
    pbc, generator = PERIODIC[name], torch.Generator().manual_seed(0)
    positions = torch.rand(1500, 3, generator=generator, dtype=torch.float64) * 25
    cell = torch.eye(3, dtype=torch.float64) * 25 if any(pbc) else None

    def seconds() -> float:
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            molkern.neighbor_list(positions, 5.0, cell, pbc if any(pbc) else None)
            best = min(best, time.perf_counter() - start)
        return best

    near = seconds()
    positions[0, 2] = 1e8
    assert seconds() < 20 * near


def crowd(kind: str):
    """A search with more than 2^31 edges that the mean density does not tell."""
    if kind == "far":  # all at one place but for one
        positions = torch.rand(50_000, 3) * 1e-3
        positions[0] = 1e5
        return positions, 5.0
    positions = torch.rand(70_000, 3)  # at two places
    positions[::2, 0] += 1e3
    return positions, 2.0


def search_crowd(kind: str, threads: int) -> None:
    """With 400 MB of address space beside what there is."""
    import resource

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    given = crowd(kind)
    molkern.neighbor_list(torch.rand(3000, 3) * 20, 2.0)  # starts the threads
    status = Path("/proc/self/status").read_text()
    used = 1024 * int(re.search(r"VmSize:\s+(\d+)", status).group(1))
    resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000, resource.RLIM_INFINITY))
    try:
        molkern.neighbor_list(*given)
    except ValueError as error:
        print(error)


@on_cpu
@pytest.mark.skipif(sys.platform != "linux", reason="bounds the address space as Linux does")
@pytest.mark.parametrize(("kind", "threads"), [("far", 1), ("two", 2)])
def test_too_many_edges_need_no_memory(kind, threads):
    """Each of several threads, too, may find no more than are allowed altogether."""
    code = f"import test_search_limits as t; t.search_crowd({kind!r}, {threads})"
    paths = [str(Path(__file__).parent), *(path for path in sys.path if path)]
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "more than 2^31 - 1 edges" in process.stdout, process.stderr[-2000:]


def test_too_many_pairs():
    """Refused by their number alone: the view of one pair needs no memory."""
    pairs = torch.zeros(2, 1, dtype=torch.int64).expand(2, 2**31)
    with pytest.raises(ValueError, match="edge_index has 2147483648 edges, more than the 2147483"):
        molkern.NeighborList.from_edge_index(pairs, 3)


@pytest.mark.parametrize("shift", [2**31, -(2**31), -(2**63), 2**63 - 1])
def test_shifts_that_int32_does_not_hold(shift):
    """The smallest of all integers has no absolute value."""
    with pytest.raises(ValueError, match=f"shifts must fit int32, got one of {shift} cells"):
        molkern.NeighborList.from_edge_index(
            torch.tensor([[0], [1]]), 2, torch.tensor([[shift, 0, 0]])
        )
