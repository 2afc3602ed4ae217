"""Sums over triplets: beside a list of them, and products against moments by number of neighbors.

    pytest benchmarks/test_triplets.py --benchmark-enable

DimeNet++'s sum of 64 features, on 32 molecules. The list of triplets is made beforehand.
"""

import pytest
import torch
from compare import compare
from directions import DIRECTIONS, runs_of
from gpu_cases import TripletList
from peers import agree, size
from systems import molecules, water

import molkern
from molkern.ops import triplet_sum

ORDERS, CHANNELS, FEATURES = 7, 8, 64


def tensors_for(vectors, weighted):
    torch.manual_seed(0)
    edges = len(vectors)
    x = torch.randn(edges, FEATURES, requires_grad=True)
    radial = torch.randn(edges, ORDERS, CHANNELS, requires_grad=True)
    weight = torch.randn(FEATURES, CHANNELS)
    leaves = x, radial, vectors.detach().requires_grad_()
    return (*leaves, weight) if weighted else leaves


def graph_with(neighbors: int) -> tuple[molkern.NeighborList, torch.Tensor]:
    """Water with about so many neighbors per atom."""
    system = water(size(216, 27))
    cell = torch.tensor(system.cell, dtype=torch.float32)
    positions = torch.tensor(system.positions, dtype=torch.float32)
    density = len(positions) / float(torch.linalg.det(cell))
    cutoff = (neighbors / density * 3 / (4 * torch.pi)) ** (1 / 3)
    graph = molkern.neighbor_list(positions, cutoff, cell)
    return graph, graph.vectors(positions, cell)


@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "bilinear"])
@pytest.mark.parametrize("neighbors", [8, 16, 24, 32, 48, 64, 96, 128])
def test_crossover(benchmark, one_thread, neighbors, weighted):
    """Which of the two ways is faster, forward and backward, and whether it is the one chosen."""
    graph, vectors = graph_with(size(neighbors, min(neighbors, 24)))
    tensors = tensors_for(vectors, weighted)

    def by(method):
        def run(x, radial, vectors, weight=None):
            return triplet_sum(x, radial, vectors, graph, weight, method=method)

        return run

    names = {"molkern": "auto", "molkern, products": "direct", "molkern, moments": "moments"}
    functions = {name: by(method) for name, method in names.items()}
    runs = runs_of(functions, tensors, "forward and backward")
    agree(runs, tolerance=1e-3)
    mean = graph.num_edges / graph.num_atoms
    kind = "weighted" if weighted else "bilinear"
    case = f"{kind}, {mean:.0f} neighbors per atom, forward and backward"
    per = {"atoms": graph.num_atoms, "edges": graph.num_edges, "neighbors": round(mean, 1)}
    compare(benchmark, "triplets by method", case, runs, rounds=5, memory=False, per=per, limit=4)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_against_a_list(benchmark, threads, direction):
    system = molecules(size(32, 4), largest=True)
    positions = torch.tensor(system.positions, dtype=torch.float32)
    graph = molkern.neighbor_list(positions, 5.0, batch=torch.tensor(system.batch))
    tensors = tensors_for(graph.vectors(positions), True)
    triplets = TripletList(graph)

    def ours(x, radial, vectors, weight):
        return triplet_sum(x, radial, vectors, graph, weight, angle="plusplus")

    def listed(x, radial, vectors, weight):
        return triplets(x, radial, vectors, weight, "plusplus")

    runs = runs_of({"molkern": ours, "eager torch": listed}, tensors, direction)
    agree(runs, tolerance=1e-3)
    case = f"32 molecules, {len(triplets.kj):,} triplets, {FEATURES} features, {direction}"
    per = {"atoms": graph.num_atoms, "edges": graph.num_edges, "triplets": len(triplets.kj)}
    compare(benchmark, "triplets", case, runs, per=per)
