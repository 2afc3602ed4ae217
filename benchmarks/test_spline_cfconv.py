"""SchNet's convolution with its filters: as splines, exact, and in plain torch, at 5 Å.

    pytest benchmarks/test_spline_cfconv.py --benchmark-enable

Filters are those of 50 Gaussians, two layers of 128 and a cosine cutoff. Of what training on forces
differentiates twice torch.compile has no derivative.
"""

import copy

import pytest
import torch
from compare import compare
from peers import agree, batch_of, size
from spline_cases import DIRECTIONS, Case, Gaussians
from systems import water
from torch.nn import functional

import molkern
from molkern.nn.activations import smooth_activations

CUTOFF, FUNCTIONS, FEATURES = 5.0, 50, 128


def case_of(neighbors, distances):
    torch.manual_seed(0)
    basis = molkern.nn.GaussianBasis(FUNCTIONS, CUTOFF)
    network = molkern.nn.FilterNetwork(FUNCTIONS, FEATURES, CUTOFF)
    twin, gaussians = copy.deepcopy(network).double(), Gaussians(basis)
    senders, receivers = neighbors.edge_index
    first, last = network.layers[0], network.layers[2]

    def plain(d):
        hidden = functional.softplus(first(gaussians(d))) - 0.6931471805599453
        envelope = 0.5 * (torch.cos(d * (torch.pi / CUTOFF)) + 1) * (d < CUTOFF)
        return last(hidden) * envelope.unsqueeze(1)

    def splined(x, table, d, grid, bins):
        return molkern.ops.spline_cfconv(x, table, d, neighbors, grid, bins=bins)

    def network_at(d):
        with smooth_activations():
            return network(basis(d).to(network.layers[0].weight.dtype), d)

    return Case(
        x=torch.randn(neighbors.num_atoms, FEATURES, requires_grad=True),
        distances=distances.requires_grad_(),
        parameters=list(network.parameters()),
        network=network_at,
        double=smooth_activations()(lambda d: twin(basis(d), d)),
        plain=plain,
        reach=CUTOFF,
        splined=splined,
        exact=lambda x, d, w: molkern.ops.cfconv(x, w, neighbors),
        eager=lambda x, d, w: torch.zeros_like(x).index_add(0, receivers, x[senders] * w),
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_spline_cfconv(benchmark, threads, direction):
    batch = batch_of(water(size(1000 if direction != DIRECTIONS[2] else 216, 27)))
    neighbors = batch.neighbors(CUTOFF)
    case = case_of(neighbors, neighbors.distances(batch.positions, batch.cell))
    runs = case.runs(direction, neighbors)
    agree(runs, tolerance=1e-4)
    text = f"{batch.num_atoms:,} atoms of water, {FEATURES} features, {direction}"
    per = {"atoms": batch.num_atoms, "edges": neighbors.num_edges}
    compare(benchmark, "cfconv with filters", text, runs, per=per)
