"""The radial part of the spherical basis against plain torch, finite differences and mpmath."""

import math
import os
import subprocess
import sys
from pathlib import Path

import mpmath
import pytest
import torch
from reference.spherical import exact_bessel, exact_function, exact_zero, local_magnitude
from reference.spherical import spherical_radial as reference
from torch.autograd import gradcheck, gradgradcheck

import molkern
from molkern.nn import SphericalRadialBasis, spherical_bessel_zeros
from molkern.ops import spherical_radial

DTYPES = [torch.float32, torch.float64]
CUTOFF = 5.0

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def constants(orders=7, radial=6, device="cpu"):
    basis = SphericalRadialBasis(orders, radial, CUTOFF).to(device)
    return basis.zeros, basis.norms


def inputs(edges, dtype=torch.float64, device="cpu", seed=0):
    """Distances inside and outside the cutoff."""
    random = torch.Generator().manual_seed(seed)
    d = 0.3 + 5.7 * torch.rand(edges, generator=random, dtype=torch.float64)
    return d.to(dtype).to(device).requires_grad_()


def evaluate(function, d, zeros, norms, seed=1, cutoff=CUTOFF, exponent=6):
    """The value, the gradient, and the derivatives of its product with a direction."""
    y = function(d, zeros, norms, cutoff=cutoff, exponent=exponent)
    random = torch.Generator().manual_seed(seed)

    def draw(like):
        return torch.randn(like.shape, generator=random, dtype=torch.float64).to(like)

    g = draw(y).requires_grad_()
    (first,) = torch.autograd.grad(y, d, g, create_graph=True)
    second = torch.autograd.grad(first, [g, d], draw(first))
    return [y, first, *second]


@every_dtype
@pytest.mark.parametrize(("orders", "radial"), [(1, 1), (2, 3), (7, 6), (4, 40)])
def test_equals_reference(orders, radial, dtype, device):
    zeros, norms = constants(orders, radial, device)
    d = inputs(300, dtype, device)
    if radial == 40:  # the reference's quadrature is for arguments below 30
        d = (d.detach() / 10).requires_grad_()
    ours = evaluate(spherical_radial, d, zeros, norms, exponent=5)
    plain = d.detach().cpu().double().requires_grad_()
    expected = evaluate(reference, plain, zeros.cpu(), norms.cpu(), exponent=5)
    assert ours[0].dtype == dtype
    for a, b in zip(ours, expected, strict=True):
        atol = (1e-6 if dtype == torch.float32 else 1e-11) * b.abs().max().item()
        torch.testing.assert_close(a.cpu().double(), b, rtol=0, atol=atol)


def test_every_number_of_edges():
    """The last edges do not fill a vector; their results are the same."""
    zeros, norms = constants(3, 2)
    d = inputs(40, torch.float32)
    expected = evaluate(spherical_radial, d, zeros, norms)[0]
    g, h = torch.randn(40, 6), torch.randn(40)
    ops, form = torch.ops.molkern, (zeros, norms, CUTOFF, 6)
    gradient = ops.spherical_radial_grad(g, d.detach(), *form)
    product = ops.spherical_radial_hvp(h, g, d.detach(), *form)
    for count in range(20):
        few = d.detach()[:count]
        assert torch.equal(spherical_radial(few, zeros, norms, cutoff=CUTOFF), expected[:count])
        found = ops.spherical_radial_grad(g[:count], few, *form)
        assert torch.equal(found, gradient[:count])
        for a, b in zip(
            ops.spherical_radial_hvp(h[:count], g[:count], few, *form), product, strict=True
        ):
            assert torch.equal(a, b[:count])


@pytest.mark.parametrize(("orders", "radial"), [(7, 6), (10, 6), (16, 3)])
def test_accuracy_in_float32(orders, radial, device):
    """To the last place, from 0.3 to the cutoff, every order."""
    basis = SphericalRadialBasis(orders, radial, CUTOFF).to(device)
    d = torch.linspace(0.3, CUTOFF, 42)[:-1]
    d = torch.cat([d, torch.tensor([4.99, 4.9999, 4.999999])])
    y = basis(d.to(device)).cpu()
    assert y.dtype == torch.float32
    for order in range(orders):
        for n in range(radial):
            function = exact_function(order, n + 1, CUTOFF)
            for distance, value in zip(d.tolist(), y[:, order, n].tolist(), strict=True):
                exact = function(mpmath.mpf(distance))
                assert abs(value / exact - 1) < 1.2e-7, (order, n, distance)


@pytest.mark.parametrize(("orders", "radial"), [(7, 6), (10, 6), (16, 2)])
def test_accuracy_in_float64(orders, radial, device):
    basis = SphericalRadialBasis(orders, radial, CUTOFF).to(device)
    d = torch.cat([torch.linspace(0.3, 4.95, 24, dtype=torch.float64), torch.tensor([1e-3, 0.05])])
    y = basis(d.to(device)).cpu()
    for order in range(orders):
        for n in range(radial):
            function = exact_function(order, n + 1, CUTOFF)
            for distance, value in zip(d.tolist(), y[:, order, n].tolist(), strict=True):
                error = abs(value - function(mpmath.mpf(distance)))
                scale = local_magnitude(order, n + 1, distance, CUTOFF)
                assert error < 1e-12 * scale, (order, n, distance)


@every_dtype
def test_accuracy_of_derivatives(dtype, device):
    """Relative to the local magnitude, times the square of the wave number for the second."""
    basis = SphericalRadialBasis(10, 3, CUTOFF).to(device)
    places = [0.01, 0.3, 0.8, 1.7, 2.5, 3.3, 4.1, 4.9]
    d = torch.tensor(places, dtype=dtype, device=device).requires_grad_()
    y = basis(d)
    for order in range(10):
        for n in range(3):
            (first,) = torch.autograd.grad(y[:, order, n].sum(), d, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), d)
            function = exact_function(order, n + 1, CUTOFF)
            for e, distance in enumerate(d.tolist()):
                wave = float(exact_zero(order, n + 1)) / CUTOFF + (order + 1) / distance
                near = 1 + 3 / (CUTOFF - distance)  # the envelope
                scale = local_magnitude(order, n + 1, distance, CUTOFF)
                for k, found in ((1, first[e]), (2, second[e])):
                    exact = mpmath.diff(function, mpmath.mpf(distance), k)
                    close = 1e-12 if dtype == torch.float64 else 2e-7
                    error = abs(found.item() - exact)
                    assert error < close * scale * (wave * near) ** k, (order, n, distance, k)


def test_zeros():
    zeros = spherical_bessel_zeros(10, 6)
    assert zeros.dtype == torch.float64
    for order in range(10):
        for n in range(6):
            assert zeros[order, n].item() == pytest.approx(
                float(exact_zero(order, n + 1)), rel=1e-15
            )
    torch.testing.assert_close(zeros[0], math.pi * torch.arange(1, 7).double(), rtol=0, atol=0)
    for arguments in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            spherical_bessel_zeros(*arguments)


def test_derivatives_by_finite_differences(device):
    zeros, norms = constants(7, 2, device)
    d = torch.tensor([0.2, 0.9, 2.1, 3.7, 4.9, 5.4], dtype=torch.float64, device=device)

    def function(d):
        return spherical_radial(d, zeros, norms, cutoff=CUTOFF)

    assert gradcheck(function, d.requires_grad_())
    assert gradgradcheck(function, d)


def test_operators_pass_opcheck(device):
    zeros, norms = constants(3, 2, device)
    d = inputs(5, device=device)
    g = torch.rand(5, 6, dtype=torch.float64, device=device, requires_grad=True)
    h = torch.rand(5, dtype=torch.float64, device=device)
    ops, form = torch.ops.molkern, (zeros, norms, CUTOFF, 6)
    torch.library.opcheck(ops.spherical_radial, (d, *form))
    torch.library.opcheck(ops.spherical_radial_grad, (g, d, *form))
    torch.library.opcheck(ops.spherical_radial_hvp, (h, g.detach(), d.detach(), *form))


@every_dtype
def test_zero_beyond_the_cutoff(dtype, device):
    above = torch.nextafter(torch.tensor(CUTOFF, dtype=dtype), torch.tensor(9.0, dtype=dtype))
    d = torch.tensor([CUTOFF, above, 7.0, 1e30, torch.inf], dtype=dtype, device=device)
    for result in evaluate(spherical_radial, d.requires_grad_(), *constants(device=device)):
        assert torch.equal(result, torch.zeros_like(result))


@every_dtype
@pytest.mark.parametrize("exponent", [1, 2, 6, 100])
def test_finite_everywhere(dtype, exponent, device):
    below = math.nextafter(CUTOFF, 0) if dtype == torch.float64 else CUTOFF * (1 - 2**-24)
    tiny = torch.finfo(dtype).tiny
    d = [0.0, tiny / 4, tiny, 1e-20, 1e-10, 1e-9, 1e-8, 1e-3, below, CUTOFF, 1e30]
    d = torch.tensor(d, dtype=dtype, device=device).requires_grad_()
    results = evaluate(spherical_radial, d, *constants(16, 2, device), exponent=exponent)
    assert all(torch.isfinite(result).all() for result in results)


@every_dtype
@pytest.mark.parametrize("distance", [0.0, 1e-30, 1e-11, 1e-6])
def test_limits_at_distance_zero(dtype, distance, device):
    """Order l grows like x^(l-1); order 0, which diverges, is taken off."""
    zeros, norms = constants(5, 2, device)
    d = torch.tensor([distance], dtype=dtype, device=device).requires_grad_()
    y = spherical_radial(d, zeros, norms, cutoff=CUTOFF)[0]
    x, z, factor = distance / CUTOFF, zeros.cpu(), norms.cpu()
    coefficients = [z[order] ** order * factor[order] for order in range(5)]
    for order in range(5):
        coefficient = coefficients[order] / math.prod(range(1, 2 * order + 2, 2))
        bend = -(z[1] ** 2) / 10  # of order 1: j_1(a) / a = (1 - a^2 / 10) / 3
        expected = {
            0: [coefficient / x, -coefficient / x**2, 2 * coefficient / x**3]
            if distance > 1e-9
            else [0 * coefficient] * 3,
            1: [coefficient, 2 * bend * coefficient * x, 2 * bend * coefficient],
            2: [coefficient * x, coefficient, -3 * z[2] ** 2 / 7 * x * coefficient],
            3: [coefficient * x**2, 2 * coefficient * x, 2 * coefficient],
            4: [coefficient * x**3, 3 * coefficient * x**2, 6 * coefficient * x],
        }[order]
        for n in range(2):
            value = y[2 * order + n]
            (first,) = torch.autograd.grad(value, d, create_graph=True)
            (second,) = torch.autograd.grad(first, d, retain_graph=True)
            for k, found in enumerate((value, first[0], second[0])):
                exact = (expected[k][n] / CUTOFF**k).to(dtype)
                close = dict(rtol=2e-6, atol=torch.finfo(dtype).tiny)
                torch.testing.assert_close(found.detach().cpu(), exact, **close)


def test_coincident_atoms_spoil_no_other_edge(device):
    edge_index = torch.tensor([[0, 1, 1, 2, 0, 2], [1, 0, 2, 1, 2, 0]], device=device)
    graph = molkern.NeighborList.from_edge_index(edge_index, num_atoms=3)
    positions = torch.tensor([[0.0, 0, 0], [0, 0, 0], [1.1, 0.2, 0]], device=device)
    positions.requires_grad_()
    basis = SphericalRadialBasis(7, 6, CUTOFF).to(device)
    y = basis(graph.distances(positions))
    (force,) = torch.autograd.grad(y.square().sum(), positions, create_graph=True)
    (second,) = torch.autograd.grad(force.square().sum(), positions)
    for result in (y, force, second):
        assert torch.isfinite(result).all()
    apart = graph.distances(positions) > 0
    assert apart.tolist().count(False) == 2
    moved = positions.detach() + torch.tensor([[9.0, 0, 0], [0, 0, 0], [0, 0, 0]], device=device)
    assert torch.equal(y[apart][-1:], basis(graph.distances(moved))[apart][-1:])


def test_same_bits_for_every_thread_count_and_run(device, threads):
    zeros, norms = constants(device=device)
    d = inputs(501, torch.float32, device)
    results = []
    for count in (1, 2, 2, 3):
        threads(count)
        results.append(evaluate(spherical_radial, d, zeros, norms))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_results_do_not_depend_on_the_edges_beside():
    zeros, norms = constants()
    d = inputs(200).detach()
    order = torch.randperm(200)
    y = spherical_radial(d, zeros, norms, cutoff=CUTOFF)
    assert torch.equal(spherical_radial(d[order], zeros, norms, cutoff=CUTOFF), y[order])


FOLDERS = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
INSTRUCTION_SET_PROGRAM = """
import sys, torch
from molkern import _C
from spherical.test_spherical import constants, evaluate, inputs, spherical_radial
assert _C.build_info()["cpu_instruction_set_in_use"] == sys.argv[2]
torch.save(evaluate(spherical_radial, inputs(301), *constants()), sys.argv[1])
"""


@pytest.mark.unemulated
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_instruction_sets_agree(tmp_path, isa):
    if isa not in molkern.build_info()["cpu_instruction_sets"]:
        pytest.skip(f"no {isa} kernels in this build")
    saved = tmp_path / "results.pt"
    environment = os.environ | {"MOLKERN_ISA": isa, "PYTHONPATH": os.pathsep.join(FOLDERS)}
    command = [sys.executable, "-c", INSTRUCTION_SET_PROGRAM, str(saved), isa]
    subprocess.run(command, env=environment, check=True)
    results = evaluate(spherical_radial, inputs(301), *constants())
    for a, b in zip(results, torch.load(saved), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13 * b.abs().max().item())


def test_inputs_need_not_be_contiguous():
    zeros, norms = constants(3, 4)
    d = inputs(40).detach()
    expected = spherical_radial(d, zeros, norms, cutoff=CUTOFF)
    spread = [torch.stack([t, t], -1)[..., 0] for t in (d, zeros, norms)]
    assert torch.equal(spherical_radial(*spread, cutoff=CUTOFF), expected)
    grad = torch.ops.molkern.spherical_radial_grad
    g = torch.rand(12, 40, dtype=torch.float64).T
    form = (d, zeros, norms, CUTOFF, 6)
    assert torch.equal(grad(g, *form), grad(g.contiguous(), *form))


def test_no_edges(device):
    results = evaluate(spherical_radial, inputs(0, device=device), *constants(device=device))
    assert results[0].shape == (0, 42)
    assert all(t.numel() == 0 for t in results)
    assert SphericalRadialBasis(7, 6, CUTOFF)(torch.zeros(0)).shape == (0, 7, 6)


def test_nan_distances_stay_nan(device):
    """And nothing else becomes NaN, whatever else lies in the vector."""
    d = torch.tensor([0.2, 1.0, math.nan, 6.0, 2.0, 0.01], device=device, requires_grad=True)
    for result in evaluate(spherical_radial, d, *constants(device=device)):
        bad = torch.isnan(result).reshape(6, -1)
        assert bad[2].all()
        assert not bad[[0, 1, 3, 4, 5]].any()
    alone = torch.full((3,), math.nan, device=device)
    assert torch.isnan(spherical_radial(alone, *constants(device=device), cutoff=CUTOFF)).all()


def test_third_derivatives_are_refused():
    d = inputs(3)
    y = spherical_radial(d, *constants(2, 2), cutoff=CUTOFF)
    (first,) = torch.autograd.grad(y.sum(), d, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), d, create_graph=True)
    with pytest.raises(RuntimeError, match="third derivative"):
        torch.autograd.grad(second.sum(), d)


def test_compiles_without_graph_breaks():
    basis = SphericalRadialBasis(3, 4, CUTOFF)
    d = inputs(20)

    def energy(d):
        return basis(d).sin().sum()

    (expected,) = torch.autograd.grad(energy(d), d)
    compiled = torch.compile(energy, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(d), d)[0], expected)


def call(**changes):
    """A valid call with some arguments replaced."""
    good = dict(
        distances=torch.rand(4),
        zeros=torch.rand(2, 3, dtype=torch.float64),
        norms=torch.rand(2, 3, dtype=torch.float64),
        cutoff=5.0,
    )
    return spherical_radial(**(good | changes))


def double(*shape, **options):
    return torch.ones(shape, dtype=torch.float64, **options)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(cutoff=0.0), ValueError, "cutoff must be positive and finite, got 0"),
        (dict(cutoff=-2.5), ValueError, "got -2.5"),
        (dict(cutoff=math.inf), ValueError, "got inf"),
        (dict(cutoff=math.nan), ValueError, "got nan"),
        (dict(exponent=0), ValueError, "exponent must be 1 to 100, got 0"),
        (dict(exponent=101), ValueError, "got 101"),
        (dict(distances=torch.rand(4, 1)), ValueError, r"1 dimension\(s\), got shape \[4, 1\]"),
        (dict(distances=torch.ones(4).half()), TypeError, "float32 or float64, got Half"),
        (dict(zeros=torch.rand(2, 3)), TypeError, r"zeros must be float64, got Float; .*double"),
        (dict(norms=torch.rand(2, 3)), TypeError, "norms must be float64, got Float"),
        (dict(zeros=double(6)), ValueError, r"zeros must have 2 dimension\(s\), got shape \[6\]"),
        (dict(zeros=double(17, 3)), ValueError, r"1 to 16 orders \(rows\), got shape \[17, 3\]"),
        (dict(zeros=double(0, 3)), ValueError, r"1 to 16 orders \(rows\), got shape \[0, 3\]"),
        (dict(zeros=double(2, 0)), ValueError, r"functions \(columns\), got shape \[2, 0\]"),
        (dict(norms=double(3, 2)), ValueError, r"shape of zeros, \[2, 3\], got \[3, 2\]"),
        (dict(zeros=double(2, 3, device="meta")), ValueError, "on cpu, but zeros are on meta"),
        (dict(norms=double(2, 3, device="meta")), ValueError, "on cpu, but norms are on meta"),
        (dict(zeros=double(2, 3, requires_grad=True)), ValueError, r"zeros are constants.*detach"),
    ],
)
def test_errors(changes, error, message):
    with pytest.raises(error, match=message):
        call(**changes)


def test_errors_of_derivatives():
    d, form = inputs(4).detach(), (*constants(1, 3), CUTOFF, 6)
    ops = torch.ops.molkern
    with pytest.raises(ValueError, match="g must have size 3 in dimension 1"):
        ops.spherical_radial_grad(torch.rand(4, 2).double(), d, *form)
    with pytest.raises(TypeError, match="g is Float"):
        ops.spherical_radial_grad(torch.rand(4, 3), d, *form)
    with pytest.raises(ValueError, match="hd must have size 4"):
        ops.spherical_radial_hvp(d[:3], torch.rand(4, 3).double(), d, *form)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((0, 6, 5.0), {}, ValueError, "num_spherical must be at least 1, got 0"),
        ((7, 0, 5.0), {}, ValueError, "num_radial must be at least 1, got 0"),
        ((17, 6, 5.0), {}, ValueError, "num_spherical must be at most 16, got 17"),
        ((7, 6, -1.0), {}, ValueError, "cutoff must be positive and finite, got -1"),
        ((7, 6, 5.0), dict(exponent=0), ValueError, "exponent must be 1 to 100, got 0"),
        ((7, 6, 5.0), dict(zeros_dtype=torch.half), TypeError, "got torch.float16"),
    ],
)
def test_errors_of_the_layer(arguments, options, error, message):
    with pytest.raises(error, match=message):
        SphericalRadialBasis(*arguments, **options)


def test_autocast_takes_float32(device):
    zeros, norms = constants(device=device)
    half = inputs(5, torch.bfloat16, device)
    single = half.detach().float().requires_grad_()
    expected = evaluate(spherical_radial, single, zeros, norms)
    with torch.autocast(device.type, torch.bfloat16):
        ours = evaluate(spherical_radial, half, zeros, norms)
        exact = spherical_radial(inputs(5, device=device), zeros, norms, cutoff=CUTOFF)
    assert exact.dtype == torch.float64
    assert torch.equal(ours[0], expected[0])
    assert all(torch.isfinite(t).all() for t in ours)


def test_constants_of_the_layer():
    basis = SphericalRadialBasis(3, 4, CUTOFF).float()
    assert not list(basis.parameters())
    assert basis.zeros.dtype == basis.norms.dtype == torch.float64
    rounded = SphericalRadialBasis(3, 4, CUTOFF, zeros_dtype=torch.float32)
    assert torch.equal(rounded.zeros, basis.zeros.float().double())
    assert not torch.equal(rounded.zeros, basis.zeros)
    for order in range(3):
        for n in range(4):
            after = exact_bessel(order + 1, exact_zero(order, n + 1))
            exact = mpmath.sqrt((2 * order + 1) / (4 * mpmath.pi)) / mpmath.sqrt(after**2 / 2)
            assert basis.norms[order, n].item() == pytest.approx(float(exact), rel=1e-14)


def test_equals_pyg():
    """PyTorch Geometric's closed forms, in float64 and where they have digits."""
    dimenet = pytest.importorskip("torch_geometric.nn.models.dimenet")
    peer = dimenet.SphericalBasisLayer(4, 3, CUTOFF)
    ours = SphericalRadialBasis(4, 3, CUTOFF, zeros_dtype=torch.float32)
    d = torch.linspace(1.0, 4.9, 30, dtype=torch.float64)
    along = peer(d, torch.zeros_like(d), torch.arange(30)).reshape(30, 4, 3)  # P_l(1) = 1
    torch.testing.assert_close(ours(d), along, rtol=1e-6, atol=1e-8)
