"""The convolution against gather, multiply and index_add in torch: 3,000 atoms of water at 5 Å.

    pytest benchmarks/test_cfconv.py --benchmark-enable

`stream` is the floor: one pass over the filters for the forward direction; for forward and backward
two passes that read them and one that writes their gradient.
"""

import pytest
import torch
from measure import peak_memory
from systems import water

import molkern

FEATURES = 128


@pytest.fixture(scope="module")
def case():
    system = water(1000)
    positions = torch.as_tensor(system.positions)
    neighbors = molkern.neighbor_list(positions, 5.0, torch.as_tensor(system.cell))
    torch.manual_seed(0)
    x = torch.randn(neighbors.num_atoms, FEATURES, requires_grad=True)
    w = torch.randn(neighbors.num_edges, FEATURES, requires_grad=True)
    g = torch.randn(neighbors.num_atoms, FEATURES)
    senders, receivers = neighbors.edge_index

    def plain(x, w):
        return torch.zeros_like(x).index_add(0, receivers, x[senders] * w)

    def ours(x, w):
        return molkern.ops.cfconv(x, w, neighbors)

    def check(function):
        y = function(x, w)
        return (y, *torch.autograd.grad(y, (x, w), g))

    for a, b in zip(check(ours), check(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    return {"molkern": ours, "torch": plain}, x, w, g


def label(benchmark, name, threads, w):
    benchmark.group = f"convolution {name}, {w.shape[0]} edges, {threads} thread(s)"


@pytest.mark.parametrize("implementation", ["molkern", "torch", "stream"])
def test_forward(benchmark, implementation, case, threads):
    functions, x, w, _ = case
    label(benchmark, "forward", threads, w)
    with torch.no_grad():
        if implementation == "stream":
            benchmark.pedantic(lambda: w.sum(), rounds=15, warmup_rounds=2)
        else:
            function = functions[implementation]
            benchmark.pedantic(lambda: function(x, w), rounds=15, warmup_rounds=2)


@pytest.mark.parametrize("implementation", ["molkern", "torch", "stream"])
def test_forward_backward(benchmark, implementation, case, threads):
    functions, x, w, g = case
    label(benchmark, "forward and backward", threads, w)
    gradient = torch.empty_like(w)

    def stream():
        with torch.no_grad():
            return w.sum(), w.sum(), gradient.fill_(1.0)

    def both():
        return torch.autograd.grad(functions[implementation](x, w), (x, w), g)

    function = stream if implementation == "stream" else both
    benchmark.pedantic(function, rounds=15, warmup_rounds=2)


@pytest.mark.parametrize("implementation", ["molkern", "torch"])
def test_extra_memory(benchmark, implementation, case):
    """Largest memory in use during forward and backward, beyond what was there before."""
    functions, x, w, g = case
    benchmark.group = "convolution, extra memory (see extra_info, MB)"
    peak = peak_memory(lambda: torch.autograd.grad(functions[implementation](x, w), (x, w), g))
    benchmark.extra_info["peak_MB"] = round(peak / 1e6, 1)
    benchmark.extra_info["filter_MB"] = round(w.nbytes / 1e6, 1)
    if implementation == "molkern":  # the gradient of the filters, and tensors of atoms
        assert peak < 1.1 * w.nbytes
    benchmark.pedantic(lambda: None, rounds=1)
