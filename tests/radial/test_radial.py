"""Radial basis functions against plain torch, finite differences and mpmath."""

import math
import os
import subprocess
import sys
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from reference.radial import radial_basis as reference
from torch.autograd import gradcheck, gradgradcheck

from molkern.ops import radial_basis

BASES = ["gaussian", "exponential", "bessel"]
CUTOFF_FUNCTIONS = ["none", "cosine", "physnet", "envelope"]
DTYPES = [torch.float32, torch.float64]
CUTOFF = 5.0

every_basis = pytest.mark.parametrize("basis", BASES)
every_cutoff_function = pytest.mark.parametrize("cutoff_function", CUTOFF_FUNCTIONS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def inputs(basis, edges, functions, dtype=torch.float64, device="cpu", seed=0):
    """Distances inside and outside the cutoff, and parameters as the models have them."""
    random = torch.Generator().manual_seed(seed)
    d = 0.3 + 5.7 * torch.rand(edges, generator=random, dtype=torch.float64)
    k = torch.arange(1, functions + 1, dtype=torch.float64)
    p = {"gaussian": 5 * k / functions, "exponential": k / functions, "bessel": math.pi * k}[basis]
    q = 2 + 2 * torch.rand(functions, generator=random, dtype=torch.float64)
    tensors = (d, p) if basis == "bessel" else (d, p, q)
    return [t.to(dtype).to(device).requires_grad_() for t in tensors]


def to_float64(tensors):
    return [t.detach().cpu().double().requires_grad_() for t in tensors]


def evaluate(function, tensors, seed=1, **form):
    """The value, all first derivatives, and all derivatives of their product with a direction."""
    d, p, *q = tensors
    y = function(d, p, q[0] if q else None, **form)
    random = torch.Generator().manual_seed(seed)

    def draw(like):
        return torch.randn(like.shape, generator=random, dtype=torch.float64).to(like)

    g = draw(y).requires_grad_()
    first = torch.autograd.grad(y, tensors, g, create_graph=True)
    second = torch.autograd.grad(first, [g, *tensors], [draw(t) for t in first])
    return [y, *first, *second]


@every_dtype
@every_cutoff_function
@every_basis
@pytest.mark.parametrize("functions", [1, 6, 50, 64])
def test_equals_reference(basis, cutoff_function, dtype, device, functions):
    tensors = inputs(basis, 600, functions, dtype, device)
    form = dict(basis=basis, cutoff_function=cutoff_function, cutoff=CUTOFF, alpha=0.7, exponent=5)
    ours = evaluate(radial_basis, tensors, **form)
    expected = evaluate(reference, to_float64(tensors), **form)
    assert ours[0].dtype == dtype
    for a, b in zip(ours, expected, strict=True):
        # Sums over edges cancel, rounding p x alone costs half a unit of the last place of the
        # largest argument of sin, and in float64 the reference has errors as large as ours.
        scale = max(b.abs().max().item(), 1.0)
        units = 100 + 2 * functions if dtype == torch.float32 else 1000
        atol = torch.finfo(dtype).eps * scale * units
        torch.testing.assert_close(a.cpu().double(), b, rtol=0, atol=atol)


@every_cutoff_function
@every_basis
@pytest.mark.parametrize("functions", [3, 5])
def test_derivatives_by_finite_differences(basis, cutoff_function, device, functions):
    tensors = inputs(basis, 4, functions, device=device, seed=3)

    def function(d, p, q=None):
        return radial_basis(d, p, q, basis=basis, cutoff_function=cutoff_function, cutoff=CUTOFF)

    assert gradcheck(function, tensors)
    assert gradgradcheck(function, tensors)


@pytest.mark.parametrize(
    ("basis", "argument"),
    [(basis, k) for basis in BASES for k in range(len(inputs(basis, 1, 1)))],
)
def test_derivatives_by_one_argument(basis, argument):
    """What is not asked for is left out, and the rest is the same."""
    tensors = inputs(basis, 300, 7)
    form = dict(basis=basis, cutoff_function="cosine", cutoff=CUTOFF)
    expected = evaluate(radial_basis, tensors, **form)[1 + argument]
    alone = [t.detach().requires_grad_(i == argument) for i, t in enumerate(tensors)]
    y = radial_basis(alone[0], *alone[1:], **form)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(y, alone[argument], g, create_graph=True)
    torch.testing.assert_close(gradient, expected)

    def few_edges(x):
        d, *rest = [*alone[:argument], x, *alone[argument + 1 :]]
        return radial_basis(d[:4], *rest, **form)

    assert gradgradcheck(few_edges, alone[argument][:7].detach().requires_grad_())


@every_basis
def test_operators_pass_opcheck(basis, device):
    d, p, *q = inputs(basis, 5, 3, device=device)
    q = q[0] if q else None
    code = [BASES.index(basis), CUTOFF_FUNCTIONS.index("envelope"), CUTOFF, 0.7, 5]
    g = torch.rand(5, 3, dtype=torch.float64, device=device, requires_grad=True)
    ops = torch.ops.molkern
    torch.library.opcheck(ops.radial_basis, (d, p, q, *code))
    for need_params in (False, True):
        if need_params:
            torch.library.opcheck(ops.radial_basis_grad, (g, d, p, q, *code, True))
        else:
            fixed = [t if t is None else t.detach() for t in (p, q)]
            torch.library.opcheck(ops.radial_basis_grad, (g, d, *fixed, *code, False))
        args = [t if t is None else t.detach() for t in (d, p, q, g, d, p, q)]
        torch.library.opcheck(ops.radial_basis_hvp, (*args, *code, need_params))
    args = [None, None, None] + [t if t is None else t.detach() for t in (g, d, p, q)]
    torch.library.opcheck(ops.radial_basis_hvp, (*args, *code, False))


@every_dtype
@every_basis
@pytest.mark.parametrize("cutoff_function", CUTOFF_FUNCTIONS[1:])
def test_zero_beyond_the_cutoff(basis, cutoff_function, dtype):
    _, *parameters = inputs(basis, 1, 6, dtype)
    above = torch.nextafter(torch.tensor(CUTOFF, dtype=dtype), torch.tensor(9.0, dtype=dtype))
    d = torch.tensor([CUTOFF, above, 7.0, 1e30], dtype=dtype, requires_grad=True)
    form = dict(basis=basis, cutoff_function=cutoff_function, cutoff=CUTOFF)
    for result in evaluate(radial_basis, [d, *parameters], **form):
        assert torch.equal(result, torch.zeros_like(result))


@every_dtype
@every_basis
@every_cutoff_function
@pytest.mark.parametrize("exponent", [1, 2, 6])
def test_finite_at_zero_and_far_away(basis, cutoff_function, dtype, exponent):
    _, *parameters = inputs(basis, 1, 6, dtype)
    tiny = torch.finfo(dtype).tiny
    below = math.nextafter(CUTOFF, 0) if dtype == torch.float64 else CUTOFF * (1 - 2**-24)
    d = torch.tensor([0.0, tiny / 4, tiny, 1e-20, 1e-8, below, CUTOFF, 1e30], dtype=dtype)
    form = dict(
        basis=basis, cutoff_function=cutoff_function, cutoff=CUTOFF, exponent=exponent, alpha=0.7
    )
    results = evaluate(radial_basis, [d.requires_grad_(), *parameters], **form)
    assert all(torch.isfinite(result).all() for result in results)


@every_dtype
def test_bessel_near_zero(dtype):
    """sin(p x) / x is p - p^3 x^2 / 6 there, and its derivatives follow."""
    p = torch.tensor([math.pi, 2 * math.pi, 0.0], dtype=dtype)
    for distance in (0.0, 1e-30, 1e-12, 1e-5, 1e-3):
        d = torch.tensor([distance], dtype=dtype, requires_grad=True)
        y = radial_basis(d, p, basis="bessel", cutoff=2.0)
        x, p64 = distance / 2, p.double()
        a = p64 * x
        series = p64 * (1 - a**2 / 6 + a**4 / 120)
        slope = p64**2 * (-a / 3 + a**3 / 30 - a**5 / 840) / 2
        bend = p64**3 * (-1 / 3 + a**2 / 10 - a**4 / 168 + a**6 / 6480) / 4
        close = dict(rtol=8 * torch.finfo(dtype).eps, atol=1e-14)
        torch.testing.assert_close(y[0].double(), series, **close)
        for k in range(3):
            (first,) = torch.autograd.grad(y[0, k], d, create_graph=True)
            (second,) = torch.autograd.grad(first, d, retain_graph=True)
            torch.testing.assert_close(first[0].double(), slope[k], **close)
            torch.testing.assert_close(second[0].double(), bend[k], **close)


@pytest.mark.parametrize("cutoff_function", CUTOFF_FUNCTIONS[1:])
def test_cutoff_function_keeps_its_digits_near_the_cutoff(cutoff_function):
    """The value vanishes twofold or threefold; written naively it would be noise."""
    d = CUTOFF * (1 - 2.0 ** -torch.arange(2, 25, dtype=torch.float64))
    q = torch.zeros(1, dtype=torch.float64)
    y = radial_basis(d, q, q, cutoff_function=cutoff_function, cutoff=CUTOFF)[:, 0]
    mpmath.mp.dps = 60
    for value, distance in zip(y.tolist(), d.tolist(), strict=True):
        x, n = mpmath.mpf(distance) / 5, 3 if cutoff_function == "physnet" else 6
        if cutoff_function == "cosine":
            exact = (mpmath.cos(mpmath.pi * x) + 1) / 2
        else:
            exact = 1 - x**n * ((n + 1) * (n + 2) / mpmath.mpf(2) - n * (n + 2) * x)
            exact -= n * (n + 1) / mpmath.mpf(2) * x ** (n + 2)
        assert value == pytest.approx(float(exact), rel=2e-15)


def units_in_last_place(values, exact):
    """Errors of float numbers in units of the last place of the exact results."""
    nearest = np.array([float(e) for e in exact]).astype(values.dtype)
    error = [float(mpmath.mpf(float(v)) - e) for v, e in zip(values, exact, strict=True)]
    return np.abs(np.array(error)) / np.spacing(np.abs(nearest)).astype(np.float64)


@every_dtype
def test_accuracy_of_the_exponential(dtype):
    limit = 87 if dtype == torch.float32 else 708
    q = torch.linspace(-limit, limit, 4001, dtype=dtype)
    one = torch.ones(1, dtype=dtype)
    y = radial_basis(one, torch.zeros_like(q), q, cutoff=CUTOFF)[0].numpy()
    mpmath.mp.dps = 40
    assert units_in_last_place(y, [mpmath.exp(-x) for x in q.tolist()]).max() < 1.2
    far = torch.tensor([limit + 2, 1e4, 1e30, torch.inf], dtype=dtype)
    y = radial_basis(one, torch.zeros_like(far), far, cutoff=CUTOFF)
    assert torch.equal(y, torch.zeros_like(y))


@every_dtype
@pytest.mark.parametrize("limit", [3, 100, 10000])
def test_accuracy_of_sine_and_cosine(dtype, limit):
    p = torch.linspace(-limit, limit, 2001, dtype=dtype)
    multiples = (torch.arange(1, 2 * limit // 3, max(1, limit // 150)) * (math.pi / 2)).to(dtype)
    p = torch.cat([p, multiples]).requires_grad_()
    one = torch.ones(1, dtype=dtype)
    sine = radial_basis(one, p, basis="bessel", cutoff=1.0)
    (cosine,) = torch.autograd.grad(sine.sum(), p)
    mpmath.mp.dps = 40
    for values, exact in ((sine[0].detach(), mpmath.sin), (cosine, mpmath.cos)):
        errors = units_in_last_place(values.numpy(), [exact(mpmath.mpf(x)) for x in p.tolist()])
        assert errors.max() < (2 if limit <= 100 else 2.5)


@every_basis
def test_same_bits_for_every_thread_count_and_run(basis, device):
    tensors = inputs(basis, 5000, 13, torch.float32, device)
    form = dict(basis=basis, cutoff_function="envelope", cutoff=CUTOFF)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            results.append(evaluate(radial_basis, tensors, **form))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# Only these: another folder on the path may have a module called radial too.
FOLDERS = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
INSTRUCTION_SET_PROGRAM = """
import sys, torch
from molkern import _C
from radial.test_radial import BASES, evaluate, inputs, radial_basis
assert _C.build_info()["cpu_instruction_set_in_use"] == "baseline"
form = dict(cutoff_function="cosine", cutoff=5.0)
results = [evaluate(radial_basis, inputs(b, 300, 11), basis=b, **form) for b in BASES]
torch.save(results, sys.argv[1])
"""


@pytest.mark.unemulated
def test_instruction_sets_agree(tmp_path):
    saved = tmp_path / "baseline.pt"
    environment = os.environ | {"MOLKERN_ISA": "baseline", "PYTHONPATH": os.pathsep.join(FOLDERS)}
    command = [sys.executable, "-c", INSTRUCTION_SET_PROGRAM, str(saved)]
    subprocess.run(command, env=environment, check=True)
    form = dict(cutoff_function="cosine", cutoff=5.0)
    for basis, baseline in zip(BASES, torch.load(saved), strict=True):
        results = evaluate(radial_basis, inputs(basis, 300, 11), basis=basis, **form)
        for a, b in zip(results, baseline, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13 * b.abs().max().item())


def test_inputs_need_not_be_contiguous():
    d, p, q = (t.detach() for t in inputs("gaussian", 40, 6))
    form = dict(cutoff_function="cosine", cutoff=CUTOFF)
    expected = radial_basis(d, p, q, **form)
    spread = [torch.stack([t, t], 1)[:, 0] for t in (d, p, q)]
    assert torch.equal(radial_basis(*spread, **form), expected)
    grad = torch.ops.molkern.radial_basis_grad
    g = torch.rand(6, 40, dtype=torch.float64).T
    transposed = grad(g, d, p, q, 0, 1, CUTOFF, 1.0, 6, True)
    contiguous = grad(g.contiguous(), d, p, q, 0, 1, CUTOFF, 1.0, 6, True)
    assert all(torch.equal(a, b) for a, b in zip(transposed, contiguous, strict=True))


@every_basis
def test_no_edges(basis, device):
    results = evaluate(radial_basis, inputs(basis, 0, 6, device=device), basis=basis, cutoff=CUTOFF)
    assert results[0].shape == (0, 6)
    assert all(torch.equal(t, torch.zeros_like(t)) for t in results)


def test_nan_distances_stay_nan():
    d = torch.tensor([1.0, math.nan], requires_grad=True)
    p = torch.ones(3)
    for cutoff_function in CUTOFF_FUNCTIONS:
        y = radial_basis(d, p, p, cutoff_function=cutoff_function, cutoff=CUTOFF)
        (gradient,) = torch.autograd.grad(y.sum(), d)
        assert torch.isnan(y[1]).all()
        assert torch.isfinite(y[0]).all()
        assert torch.isnan(gradient).tolist() == [False, True]


def test_third_derivatives_are_refused():
    d, p, q = inputs("gaussian", 3, 2)
    y = radial_basis(d, p, q, cutoff=CUTOFF)
    (first,) = torch.autograd.grad(y.sum(), d, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), d, create_graph=True)
    with pytest.raises(RuntimeError, match="third derivative"):
        torch.autograd.grad(second.sum(), d)


def test_compiles_without_graph_breaks():
    tensors = inputs("exponential", 20, 6)
    form = dict(basis="exponential", cutoff_function="physnet", cutoff=CUTOFF)

    def energy_and_gradient(d, p, q):
        y = radial_basis(d, p, q, **form)
        return y.sin().sum()

    expected = torch.autograd.grad(energy_and_gradient(*tensors), tensors)
    compiled = torch.compile(energy_and_gradient, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*tensors), tensors), expected, strict=True):
        torch.testing.assert_close(a, b)


def call(**changes):
    """A valid call with some arguments replaced."""
    good = dict(distances=torch.rand(4), centers=torch.rand(3), widths=torch.rand(3), cutoff=5.0)
    return radial_basis(**(good | changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(basis="gauss"), ValueError, "'gaussian', 'exponential', 'bessel', got 'gauss'"),
        (dict(cutoff_function="cos"), ValueError, "'none', 'cosine', .*got 'cos'"),
        (dict(cutoff=0.0), ValueError, "cutoff must be positive and finite, got 0"),
        (dict(cutoff=-2.5), ValueError, "got -2.5"),
        (dict(cutoff=math.inf), ValueError, "got inf"),
        (dict(cutoff=math.nan), ValueError, "got nan"),
        (dict(alpha=-1.0), ValueError, "alpha must be positive and finite, got -1"),
        (dict(exponent=0), ValueError, "exponent must be 1 to 100, got 0"),
        (dict(widths=None), ValueError, "needs widths"),
        (dict(basis="bessel"), ValueError, "no widths"),
        (dict(widths=torch.rand(2)), ValueError, r"as many numbers as centers \(3\), got 2"),
        (dict(centers=torch.rand(0), widths=torch.rand(0)), ValueError, "at least one"),
        (dict(distances=torch.rand(4, 1)), ValueError, r"1 dimension\(s\), got shape \[4, 1\]"),
        (dict(distances=torch.ones(4).half()), TypeError, "float32 or float64, got Half"),
        (dict(centers=torch.rand(3).double()), TypeError, "centers is Double.* Float"),
        (dict(widths=torch.rand(3).double()), TypeError, "widths is Double.* Float"),
        (dict(centers=torch.rand(3, device="meta")), ValueError, "on cpu.* on meta"),
    ],
)
def test_errors(changes, error, message):
    with pytest.raises(error, match=message):
        call(**changes)


def test_errors_of_derivatives():
    d, p, q = (t.detach() for t in inputs("gaussian", 4, 3))
    form = (0, 1, CUTOFF, 1.0, 6, True)
    ops = torch.ops.molkern
    with pytest.raises(ValueError, match="g must have size 3 in dimension 1"):
        ops.radial_basis_grad(torch.rand(4, 2).double(), d, p, q, *form)
    with pytest.raises(TypeError, match="g is Float"):
        ops.radial_basis_grad(torch.rand(4, 3), d, p, q, *form)
    with pytest.raises(ValueError, match="hd must have size 4"):
        ops.radial_basis_hvp(p, None, None, torch.rand(4, 3).double(), d, p, q, *form)


@every_basis
def test_autocast_takes_float32(basis, device):
    half = [t.detach().requires_grad_() for t in inputs(basis, 5, 3, torch.bfloat16, device)]
    form = dict(basis=basis, cutoff_function="cosine", cutoff=CUTOFF)
    single = [t.detach().float().requires_grad_() for t in half]
    expected = evaluate(radial_basis, single, **form)
    with torch.autocast(device.type, torch.bfloat16):
        ours = evaluate(radial_basis, half, **form)
        double = radial_basis(*inputs(basis, 5, 3, device=device), **form)
    assert double.dtype == torch.float64
    assert torch.equal(ours[0], expected[0])
    assert all(torch.isfinite(t).all() for t in ours)
