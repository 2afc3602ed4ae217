"""Residual blocks against two dense layers in plain torch, and by finite differences."""

import math

import pytest
import torch
from dense.test_dense import Products, assert_near, every_activation, every_dtype
from reference.dense import dense as reference
from torch.autograd import gradcheck, gradgradcheck

import molkern
from molkern.ops import dense, dense_residual

operators = torch.ops.molkern


def inputs(m, k, n, dtype=torch.float64, device="cpu", seed=0):
    """x, and the weights and biases of both layers."""
    random = torch.Generator().manual_seed(seed)
    shapes = (m, k), (n, k), (n,), (k, n), (k,)
    tensors = [torch.randn(s, generator=random, dtype=torch.float64) for s in shapes]
    tensors[1] /= math.sqrt(k)
    tensors[3] /= math.sqrt(n)
    return [t.to(dtype).to(device).requires_grad_() for t in tensors]


def plain(x, weight1, bias1, weight2, bias2, *, activation, layer=reference):
    h = layer(x, weight1, bias1, activation=activation)
    return layer(h, weight2, bias2, activation=activation, residual=x)


def evaluate(function, tensors, activation, seed=1):
    """The value, all first derivatives, and all derivatives of their product with a direction."""
    random = torch.Generator().manual_seed(seed)

    def draw(like):
        return torch.randn(like.shape, generator=random, dtype=torch.float64).to(like)

    y = function(*tensors, activation=activation)
    g = draw(y).requires_grad_()
    first = torch.autograd.grad(y, tensors, g, create_graph=True)
    second = torch.autograd.grad(
        first, [g, *tensors], [draw(t) for t in first], materialize_grads=True
    )
    return [y, *first, *second]


@every_dtype
@every_activation
@pytest.mark.parametrize(
    "shape", [(5, 3, 4), (13, 31, 17), (300, 130, 100), (7, 1, 1), (9, 300, 40), (0, 3, 4)], ids=str
)
def test_equals_reference(shape, activation, dtype, device):
    tensors = inputs(*shape, dtype, device)
    ours = evaluate(dense_residual, tensors, activation)
    exact = [t.detach().cpu().double().requires_grad_() for t in tensors]
    assert_near(ours, evaluate(plain, exact, activation), 100 + 4 * math.sqrt(max(shape)))
    assert torch.equal(ours[0], plain(*tensors, activation=activation, layer=dense))


@every_activation
def test_derivatives_by_finite_differences(activation, device):
    x, weight1, bias1, weight2, bias2 = inputs(3, 2, 4, device=device)

    def function(x, weight1, weight2, bias1=None, bias2=None):
        return dense_residual(x, weight1, bias1, weight2, bias2, activation=activation)

    for tensors in ((x, weight1, weight2, bias1, bias2), (x, weight1, weight2)):
        assert gradcheck(function, tensors)
        assert gradgradcheck(function, tensors)


@every_activation
def test_third_derivatives_by_finite_differences(activation, device):
    tensors = inputs(2, 2, 2, device=device)

    def gradient(*tensors):
        y = dense_residual(*tensors, activation=activation)
        return torch.autograd.grad(y.square().sum(), tensors[0], create_graph=True)[0]

    assert gradgradcheck(gradient, tensors)


@every_activation
@pytest.mark.parametrize("keep", [False, True])
def test_all_outputs_are_differentiable(activation, keep):
    code = ["none", "silu", "ssp", "tanh"].index(activation)

    def function(*tensors):
        outputs = operators.dense_residual(*tensors, code, keep)
        return outputs if keep and code else outputs[:2]

    assert gradcheck(function, inputs(4, 3, 5))


@pytest.mark.parametrize("argument", range(5))
def test_derivatives_by_one_argument(argument):
    tensors = inputs(9, 5, 6)
    expected = evaluate(dense_residual, tensors, "silu")[1 + argument]
    alone = [t.detach().requires_grad_(k == argument) for k, t in enumerate(tensors)]
    y = dense_residual(*alone, activation="silu")
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(y, alone[argument], g)[0], expected)


def test_forces_take_two_products_and_no_sum():
    x, *parameters = inputs(9, 5, 6)
    parameters = [torch.nn.Parameter(t.detach()) for t in parameters]
    y = dense_residual(2 * x, *parameters, activation="silu")
    with Products() as products:
        torch.autograd.grad(y.sum(), x, retain_graph=True)
    assert products.names == ["molkern::dense_input_grad"] * 2
    y.sum().backward()
    assert all(t.grad is not None for t in (x, *parameters))


def test_operators_pass_opcheck(device):
    tensors = inputs(5, 3, 4, device=device)
    for code in range(4):
        for keep in (False, True):
            torch.library.opcheck(operators.dense_residual, (*tensors, code, keep))
    x, weight1, _, weight2, _ = tensors
    torch.library.opcheck(operators.dense_residual, (x, weight1, None, weight2, None, 1, True))
    g = torch.rand(5, 4, dtype=x.dtype, device=device, requires_grad=True)
    torch.library.opcheck(operators.dense_input_grad, (g, g.detach() + 1, weight1, x))
    torch.library.opcheck(operators.dense_input_grad, (g, None, weight1, x))


@every_dtype
def test_gradient_adds_a_residual(dtype, threads, device):
    random = torch.Generator().manual_seed(0)
    g, slope, weight, residual = (
        torch.randn(s, generator=random, dtype=torch.float64).to(dtype).to(device)
        for s in ((211, 300), (211, 300), (300, 70), (211, 70))
    )
    for factor in (slope, None):
        results = []
        for count in (1, 2, 3):
            threads(count)
            results.append(operators.dense_input_grad(g, factor, weight, residual))
        assert all(torch.equal(results[0], other) for other in results[1:])
        alone = operators.dense_input_grad(g, factor, weight, None)
        torch.testing.assert_close(results[0], residual + alone)
        if device.type == "cpu":
            assert torch.equal(results[0], residual + alone)


def test_compiles_without_graph_breaks():
    tensors = inputs(7, 5, 6)

    def energy(*tensors):
        return dense_residual(*tensors, activation="silu").sin().sum()

    expected = torch.autograd.grad(energy(*tensors), tensors)
    compiled = torch.compile(energy, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*tensors), tensors), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_errors():
    x, weight1, bias1, weight2, bias2 = inputs(4, 3, 5)
    with pytest.raises(ValueError, match="dense_residual: activation must be one of"):
        dense_residual(x, weight1, bias1, weight2, bias2, activation="relu")
    with pytest.raises(ValueError, match="weight must have size 5 in dimension 1"):
        dense_residual(x, weight1, bias1, weight1, bias1, activation="silu")
    wide = torch.rand(4, 5, dtype=x.dtype)
    with pytest.raises(ValueError, match="residual must have size 4 in dimension 1"):
        dense_residual(x, weight1, bias1, wide, None, activation="silu")
    with pytest.raises(ValueError, match="residual must have size 4 in dimension 0"):
        operators.dense_input_grad(torch.rand(4, 5).double(), None, weight1, weight1)


def test_autocast_takes_float32(device):
    half = [t.detach() for t in inputs(5, 3, 4, torch.bfloat16, device)]
    expected = dense_residual(*[t.float() for t in half], activation="silu")
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(dense_residual(*half, activation="silu"), expected)


@pytest.mark.parametrize("activation", ["silu", "ssp_pyg"])
def test_layer(activation, device):
    layer = molkern.nn.DimeNetResidual(6, activation=activation).to(device)
    x = torch.randn(7, 6, device=device)
    expected = layer.lin2(layer.lin1(x), residual=x)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x.view(1, 7, 6)), expected.view(1, 7, 6))
