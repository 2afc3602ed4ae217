"""The radial part of DimeNet's spherical basis (csrc/spherical)."""

from typing import Any

import torch
from torch import Tensor

from ._arguments import explained, number
from ._derivatives import differentiable, no_third_derivative
from ._library import full_precision, operators


@explained
def spherical_radial(
    distances: Tensor, zeros: Tensor, norms: Tensor, *, cutoff: float, exponent: int = 6
) -> Tensor:
    """Spherical Bessel functions fused with DimeNet's envelope, the radial part of its 2D basis.

    Klicpera et al., ICLR 2020, eqs. 6 and 8; with ``x = d / cutoff`` and ``p = exponent``

    ``y[e, l R + n] = norm[l, n] u(x) / x · j_l(z[l, n] x)``, exactly 0 for ``x ≥ 1``,
    ``u(x) = 1 − (p+1)(p+2)/2 xᵖ + p(p+2) xᵖ⁺¹ − p(p+1)/2 xᵖ⁺²``.

    Times the Legendre polynomials ``P_l(cos α)`` it is the whole basis.
    :class:`molkern.nn.SphericalRadialBasis` brings the zeros and norms.

    Everything is computed in float64 and rounded once to the type of ``distances``: the closed
    forms of ``j_l`` lose all digits of float32 at short range. First and second derivatives exist
    by ``distances``; ``zeros`` and ``norms`` are constants.

    As a distance goes to 0, order 0 grows like 1 / x, as in the published code, and the other
    orders have finite limits, also their derivatives. Atoms on top of each other, closer than
    1e-10 of the cutoff, have order 0 and its derivatives zero, so that nothing infinite arises.

    Args:
        distances: ``[E]``, not negative, float32 or float64, in the unit of ``cutoff``.
        zeros: ``[L, R]``, float64, positive, without unit: the first R zeros of ``j_l`` for each
            order ``l < L``, L at most 16.
        norms: ``[L, R]``, float64, without unit.
        cutoff: in the user's unit of length.
        exponent: ``p``, 1 to 100; DimeNet's code calls 6 "envelope exponent 5".

    Returns:
        ``[E, L R]``, of the type of ``distances``, without unit.

    Raises:
        ValueError: a cutoff that is not positive and finite, an exponent or a number of orders out
            of range, shapes that do not fit, tensors on different devices, or zeros and norms that
            ask for a gradient.
        TypeError: distances other than float32 and float64 (under ``torch.autocast`` 16-bit types
            are taken, as float32), or zeros and norms other than float64.
        RuntimeError: when a third derivative is taken.

    >>> import math, torch, molkern
    >>> zeros = math.pi * torch.tensor([[1.0, 2.0]], dtype=torch.float64)  # of j_0(a) = sin(a) / a
    >>> y = molkern.ops.spherical_radial(
    ...     torch.tensor([1.0, 2.5, 5.0]), zeros, torch.ones_like(zeros), cutoff=5.0
    ... )
    >>> y.shape
    torch.Size([3, 2])
    >>> bool((y[2] == 0).all())
    True
    """
    for name, tensor in (("zeros", zeros), ("norms", norms)):
        if tensor.device != distances.device:
            raise ValueError(
                f"spherical_radial: distances are on {distances.device}, but {name} are on "
                f"{tensor.device}; move one of them with .to()"
            )
        if tensor.requires_grad:
            raise ValueError(
                f"spherical_radial: {name} are constants, but require a gradient; "
                "pass them with .detach()"
            )
    return operators.spherical_radial(distances, zeros, norms, number("cutoff", cutoff), exponent)


@torch.library.register_fake("molkern::spherical_radial")
def _(d: Tensor, zeros: Tensor, *rest: Any) -> Tensor:
    return d.new_empty(d.shape[0], zeros.shape[0] * zeros.shape[1])


@torch.library.register_fake("molkern::spherical_radial_grad")
def _(g: Tensor, d: Tensor, *rest: Any) -> Tensor:
    return d.new_empty(d.shape[0])


@torch.library.register_fake("molkern::spherical_radial_hvp")
def _(hd: Tensor, g: Tensor, d: Tensor, zeros: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return d.new_empty(d.shape[0], zeros.shape[0] * zeros.shape[1]), d.new_empty(d.shape[0])


# s = <g, y>: the gradient of s by d, then the gradient of <hd, gradient> by g and d.


def _value_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    d, zeros, norms, *ctx.form = inputs
    ctx.save_for_backward(d, zeros, norms)


def _value_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    return operators.spherical_radial_grad(g, *ctx.saved_tensors, *ctx.form), *[None] * 4


def _gradient_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, d, zeros, norms, *ctx.form = inputs
    ctx.save_for_backward(g, d, zeros, norms)


def _gradient_backward(ctx: Any, hd: Tensor) -> tuple[Tensor | None, ...]:
    tg, td = operators.spherical_radial_hvp(hd, *ctx.saved_tensors, *ctx.form)
    return tg, td, *[None] * 4


def _product_backward(ctx: Any, *grads: Tensor) -> None:
    no_third_derivative("spherical_radial")


differentiable("spherical_radial", _value_backward, _value_setup)
differentiable("spherical_radial_grad", _gradient_backward, _gradient_setup)
differentiable("spherical_radial_hvp", _product_backward)
full_precision("spherical_radial", "spherical_radial_grad", "spherical_radial_hvp")
