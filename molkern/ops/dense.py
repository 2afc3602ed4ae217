"""Dense layers fused with their activation and a residual (csrc/dense)."""

import math
from typing import Any

import torch
from torch import Tensor

from ._arguments import explained
from ._derivatives import differentiable
from ._library import full_precision, gradient_wanted, keeps_first_only, operators

#: Names of the activations; positions are the codes that the operators take.
DENSE_ACTIVATIONS = ("none", "silu", "ssp", "tanh")
#: Where softplus becomes the identity, as in torch.
_THRESHOLD = 20.0


@explained
def dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    gate: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """A dense layer, ``y = residual + a(x Wᵀ + b) ∘ (e Vᵀ)``, in one pass over its output.

    The gate ``e Vᵀ``, a linear map of other features of the same rows, is 1 where none is given;
    DimeNet's messages are multiplied by one of their radial basis. It is not stored.

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
        gate: e ``[M, R]`` and V ``[N, R]``; worth fusing for a small R.

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
    code = _activation_code("dense", activation)
    differentiable = (x, weight) if bias is None else (x, weight, bias)
    basis, gate_weight = (None, None) if gate is None else gate
    need_slope = _needs_gradient(*differentiable)
    need_value = gate is not None and _needs_gradient(*gate)
    return operators.dense(
        x, weight, bias, residual, basis, gate_weight, code, need_slope, need_value
    )[0]


def _activation_code(op: str, activation: str) -> int:
    if activation not in DENSE_ACTIVATIONS:
        allowed = ", ".join(repr(name) for name in DENSE_ACTIVATIONS)
        raise ValueError(f"{op}: activation must be one of {allowed}, got {activation!r}")
    return DENSE_ACTIVATIONS.index(activation)


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _value(name: str, z: Tensor) -> Tensor:
    """An activation, in torch."""
    if name == "silu":
        return torch.nn.functional.silu(z)
    if name == "ssp":
        return torch.nn.functional.softplus(z, threshold=_THRESHOLD) - math.log(2.0)
    return torch.tanh(z) if name == "tanh" else z


def _slope(name: str, z: Tensor) -> Tensor:
    """The first derivative of an activation, in torch."""
    if name == "none":
        return torch.ones_like(z)
    if name == "silu":
        sigma = torch.sigmoid(z)
        return sigma * (1 + z * (1 - sigma))
    if name == "ssp":
        return torch.where(z > _THRESHOLD, 1.0, torch.sigmoid(z))
    return 1 - torch.tanh(z).square()


def _curvature(name: str, z: Tensor) -> Tensor:
    """The second derivative of an activation, in torch."""
    if name == "none":
        return torch.zeros_like(z)
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
    x: Tensor,
    weight: Tensor,
    bias: Any,
    residual: Any,
    gate_basis: Tensor | None,
    gate_weight: Any,
    activation: int,
    need_slope: bool,
    need_value: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y = x.new_empty(x.shape[0], weight.shape[0])
    gated = gate_basis is not None
    slope = torch.empty_like(y) if need_slope and (activation or gated) else x.new_empty(0)
    value = torch.empty_like(y) if need_value and gated else x.new_empty(0)
    return y, slope, value


@torch.library.register_fake("molkern::dense_input_grad")
def _(g: Tensor, slope: Any, weight: Tensor, residual: Any) -> Tensor:
    return g.new_empty(g.shape[0], weight.shape[1])


# Slope and value are outputs, so that the first backward pass takes products of tensors that are at
# hand. Differentiated again, it hands their cotangents gs and gv back. With z = x Wᵀ + b and the
# gate q = e Vᵀ (1 without one), slope = q a′(z) and value = a(z), so that the cotangents are
#     gz = g ∘ slope + gs ∘ q ∘ a″(z) + gv ∘ a′(z)    and    gq = g ∘ value + gs ∘ a′(z)
# where what is not at hand is computed again, in torch.


def _dense_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _, basis, gate_weight, activation, need_slope, need_value = inputs
    ctx.gated = gated = basis is not None
    ctx.name = DENSE_ACTIVATIONS[activation]
    ctx.has_slope, ctx.has_value = need_slope and (activation != 0 or gated), need_value and gated
    slope = output[1] if ctx.has_slope else None
    value = output[2] if ctx.has_value else None
    if keeps_first_only():  # slope and value stand for them
        x = bias = basis = None
    ctx.save_for_backward(x, weight, bias, basis, gate_weight, slope, value)
    ctx.set_materialize_grads(False)


def _dense_backward(
    ctx: Any, g: Tensor | None, gs: Tensor | None, gv: Tensor | None
) -> tuple[Tensor | None, ...]:
    x, weight, bias, basis, gate_weight, slope, value = ctx.saved_tensors
    gated = ctx.gated
    gs, gv = gs if ctx.has_slope else None, gv if ctx.has_value else None
    need_x, need_weight = gradient_wanted(ctx, 0), gradient_wanted(ctx, 1)
    need_bias = ctx.needs_input_grad[2] and (need_weight or gradient_wanted(ctx, 2))
    need_basis, need_gate_weight = gradient_wanted(ctx, 4), gradient_wanted(ctx, 5)
    gradients: list[Tensor | None] = [None] * 9
    gradients[3] = g if ctx.needs_input_grad[3] else None

    need_z, need_gate = need_x or need_weight or need_bias, need_basis or need_gate_weight
    has_factor = ctx.name != "none" or gated
    bends = gs is not None or gv is not None
    lacks_slope = need_z and has_factor and slope is None
    lacks_value = need_gate and value is None
    of_z: list[Tensor] = []
    of_gate: list[Tensor] = []
    if (need_z or need_gate) and (bends or lacks_slope or lacks_value):
        z = torch.nn.functional.linear(x, weight, bias)
        gate = basis @ gate_weight.t() if gated and need_z else None
        first = _slope(ctx.name, z)
        if lacks_slope:
            slope = first if gate is None else first * gate
        if lacks_value:
            value = _value(ctx.name, z)
        if gs is not None and need_z:
            bent = gs * _curvature(ctx.name, z)
            of_z.append(bent if gate is None else bent * gate)
        if gs is not None and need_gate:
            of_gate.append(gs * first)
        if gv is not None:
            of_z.append(gv * first)
    if need_z:
        wanted = need_x, need_weight, need_bias
        gradients[:3] = _factor_gradients(g, slope, of_z, x, weight, wanted)
    if need_gate:
        wanted = need_basis, need_gate_weight, False
        gradients[4:6] = _factor_gradients(g, value, of_gate, basis, gate_weight, wanted)[:2]
    return tuple(gradients)


def _factor_gradients(
    g: Tensor | None,
    factor: Tensor | None,
    terms: list[Tensor],
    x: Tensor,
    weight: Tensor,
    wanted: tuple[bool, bool, bool],
    residual: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients by x, W and b of ``x Wᵀ + b``, whose cotangent is ``g ∘ factor + Σ terms``.

    The residual is added to the gradient by x.
    """
    need_x, need_weight, need_bias = wanted
    if not any(wanted):
        return None, None, None
    if terms or need_weight or need_bias:
        if g is not None and factor is not None:
            g = g * factor
        factor = None
    for term in terms:
        g = term if g is None else g + term
    if g is None:
        return residual if need_x else None, None, None
    if factor is not None:
        return operators.dense_input_grad(g, factor, weight, residual), None, None
    return (
        operators.dense_input_grad(g, None, weight, residual) if need_x else None,
        g.t() @ x if need_weight else None,
        g.sum(0) if need_bias else None,
    )


def _input_grad_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.set_materialize_grads(False)


def _input_grad_backward(ctx: Any, h: Tensor | None) -> tuple[Tensor | None, ...]:
    """``⟨h, r + (g ∘ s) W⟩`` is linear in r and in each of the factors."""
    if h is None:
        return None, None, None, None
    g, slope, weight = ctx.saved_tensors
    need_g, need_slope, need_weight = (gradient_wanted(ctx, k) for k in range(3))
    gg = gs = gw = None
    if need_g or need_slope:
        t = operators.dense(h, weight, None, None, None, None, 0, False, False)[0]
        if need_g:
            gg = t if slope is None else t * slope
        if need_slope:
            gs = t * g
    if need_weight:
        gw = (g if slope is None else g * slope).t() @ h
    return gg, gs, gw, h if ctx.needs_input_grad[3] else None


differentiable("dense", _dense_backward, _dense_setup)
differentiable("dense_input_grad", _input_grad_backward, _input_grad_setup)
full_precision("dense", "dense_input_grad")
