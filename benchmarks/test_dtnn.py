"""DTNN's messages with their factors: as splines, exact, and in plain torch, at 5 Å.

    pytest benchmarks/test_dtnn.py --benchmark-enable

Factors are those of 100 Gaussians up to 5 Å and one layer of 60, messages have 30 channels. Of what
training on forces differentiates twice torch.compile has no derivative.
"""

import copy

import pytest
import torch
from compare import compare
from peers import agree, batch_of, size
from spline_cases import DIRECTIONS, Case, Gaussians
from systems import water

import molkern

CUTOFF, FUNCTIONS, FACTORS, CHANNELS = 5.0, 100, 60, 30


def case_of(neighbors, distances):
    torch.manual_seed(0)
    basis = molkern.nn.GaussianBasis(FUNCTIONS, CUTOFF, coefficient=0.5 / 0.2**2)
    network = torch.nn.Linear(FUNCTIONS, FACTORS)
    twin, gaussians = copy.deepcopy(network).double(), Gaussians(basis)
    weight = (torch.randn(CHANNELS, FACTORS) / FACTORS**0.5).requires_grad_()
    senders, receivers = neighbors.edge_index

    def splined(x, table, d, grid, bins):
        return molkern.ops.dtnn_message(x, table, d, weight, neighbors, grid, bins=bins)

    def exact(x, d, factors):
        gathered = molkern.ops.gather_senders(x, neighbors)
        messages = torch.tanh((gathered * factors) @ weight.T)
        return molkern.ops.sum_edges(messages, neighbors)

    def eager(x, d, factors):
        messages = torch.tanh((x[senders] * factors) @ weight.T)
        return x.new_zeros(len(x), CHANNELS).index_add(0, receivers, messages)

    return Case(
        x=torch.randn(neighbors.num_atoms, FACTORS, requires_grad=True),
        distances=distances.requires_grad_(),
        parameters=[*network.parameters(), weight],
        network=lambda d: network(basis(d).to(network.weight.dtype)),
        double=lambda d: twin(basis(d)),
        plain=lambda d: network(gaussians(d)),
        reach=CUTOFF,
        splined=splined,
        exact=exact,
        eager=eager,
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_dtnn_message(benchmark, threads, direction):
    batch = batch_of(water(size(1000 if direction != DIRECTIONS[2] else 216, 27)))
    neighbors = batch.neighbors(CUTOFF)
    case = case_of(neighbors, neighbors.distances(batch.positions, batch.cell))
    runs = case.runs(direction, neighbors)
    agree(runs, tolerance=1e-4)
    text = f"{batch.num_atoms:,} atoms of water, {FACTORS} factors, {direction}"
    per = {"atoms": batch.num_atoms, "edges": neighbors.num_edges}
    compare(benchmark, "DTNN messages", text, runs, per=per)
