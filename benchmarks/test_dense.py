"""Dense layers with SiLU, as DimeNet++ has them over edges, beside torch.

    pytest benchmarks/test_dense.py --benchmark-enable

A layer with a residual, and a block of two layers beside an identity. Gradients are by the input,
which forces need. `[product]` is the floor: torch's matrix products alone, once for the forward
pass and twice with the gradient.
"""

import pytest
import torch
from compare import compare
from directions import DIRECTIONS, runs_of
from peers import agree, size
from torch.nn import functional

from molkern.ops import dense, dense_residual

SHAPES = {"72x128": (72, 128), "3370x128": (3370, 128), "10000x256": (10000, 256)}


CASES = [("layer", shape) for shape in SHAPES] + [("residual block", "3370x128")]


def layer(width):
    """Implementations and tensors: x, weight, bias, residual."""

    def plain(x, weight, bias, residual):
        return residual + functional.silu(functional.linear(x, weight, bias))

    def ours(x, weight, bias, residual):
        return dense(x, weight, bias, activation="silu", residual=residual)

    return {"molkern": ours, "eager torch": plain}, [(width, width), (width,), (None, width)]


def block(width):
    """Implementations and tensors: x, two weights, each with its bias."""

    def plain(x, weight1, bias1, weight2, bias2):
        h = functional.silu(functional.linear(x, weight1, bias1))
        return x + functional.silu(functional.linear(h, weight2, bias2))

    def ours(x, *tensors):
        return dense_residual(x, *tensors, activation="silu")

    return {"molkern": ours, "eager torch": plain}, [(width, width), (width,)] * 2


def products(x, weights, direction):
    g = torch.randn(len(x), weights[0].shape[0])

    def run():
        with torch.no_grad():
            for weight in weights:
                x @ weight.T
                if direction == "forward and backward":
                    g @ weight

    return run


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_dense(benchmark, threads, kind, shape, direction):
    torch.manual_seed(0)
    rows, width = SHAPES[shape]
    rows = size(rows, 70)
    both, shapes = (layer if kind == "layer" else block)(width)
    x = torch.randn(rows, width).requires_grad_()
    tensors = [torch.randn(*(rows if n is None else n for n in s)) for s in shapes]
    weights = [t.div_(width**0.5) for t in tensors if t.shape == (width, width)]
    runs = runs_of(both, (x, *tensors), direction)
    agree(runs)
    if direction != "double backward":
        runs["[product]"] = products(x, weights, direction)
    calls = max(1, 20_000_000 // (rows * width * width * len(weights)))
    per = {"rows": rows, "width": width}
    case = f"{kind}, {rows:,} rows of {width}, {direction}"
    compare(benchmark, "dense layers", case, runs, rounds=15, calls=calls, per=per)
