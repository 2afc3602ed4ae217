"""An operation and its derivatives: what a suite of kernels compares in each direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from peers import Run, compiled
from torch import Tensor

DIRECTIONS = ["forward", "forward and backward", "double backward"]
Function = Callable[..., Tensor]


def runs_of(
    functions: Mapping[str, Function],
    inputs: Sequence[Tensor],
    direction: str,
    *,
    compiling: bool = True,
) -> dict[str, Run]:
    """Functions of the same tensors as functions without arguments, for one direction.

    What torch.compile makes of ``"eager torch"`` is added, but for the double backward pass, which
    it cannot differentiate, and where ``compiling`` is false. Gradients are by all inputs that
    require one. The double backward pass is the gradient, by the inputs and the cotangent, of a
    random product with the first one; all passes are in its time.
    """
    functions = dict(functions)
    if compiling and "eager torch" in functions and direction != "double backward":
        fast = compiled(functions["eager torch"])
        if fast is not None:
            functions["torch.compile"] = fast
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        shape = functions["molkern"](*inputs).shape
    like = next(t for t in inputs if t.is_floating_point())
    g = torch.randn(shape, generator=generator, dtype=like.dtype)
    leaves = [t for t in inputs if t.requires_grad]
    h = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in leaves]
    make = {
        "forward": lambda f: forward(f, inputs),
        "forward and backward": lambda f: backward(f, inputs, leaves, g),
        "double backward": lambda f: double_backward(f, inputs, leaves, g, h),
    }[direction]
    return {name: make(function) for name, function in functions.items()}


def forward(function: Function, inputs: Sequence[Tensor]) -> Run:
    def run() -> Tensor:
        with torch.no_grad():
            return function(*inputs)

    return run


def backward(
    function: Function, inputs: Sequence[Tensor], leaves: Sequence[Tensor], g: Tensor
) -> Run:
    return lambda: torch.autograd.grad(function(*inputs), leaves, g)


def double_backward(
    function: Function,
    inputs: Sequence[Tensor],
    leaves: Sequence[Tensor],
    g: Tensor,
    h: Sequence[Tensor],
) -> Run:
    def run() -> tuple[Tensor, ...]:
        cotangent = g.detach().requires_grad_()
        y = function(*inputs)
        first = torch.autograd.grad(y, leaves, cotangent, create_graph=True)
        twice = torch.autograd.grad(
            first, [*leaves, cotangent], h, allow_unused=True, materialize_grads=True
        )
        return twice

    return run
