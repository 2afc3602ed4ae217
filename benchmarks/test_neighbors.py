"""Neighbor lists beside their peers: the full list with shifts and distances, float64, on the CPU.

    pytest benchmarks/test_neighbors.py --benchmark-enable

Peers that are not installed, or that cannot do a case, are left out of it.
"""

import numpy as np
import pytest
import torch
from compare import compare
from peers import peer, size
from systems import Structure, aspirin, molecules, triclinic_crystal, water

import molkern

#: Structure, cutoff in Å, and calls in a turn.
SYSTEMS = {
    "water, 3,000 atoms": (lambda: water(size(1_000, 27)), 5.0, 5),
    "water, 30,000 atoms": (lambda: water(size(10_000, 64)), 5.0, 1),
    "water, 300,000 atoms": (lambda: water(size(100_000, 125)), 5.0, 1),
    "triclinic crystal, 4,394 atoms": (lambda: triclinic_crystal(size(13, 5)), 6.0, 2),
    "aspirin": (aspirin, 5.0, 100),
    "128 small molecules": (lambda: molecules(size(128, 8)), 5.0, 10),
}


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
# (receivers, senders, shifts or None, distances) as arrays or tensors; or None, where the peer is
# not there or cannot do it.


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
    vesin = peer("vesin")
    if vesin is None:
        return None
    calculator = vesin.NeighborList(cutoff=cutoff, full_list=True)
    periodic = structure.cell is not None
    box = structure.cell if periodic else np.zeros((3, 3))

    def search(positions):
        return calculator.compute(positions, box, periodic=periodic, quantities="ijSd")

    if structure.batch is not None:
        return per_system(structure, search)
    return lambda: search(structure.positions)


def with_matscipy(structure: Structure, cutoff: float):
    neighbours = peer("matscipy.neighbours")
    if neighbours is None or len(structure.positions) > 100_000:  # seconds, and gigabytes
        return None
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
    # Its cell list is compared, which is for periodic systems
    if neighbors is None or structure.cell is None or len(structure.positions) > 100_000:
        return None
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
    if cluster is None or structure.cell is not None:  # it knows no periodicity
        return None
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


def sorted_pairs(found):
    """Receivers, senders, shifts and distances as one sorted array [E, 6]."""
    i, j, shifts, distances = (None if x is None else np.asarray(x) for x in found)
    shifts = np.zeros((len(i), 3)) if shifts is None else shifts
    table = np.column_stack([i, j, shifts, distances])
    return table[np.lexsort(table.T[4::-1])]


def check(found, expected) -> None:
    """The same pairs as molkern's, seen from either end, and the same distances."""
    assert found.shape == expected.shape
    if not np.array_equal(found[:, :5], expected[:, :5]):  # shifts of i relative to j
        found[:, 2:5] *= -1
        found = found[np.lexsort(found.T[4::-1])]
    np.testing.assert_array_equal(found[:, :5], expected[:, :5])
    np.testing.assert_allclose(found[:, 5], expected[:, 5], rtol=1e-9)


@pytest.mark.parametrize("system", SYSTEMS)
def test_neighbor_list(benchmark, system, threads):
    make, cutoff, calls = SYSTEMS[system]
    structure = make()
    made = {name: of(structure, cutoff) for name, of in IMPLEMENTATIONS.items()}
    runs = {name: run for name, run in made.items() if run is not None}
    expected = sorted_pairs(runs["molkern"]())
    for run in runs.values():
        check(sorted_pairs(run()), expected)
    case = f"{system}, {cutoff:g} Å"
    per = {"atoms": len(structure.positions), "edges": len(expected)}
    # Not all allocate through torch, whose profiler would see memory
    compare(benchmark, "neighbor list", case, runs, calls=calls, memory=False, per=per)
