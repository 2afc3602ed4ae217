"""The convolution beside gather, multiply and index_add in torch: 3,000 atoms of water at 5 Å.

    pytest benchmarks/test_cfconv.py --benchmark-enable

`[stream]` is the floor: one pass over the filters for the forward direction; for forward and
backward two passes that read them and one that writes their gradient.
"""

import pytest
import torch
from compare import compare, peak_of
from directions import DIRECTIONS, runs_of
from peers import agree, peer, size
from systems import water

import molkern

FEATURES = 128


@pytest.fixture(scope="module")
def neighbors():
    system = water(size(1000, 27))
    positions = torch.as_tensor(system.positions)
    return molkern.neighbor_list(positions, 5.0, torch.as_tensor(system.cell))


def implementations(neighbors):
    senders, receivers = neighbors.edge_index

    def ours(x, w):
        return molkern.ops.cfconv(x, w, neighbors)

    def plain(x, w):
        return torch.zeros_like(x).index_add(0, receivers, x[senders] * w)

    found = {"molkern": ours, "eager torch": plain}
    geometric = peer("torch_geometric.utils")
    if geometric is not None:

        def scattered(x, w):
            return geometric.scatter(x[senders] * w, receivers, dim=0, dim_size=len(x))

        found["PyTorch Geometric"] = scattered
    return found


def stream(w, direction):
    """Reads and writes filters as often as the direction must."""
    gradient = torch.empty_like(w)

    def run():
        with torch.no_grad():
            if direction == "forward":
                return w.sum()
            return w.sum(), w.sum(), gradient.fill_(1.0)

    return run


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_cfconv(benchmark, neighbors, threads, direction):
    torch.manual_seed(0)
    x = torch.randn(neighbors.num_atoms, FEATURES, requires_grad=True)
    w = torch.randn(neighbors.num_edges, FEATURES, requires_grad=True)
    runs = runs_of(implementations(neighbors), (x, w), direction)
    agree(runs)
    if direction != "double backward":
        runs["[stream]"] = stream(w, direction)
    case = f"{neighbors.num_atoms:,} atoms of water, {FEATURES} features, {direction}"
    per = {"atoms": neighbors.num_atoms, "edges": neighbors.num_edges, "filter_bytes": w.nbytes}
    compare(benchmark, "cfconv", case, runs, rounds=9, per=per)
    if direction == "forward and backward" and not benchmark.disabled:
        # The gradient of the filters, and tensors of atoms
        assert peak_of(benchmark, "molkern") < 1.1 * w.nbytes
