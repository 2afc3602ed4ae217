"""Two dense layers beside an identity (csrc/dense)."""

from typing import Any

import torch
from torch import Tensor

from ._arguments import explained
from ._derivatives import differentiable
from ._library import full_precision, gradient_wanted, keeps_first_only, operators
from .dense import (
    DENSE_ACTIVATIONS,
    _activation_code,
    _curvature,
    _factor_gradients,
    _needs_gradient,
    _slope,
)


@explained
def dense_residual(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    *,
    activation: str,
    recompute: bool = False,
) -> Tensor:
    """A residual block, ``y = x + a(a(x W₁ᵀ + b₁) W₂ᵀ + b₂)``; DimeNet's.

    The numbers are those of two calls of :func:`molkern.ops.dense`; as one operation, its gradient
    by x is two fused products and no sum of two tensors.

    Args:
        x: ``[M, K]``, float32 or float64.
        weight1, bias1: ``[N, K]`` and ``[N]``; the biases may be None.
        weight2, bias2: ``[K, N]`` and ``[K]``.
        activation: a name that :func:`molkern.ops.dense` knows.
        recompute: whether to keep x alone and compute the block again for its gradient, where that
            is all that is asked for (energies and forces without training).

    Returns:
        ``[M, K]``.

    Raises:
        ValueError, TypeError: as :func:`molkern.ops.dense`.

    >>> import torch, molkern
    >>> one = torch.eye(2)
    >>> x = torch.tensor([[1.0, -1.0]])
    >>> molkern.ops.dense_residual(x, one, None, one, None, activation="tanh")
    tensor([[ 1.6420, -1.6420]])
    """
    code = _activation_code("dense_residual", activation)
    tensors = [t for t in (x, weight1, bias1, weight2, bias2) if t is not None]
    need_slope = _needs_gradient(*tensors) and not (recompute and keeps_first_only())
    return operators.dense_residual(x, weight1, bias1, weight2, bias2, code, need_slope)[0]


@torch.library.register_fake("molkern::dense_residual")
def _(
    x: Tensor,
    weight1: Tensor,
    bias1: Any,
    weight2: Tensor,
    bias2: Any,
    activation: int,
    need_slope: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y, h = x.new_empty(x.shape), x.new_empty(x.shape[0], weight1.shape[0])
    kept = bool(need_slope and activation)
    slopes = [torch.empty_like(t) if kept else x.new_empty(0) for t in (h, y)]
    return y, h, slopes[0], slopes[1]


# All that the first backward pass needs is an output, as in dense.py. With cotangents of all four,
#     gz₂ = g ∘ slope₂ + gs₂ ∘ a″(z₂),  gz₁ = (gz₂ W₂ + gh) ∘ slope₁ + gs₁ ∘ a″(z₁)
# and gx = g + gz₁ W₁.


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    activation, need_slope = inputs[5:]
    tensors: list[Tensor | None] = list(inputs[:5])
    ctx.code = activation
    ctx.has_slope = need_slope and activation != 0
    kept: list[Tensor | None] = list(output[1:])
    if not ctx.has_slope:
        kept[1] = kept[2] = None
    if keeps_first_only():  # the slopes, or x to find them again
        kept[0] = None
        if ctx.has_slope:
            tensors[0] = tensors[2] = tensors[4] = None
    ctx.save_for_backward(*tensors, *kept)
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, g: Tensor | None, gh: Tensor | None, gs1: Tensor | None, gs2: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, weight1, bias1, weight2, bias2, h, slope1, slope2 = ctx.saved_tensors
    need_x, need_weight1, need_weight2 = (gradient_wanted(ctx, k) for k in (0, 1, 3))
    need_bias1, need_bias2 = (gradient_wanted(ctx, k) for k in (2, 4))
    need_first = need_x or need_weight1 or need_bias1
    if h is None and x is not None:
        again = operators.dense_residual(x, weight1, bias1, weight2, bias2, ctx.code, True)
        h = again[1]
        if ctx.code != 0:
            slope1, slope2 = again[2:]
    if not ctx.has_slope:
        gs1 = gs2 = None
    slope2, terms = _factor(ctx.code, slope2, gs2, h, weight2, bias2)
    wanted = need_first, need_weight2, need_bias2
    through, gw2, gb2 = _factor_gradients(g, slope2, terms, h, weight2, wanted)
    gx = gw1 = gb1 = None
    if need_first:
        if gh is not None:
            through = gh if through is None else through + gh
        slope1, terms = _factor(ctx.code, slope1, gs1, x, weight1, bias1)
        wanted = need_x, need_weight1, need_bias1
        gx, gw1, gb1 = _factor_gradients(through, slope1, terms, x, weight1, wanted, residual=g)
    return gx, gw1, gb1, gw2, gb2, None, None


def _factor(
    code: int,
    slope: Tensor | None,
    gs: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor | None, list[Tensor]]:
    """The slope of a layer, and what the cotangent of the slope adds to that of z."""
    if code == 0 or (slope is not None and gs is None):
        return slope, []
    z = torch.nn.functional.linear(x, weight, bias)
    terms = [] if gs is None else [gs * _curvature(DENSE_ACTIVATIONS[code], z)]
    return _slope(DENSE_ACTIVATIONS[code], z) if slope is None else slope, terms


differentiable("dense_residual", _backward, _setup)
full_precision("dense_residual")
