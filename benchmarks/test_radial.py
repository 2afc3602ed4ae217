"""Gaussians with a cosine cutoff against the same in plain torch, at 162,000 edges.

    pytest benchmarks/test_radial.py --benchmark-enable --benchmark-group-by=group

`write` is the floor of the forward pass, filling the output; `copy` that of its gradient, reading
as much.
"""

import math

import pytest
import torch

from molkern.ops import radial_basis

EDGES, CUTOFF = 162_000, 5.0


def torch_basis(d, p, q):
    envelope = 0.5 * (torch.cos(math.pi / CUTOFF * d) + 1) * (d < CUTOFF)
    return torch.exp(-q * (d.unsqueeze(1) - p) ** 2) * envelope.unsqueeze(1)


def molkern_basis(d, p, q):
    return radial_basis(d, p, q, cutoff_function="cosine", cutoff=CUTOFF)


IMPLEMENTATIONS = {"molkern": molkern_basis, "torch": torch_basis}


@pytest.fixture(params=[50, 128], ids=["K50", "K128"])
def tensors(request):
    torch.manual_seed(0)
    d = (0.8 + 4.5 * torch.rand(EDGES)).requires_grad_()
    p = torch.linspace(0, CUTOFF, request.param)
    q = torch.full_like(p, 0.5 / (p[1] - p[0]).item() ** 2)
    return d, p, q, torch.randn(EDGES, request.param)


def run(benchmark, name, threads, function, work):
    benchmark.group = f"radial {name}, {work.shape[1]} functions, {threads} thread(s)"
    benchmark.pedantic(function, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "write"])
def test_forward(benchmark, implementation, tensors, threads):
    d, p, q, g = tensors
    if implementation == "write":
        run(benchmark, "forward", threads, lambda: torch.empty_like(g).fill_(1.0), g)
        return
    basis = IMPLEMENTATIONS[implementation]
    with torch.no_grad():
        run(benchmark, "forward", threads, lambda: basis(d, p, q), g)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "copy"])
def test_forward_backward(benchmark, implementation, tensors, threads):
    d, p, q, g = tensors

    def both():
        return torch.autograd.grad(IMPLEMENTATIONS[implementation](d, p, q), d, g)

    function = both if implementation != "copy" else lambda: torch.empty_like(g).copy_(g)
    run(benchmark, "forward and backward", threads, function, g)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_double_backward(benchmark, implementation, tensors, threads):
    d, p, q, g = tensors
    basis, h = IMPLEMENTATIONS[implementation], torch.ones_like(d)

    def twice():
        cotangent = g.detach().requires_grad_()
        (first,) = torch.autograd.grad(basis(d, p, q), d, cotangent, create_graph=True)
        return torch.autograd.grad(first, (cotangent, d), h)

    run(benchmark, "double backward", threads, twice, g)
