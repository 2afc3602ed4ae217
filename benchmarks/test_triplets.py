"""Sums over triplets: products against moments by number of neighbors, and a list of triplets.

pytest benchmarks/test_triplets.py --benchmark-enable
"""

import pytest
import torch
from measure import interleaved
from systems import molecules, water

import molkern
from molkern.ops import triplet_sum

ORDERS, CHANNELS, FEATURES = 7, 8, 64


def graph_with(neighbors: int) -> tuple[molkern.NeighborList, torch.Tensor]:
    """Water with about so many neighbors per atom."""
    system = water(216)
    cell = torch.tensor(system.cell, dtype=torch.float32)
    positions = torch.tensor(system.positions, dtype=torch.float32)
    density = len(positions) / float(torch.linalg.det(cell))
    cutoff = (neighbors / density * 3 / (4 * torch.pi)) ** (1 / 3)
    graph = molkern.neighbor_list(positions, cutoff, cell)
    return graph, graph.vectors(positions, cell)


def gradient_of(graph, vectors, weighted, method):
    torch.manual_seed(0)
    edges = graph.num_edges
    x = torch.randn(edges, FEATURES, requires_grad=True)
    radial = torch.randn(edges, ORDERS, CHANNELS, requires_grad=True)
    vectors = vectors.detach().requires_grad_()
    weight = torch.randn(FEATURES, CHANNELS) if weighted else None

    def run():
        y = triplet_sum(x, radial, vectors, graph, weight, method=method)
        return torch.autograd.grad(y, (x, radial, vectors), torch.ones_like(y))

    return run


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("neighbors", [8, 16, 24, 32, 48, 64, 96, 128])
def test_crossover(benchmark, neighbors, weighted):
    """How many times as fast moments are, forward and backward."""
    graph, vectors = graph_with(neighbors)
    runs = [gradient_of(graph, vectors, weighted, method) for method in ("direct", "moments")]
    for a, b in zip(*(run() for run in runs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))
    direct, moments = interleaved(runs, rounds=5)
    mean = graph.num_edges / graph.num_atoms
    benchmark.group = f"products against moments, {'weighted' if weighted else 'bilinear'}"
    benchmark.extra_info.update(neighbors=round(mean, 1), moments=round(direct / moments, 2))
    print(f"\n{mean:.1f} neighbors: moments {direct / moments:.2f} times as fast")
    benchmark.pedantic(lambda: None, rounds=1)


@pytest.mark.parametrize("implementation", ["molkern", "list"])
def test_against_a_list(benchmark, implementation, threads):
    """Forward and backward on 32 molecules; the list of triplets is made beforehand."""
    system = molecules(32, largest=True)
    positions = torch.tensor(system.positions, dtype=torch.float32)
    graph = molkern.neighbor_list(positions, 5.0, batch=torch.tensor(system.batch))
    vectors = graph.vectors(positions).requires_grad_()
    ours = gradient_of(graph, vectors, True, "auto")
    pytest.importorskip("torch_geometric")
    from pyg_dimenet import GivenTriplets

    _, _, kj, ji = GivenTriplets.of(graph)
    torch.manual_seed(0)
    x = torch.randn(graph.num_edges, FEATURES, requires_grad=True)
    radial = torch.randn(graph.num_edges, ORDERS, CHANNELS, requires_grad=True)
    weight = torch.randn(FEATURES, CHANNELS)

    def listed():
        u = vectors / vectors.norm(dim=1, keepdim=True)
        c = -(u[kj] * u[ji]).sum(1)
        p = [torch.ones_like(c), c]
        for order in range(2, ORDERS):
            p.append(((2 * order - 1) * c * p[-1] - (order - 1) * p[-2]) / order)
        coefficients = (radial[kj] * torch.stack(p, 1).unsqueeze(2)).sum(1)
        y = torch.zeros_like(x).index_add(0, ji, x[kj] * (coefficients @ weight.T))
        return torch.autograd.grad(y, (x, radial, vectors), torch.ones_like(y))

    for a, b in zip(ours(), listed(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))
    benchmark.group = f"triplets of 32 molecules, forward and backward, {threads} thread(s)"
    function = ours if implementation == "molkern" else listed
    benchmark.pedantic(function, rounds=9, warmup_rounds=2)
