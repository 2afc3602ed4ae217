"""Radial basis functions fused with their cutoff function (csrc/radial)."""

from typing import Any

import torch
from torch import Tensor

from ._arguments import explained, number
from ._derivatives import differentiable, no_third_derivative
from ._library import full_precision, operators

#: Names of the basis and cutoff functions; positions are the codes that the operators take.
BASES = ("gaussian", "exponential", "bessel")
CUTOFF_FUNCTIONS = ("none", "cosine", "physnet", "envelope")


@explained
def radial_basis(
    distances: Tensor,
    centers: Tensor,
    widths: Tensor | None = None,
    *,
    basis: str = "gaussian",
    cutoff_function: str = "none",
    cutoff: float,
    alpha: float = 1.0,
    exponent: int = 6,
) -> Tensor:
    """Radial basis functions times a cutoff function, ``y[e, k] = c(d_e) b(d_e; p_k, q_k)``.

    ======================  ===========================================================
    ``basis``               ``b(d; p, q)``
    ======================  ===========================================================
    ``"gaussian"``          ``exp(−q (d − p)²)``; SchNet, DTNN
    ``"exponential"``       ``exp(−q (exp(−alpha d) − p)²)``; PhysNet, eq. 7
    ``"bessel"``            ``sin(p x) / x`` with ``x = d / cutoff``; DimeNet, eq. 7
    ======================  ===========================================================

    ======================  ===========================================================
    ``cutoff_function``     ``c(d)`` with ``x = d / cutoff``; 0 for ``x ≥ 1`` but for none
    ======================  ===========================================================
    ``"none"``              1, also beyond the cutoff
    ``"cosine"``            ``(cos(π x) + 1) / 2``; Behler, J. Chem. Phys. 134, 074106
    ``"physnet"``           ``1 − 6 x⁵ + 15 x⁴ − 10 x³``; Unke & Meuwly, JCTC 15, 3678,
                            eq. 8
    ``"envelope"``          ``1 − (n+1)(n+2)/2 xⁿ + n(n+2) xⁿ⁺¹ − n(n+1)/2 xⁿ⁺²`` with
                            ``n = exponent``; Klicpera et al., ICLR 2020, eq. 8
    ======================  ===========================================================

    DimeNet's basis is ``"bessel"`` with ``"envelope"``. First and second derivatives exist by
    ``distances``, ``centers`` and ``widths``, at distance zero and at the cutoff too: beyond it all
    are exactly zero, and the Bessel functions have their limit ``p`` at zero. Parameter gradients
    are summed in a fixed order, the same bits on every run and for every number of threads. A
    Gaussian too small to be a normal number is zero.

    Args:
        distances: ``[E]``, not negative, float32 or float64, in the user's unit of length.
        centers: ``[K]``, the parameter ``p``: centers in units of length (gaussian) or without
            unit (exponential), or frequencies (bessel; n π in DimeNet).
        widths: ``[K]``, the parameter ``q``: the coefficient ``1 / (2 σ²)`` in the exponent, not a
            standard deviation, in units of 1 / length² (gaussian) or without unit (exponential).
            Not for bessel.
        basis: one of the names above.
        cutoff_function: one of the names above.
        cutoff: in units of length.
        alpha: of the exponential basis, in units of 1 / length.
        exponent: ``n`` of the envelope, 1 to 100.

    Returns:
        ``[E, K]``, of the type of ``distances``.

    Raises:
        ValueError: an unknown name, a cutoff or alpha that is not positive and finite, an exponent
            out of range, widths that are missing, superfluous or of another length than centers, or
            tensors on different devices.
        TypeError: types other than float32 and float64, or two different ones. Under
            ``torch.autocast`` 16-bit types are taken, as float32.
        RuntimeError: when a third derivative is taken.

    >>> import torch, molkern
    >>> d = torch.tensor([0.0, 1.0, 5.0])
    >>> molkern.ops.radial_basis(
    ...     d, torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]),
    ...     basis="gaussian", cutoff_function="cosine", cutoff=5.0,
    ... )
    tensor([[1.0000, 0.3679],
            [0.3328, 0.9045],
            [0.0000, 0.0000]])
    """
    for tensor in (centers, widths):
        if tensor is not None and tensor.device != distances.device:
            raise ValueError(
                f"radial_basis: distances are on {distances.device}, but centers or widths are on "
                f"{tensor.device}; move one of them with .to()"
            )
    return operators.radial_basis(
        distances,
        centers,
        widths,
        _code("basis", basis, BASES),
        _code("cutoff_function", cutoff_function, CUTOFF_FUNCTIONS),
        number("cutoff", cutoff),
        number("alpha", alpha),
        exponent,
    )


def _code(argument: str, name: str, names: tuple[str, ...]) -> int:
    if name not in names:
        allowed = ", ".join(repr(n) for n in names)
        raise ValueError(f"radial_basis: {argument} must be one of {allowed}, got {name!r}")
    return names.index(name)


@torch.library.register_fake("molkern::radial_basis")
def _(d: Tensor, p: Tensor, *rest: Any) -> Tensor:
    return d.new_empty(d.shape[0], p.shape[0])


def _new_parameters(p: Tensor, q: Tensor | None, need_params: bool) -> tuple[Tensor, Tensor]:
    """Derivatives by p and q: empty where they are not needed or do not exist."""
    functions = p.shape[0] if need_params else 0
    return p.new_empty(functions), p.new_empty(0 if q is None else functions)


@torch.library.register_fake("molkern::radial_basis_grad")
def _(g: Tensor, d: Tensor, p: Tensor, q: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    return d.new_empty(d.shape[0]), *_new_parameters(p, q, rest[-1])


@torch.library.register_fake("molkern::radial_basis_hvp")
def _(
    hd: Any, hp: Any, hq: Any, g: Tensor, d: Tensor, p: Tensor, q: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    y = d.new_empty(d.shape[0], p.shape[0])
    return y, d.new_empty(d.shape[0]), *_new_parameters(p, q, rest[-1])


# s = <g, y>: the gradient of s, then the gradient of <h, gradient>; absent cotangents stay None, so
# that a kernel can leave out what they would multiply.


def _value_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    d, p, q, *ctx.form = inputs
    ctx.save_for_backward(d, p, q)


def _value_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    need_p, need_q = ctx.needs_input_grad[1:3]
    gd, gp, gq = operators.radial_basis_grad(g, *ctx.saved_tensors, *ctx.form, need_p or need_q)
    return gd, gp if need_p else None, gq if need_q else None, *[None] * 5


def _gradient_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    g, d, p, q, *ctx.form, ctx.gave_params = inputs
    ctx.save_for_backward(g, d, p, q)
    ctx.set_materialize_grads(False)


def _gradient_backward(
    ctx: Any, hd: Tensor | None, hp: Tensor | None, hq: Tensor | None
) -> tuple[Tensor | None, ...]:
    g, d, p, q = ctx.saved_tensors
    if not ctx.gave_params:
        hp = hq = None
    if q is None:
        hq = None
    need_p, need_q = ctx.needs_input_grad[2:4]
    tg, td, tp, tq = operators.radial_basis_hvp(hd, hp, hq, g, d, p, q, *ctx.form, need_p or need_q)
    return tg, td, tp if need_p else None, tq if need_q else None, *[None] * 6


def _product_backward(ctx: Any, *grads: Tensor) -> None:
    no_third_derivative("radial_basis")


differentiable("radial_basis", _value_backward, _value_setup)
differentiable("radial_basis_grad", _gradient_backward, _gradient_setup)
differentiable("radial_basis_hvp", _product_backward)
full_precision("radial_basis", "radial_basis_grad", "radial_basis_hvp")
