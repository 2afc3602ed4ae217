"""A part of a model that is computed again for its gradient instead of being kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..ops._library import first_derivatives_only


def computed_again(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function(*tensors)``, which keeps the tensors only; for first derivatives by them.

    :func:`torch.utils.checkpoint.checkpoint` does more and takes longer, and it loads all of
    torch.compile, which sets a variable of the environment.
    """
    return _Again.apply(function, *tensors)


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        kind = tensors[0].device.type
        ctx.function = function
        ctx.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        ctx.save_for_backward(*tensors)
        return function(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[1:]
        inputs = [
            tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(ctx.saved_tensors, needs, strict=True)
        ]
        with torch.enable_grad(), first_derivatives_only(), torch.autocast(*ctx.autocast):
            out = ctx.function(*inputs)
        with torch.enable_grad():
            total = (out * gradient).sum()  # of one number, see Potential.compute
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        found = iter(torch.autograd.grad(total, wanted, materialize_grads=True))
        return None, *(next(found) if needed else None for needed in needs)
