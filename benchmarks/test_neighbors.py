"""Neighbor lists beside their peers: the full list with shifts and distances, float64, on the CPU.

``pytest benchmarks/test_neighbors.py --benchmark-enable --benchmark-group-by=param:system``

Every implementation first shows that it finds the same pairs. Peers that are not installed are
skipped by name; those without threads run on one.
"""

import numpy as np
import pytest
import torch
from systems import Structure, aspirin, molecules, triclinic_crystal, water

import molkern

SYSTEMS = {
    "water-3k": (lambda: water(1_000), 5.0),
    "water-30k": (lambda: water(10_000), 5.0),
    "water-300k": (lambda: water(100_000), 5.0),
    "triclinic-4k": (triclinic_crystal, 6.0),
    "aspirin": (aspirin, 5.0),
    "molecules-128": (molecules, 5.0),
}


def peer(name: str):
    return pytest.importorskip(name, reason=f"{name} is not installed")


def per_system(structure: Structure, search):
    """A peer without batches, system by system; ``search(positions)`` -> i, j, S, d."""
    ends = np.cumsum(np.bincount(structure.batch))
    parts = np.split(structure.positions, ends[:-1])

    def run():
        found, first = [], 0
        for positions in parts:
            i, j, shifts, distances = search(positions)
            found.append((i + first, j + first, shifts, distances))
            first += len(positions)
        return tuple(np.concatenate(arrays) for arrays in zip(*found, strict=True))

    return run


# Each takes a structure and a cutoff and returns a function without arguments that returns
# (receivers, senders, shifts or None, distances) as arrays or tensors.


def with_molkern(structure: Structure, cutoff: float):
    positions = torch.tensor(structure.positions)
    cell = None if structure.cell is None else torch.tensor(structure.cell)
    batch = None if structure.batch is None else torch.tensor(structure.batch)
    systems = 1 if batch is None else int(batch[-1]) + 1

    @torch.inference_mode()  # no tape, as with the peers
    def run():
        found = molkern.neighbor_list(positions, cutoff, cell, batch=batch, num_systems=systems)
        return found.receivers, found.senders, found.shifts, found.distances(positions, cell)

    return run


def with_vesin(structure: Structure, cutoff: float):
    calculator = peer("vesin").NeighborList(cutoff=cutoff, full_list=True)
    periodic = structure.cell is not None
    box = structure.cell if periodic else np.zeros((3, 3))

    def search(positions):
        return calculator.compute(positions, box, periodic=periodic, quantities="ijSd")

    if structure.batch is not None:
        return per_system(structure, search)
    return lambda: search(structure.positions)


def with_matscipy(structure: Structure, cutoff: float):
    neighbours = peer("matscipy.neighbours")
    periodic = structure.cell is not None

    def search(positions):
        cell = structure.cell
        if not periodic:  # it needs a box around the atoms
            cell = np.diag(np.ptp(positions, axis=0) + 1.0)
        return neighbours.neighbour_list(
            "ijSd", positions=positions, cell=cell, pbc=[periodic] * 3, cutoff=cutoff
        )

    if structure.batch is not None:
        return per_system(structure, search)
    return lambda: search(structure.positions)


def with_nvalchemi(structure: Structure, cutoff: float):
    neighbors = peer("nvalchemiops.torch.neighbors")
    if structure.cell is None:
        pytest.skip("nvalchemi-toolkit-ops: its cell list is compared on periodic systems")
    positions, cell = torch.tensor(structure.positions), torch.tensor(structure.cell)[None]
    pbc = torch.ones(1, 3, dtype=torch.bool)

    def run():
        pairs, _, shifts, distances = neighbors.cell_list(
            positions, cutoff, cell, pbc, 128, return_neighbor_list=True, return_distances=True
        )
        return pairs[0], pairs[1], shifts, distances

    return run


def with_torch_cluster(structure: Structure, cutoff: float):
    cluster = peer("torch_cluster")
    if structure.cell is not None:
        pytest.skip("torch_cluster: not periodic")
    positions = torch.tensor(structure.positions)
    batch = None if structure.batch is None else torch.tensor(structure.batch)

    def run():
        senders, receivers = cluster.radius_graph(positions, cutoff, batch, max_num_neighbors=1000)
        distances = torch.linalg.norm(positions[senders] - positions[receivers], dim=1)
        return receivers, senders, None, distances

    return run


IMPLEMENTATIONS = {
    "molkern": with_molkern,
    "vesin": with_vesin,
    "matscipy": with_matscipy,
    "nvalchemi-toolkit-ops": with_nvalchemi,
    "torch_cluster": with_torch_cluster,
}
THREADED = ("molkern",)


def sorted_pairs(found):
    """Receivers, senders, shifts and distances as one sorted array [E, 6]."""
    i, j, shifts, distances = (None if x is None else np.asarray(x) for x in found)
    shifts = np.zeros((len(i), 3)) if shifts is None else shifts
    table = np.column_stack([i, j, shifts, distances])
    return table[np.lexsort(table.T[4::-1])]


def check(run, structure: Structure, cutoff: float) -> None:
    """The same pairs as molkern's, seen from either end, and the same distances."""
    expected = sorted_pairs(with_molkern(structure, cutoff)())
    found = sorted_pairs(run())
    assert found.shape == expected.shape
    if not np.array_equal(found[:, :5], expected[:, :5]):  # shifts of i relative to j
        found[:, 2:5] *= -1
        found = found[np.lexsort(found.T[4::-1])]
    np.testing.assert_array_equal(found[:, :5], expected[:, :5])
    np.testing.assert_allclose(found[:, 5], expected[:, 5], rtol=1e-9)


CASES = [
    pytest.param(system, name, threads, id=f"{system}-{name}-{threads}")
    for system in SYSTEMS
    for name in IMPLEMENTATIONS
    for threads in ((1, 2) if name in THREADED else (1,))
]


@pytest.mark.parametrize(("system", "implementation", "threads"), CASES)
def test_neighbor_list(benchmark, system, implementation, threads):
    make, cutoff = SYSTEMS[system]
    structure = make()
    if system == "water-300k" and implementation not in ("molkern", "vesin"):
        pytest.skip(f"{implementation}: too slow to repeat at 300,000 atoms")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        run = IMPLEMENTATIONS[implementation](structure, cutoff)
        check(run, structure, cutoff)
        result = benchmark(run)
    finally:
        torch.set_num_threads(before)
    benchmark.extra_info.update(atoms=len(structure.positions), edges=len(result[0]))
