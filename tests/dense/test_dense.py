"""Dense layers against plain torch, finite differences and mpmath."""

import math
import os
import subprocess
import sys
from pathlib import Path

import mpmath
import pytest
import torch
from reference.dense import dense as reference
from torch.autograd import gradcheck, gradgradcheck

import molkern
from molkern.ops import dense

ACTIVATIONS = ["none", "silu", "ssp", "tanh"]
DTYPES = [torch.float32, torch.float64]
operators = torch.ops.molkern

every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])


def inputs(m, k, n, dtype=torch.float64, device="cpu", seed=0):
    """x, weight, bias and residual."""
    random = torch.Generator().manual_seed(seed)
    shapes = (m, k), (n, k), (n,), (m, n)
    tensors = [torch.randn(s, generator=random, dtype=torch.float64) for s in shapes]
    tensors[1] /= math.sqrt(k)
    return [t.to(dtype).to(device).requires_grad_() for t in tensors]


def gated_inputs(m, k, n, r, dtype=torch.float64, device="cpu", seed=0):
    """x, weight, bias, residual, and the two factors of the gate."""
    basis, gate_weight, _, _ = inputs(m, r, n, dtype, device, seed=seed + 100)
    return [*inputs(m, k, n, dtype, device, seed), basis, gate_weight]


def operator(x, weight, bias=None, residual=None, basis=None, gate_weight=None, *, code, keep):
    """The operator with all its outputs; what the backward pass needs is kept or not."""
    return operators.dense(x, weight, bias, residual, basis, gate_weight, code, keep, keep)


def to_float64(tensors):
    return [t.detach().cpu().double().requires_grad_() for t in tensors]


def evaluate(function, tensors, activation, seed=1):
    """The value, all first derivatives, and all derivatives of their product with a direction."""
    x, weight, bias, residual, *gate = tensors
    options = dict(gate=gate) if gate else {}
    y = function(x, weight, bias, activation=activation, residual=residual, **options)
    random = torch.Generator().manual_seed(seed)

    def draw(like):
        return torch.randn(like.shape, generator=random, dtype=torch.float64).to(like)

    g = draw(y).requires_grad_()
    first = torch.autograd.grad(y, tensors, g, create_graph=True)
    second = torch.autograd.grad(
        first, [g, *tensors], [draw(t) for t in first], materialize_grads=True
    )
    return [y, *first, *second]


def assert_near(ours, expected, units):
    """So many units of the last place of the largest number, which sums of rounded ones have."""
    for a, b in zip(ours, expected, strict=True):
        assert a.shape == b.shape
        if a.numel():
            scale = max(b.abs().max().item(), 1.0)
            atol = torch.finfo(a.dtype).eps * scale * units
            torch.testing.assert_close(a.cpu().double(), b, rtol=0, atol=atol)


@every_dtype
@pytest.mark.parametrize("columns", [1, 3, 7, 16, 17, 64, 130])
@pytest.mark.parametrize("depth", [1, 6, 31, 100, 128, 384])
@pytest.mark.parametrize("rows", [0, 1, 5, 13, 100])
def test_value_equals_reference(rows, depth, columns, dtype, device):
    for k, activation in enumerate(ACTIVATIONS):
        x, weight, bias, residual = inputs(rows, depth, columns, dtype, device, seed=k)
        given = [(bias, residual), (bias, None), (None, residual), (None, None)][k]
        ours = dense(x, weight, given[0], activation=activation, residual=given[1])
        assert ours.dtype == dtype
        exact = [t if t is None else t.detach().cpu().double() for t in (x, weight, *given)]
        expected = reference(*exact[:3], activation=activation, residual=exact[3])
        assert_near([ours], [expected], 4 + math.sqrt(depth))


@every_dtype
@every_activation
@pytest.mark.parametrize(
    "shape",
    [(5, 3, 4), (13, 31, 17), (1000, 130, 100), (7, 1, 1), (100, 600, 40), (0, 3, 4)],
    ids=str,
)
def test_derivatives_equal_reference(shape, activation, dtype, device):
    tensors = inputs(*shape, dtype, device)
    ours = evaluate(dense, tensors, activation)
    expected = evaluate(reference, to_float64(tensors), activation)
    assert_near(ours, expected, 40 + 2 * math.sqrt(max(shape)))


@every_dtype
@pytest.mark.parametrize("columns", [1, 7, 17, 64, 130])
@pytest.mark.parametrize("depth", [0, 1, 6, 300])
@pytest.mark.parametrize("rows", [0, 1, 13, 100])
def test_gated_value_equals_reference(rows, depth, columns, dtype, device):
    for k, activation in enumerate(ACTIVATIONS):
        tensors = gated_inputs(rows, 31, columns, max(depth, 1), dtype, device, seed=k)
        x, weight, bias, residual, *gate = (t.detach() for t in tensors)
        gate = [t[:, :depth] for t in gate]
        given = [(bias, residual), (bias, None), (None, residual), (None, None)][k]
        ours = dense(x, weight, given[0], activation=activation, residual=given[1], gate=gate)
        exact = [t if t is None else t.cpu().double() for t in (x, weight, *given, *gate)]
        options = dict(activation=activation, residual=exact[3], gate=exact[4:])
        assert_near([ours], [reference(*exact[:3], **options)], 20 + 2 * math.sqrt(depth + 31))
        code = ACTIVATIONS.index(activation)
        y, slope, value = operator(x, weight, *given, *gate, code=code, keep=True)
        assert torch.equal(y, ours)
        plain = operator(x, weight, given[0], code=code, keep=True)
        factor = plain[1] if code else torch.ones_like(value)
        assert torch.equal(value, plain[0])
        product = exact[4] @ exact[5].T
        assert_near([slope], [factor.cpu().double() * product], 20 + 2 * math.sqrt(depth + 31))


@every_dtype
@every_activation
@pytest.mark.parametrize(
    "shape",
    [
        (5, 3, 4, 2),
        (13, 31, 17, 6),
        (300, 130, 100, 6),
        (7, 1, 1, 1),
        (20, 9, 40, 300),
        (0, 3, 4, 2),
    ],
    ids=str,
)
def test_gated_derivatives_equal_reference(shape, activation, dtype, device):
    tensors = gated_inputs(*shape, dtype, device)
    ours = evaluate(dense, tensors, activation)
    expected = evaluate(reference, to_float64(tensors), activation)
    assert_near(ours, expected, 100 + 4 * math.sqrt(max(shape)))


@every_activation
def test_gated_derivatives_by_finite_differences(activation, device):
    x, weight, bias, residual, *gate = gated_inputs(3, 2, 4, 2, device=device, seed=3)

    def function(x, weight, basis, gate_weight, bias=None, residual=None):
        gate = basis, gate_weight
        return dense(x, weight, bias, activation=activation, residual=residual, gate=gate)

    for tensors in ((x, weight, *gate, bias, residual), (x, weight, *gate)):
        assert gradcheck(function, tensors)
        assert gradgradcheck(function, tensors)


@every_activation
def test_gated_third_derivatives_by_finite_differences(activation, device):
    x, weight, bias, _, *gate = gated_inputs(2, 2, 2, 2, device=device, seed=3)

    def gradient(x, weight, bias, *gate):
        y = dense(x, weight, bias, activation=activation, gate=gate)
        return torch.autograd.grad(y.square().sum(), (x, gate[0]), create_graph=True)

    assert gradgradcheck(gradient, (x, weight, bias, *gate))


@every_activation
@pytest.mark.parametrize("keep", [False, True])
def test_all_outputs_of_the_gated_operator_are_differentiable(activation, keep):
    """Kept or not, and with cotangents of the result, the slope and the value."""
    code = ACTIVATIONS.index(activation)
    tensors = gated_inputs(4, 3, 5, 2)

    def function(*tensors):
        outputs = operator(*tensors, code=code, keep=keep)
        return outputs if keep else outputs[:1]

    assert gradcheck(function, tensors)
    if not keep:
        kept = operator(*tensors, code=code, keep=True)[0]
        ours = torch.autograd.grad(function(*tensors)[0].sin().sum(), tensors)
        expected = torch.autograd.grad(kept.sin().sum(), tensors)
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b)


@every_activation
def test_derivatives_by_finite_differences(activation, device):
    x, weight, bias, residual = inputs(4, 3, 5, device=device, seed=3)

    def function(x, weight, bias=None, residual=None):
        return dense(x, weight, bias, activation=activation, residual=residual)

    for tensors in ((x, weight, bias, residual), (x, weight)):
        assert gradcheck(function, tensors)
        assert gradgradcheck(function, tensors)


def test_third_derivatives_by_finite_differences(device):
    x, weight, bias, _ = inputs(2, 3, 2, device=device, seed=3)

    def gradient(x, weight, bias):
        y = dense(x, weight, bias, activation="silu")
        return torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]

    assert gradgradcheck(gradient, (x, weight, bias))


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize(
    ("gated", "argument"), [(gated, k) for gated in (False, True) for k in range(6 if gated else 4)]
)
def test_derivatives_by_one_argument(activation, gated, argument):
    """What is not asked for is left out, and the rest is the same."""
    tensors = gated_inputs(9, 5, 6, 3) if gated else inputs(9, 5, 6)
    expected = evaluate(dense, tensors, activation)[1 + argument]
    alone = [t.detach().requires_grad_(k == argument) for k, t in enumerate(tensors)]
    y = dense(*alone[:3], activation=activation, residual=alone[3], gate=alone[4:] or None)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(y, alone[argument], g)
    torch.testing.assert_close(gradient, expected)


class Products(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the operators that multiply matrices."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if name in ("aten::mm", "aten::addmm") or name.startswith("molkern::"):
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def test_no_gradient_of_parameters_that_nobody_wants():
    """Forces of a model whose parameters could be trained: one product for each layer."""
    x, weight, bias, _ = inputs(9, 5, 6)
    weight, bias = torch.nn.Parameter(weight.detach()), torch.nn.Parameter(bias.detach())
    y = dense(2 * x, weight, bias, activation="silu")
    with Products() as products:
        torch.autograd.grad(y.sum(), x, retain_graph=True)
    assert products.names == ["molkern::dense_input_grad"]
    with Products() as products:
        torch.autograd.grad(y.sum(), weight, retain_graph=True)
    assert products.names == ["aten::mm"]
    y.sum().backward()
    assert all(t.grad is not None for t in (x, weight, bias))


def test_forces_take_two_products_of_a_gated_layer():
    x, weight, bias, _, basis, gate_weight = gated_inputs(9, 5, 6, 3)
    parameters = [torch.nn.Parameter(t.detach()) for t in (weight, bias, gate_weight)]
    weight, bias, gate_weight = parameters
    y = dense(2 * x, weight, bias, activation="silu", gate=(2 * basis, gate_weight))
    with Products() as products:
        torch.autograd.grad(y.sum(), (x, basis), retain_graph=True)
    assert products.names == ["molkern::dense_input_grad"] * 2
    with Products() as products:
        torch.autograd.grad(y.sum(), basis, retain_graph=True)
    assert products.names == ["molkern::dense_input_grad"]
    y.sum().backward()
    assert all(t.grad is not None for t in (x, basis, *parameters))


@every_dtype
@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_accuracy_of_activations(activation, dtype):
    near = torch.linspace(-40, 40, 1603)
    tiny = torch.tensor([1e-30, 1e-8, -1e-8, 1e-4, -1e-4, 0.0, 0.17, -0.17, 20.0, -20.0])
    z = torch.cat([near, tiny]).to(dtype).unsqueeze(1)
    one = torch.ones(1, 1, dtype=dtype, requires_grad=True)
    code = ACTIVATIONS.index(activation)
    value, slope, _ = operator(z, one, code=code, keep=True)
    mpmath.mp.dps = 40
    eps = torch.finfo(dtype).eps
    for number, v, s in zip(
        z[:, 0].tolist(), value[:, 0].tolist(), slope[:, 0].tolist(), strict=True
    ):
        x = mpmath.mpf(number)
        sigma = 1 / (1 + mpmath.exp(-x))
        if activation == "silu":
            # the slope changes its sign, and for large |x| it is a product with a rounded 1 - sigma
            exact, exact_slope = x * sigma, sigma * (1 + x * (1 - sigma))
            bounds = 4 * eps * abs(exact), 4 * eps * (1 + abs(x) * sigma)
        elif activation == "ssp":
            exact, exact_slope = mpmath.log((1 + mpmath.exp(x)) / 2), sigma
            if number > 20:
                exact, exact_slope = x - mpmath.log(2), 1
            bounds = 4 * eps * max(abs(exact), 0.5), 4 * eps * exact_slope
        else:
            exact, exact_slope = mpmath.tanh(x), mpmath.sech(x) ** 2
            bounds = 4 * eps * abs(exact), 4 * eps * exact_slope
        # What would be denormal is zero.
        smallest = torch.finfo(dtype).tiny * 64
        assert abs(v - exact) <= bounds[0] + smallest
        assert abs(s - exact_slope) <= bounds[1] + smallest


@every_dtype
@every_activation
def test_large_arguments_and_nan(activation, dtype, device):
    z = torch.tensor([[1000.0, -1000.0, 1e30, -1e30, 88.5, -88.5, math.nan]], dtype=dtype)
    z = z.to(device).t().contiguous()
    one = torch.ones(1, 1, dtype=dtype, device=device)
    value, slope, _ = operator(z, one, code=ACTIVATIONS.index(activation), keep=True)
    torch.testing.assert_close(value, reference(z, one, activation=activation), equal_nan=True)
    if activation == "none":
        assert slope.numel() == 0
    else:
        expected = [1.0, 0.0] * 3 + [math.nan] if activation != "tanh" else [0.0] * 6 + [math.nan]
        expected = torch.tensor(expected, dtype=dtype, device=device).unsqueeze(1)
        torch.testing.assert_close(slope, expected, equal_nan=True, atol=1e-30, rtol=1e-6)


def test_operators_pass_opcheck(device):
    x, weight, bias, residual, *gate = gated_inputs(5, 3, 4, 2, device=device)
    for code in range(4):
        for keep in (False, True):
            for factors in ((None, None), gate):
                arguments = x, weight, bias, residual, *factors, code, keep, keep
                torch.library.opcheck(operators.dense, arguments)
    torch.library.opcheck(operators.dense, (x, weight, None, None, None, None, 1, True, False))
    g, slope = residual, torch.rand_like(residual).requires_grad_()
    torch.library.opcheck(operators.dense_input_grad, (g, slope, weight, None))
    torch.library.opcheck(operators.dense_input_grad, (g, None, weight, None))


@every_activation
def test_slope_that_was_not_kept_is_computed(activation):
    tensors = inputs(6, 5, 4)

    def without(x, weight, bias, activation, residual):
        code = ACTIVATIONS.index(activation)
        return operator(x, weight, bias, residual, code=code, keep=False)[0]

    ours = evaluate(without, tensors, activation)
    for a, b in zip(ours, evaluate(dense, tensors, activation), strict=True):
        torch.testing.assert_close(a, b)


@every_dtype
def test_same_bits_for_every_thread_count_and_batch(dtype, threads, device):
    tensors = gated_inputs(211, 300, 70, 6, dtype, device)
    x, weight, bias, residual, basis, gate_weight = (t.detach() for t in tensors)
    slope = torch.rand_like(residual)

    def run(rows):
        first = x[rows], weight, bias, residual[rows]
        y, s, _ = operator(*first, code=1, keep=True)
        gated = operator(*first, basis[rows], gate_weight, code=1, keep=True)
        return y, s, *gated, operators.dense_input_grad(residual[rows], slope[rows], weight, None)

    results = []
    for count in (1, 2, 2, 3):
        threads(count)
        results.append(run(slice(None)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    if device.type == "cpu":
        for rows in (slice(0, 1), slice(5, 12), slice(100, 211)):
            some = run(rows)
            assert all(torch.equal(a[rows], b) for a, b in zip(results[0], some, strict=True))


# Only these: another folder on the path may have a module called dense too.
FOLDERS = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
INSTRUCTION_SET_PROGRAM = """
import sys, torch
from molkern import _C
from dense.test_dense import DTYPES, instruction_set_case
assert _C.build_info()["cpu_instruction_set_in_use"] == "baseline"
torch.save([instruction_set_case(dtype) for dtype in DTYPES], sys.argv[1])
"""


def instruction_set_case(dtype):
    results = []
    for shape in ((61, 300, 43), (7, 5, 64), (25, 17, 5)):
        for activation in ACTIVATIONS:
            results += evaluate(dense, inputs(*shape, dtype), activation)
            results += evaluate(dense, gated_inputs(*shape, 6, dtype), activation)
    return results


def test_instruction_sets_agree(tmp_path):
    saved = tmp_path / "baseline.pt"
    environment = os.environ | {"MOLKERN_ISA": "baseline", "PYTHONPATH": os.pathsep.join(FOLDERS)}
    command = [sys.executable, "-c", INSTRUCTION_SET_PROGRAM, str(saved)]
    subprocess.run(command, env=environment, check=True)
    for dtype, baseline in zip(DTYPES, torch.load(saved), strict=True):
        for a, b in zip(instruction_set_case(dtype), baseline, strict=True):
            atol = 200 * torch.finfo(dtype).eps * max(1.0, b.abs().max().item())
            torch.testing.assert_close(a, b, rtol=0, atol=atol)


def test_inputs_need_not_be_contiguous():
    x, weight, bias, residual, *gate = tensors = [t.detach() for t in gated_inputs(9, 5, 6, 3)]
    spread = [torch.stack([t, t], -1)[..., 0] for t in tensors]
    for factors, spread_factors in ((None, None), (gate, spread[4:])):
        expected = dense(x, weight, bias, activation="ssp", residual=residual, gate=factors)
        options = dict(activation="ssp", residual=spread[3], gate=spread_factors)
        assert torch.equal(dense(*spread[:3], **options), expected)
    g = torch.rand(6, 9, dtype=torch.float64).T
    gradient = operators.dense_input_grad(g, residual.T.contiguous().T, weight, None)
    assert torch.equal(gradient, operators.dense_input_grad(g.contiguous(), residual, weight, None))


def test_sums_over_nothing_are_the_bias():
    bias = torch.arange(3.0)
    y = dense(torch.empty(2, 0), torch.empty(3, 0), bias)
    assert torch.equal(y, bias.expand(2, 3))
    assert dense(torch.empty(2, 4), torch.empty(0, 4)).shape == (2, 0)


def test_no_slope_without_gradients():
    x, weight, bias, _ = inputs(9, 5, 6)
    with torch.no_grad(), Products() as products:
        y = dense(x, weight, bias, activation="silu")
    assert products.names == ["molkern::dense"]
    assert torch.equal(y, dense(x, weight, bias, activation="silu"))


@every_activation
@pytest.mark.parametrize("gated", [False, True])
def test_compiles_without_graph_breaks(activation, gated):
    tensors = gated_inputs(7, 5, 6, 3) if gated else inputs(7, 5, 6)

    def energy(x, weight, bias, residual, *gate):
        options = dict(activation=activation, residual=residual, gate=gate or None)
        return dense(x, weight, bias, **options).sin().sum()

    expected = torch.autograd.grad(energy(*tensors), tensors)
    compiled = torch.compile(energy, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*tensors), tensors), expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(activation="relu"), ValueError, "'none', 'silu', 'ssp', 'tanh', got 'relu'"),
        (dict(x=torch.rand(3)), ValueError, r"x must have 2 dimension\(s\), got shape \[3\]"),
        (dict(x=torch.rand(4, 2)), ValueError, "weight must have size 2 in dimension 1"),
        (dict(x=torch.ones(4, 3).half()), TypeError, "x must be float32 or float64, got Half"),
        (dict(weight=torch.rand(5, 3).double()), TypeError, "weight is Double but x is Float"),
        (dict(bias=torch.rand(4)), ValueError, "bias must have size 5 in dimension 0"),
        (dict(bias=torch.rand(5).double()), TypeError, "bias is Double"),
        (dict(residual=torch.rand(4, 3)), ValueError, "residual must have size 5 in dimension 1"),
        (dict(residual=torch.rand(1, 5)), ValueError, "residual must have size 4 in dimension 0"),
        (
            dict(gate=(torch.rand(3, 2), torch.rand(5, 2))),
            ValueError,
            "gate_basis must have size 4 in dimension 0",
        ),
        (
            dict(gate=(torch.rand(4, 2), torch.rand(4, 2))),
            ValueError,
            "gate_weight must have size 5 in dimension 0",
        ),
        (
            dict(gate=(torch.rand(4, 2), torch.rand(5, 3))),
            ValueError,
            "gate_weight must have size 2 in dimension 1",
        ),
        (
            dict(gate=(torch.rand(4, 2).double(), torch.rand(5, 2))),
            TypeError,
            "gate_basis is Double but x is Float",
        ),
        (
            dict(gate=(torch.rand(4), torch.rand(5, 2))),
            ValueError,
            r"gate_basis must have 2 dimension\(s\), got shape \[4\]",
        ),
    ],
)
def test_errors(changes, error, message):
    good = dict(x=torch.rand(4, 3), weight=torch.rand(5, 3), bias=torch.rand(5))
    with pytest.raises(error, match=message):
        dense(**(good | changes))


def test_errors_of_operators():
    g, weight = torch.rand(4, 5), torch.rand(5, 3)
    with pytest.raises(ValueError, match="weight must have size 4 in dimension 0"):
        operators.dense_input_grad(g[:, :4], None, weight, None)
    with pytest.raises(ValueError, match="slope must have size 4 in dimension 0"):
        operators.dense_input_grad(g, g[:2], weight, None)
    with pytest.raises(ValueError, match="activation must be 0, 1, 2 or 3, got 4"):
        operator(torch.rand(4, 3), weight, code=4, keep=True)
    with pytest.raises(ValueError, match="gate_basis and gate_weight must be given together"):
        operator(torch.rand(4, 3), g[:, :3], None, None, torch.rand(4, 2), code=1, keep=True)


def test_autocast_takes_float32(device):
    half = [t.detach().requires_grad_() for t in inputs(5, 3, 4, torch.bfloat16, device)]
    expected = evaluate(dense, [t.detach().float().requires_grad_() for t in half], "silu")
    with torch.autocast(device.type, torch.bfloat16):
        ours = dense(*half[:3], activation="silu", residual=half[3])
    assert torch.equal(ours, expected[0])


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "ssp_official", "ssp_pyg"])
@pytest.mark.parametrize("bias", [False, True])
def test_layer(activation, bias, device):
    layer = molkern.nn.Dense(5, 6, bias=bias, activation=activation).to(device)
    plain = torch.nn.Linear(5, 6, bias=bias).to(device)
    plain.load_state_dict(layer.state_dict())
    function = torch.nn.Identity()
    if activation != "none":
        function = molkern.nn.activations.activation(activation)
    x, residual = torch.randn(7, 5, device=device), torch.randn(7, 6, device=device)
    torch.testing.assert_close(layer(x), function(plain(x)))
    torch.testing.assert_close(layer(x, residual), residual + function(plain(x)))
    torch.testing.assert_close(layer(x.view(1, 7, 5)), function(plain(x)).view(1, 7, 6))
    basis, gate_weight = torch.randn(7, 2, device=device), torch.randn(6, 2, device=device)
    gated = residual + function(plain(x)) * (basis @ gate_weight.T)
    torch.testing.assert_close(layer(x, residual, gate=(basis, gate_weight)), gated)
    batched = layer(x.view(1, 7, 5), gate=(basis.view(1, 7, 2), gate_weight))
    torch.testing.assert_close(batched, (gated - residual).view(1, 7, 6))
    torch.testing.assert_close(layer.double()(x.double()).float(), function(plain(x)))


def test_layer_starts_as_the_others_do():
    torch.manual_seed(0)
    layer = molkern.nn.Dense(40, 30)
    assert not layer.bias.any()
    assert layer.weight.abs().max() <= math.sqrt(6 / 70)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: molkern.nn.Dense(0, 6), "at least 1, got 0 inputs and 6 outputs"),
        (lambda: molkern.nn.Dense(5, 6, activation="foo"), "activation must be one of"),
    ],
)
def test_layer_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
