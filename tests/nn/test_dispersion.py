"""D3 dispersion against tad-dftd3 itself."""

import sys

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import molkern
from molkern.nn import D3Dispersion
from molkern.nn.dispersion import BOHR, HARTREE, HARTREE_FOCK

tad_dftd3 = pytest.importorskip("tad_dftd3")


def molecules():
    """Three made-up molecules, float64."""
    generator = torch.Generator().manual_seed(3)
    numbers = [torch.tensor(z) for z in ([8, 1, 1], [6, 6, 1, 7, 17, 1], [26, 8, 14, 0, 53])]
    positions = [
        2.5 * torch.rand(len(z), 3, generator=generator, dtype=torch.float64)
        + 2.0 * torch.arange(len(z), dtype=torch.float64).unsqueeze(1)
        for z in numbers
    ]
    return numbers, positions


def theirs(numbers, positions, parameters=HARTREE_FOCK):
    """tad-dftd3's two-body energy in eV of a molecule in Å, over all pairs."""
    values = torch.tensor(list(parameters), dtype=torch.float64)
    given = dict(zip(("s6", "s8", "a1", "a2"), values, strict=True))
    far = tad_dftd3.cutoff.Cutoff(cn=1e6, disp2=1e6, disp3=1e6)
    return HARTREE * tad_dftd3.dftd3(numbers, positions / BOHR, given, cutoff=far)


def layer_for(**options):
    layer = D3Dispersion(**options).double()
    with torch.no_grad():  # the start is rounded to float32
        layer.raw.copy_(D3Dispersion(**{**options, "trainable": False}).raw)
    return layer


@pytest.mark.parametrize("parameters", [HARTREE_FOCK, (0.7, 2.1, 0.45, 4.2)])
def test_equals_tad_dftd3(parameters, device):
    layer = layer_for(parameters=parameters).to(device)
    torch.testing.assert_close(
        layer.coefficients.cpu(), torch.tensor(parameters, dtype=torch.float64), rtol=1e-14, atol=0
    )
    numbers, positions = molecules()
    system = torch.arange(3).repeat_interleave(torch.tensor([len(z) for z in numbers]))
    batch = molkern.AtomicBatch(torch.cat(numbers), torch.cat(positions), system).to(device)
    neighbors = batch.neighbors(50.0)
    moving = batch.positions.clone().requires_grad_()
    energies = layer(batch.numbers, neighbors.distances(moving), neighbors)
    (gradient,) = torch.autograd.grad(energies.sum(), moving)
    expected, slopes = [], []
    for z, x in zip(numbers, positions, strict=True):
        x = x.requires_grad_()
        expected.append(theirs(z, x, parameters))
        slopes.append(torch.autograd.grad(expected[-1].sum(), x)[0])
    expected = torch.cat(expected).detach()
    torch.testing.assert_close(energies.cpu().detach(), expected, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(gradient.cpu(), torch.cat(slopes), rtol=1e-9, atol=1e-12)
    assert expected.sum() < -0.1


def test_float32_and_padding():
    numbers, positions = (values[1] for values in molecules())
    layer = layer_for().float()
    results = []
    for options in ({}, {"capacity": 100}):
        neighbors = molkern.neighbor_list(positions.float(), 50.0, **options)
        x = positions.float().requires_grad_()
        energies = layer(numbers, neighbors.distances(x), neighbors)
        gradients = torch.autograd.grad(energies.sum(), (x, layer.raw))
        results.append([energies, *gradients])
    torch.testing.assert_close(*results)
    expected = theirs(numbers, positions).float()
    torch.testing.assert_close(results[0][0].detach(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"cutoff": 4.0}, {"cutoff": 4.0, "switch_start": 3.0}])
def test_derivatives(options, crystal):
    _, positions, cell = crystal
    numbers = torch.tensor([6, 1, 1, 8, 7, 1, 6, 6, 1, 9])
    cell = 1.5 * cell if options else None
    positions = (1.5 * positions).requires_grad_()
    neighbors = molkern.neighbor_list(positions.detach(), 5.0 if options else 50.0, cell)
    layer = layer_for(**options)

    def energy(x, raw):
        distances = neighbors.distances(x, cell)
        return torch.func.functional_call(layer, {"raw": raw}, (numbers, distances, neighbors))

    raw = layer.raw.detach().clone().requires_grad_()
    assert gradcheck(energy, (positions, raw), atol=1e-6)
    assert gradgradcheck(lambda *a: energy(*a).sum(), (positions, raw), atol=1e-6)


def pair_energy(layer, d):
    d = torch.tensor(d, dtype=torch.float64, requires_grad=True)
    graph = molkern.NeighborList.from_edge_index(torch.tensor([[0, 1], [1, 0]]), 2)
    energy = layer(torch.tensor([6, 8]), d.expand(2), graph).sum()
    return float(energy.detach()), float(torch.autograd.grad(energy, d)[0])


def test_energy_and_force_vanish_at_the_cutoff():
    free = pair_energy(layer_for(), 4.999)
    for options in ({}, {"switch_start": 3.0}, {"switch_start": 5.0}):
        layer = layer_for(cutoff=5.0, **options)
        energy, slope = pair_energy(layer, 5.0 - 1e-7)
        assert abs(energy) < 1e-9 * abs(free[0])
        assert abs(slope) < 1e-5 * abs(free[1])
        assert pair_energy(layer, 5.1) == (0.0, 0.0)
    # Far inside, what is left of the shift is a constant and a slope
    shifted, plain = pair_energy(layer_for(cutoff=40.0), 3.0), pair_energy(layer_for(), 3.0)
    assert shifted == pytest.approx(plain, rel=1e-3)


def test_supercell_is_extensive(crystal):
    _, positions, cell = crystal
    numbers = torch.tensor([6, 1, 1, 8, 7, 1, 6, 6, 1, 9])
    shifts = torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(1)).double()
    repeated = (positions[None] + (shifts @ cell)[:, None]).reshape(-1, 3)
    large = cell * torch.tensor([[3.0], [2.0], [1.0]])
    layer = layer_for(cutoff=9.0)
    energies = []
    for z, x, c in ((numbers, positions, cell), (numbers.repeat(6), repeated, large)):
        neighbors = molkern.neighbor_list(x, 9.0, c)
        energies.append(layer(z, neighbors.distances(x, c), neighbors).detach())
    torch.testing.assert_close(energies[1], energies[0].repeat(6), rtol=1e-11, atol=1e-13)


def test_parameters_stay_positive_and_out_of_the_way():
    layer = D3Dispersion()
    assert [name for name, _ in layer.named_parameters()] == ["raw"]
    assert list(layer.state_dict()) == ["raw"]  # tables come with tad-dftd3
    assert layer.float().tables.c6.dtype == torch.float64
    with torch.no_grad():
        layer.raw.fill_(-5.0)
    assert bool((layer.coefficients > 0).all())
    assert not list(D3Dispersion(trainable=False).parameters())


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tad_dftd3", None)
    with pytest.raises(ImportError, match=r"pip install 'molkern\[dispersion\]'"):
        D3Dispersion()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoff": 0.0}, "cutoff must be positive and finite, got 0"),
        ({"parameters": (1.0, 0.0, 1.0, 1.0)}, "s8 must be positive and finite, got 0"),
        ({"parameters": (1.0,)}, "parameters must be s6, s8, a1 and a2, got 1 numbers"),
        ({"bohr": -1.0}, "bohr must be positive and finite, got -1"),
        ({"switch_start": 3.0}, "switch_start must lie between 0 and the cutoff, got 3.0 and None"),
        ({"cutoff": 4.0, "switch_start": 5.0}, "between 0 and the cutoff, got 5.0 and 4.0"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        D3Dispersion(**options)


def test_elements_that_d3_does_not_know():
    graph = molkern.NeighborList.from_edge_index(torch.tensor([[0, 1], [1, 0]]), 2)
    with pytest.raises(ValueError, match="atom 1 has number 110, but D3 knows 1 to 103"):
        D3Dispersion()(torch.tensor([1, 110]), torch.ones(2), graph)
