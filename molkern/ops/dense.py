"""Dense layers fused with their activation and a residual (csrc/dense)."""

from typing import Any

import torch
from torch import Tensor

from ._library import full_precision, gradient_wanted, operators

#: Names of the activations; positions are the codes that the operators take.
DENSE_ACTIVATIONS = ("none", "silu", "ssp", "tanh")
#: Where softplus becomes the identity, as in torch.
_THRESHOLD = 20.0


def dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    """A dense layer, ``y = residual + a(x Wᵀ + b)``, in one pass over its output.

    ======================  ===========================================================
    ``activation``          ``a(z)``
    ======================  ===========================================================
    ``"none"``              ``z``
    ``"silu"``              ``z / (1 + e⁻ᶻ)``, also called swish; DimeNet
    ``"ssp"``               ``ln(½ eᶻ + ½)``, and ``z − ln 2`` for z > 20, as
                            :class:`molkern.nn.ShiftedSoftplus`; SchNet, PhysNet
    ``"tanh"``              ``tanh z``; DTNN
    ======================  ===========================================================

    Differentiable to any order by all tensors. Where a gradient will be taken, ``a′(z)`` is kept
    beside the result; that of ``x`` alone is one fused product too. On the CPU the forward pass
    and the gradient of ``x`` are the same bits on every run, for every number of threads and for
    every batch that a row lies in; gradients of the parameters, and everything on other devices,
    are torch's products.

    Args:
        x: ``[M, K]``, float32 or float64.
        weight: ``[N, K]``, as in :class:`torch.nn.Linear`.
        bias: ``[N]``.
        activation: one of the names above.
        residual: ``[M, N]``, added to the activated product.

    Returns:
        ``[M, N]``.

    Raises:
        ValueError: an unknown activation, or shapes or devices that do not fit together.
        TypeError: types other than float32 and float64, or two different ones. Under
            ``torch.autocast`` 16-bit types are taken, as float32.

    >>> import torch, molkern
    >>> x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, -1.0]])
    >>> molkern.ops.dense(x, weight, torch.tensor([0.0, 2.0]), activation="silu", residual=x)
    tensor([[3.8577, 2.0000]])
    """
    if activation not in DENSE_ACTIVATIONS:
        allowed = ", ".join(repr(name) for name in DENSE_ACTIVATIONS)
        raise ValueError(f"dense: activation must be one of {allowed}, got {activation!r}")
    differentiable = (x, weight) if bias is None else (x, weight, bias)
    need_slope = torch.is_grad_enabled() and any(t.requires_grad for t in differentiable)
    code = DENSE_ACTIVATIONS.index(activation)
    return operators.dense(x, weight, bias, residual, code, need_slope)[0]


def _slope(name: str, z: Tensor) -> Tensor:
    """The first derivative of an activation, in torch."""
    if name == "silu":
        sigma = torch.sigmoid(z)
        return sigma * (1 + z * (1 - sigma))
    if name == "ssp":
        return torch.where(z > _THRESHOLD, 1.0, torch.sigmoid(z))
    return 1 - torch.tanh(z).square()


def _curvature(name: str, z: Tensor) -> Tensor:
    """The second derivative of an activation, in torch."""
    if name == "tanh":
        value = torch.tanh(z)
        return -2 * value * (1 - value.square())
    sigma = torch.sigmoid(z)
    bend = sigma * (1 - sigma)
    if name == "ssp":
        return torch.where(z > _THRESHOLD, 0.0, bend)
    return bend * (2 + z * (1 - 2 * sigma))


@torch.library.register_fake("molkern::dense")
def _(
    x: Tensor, weight: Tensor, bias: Any, residual: Any, activation: int, need_slope: bool
) -> tuple[Tensor, Tensor]:
    y = x.new_empty(x.shape[0], weight.shape[0])
    return y, torch.empty_like(y) if need_slope and activation else x.new_empty(0)


@torch.library.register_fake("molkern::dense_input_grad")
def _(g: Tensor, slope: Tensor | None, weight: Tensor) -> Tensor:
    return g.new_empty(g.shape[0], weight.shape[1])


# The slope is an output, so that the first backward pass is a product of tensors that are at hand.
# Differentiated again, it hands a cotangent of the slope back, which takes a second derivative of
# the activation; z is computed again for that, in torch.


def _dense_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, _, activation, need_slope = inputs
    ctx.name = DENSE_ACTIVATIONS[activation]
    ctx.has_slope = need_slope and activation != 0
    ctx.save_for_backward(x, weight, bias, output[1] if ctx.has_slope else None)
    ctx.set_materialize_grads(False)


def _dense_backward(ctx: Any, g: Tensor | None, gs: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, bias, slope = ctx.saved_tensors
    need_x, need_weight = gradient_wanted(ctx, 0), gradient_wanted(ctx, 1)
    need_bias = ctx.needs_input_grad[2] and (need_weight or gradient_wanted(ctx, 2))
    gx = gw = gb = None
    if not ctx.has_slope:
        gs = None
    if need_x or need_weight or need_bias:
        if ctx.name != "none" and (slope is None or gs is not None):
            z = torch.nn.functional.linear(x, weight, bias)
            if slope is None:
                slope = _slope(ctx.name, z)
            gz = None if g is None else g * slope
            if gs is not None:
                bent = gs * _curvature(ctx.name, z)
                gz = bent if gz is None else gz + bent
            slope = None
        elif g is not None and slope is not None and (need_weight or need_bias):
            gz, slope = g * slope, None
        else:
            gz = g
        if gz is not None:
            gx = operators.dense_input_grad(gz, slope, weight) if need_x else None
            gw = gz.t() @ x if need_weight else None
            gb = gz.sum(0) if need_bias else None
    return gx, gw, gb, g if ctx.needs_input_grad[3] else None, None, None


def _input_grad_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _input_grad_backward(ctx: Any, h: Tensor | None) -> tuple[Tensor | None, ...]:
    """``⟨h, (g ∘ s) W⟩`` is linear in each of its factors."""
    if h is None:
        return None, None, None
    g, slope, weight = ctx.saved_tensors
    need_g, need_slope, need_weight = (gradient_wanted(ctx, k) for k in range(3))
    gg = gs = gw = None
    if need_g or need_slope:
        t = operators.dense(h, weight, None, None, 0, False)[0]
        if need_g:
            gg = t if slope is None else t * slope
        if need_slope:
            gs = t * g
    if need_weight:
        gw = (g if slope is None else g * slope).t() @ h
    return gg, gs, gw


torch.library.register_autograd("molkern::dense", _dense_backward, setup_context=_dense_setup)
torch.library.register_autograd(
    "molkern::dense_input_grad", _input_grad_backward, setup_context=_input_grad_setup
)
full_precision("dense", "dense_input_grad")
