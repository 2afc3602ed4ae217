"""Atoms on top of each other, or so close that squares of their distance are no normal numbers.

Energies, forces and all derivatives are finite there: a vector whose square is below the smallest
normal number counts as zero, its length and the derivatives of that too. For DimeNet, whose angles
turn ever faster, that is so below a millionth of the cutoff.
"""

import pytest
import torch

import molkern
from molkern.ops.geometry import edge_norm

SMALL = dict(hidden_channels=8, cutoff=3.0)
DIMENET = dict(SMALL, num_blocks=1, num_spherical=4, num_radial=3)
MODELS = {
    "SchNet": dict(SMALL, num_filters=8, num_interactions=2, num_basis=8),
    "DTNN": dict(SMALL, num_factors=8, num_interactions=2, num_basis=8),
    "PhysNet": dict(SMALL, num_basis=8, num_interactions=2, use_dispersion=True),
    "DimeNet": DIMENET,
    "DimeNet kji": dict(DIMENET, angle="kji"),
    "DimeNetPlusPlus": dict(DIMENET, int_emb_size=8, basis_emb_size=4, out_emb_size=8),
    "DimeNetPlusPlus at_i": dict(
        DIMENET, int_emb_size=8, basis_emb_size=4, out_emb_size=8, angle="at_i"
    ),
}
SEPARATIONS = {
    torch.float32: [
        0.0, 1e-45, 1e-40, 1e-38, 1e-30, 3e-23, 1e-20, 5e-20, 1e-19, 1.2e-19, 2e-19, 1e-18, 1e-15,
        1e-12, 1e-10, 1e-8, 1e-6, 1e-5, 1e-4,
    ],
    torch.float64: [
        0.0, 5e-324, 1e-310, 1e-200, 1e-162, 1e-158, 1e-154, 2e-154, 1e-150, 1e-100, 1e-20, 1e-10,
        1e-5,
    ],
}  # fmt: skip
ALL = [(dtype, apart) for dtype, numbers in SEPARATIONS.items() for apart in numbers]


def a_model(name, dtype, filters):
    torch.manual_seed(2)
    kind = name.split()[0]
    model = getattr(molkern.models, kind)(**MODELS[name], filters=filters)
    for p in model.parameters():  # some start at zero
        if p.requires_grad and p.abs().max() == 0:
            torch.nn.init.uniform_(p, -0.5, 0.5)
    return model.to(dtype).train()


def molecule(dtype, apart):
    """Two atoms so far apart, and three others."""
    positions = torch.tensor(
        [[0, 0, 0], [0, 0, 0], [1.1, 0.3, 0.2], [0.2, 1.2, -0.4], [0.1, -0.9, 0.8]], dtype=dtype
    )
    positions[1] = torch.tensor([0.48, -0.64, 0.6], dtype=dtype) * apart
    return torch.tensor([6, 1, 8, 1, 7]), positions


@pytest.mark.parametrize("filters", ["exact", "spline"])
@pytest.mark.parametrize("name", MODELS)
def test_all_derivatives_are_finite(name, filters):
    models = {dtype: a_model(name, dtype, filters) for dtype in SEPARATIONS}
    for dtype, apart in ALL:
        model = models[dtype]
        numbers, positions = molecule(dtype, apart)
        positions.requires_grad_()
        out = model(molkern.AtomicBatch(numbers, positions), forces=True)
        found = {key: value for key, value in out.items() if value.is_floating_point()}
        weights = [p for p in model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(
            out["forces"].square().sum(), [positions, *weights], allow_unused=True
        )
        found |= {f"gradient {k}": g for k, g in enumerate(grads) if g is not None}
        wrong = [key for key, value in found.items() if not torch.isfinite(value).all()]
        assert not wrong, f"{wrong} at {apart} in {dtype}"
        assert any(float(g.abs().max()) > 0 for g in grads[1:] if g is not None)


@pytest.mark.parametrize("name", MODELS)
def test_too_short_is_as_zero(name):
    """Forces and weight gradients do not depend on how short."""
    numbers, at_zero = molecule(torch.float32, 0.0)
    model = a_model(name, torch.float32, "exact")
    weights = [p for p in model.parameters() if p.requires_grad]

    def results(positions):
        out = model(molkern.AtomicBatch(numbers, positions), forces=True)
        loss = out["forces"].square().sum()
        grads = torch.autograd.grad(loss, weights, allow_unused=True)
        return [out["forces"], *(g for g in grads if g is not None)]

    expected = results(at_zero)
    for apart in (1e-30, 3e-23, 1e-20, 1e-19, *((1e-15, 1e-10) if "DimeNet" in name else ())):
        for a, b in zip(results(molecule(torch.float32, apart)[1]), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize(("dtype", "apart"), ALL)
def test_lengths(dtype, apart, device):
    """A length, its gradient and its second derivative are zero, or all right."""
    v = (torch.tensor([[0.48, -0.64, 0.6]], dtype=torch.float64) * apart).to(device, dtype)
    v.requires_grad_()
    d = edge_norm(v)
    (g,) = torch.autograd.grad(d, v, torch.ones_like(d), create_graph=True)
    h = torch.tensor([[0.6, 0.0, -0.48]], dtype=dtype, device=device)
    (product,) = torch.autograd.grad(g, v, h)
    graph = molkern.NeighborList.from_edge_index(torch.tensor([[1], [0]], device=device), 2)
    positions = torch.cat([torch.zeros_like(v), v.detach()])
    assert torch.equal(graph.distances(positions), d)
    if apart < 1.05 * torch.finfo(dtype).tiny ** 0.5:
        assert not any(t.any() for t in (d, g, product))
    else:
        direction = torch.tensor([[0.48, -0.64, 0.6]], dtype=dtype, device=device)
        torch.testing.assert_close(d, torch.full_like(d, apart))
        torch.testing.assert_close(g, direction)
        torch.testing.assert_close(product * d.detach(), h)  # h is across


def test_not_a_number_stays_one(device):
    v = torch.tensor([[float("nan"), 0.0, 0.0]], device=device)
    assert edge_norm(v).isnan().all()
