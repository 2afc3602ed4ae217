"""Dipole moment and electronic spatial extent as layers."""

import pytest
import torch
from reference.properties import dipoles_and_extents
from torch.autograd import gradcheck, gradgradcheck

from molkern import AtomicBatch
from molkern.nn import DipoleMoment, ElectronicSpatialExtent
from molkern.nn.masses import ATOMIC_MASSES


def molecules(device="cpu", dtype=torch.float64):
    """Three systems, the second one without atoms, and charges."""
    numbers = torch.tensor([8, 1, 1, 6, 17, 1, 9], device=device)
    positions = 3 * torch.rand(7, 3, dtype=dtype, device=device)
    system = torch.tensor([0, 0, 0, 2, 2, 2, 2], device=device)
    charges = torch.randn(7, dtype=dtype, device=device)
    return charges, AtomicBatch(numbers, positions, system, num_systems=3)


def test_masses_are_those_of_ase():
    data = pytest.importorskip("ase.data")
    assert list(ATOMIC_MASSES) == data.atomic_masses.tolist()


def test_equals_plain_sums(device):
    charges, batch = molecules(device)
    dipoles, extents = dipoles_and_extents(charges, batch)
    vector, magnitude = DipoleMoment().to(device)(charges, batch)
    extent = ElectronicSpatialExtent().to(device)(charges, batch)
    torch.testing.assert_close(vector, dipoles, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(magnitude, dipoles.norm(dim=1), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(extent, extents, rtol=1e-13, atol=1e-13)
    assert vector[1].tolist() == [0, 0, 0]


def test_far_from_the_origin_no_digit_is_lost():
    charges, batch = molecules()
    positions = batch.positions.mul(2**20).round().div(2**20)  # exact after the shift too
    shift = torch.tensor([2.0**20, -(2.0**21), 2.0**19], dtype=torch.float64)
    for layer in (lambda *given: DipoleMoment()(*given)[0], ElectronicSpatialExtent()):
        near, far = layer(charges, batch, positions), layer(charges, batch, positions + shift)
        torch.testing.assert_close(far, near, rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("charged", [True, False])
def test_invariances(charged):
    charges, batch = molecules()
    if not charged:
        charges = charges - charges.mean()
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    moved = batch.positions @ turn + torch.tensor([5.0, -3.0, 1.0])
    dipole, extent = DipoleMoment(), ElectronicSpatialExtent()
    vector, magnitude = dipole(charges, batch)
    turned, same = dipole(charges, batch, moved)
    torch.testing.assert_close(turned, vector @ turn, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(same, magnitude, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        extent(charges, batch, moved), extent(charges, batch), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("layer", [DipoleMoment(), ElectronicSpatialExtent()])
@pytest.mark.parametrize("single", [True, False])
def test_derivatives(layer, single, device):
    charges, batch = molecules(device)
    layer = layer.to(device)
    if single:
        batch = AtomicBatch(batch.numbers, batch.positions)
    inputs = charges.requires_grad_(), batch.positions.clone().requires_grad_()

    def function(q, r):
        out = layer(q, batch, r)
        return out if isinstance(out, torch.Tensor) else torch.cat([out[0].flatten(), out[1]])

    if not single:  # the empty system's dipole is zero, where the magnitude has a kink
        selected = [0, 2]

        def function(q, r):
            out = layer(q, batch, r)
            if isinstance(out, torch.Tensor):
                return out[selected]
            return torch.cat([out[0][selected].flatten(), out[1][selected]])

    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)
    expected = dipoles_and_extents(inputs[0], batch, inputs[1])[
        isinstance(layer, ElectronicSpatialExtent)
    ]
    first = layer(inputs[0], batch, inputs[1])
    first = first if isinstance(first, torch.Tensor) else first[0]
    weights = torch.randn_like(first)
    got = torch.autograd.grad((first * weights).sum(), inputs)
    plainly = torch.autograd.grad((expected * weights).sum(), inputs)
    torch.testing.assert_close(got, plainly, rtol=1e-12, atol=1e-12)


def test_no_dipole_has_no_gradient():
    """Carbon dioxide: zero by symmetry, where the norm has no derivative."""
    line = torch.tensor([[-1.0, 0, 0], [0, 0, 0], [1.0, 0, 0]], dtype=torch.float64)
    batch = AtomicBatch(torch.tensor([8, 6, 8]), line.requires_grad_())
    charges = torch.tensor([-1.0, 2.0, -1.0], dtype=torch.float64, requires_grad=True)
    _, magnitude = DipoleMoment()(charges, batch)
    assert float(magnitude.detach()) == 0
    grads = torch.autograd.grad(magnitude.sum(), (charges, batch.positions), create_graph=True)
    assert not any(bool(g.any()) for g in grads)
    second = torch.autograd.grad(sum(g.sum() for g in grads), (charges, batch.positions))
    assert all(bool(g.isfinite().all()) for g in second)


def test_float32_is_summed_in_float64():
    charges, batch = molecules(dtype=torch.float32)
    vector, magnitude = DipoleMoment()(charges, batch)
    assert vector.dtype == magnitude.dtype == torch.float64
    expected, _ = dipoles_and_extents(charges.double(), batch.to(dtype=torch.float64))
    torch.testing.assert_close(vector, expected, rtol=1e-12, atol=1e-12)
    layer = DipoleMoment().float().double()
    assert layer.masses.tolist() == list(ATOMIC_MASSES)


def test_masses_of_ones_own():
    charges, batch = molecules()
    masses = torch.zeros(119, dtype=torch.float64)
    masses[8], masses[17] = 1.0, 1.0
    vector, _ = DipoleMoment(masses)(charges, batch)
    r = batch.positions - batch.positions[[0, 0, 0, 4, 4, 4, 4]]
    torch.testing.assert_close(vector[2], (charges[3:, None] * r[3:]).sum(0))


@pytest.mark.parametrize("layer", [DipoleMoment, ElectronicSpatialExtent])
def test_wrong_arguments(layer):
    charges, batch = molecules()
    with pytest.raises(ValueError, match=r"charges must have shape \[7\], got \[7, 1\]"):
        layer()(charges[:, None], batch)
    with pytest.raises(ValueError, match=r"positions must have shape \[7, 3\], got \[6, 3\]"):
        layer()(charges, batch, batch.positions[:6])
    with pytest.raises(ValueError, match=r"masses must have shape \[Z\], got \[2, 1\]"):
        layer(torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"atom 4 has number 17, but there are masses for 0 to 9"):
        layer(ATOMIC_MASSES[:10])(charges, batch)
