"""Vectors and lengths of edges beside plain torch: 3,000 atoms of water at 5 Å.

pytest benchmarks/test_geometry.py --benchmark-enable
"""

import pytest
import torch
from compare import compare
from directions import DIRECTIONS, runs_of
from peers import agree, size
from systems import water

import molkern


@pytest.fixture(scope="module")
def case():
    system = water(size(1000, 27))
    positions = torch.tensor(system.positions, dtype=torch.float32)
    cell = torch.tensor(system.cell, dtype=torch.float32)
    return positions, cell, molkern.neighbor_list(positions, 5.0, cell)


def implementations(kind, neighbors):
    senders, receivers = neighbors.edge_index
    shifts = neighbors.shifts.float()

    def vectors(positions, cell):
        return positions[senders] + shifts @ cell - positions[receivers]

    def distances(positions, cell):
        return vectors(positions, cell).norm(dim=1)

    plain = {"vectors": vectors, "distances": distances}[kind]
    return {"molkern": getattr(neighbors, kind), "eager torch": plain}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", ["vectors", "distances"])
def test_geometry(benchmark, case, threads, kind, direction):
    positions, cell, neighbors = case
    positions = positions.clone().requires_grad_()
    runs = runs_of(implementations(kind, neighbors), (positions, cell), direction)
    agree(runs)
    text = f"{kind}, {neighbors.num_atoms:,} atoms of water, {direction}"
    per = {"atoms": neighbors.num_atoms, "edges": neighbors.num_edges}
    compare(benchmark, "edge geometry", text, runs, calls=2, per=per)
