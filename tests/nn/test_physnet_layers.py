"""PhysNet's layers against their equations in plain torch."""

import math

import pytest
import torch
from reference.physnet import coulomb, coulomb_energy
from torch.autograd import gradcheck, gradgradcheck

import molkern
from molkern.nn import (
    ChargeCorrection,
    ElementScaling,
    PhysNetInteraction,
    PhysNetOutput,
    PreActivatedResidual,
    ShieldedElectrostatics,
)
from molkern.nn.electrostatics import COULOMB_CONSTANT
from molkern.nn.physnet import nonhierarchicality, orthogonal_dense


def randomized(layer):
    """The layer in float64 with parameters that are nowhere zero."""
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def ssp(x):
    return torch.nn.functional.softplus(x) - math.log(2)


def plain_residual(x, block):
    return x + block.lin2(ssp(block.lin1(ssp(x))))


@pytest.mark.parametrize("shape", [(16, 16), (5, 9), (9, 5), (1, 1)])
def test_weights_start_orthogonal_with_glorots_variance(shape):
    weight = orthogonal_dense(*shape).weight.detach().double()
    if shape != (1, 1):
        assert float(weight.var(correction=0)) == pytest.approx(2 / sum(shape), rel=1e-5)
    small = weight if weight.shape[0] <= weight.shape[1] else weight.T
    gram = small @ small.T
    torch.testing.assert_close(
        gram, gram[0, 0] * torch.eye(len(gram), dtype=torch.float64), rtol=0, atol=1e-6
    )


def test_residual():
    block = randomized(PreActivatedResidual(7))
    x = torch.randn(4, 7, dtype=torch.float64)
    torch.testing.assert_close(block(x), plain_residual(x, block))


@pytest.mark.parametrize("activated_skip", [False, True])
@pytest.mark.parametrize("residuals", [0, 2])
def test_interaction(activated_skip, residuals, device):
    block = randomized(
        PhysNetInteraction(
            6, 5, num_residual_interaction=residuals, num_residual_atomic=residuals,
            activated_skip=activated_skip,
        )
    ).to(device)  # fmt: skip
    pairs = torch.tensor([[1, 2, 0, 2], [0, 0, 1, 1]], device=device)
    graph = molkern.NeighborList.from_edge_index(pairs, 3)
    x = torch.randn(3, 6, dtype=torch.float64, device=device)
    basis = torch.rand(4, 5, dtype=torch.float64, device=device)
    a = ssp(x)
    message = ssp(block.lin_receiver(a))
    for (j, i), g in zip(graph.edge_index.T.tolist(), basis, strict=True):
        message[i] = message[i] + block.filters(g) * ssp(block.lin_sender(a[j]))
    for residual in block.message_residuals:
        message = plain_residual(message, residual)
    expected = block.gate * (a if activated_skip else x) + block.lin_out(ssp(message))
    for residual in block.atomic_residuals:
        expected = plain_residual(expected, residual)
    torch.testing.assert_close(block(x, basis, graph), expected)


def test_new_interaction_ignores_neighbors():
    block = PhysNetInteraction(6, 5)
    assert not block.filters.weight.any()
    assert block.filters.bias is None
    assert torch.equal(block.gate.detach(), torch.ones(6))


@pytest.mark.parametrize("activated", [False, True])
def test_output(activated):
    block = PhysNetOutput(6, 3, num_residual=2, activated=activated)
    assert not block(torch.randn(4, 6)).any()
    block, x = randomized(block), torch.randn(4, 6, dtype=torch.float64)
    y = x
    for residual in block.residuals:
        y = plain_residual(y, residual)
    y = block.lin(ssp(y))
    torch.testing.assert_close(block(x), ssp(y) if activated else y)


def test_second_derivatives_of_the_blocks():
    block = randomized(PhysNetInteraction(3, 2, num_residual_interaction=1, num_residual_atomic=1))
    graph = molkern.NeighborList.from_edge_index(torch.tensor([[1, 2, 0], [0, 0, 1]]), 3)
    x = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    basis = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda a, b: block(a, b, graph), (x, basis))
    assert gradgradcheck(lambda a, b: block(a, b, graph), (x, basis))


def test_scaling_by_element():
    scaling = randomized(ElementScaling(9)).float()  # stays in float64
    numbers = torch.tensor([1, 8, 1])
    y = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    out = scaling(y, numbers)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, scaling.scale[numbers] * y + scaling.shift[numbers])
    assert gradcheck(lambda t: scaling(t, numbers), (y,))
    assert not list(ElementScaling(9, trainable=False).parameters())


@pytest.mark.parametrize("total", [0.0, -1.5, torch.tensor(2.0), torch.tensor([1.0, 0.0, -2.0])])
def test_corrected_charges_add_up(total, device):
    charges = torch.randn(7, dtype=torch.float64, device=device)
    pointers = torch.tensor([0, 3, 3, 7], dtype=torch.int32, device=device)
    total = total.to(device) if isinstance(total, torch.Tensor) else total
    fixed = ChargeCorrection()(charges, total, pointers)
    wanted = torch.as_tensor(total, dtype=torch.float64, device=device).expand(3)
    for start, end, value in ((0, 3, wanted[0]), (3, 7, wanted[2])):
        torch.testing.assert_close(fixed[start:end].sum(), value)
        moved = fixed[start:end] - charges[start:end]
        torch.testing.assert_close(moved, moved[:1].expand_as(moved))
    single = ChargeCorrection()(charges, 1.0)
    torch.testing.assert_close(float(single.sum()), 1.0)


def test_derivatives_of_corrected_charges(device):
    charges = torch.randn(7, dtype=torch.float64, device=device, requires_grad=True)
    total = torch.randn(3, dtype=torch.float64, device=device, requires_grad=True)
    pointers = torch.tensor([0, 3, 3, 7], dtype=torch.int32, device=device)
    layer = ChargeCorrection()
    assert gradcheck(lambda q, t: layer(q, t, pointers), (charges, total))
    assert gradgradcheck(lambda q, t: layer(q, t, pointers).sin(), (charges, total))


def test_wrong_total_charges():
    charges, pointers = torch.zeros(3), torch.tensor([0, 1, 3], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"or have shape \[2\], .* got \[3\]"):
        ChargeCorrection()(charges, torch.zeros(3), pointers)
    with pytest.raises(ValueError, match="total_charge must be finite, got nan"):
        ChargeCorrection()(charges, math.nan, pointers)
    with pytest.raises(ValueError, match="total_charge is on meta but the charges are on cpu"):
        ChargeCorrection()(charges, torch.zeros(2, device="meta"), pointers)


def test_penalty():
    first, second, third = (torch.randn(5, 2, dtype=torch.float64) for _ in range(3))
    expected = sum(
        (b**2 / (b**2 + a**2 + 1e-7)).mean() for a, b in ((first, second), (second, third))
    )
    torch.testing.assert_close(nonhierarchicality([first, second, third]), expected)
    assert nonhierarchicality([first]) == 0
    assert nonhierarchicality([first[:0], second[:0]]) == 0


VARIANTS = [
    {},
    {"cutoff": 4.0},
    {"cutoff": 4.0, "shift_shielded": False},
    {"cutoff": 4.0, "shielding": 0.5},
]


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("switch_range", [1.5, 6.0])
def test_electrostatics_equal_a_sum_over_pairs(options, switch_range, device):
    positions = 4 * torch.rand(9, 3, dtype=torch.float64, device=device)
    charges = torch.randn(9, dtype=torch.float64, device=device)
    neighbors = molkern.neighbor_list(positions, 10.0)
    layer = ShieldedElectrostatics(switch_range, **options)
    energies = layer(charges, neighbors.distances(positions), neighbors)
    expected = coulomb_energy(charges, positions, COULOMB_CONSTANT, switch_range, **options)
    torch.testing.assert_close(energies.sum(), expected)
    assert energies.shape == (9,)


def test_charges_are_bare_at_long_range_and_shielded_at_short():
    layer = ShieldedElectrostatics(5.0)
    d = torch.tensor([0.0, 5.0, 6.0, 100.0], dtype=torch.float64)
    expected = torch.tensor([1.0, 1 / 5, 1 / 6, 1 / 100], dtype=torch.float64)
    torch.testing.assert_close(layer.kernel(d), expected, rtol=1e-15, atol=0)
    d.requires_grad_()
    (slope,) = torch.autograd.grad(layer.kernel(d).sum(), d, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), d)
    assert bool(slope.isfinite().all())  # also at zero
    assert bool(curvature.isfinite().all())


@pytest.mark.parametrize("options", VARIANTS[1:])
def test_energy_and_force_vanish_at_the_cutoff(options):
    layer = ShieldedElectrostatics(3.0, **options)
    d = torch.tensor([4.0 - 1e-9, 4.0, 4.1], dtype=torch.float64, requires_grad=True)
    kernel = layer.kernel(d)
    (slope,) = torch.autograd.grad(kernel.sum(), d)
    assert kernel.abs().max() < 1e-15
    assert slope.abs().max() < 1e-9
    assert not kernel[2].any()


@pytest.mark.parametrize("options", VARIANTS)
def test_derivatives_of_electrostatics(options, crystal, device):
    _, positions, cell = (t.to(device) for t in crystal)
    periodic = cell if "cutoff" in options else None
    neighbors = molkern.neighbor_list(positions, 5.0, periodic)
    layer = ShieldedElectrostatics(2.5, **options)
    charges = torch.randn(10, dtype=torch.float64, device=device, requires_grad=True)

    def energies(x, q):
        return layer(q, neighbors.distances(x, periodic), neighbors)

    positions = positions.clone().requires_grad_()
    assert gradcheck(energies, (positions, charges))
    assert gradgradcheck(lambda x, q: energies(x, q).sum(), (positions, charges))


def test_padded_list():
    positions = 4 * torch.rand(9, 3, dtype=torch.float64)
    charges = torch.randn(9, dtype=torch.float64, requires_grad=True)
    results = []
    for options in ({}, {"capacity": 200}):
        neighbors = molkern.neighbor_list(positions, 10.0, **options)
        x = positions.clone().requires_grad_()
        energies = ShieldedElectrostatics(3.0)(charges, neighbors.distances(x), neighbors)
        results.append([energies, *torch.autograd.grad(energies.sum(), (x, charges))])
    torch.testing.assert_close(*results)


def test_kernel_of_the_reference():
    d = torch.linspace(0.1, 9, 50, dtype=torch.float64)
    torch.testing.assert_close(ShieldedElectrostatics(4.0).kernel(d), coulomb(d, 4.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShieldedElectrostatics(0.0), "switch_range must be positive and finite, got 0"),
        (lambda: ShieldedElectrostatics(5.0, -1.0), "cutoff must be positive and finite, got -1"),
        (lambda: ShieldedElectrostatics(5.0, shielding=0.0), "shielding must be positive .* got 0"),
        (lambda: PreActivatedResidual(0), "at least 1, got 0 inputs"),
        (lambda: PreActivatedResidual(4, activation_name="foo"), "activation must be one of"),
        (lambda: PhysNetInteraction(4, 0), "at least 1, got 0 inputs and 4 outputs"),
        (lambda: PhysNetInteraction(4, 4, num_residual_atomic=-1), "not be negative, got -1"),
        (lambda: PhysNetOutput(4, 0), "at least 1, got 4 inputs and 0 outputs"),
        (lambda: ElementScaling(0), "at least 1 element and 1 target, got 0 and 2"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
