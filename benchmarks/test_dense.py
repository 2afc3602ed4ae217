"""Dense layers with SiLU and a residual, as DimeNet++ has them over edges, against torch.

    pytest benchmarks/test_dense.py --benchmark-enable --benchmark-group-by=group

`product` is the floor: torch's matrix product alone, once for the forward pass and twice with the
gradient of the input.
"""

import pytest
import torch
from torch.nn import functional

from molkern.ops import dense

SHAPES = {"72x128": (72, 128, 128), "3370x128": (3370, 128, 128), "10000x256": (10000, 256, 256)}


def torch_layer(x, weight, bias, residual):
    return residual + functional.silu(functional.linear(x, weight, bias))


def molkern_layer(x, weight, bias, residual):
    return dense(x, weight, bias, activation="silu", residual=residual)


IMPLEMENTATIONS = {"molkern": molkern_layer, "torch": torch_layer}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def tensors(request):
    torch.manual_seed(0)
    rows, depth, columns = request.param
    x = torch.randn(rows, depth).requires_grad_()
    weight, bias = torch.randn(columns, depth) / depth**0.5, torch.randn(columns)
    return x, weight, bias, torch.randn(rows, columns)


def run(benchmark, name, threads, function, x):
    benchmark.group = f"dense {name}, {list(x.shape)}, {threads} thread(s)"
    iterations = max(1, 20_000_000 // (x.numel() * x.shape[1]))
    benchmark.pedantic(function, rounds=20, warmup_rounds=2, iterations=iterations)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "product"])
def test_forward(benchmark, implementation, tensors, threads):
    x, weight, *_ = tensors
    with torch.no_grad():
        if implementation == "product":
            run(benchmark, "forward", threads, lambda: x @ weight.T, x)
        else:
            layer = IMPLEMENTATIONS[implementation]
            run(benchmark, "forward", threads, lambda: layer(*tensors), x)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "product"])
def test_forward_backward(benchmark, implementation, tensors, threads):
    """The gradient of the input, which forces need."""
    x, weight, _, g = tensors

    def products():
        with torch.no_grad():
            return x @ weight.T, g @ weight

    def both():
        return torch.autograd.grad(IMPLEMENTATIONS[implementation](*tensors), x, g)

    function = products if implementation == "product" else both
    run(benchmark, "forward and backward", threads, function, x)
