"""DimeNet's spherical radial functions (7 orders, 6 each) against the same in plain torch.

    pytest benchmarks/test_spherical.py --benchmark-enable --benchmark-group-by=group

`pyg` calls PyTorch Geometric's closed forms, one after the other, as its SphericalBasisLayer does;
`torch` computes all functions of an order at once by the recurrence. Both compute in float32 here
and lose the digits of high orders at short range, molkern does not.
"""

from functools import cache

import pytest
import torch
from gpu_cases import CUTOFF, ORDERS, RADIAL, spherical_recurrence

from molkern.nn import SphericalRadialBasis
from molkern.ops import spherical_radial

# Zeros as PyTorch Geometric rounds them.
BASIS = SphericalRadialBasis(ORDERS, RADIAL, CUTOFF, zeros_dtype=torch.float32)


@cache
def pyg_layer():
    dimenet = pytest.importorskip("torch_geometric.nn.models.dimenet")
    return dimenet.SphericalBasisLayer(ORDERS, RADIAL, CUTOFF)


def pyg_basis(d):
    layer, x = pyg_layer(), d / CUTOFF
    y = layer.envelope(x).unsqueeze(-1) * torch.stack([f(x) for f in layer.bessel_funcs], dim=1)
    return y * ((2 * torch.arange(ORDERS).to(d) + 1) / 12.566370614359172).sqrt().repeat_interleave(
        RADIAL
    )


def torch_basis(d):
    return spherical_recurrence(d, BASIS.zeros, BASIS.norms)


def molkern_basis(d):
    return spherical_radial(d, BASIS.zeros, BASIS.norms, cutoff=CUTOFF)


IMPLEMENTATIONS = {"molkern": molkern_basis, "torch": torch_basis, "pyg": pyg_basis}


@cache
def check(name):
    """That it computes the same, in float64 and where the closed forms have digits."""
    d = torch.linspace(1.5, 4.95, 60, dtype=torch.float64)
    expected = molkern_basis(d)
    torch.testing.assert_close(IMPLEMENTATIONS[name](d), expected, rtol=1e-6, atol=1e-7)


@pytest.fixture(params=[3_370, 33_700], ids=["E3370", "E33700"])
def tensors(request):
    torch.manual_seed(0)
    d = (0.9 + 4.1 * torch.rand(request.param)).requires_grad_()
    return d, torch.randn(request.param, ORDERS * RADIAL)


def run(benchmark, name, threads, function, edges):
    benchmark.group = f"spherical {name}, {edges} edges, {threads} thread(s)"
    benchmark.pedantic(function, rounds=9, warmup_rounds=1)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_forward(benchmark, implementation, tensors, threads):
    check(implementation)
    d = tensors[0].detach()
    basis = IMPLEMENTATIONS[implementation]
    run(benchmark, "forward", threads, lambda: basis(d), len(d))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_forward_backward(benchmark, implementation, tensors, threads):
    check(implementation)
    d, g = tensors
    basis = IMPLEMENTATIONS[implementation]
    run(
        benchmark,
        "forward and backward",
        threads,
        lambda: torch.autograd.grad(basis(d), d, g),
        len(d),
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_double_backward(benchmark, implementation, tensors, threads):
    check(implementation)
    d, g = tensors
    basis, h = IMPLEMENTATIONS[implementation], torch.ones_like(d)

    def twice():
        cotangent = g.detach().requires_grad_()
        (first,) = torch.autograd.grad(basis(d), d, cotangent, create_graph=True)
        return torch.autograd.grad(first, (cotangent, d), h)

    run(benchmark, "double backward", threads, twice, len(d))
