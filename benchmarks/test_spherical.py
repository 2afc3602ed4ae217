"""DimeNet's spherical radial functions (7 orders, 6 each) beside the same in plain torch.

    pytest benchmarks/test_spherical.py --benchmark-enable

PyTorch Geometric calls its closed forms one after the other, as its SphericalBasisLayer does; eager
torch computes all functions of an order at once by the recurrence. Both compute in float32 here and
lose the digits of high orders at short range, molkern does not: results are compared in float64.
"""

import pytest
import torch
from compare import compare
from directions import DIRECTIONS, runs_of
from gpu_cases import CUTOFF, ORDERS, RADIAL, spherical_recurrence
from peers import Mode, agree, peer, size

from molkern.nn import SphericalRadialBasis
from molkern.ops import spherical_radial

# Zeros as PyTorch Geometric rounds them.
BASIS = SphericalRadialBasis(ORDERS, RADIAL, CUTOFF, zeros_dtype=torch.float32)


def torch_basis(d):
    return spherical_recurrence(d, BASIS.zeros, BASIS.norms)


def molkern_basis(d):
    return spherical_radial(d, BASIS.zeros, BASIS.norms, cutoff=CUTOFF)


@pytest.fixture(scope="module")
def implementations():
    found = {"molkern": molkern_basis, "eager torch": torch_basis}
    # As a check it would take too long: sympy makes it
    dimenet = None if Mode.smoke else peer("torch_geometric.nn.models.dimenet")
    if dimenet is not None and peer("pyg_dimenet") is not None:
        layer = dimenet.SphericalBasisLayer(ORDERS, RADIAL, CUTOFF, 5)
        orders = torch.arange(ORDERS).repeat_interleave(RADIAL)

        def closed_forms(d):
            x = d / CUTOFF
            y = torch.stack([f(x) for f in layer.bessel_funcs], dim=1)
            # molkern's have the norm of the angle's part in them
            norms = ((2 * orders.to(d) + 1) / (4 * torch.pi)).sqrt()
            return layer.envelope(x).unsqueeze(-1) * y * norms

        found["PyTorch Geometric"] = closed_forms
    return found


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("edges", [3_370, 33_700])
def test_spherical(benchmark, implementations, threads, edges, direction):
    torch.manual_seed(0)
    edges = size(edges, edges // 10)
    # Where the closed forms have digits
    exact = torch.linspace(1.5, 4.95, 60, dtype=torch.float64).requires_grad_()
    agree(runs_of(implementations, (exact,), direction, compiling=False), tolerance=1e-6)
    d = (0.9 + 4.1 * torch.rand(edges)).requires_grad_()
    runs = runs_of(implementations, (d,), direction)
    case = f"{edges:,} edges, {ORDERS} orders of {RADIAL}, {direction}"
    compare(benchmark, "spherical basis", case, runs, calls=2, per={"edges": edges})
