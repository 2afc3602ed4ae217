"""Bases and cutoff functions as layers, against their equations in plain torch."""

import math

import pytest
import torch
from reference.radial import cutoff_value, radial_basis

from molkern.nn import BesselBasis, CutoffFunction, ExponentialBasis, GaussianBasis

BASES = {"gaussian": GaussianBasis, "exponential": ExponentialBasis, "bessel": BesselBasis}
POSITIVE = {"trainable": True, "positive": True}


@pytest.mark.parametrize("cutoff_function", ["none", "cosine", "physnet", "envelope"])
@pytest.mark.parametrize("name", BASES)
def test_gradients_of_trainable_parameters(device, name, cutoff_function):
    layer = BASES[name](6, 4.0, cutoff_function=cutoff_function, trainable=True).to(
        device, torch.float64
    )
    distances = 0.2 + 4.5 * torch.rand(50, dtype=torch.float64, device=device)
    weights = torch.randn(50, 6, dtype=torch.float64, device=device)
    parameters = list(layer.parameters())
    assert len(parameters) == (1 if name == "bessel" else 2)
    found = torch.autograd.grad((weights * layer(distances)).sum(), parameters)
    plain = radial_basis(
        distances, *parameters, *[None] * (2 - len(parameters)),
        basis=name, cutoff_function=cutoff_function, cutoff=4.0,
    )  # fmt: skip
    expected = torch.autograd.grad((weights * plain).sum(), parameters)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_positive_parameters_go_through_a_softplus():
    plain, layer = (ExponentialBasis(6, 4.0, **o).double() for o in ({}, POSITIVE))
    assert [name for name, _ in layer.named_parameters()] == ["raw_centers", "raw_widths"]
    distances = torch.linspace(0.1, 4.5, 30, dtype=torch.float64)
    torch.testing.assert_close(layer(distances), plain(distances), rtol=1e-5, atol=1e-7)
    raw = torch.randn(6, dtype=torch.float64) * 3, torch.linspace(-2, 40, 6, dtype=torch.float64)
    with torch.no_grad():
        layer.raw_centers.copy_(raw[0])
        layer.raw_widths.copy_(raw[1])
    used = [torch.log1p(torch.exp(value)) for value in raw]
    torch.testing.assert_close(list(layer.functions()), used, rtol=1e-15, atol=0)
    value = radial_basis(
        distances, *used, basis="exponential", cutoff_function="physnet", cutoff=4.0
    )
    torch.testing.assert_close(layer(distances), value, rtol=1e-12, atol=1e-14)
    layer.set_functions(*used)
    torch.testing.assert_close(layer.raw_centers.detach(), raw[0], rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match="centers must be positive, got -1"):
        layer.set_functions(-torch.ones(6), torch.ones(6))
    with pytest.raises(ValueError, match=r"widths must have shape \[6\], got \[5\]"):
        layer.set_functions(torch.ones(6), torch.ones(5))
    with pytest.raises(ValueError, match="positive is about training"):
        ExponentialBasis(6, 4.0, positive=True)


@pytest.mark.parametrize("name", BASES)
def test_constants_are_no_parameters(name):
    layer = BASES[name](6, 4.0, trainable=False).float()
    assert not list(layer.parameters())
    assert all(buffer.dtype == torch.float64 for buffer in layer.buffers())


def test_gaussians_by_default():
    layer = GaussianBasis(5, 6.0, start=2.0)
    assert layer.centers.tolist() == [2, 3, 4, 5, 6]
    assert layer.widths.tolist() == [0.5] * 5
    assert GaussianBasis(3, 6.0, coefficient=10.0).widths.tolist() == [10.0] * 3
    assert GaussianBasis(1, 6.0).centers.tolist() == [0.0]


def test_exponentials_by_default_are_physnets():
    layer = ExponentialBasis(64, 10.0)
    last = math.exp(-10.0)
    expected = torch.linspace(1.0, last, 64, dtype=torch.float64)
    torch.testing.assert_close(layer.centers, expected, rtol=1e-14, atol=0)
    beta = (64 / (2 * (1 - last))) ** 2
    torch.testing.assert_close(layer.widths, torch.full_like(expected, beta), rtol=1e-14, atol=0)
    assert layer.cutoff_function == "physnet"
    value = layer(torch.tensor([2.5], dtype=torch.float64))
    switch = 1 - 6 * 0.25**5 + 15 * 0.25**4 - 10 * 0.25**3
    plain = switch * torch.exp(-beta * (math.exp(-2.5) - expected) ** 2)
    torch.testing.assert_close(value, plain.unsqueeze(0), rtol=1e-12, atol=1e-300)


def test_bessel_frequencies_are_multiples_of_pi():
    layer = BesselBasis(4, 5.0, trainable=False)
    assert layer.frequencies.tolist() == [math.pi * k for k in (1, 2, 3, 4)]
    d = torch.tensor([1.0], dtype=torch.float64)
    x = 0.2
    envelope = 1 / x - 28 * x**5 + 48 * x**6 - 21 * x**7  # as DimeNet's code writes it
    plain = torch.tensor([[envelope * math.sin(math.pi * k * x) for k in (1, 2, 3, 4)]])
    torch.testing.assert_close(layer(d), plain.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["none", "cosine", "physnet", "envelope"])
def test_cutoff_function(device, name):
    layer = CutoffFunction(name, 4.0)
    d = torch.tensor([0.0, 1.0, 2.0, 3.9, 4.0, 5.0], dtype=torch.float64, device=device)
    d.requires_grad_()
    value = layer(d)
    torch.testing.assert_close(value.squeeze(1), cutoff_value(d, name, 4.0, 6))
    assert value.shape == (6, 1)
    assert value[0].item() == 1
    (slope,) = torch.autograd.grad(value.sum(), d)
    if name == "none":
        assert not slope.any()
        return
    assert not value[4:].any()
    assert not slope[4:].any()
    # Smooth: value and slope go to zero from below too
    near = torch.tensor([4.0 - 1e-6], dtype=torch.float64, device=device, requires_grad=True)
    value = layer(near)
    (slope,) = torch.autograd.grad(value.sum(), near)
    assert abs(value.item()) < 1e-11
    assert abs(slope.item()) < 1e-5


@pytest.mark.parametrize("cutoff", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", [*BASES, "cutoff_function"])
def test_wrong_cutoff(name, cutoff):
    with pytest.raises(ValueError, match=f"cutoff must be positive and finite, got {cutoff}"):
        BASES[name](8, cutoff) if name in BASES else CutoffFunction("cosine", cutoff)


@pytest.mark.parametrize("basis", BASES.values())
def test_wrong_arguments(basis):
    names = "'none', 'cosine', 'physnet', 'envelope', got 'foo'"
    with pytest.raises(ValueError, match=f"cutoff_function must be one of {names}"):
        basis(8, 5.0, cutoff_function="foo")
    with pytest.raises(ValueError, match=f"cutoff_function must be one of {names}"):
        CutoffFunction("foo", 5.0)
    with pytest.raises(ValueError, match="num_functions must be at least 1, got 0"):
        basis(0, 5.0)


@pytest.mark.parametrize("start", [5.0, 6.0, math.nan])
def test_gaussians_that_start_beyond_the_cutoff(start):
    with pytest.raises(ValueError, match=f"start must be below the cutoff 5.0, got {start}"):
        GaussianBasis(8, 5.0, start=start)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf, math.nan])
def test_wrong_alpha(alpha):
    with pytest.raises(ValueError, match=f"alpha must be positive and finite, got {alpha}"):
        ExponentialBasis(8, 5.0, alpha=alpha)
