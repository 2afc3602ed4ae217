import pytest
import torch
from reference.splines import basis as reference_basis
from torch.autograd import gradcheck, gradgradcheck

import molkern
from molkern.nn.fingerprint import Fingerprint
from molkern.nn.splines import _basis, _inverse, _points, spline
from molkern.ops import SplineGrid


def bumps(d):
    """Two tables of smooth filters."""
    centers = torch.linspace(0, 5, 12, dtype=d.dtype, device=d.device)
    gaussians = torch.exp(-5 * (d[:, None] - centers) ** 2)
    cutoff = 0.5 * (torch.cos(torch.pi * d / 5) + 1)
    return [gaussians * cutoff[:, None], torch.sin(2 * d)[:, None] * cutoff[:, None]]


@pytest.mark.parametrize("degree", [3, 5])
@pytest.mark.parametrize("intervals", [6, 128, 1000])
def test_interpolation_meets_the_function_at_its_points(intervals, degree):
    grid = SplineGrid(0.0, 5.0, intervals, degree)
    points = _points(grid)
    assert len(points) == len(points.unique()) == grid.rows
    row, column, value = _inverse(grid, points)
    inverse = torch.zeros(grid.rows, grid.rows, dtype=torch.float64)
    inverse[row, column] = value
    matrix = reference_basis(points, 0.0, 5.0, intervals, degree)
    identity = torch.eye(grid.rows, dtype=torch.float64)
    torch.testing.assert_close(inverse @ matrix, identity, rtol=0, atol=1e-11)


@pytest.mark.parametrize("degree", [3, 5])
def test_basis_equals_the_recursion(degree):
    grid = SplineGrid(-1.0, 2.0, 7, degree)
    d = torch.linspace(-1.0, 2.0, 50, dtype=torch.float64)
    first, b = _basis(grid, d)
    full = reference_basis(d, -1.0, 2.0, 7, degree)
    for k in range(degree + 1):
        torch.testing.assert_close(b[:, k], full[torch.arange(50), first + k])


@pytest.mark.parametrize("degree", [3, 5])
def test_the_tolerance_holds(degree):
    """Measured here anew, at points that the builder did not look at."""
    tolerance = 1e-7
    report = molkern.nn.choose_grid(bumps, 0.0, 5.0, tolerance=tolerance, degree=degree)
    assert report.grid.degree == degree
    assert report.knots == report.grid.intervals + 1
    assert report.bytes == report.grid.rows * 13 * 8
    assert "2 tables" in str(report)
    tables = molkern.nn.spline_tables(bumps, report.grid, torch.empty(0, dtype=torch.float64))
    d = (torch.rand(2000, dtype=torch.float64) * 4.99).requires_grad_()
    for exact, table in zip(bumps(d), tables, strict=True):
        splined = spline(table, d, report.grid)
        assert (exact - splined).abs().max() <= 1.5 * tolerance * exact.abs().max()
        weights = torch.randn_like(exact)
        slope, tilt = (
            torch.autograd.grad(y, d, weights, create_graph=True)[0] for y in (exact, splined)
        )
        assert (slope - tilt).abs().max() <= 1.5e2 * tolerance * slope.abs().max()
        bend, curve = (torch.autograd.grad(y.sum(), d, retain_graph=True)[0] for y in (slope, tilt))
        assert (bend - curve).abs().max() <= 1.5e4 * tolerance * bend.abs().max()


def test_coarser_grids_do_not_hold_it():
    """The grid is not much finer than it must be."""
    report = molkern.nn.choose_grid(bumps, 0.0, 5.0, tolerance=1e-7, degree=3)
    coarse = report.grid.intervals // 2
    again = molkern.nn.choose_grid(bumps, 0.0, 5.0, tolerance=1e-7, degree=3, intervals=coarse)
    assert again.grid.intervals > coarse


def test_what_is_not_smooth_is_refused():
    def kinked(d):
        return [(d - 1.23456).abs()[:, None]]

    with pytest.raises(ValueError, match=r"no splines hold the tolerance 1e-06, .* not smooth"):
        molkern.nn.choose_grid(kinked, 0.0, 5.0, tolerance=1e-6, degree=3)
    with pytest.raises(ValueError, match=r"tolerance must be positive, got 0\.0"):
        molkern.nn.choose_grid(bumps, 0.0, 5.0, tolerance=0.0, degree=3)


def test_tables_are_differentiable():
    """By what the function depends on, twice, through the sparse product."""
    grid = SplineGrid(0.0, 3.0, 4)
    weight = torch.randn(3, dtype=torch.float64, requires_grad=True)

    def tables(weight):
        def function(d):
            return [torch.exp(-d[:, None] * weight), (d[:, None] * weight[:2]).sin()]

        return tuple(molkern.nn.spline_tables(function, grid, weight))

    assert gradcheck(tables, weight)
    assert gradgradcheck(tables, weight)


def test_values_at_distances():
    grid = SplineGrid(0.0, 3.0, 6)
    table = torch.randn(grid.rows, 3, dtype=torch.float64, requires_grad=True)
    d = (3.3 * torch.rand(7, dtype=torch.float64)).requires_grad_()
    assert gradcheck(lambda t, d: spline(t, d, grid), (table, d))
    assert gradgradcheck(lambda t, d: spline(t, d, grid), (table, d))


def test_a_convolution_takes_splines_for_filters():
    positions = 3 * torch.rand(6, 3)
    neighbors = molkern.neighbor_list(positions, 4.0)
    distances = neighbors.distances(positions)
    grid = SplineGrid(0.0, 4.0, 30)
    table = torch.randn(grid.rows, 8)
    conv = molkern.nn.CFConv(5, 8, 5, aggregation="mean")
    x = torch.randn(6, 5)
    splines = molkern.nn.SplineFilter(table, grid, distances)
    torch.testing.assert_close(
        conv(x, splines, neighbors), conv(x, splines.values(), neighbors), rtol=1e-5, atol=1e-5
    )


def test_fingerprints_tell_changes():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    seen = Fingerprint(model)
    assert seen.holds()
    with torch.no_grad():
        model[0].weight.mul_(2.0)
    assert not seen.holds()
    seen = Fingerprint(model)
    model[1].running_mean.add_(1.0)
    assert not seen.holds()
    seen = Fingerprint(model)
    model[0].bias = torch.nn.Parameter(torch.zeros(2))
    assert not seen.holds()
    seen = Fingerprint(model)
    model[0] = torch.nn.Linear(2, 2)
    assert not seen.holds()
    seen = Fingerprint(model)
    model.double()
    assert not seen.holds()


@pytest.mark.parametrize("transposed", [False, True])
def test_coefficients_are_an_operator(transposed):
    values = torch.rand(9, 2, dtype=torch.float64, requires_grad=True)  # 4 intervals, degree 5
    arguments = (values, 0.0, 3.0, 4, 5, transposed)
    operator = torch.ops.molkern.spline_coefficients.default
    torch.library.opcheck(operator, arguments)
    assert gradcheck(lambda v: operator(v, *arguments[1:]), values)
    assert gradgradcheck(lambda v: operator(v, *arguments[1:]), values)
