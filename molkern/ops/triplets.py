"""Sums over triplets of atoms (csrc/triplets)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ._arguments import explained
from ._derivatives import differentiable, no_third_derivative
from ._library import Graph, full_precision, operators

#: Conventions for the angle; positions are the codes that the operators take.
ANGLES = ("kji", "plusplus", "at_i")
_NEVER = 2**31 - 1


@explained
def triplet_sum(
    x: Tensor,
    radial: Tensor,
    vectors: Tensor,
    graph: Graph,
    weight: Tensor | None = None,
    *,
    angle: str = "kji",
    method: str = "auto",
) -> Tensor:
    """Sums messages over triplets k→j→i, weighted by distance and angle.

    For every edge e = j→i::

        y[e, p, f] = Σ_{k→j} Σ_l radial[kj, l, p] P_l(cos α) x[kj, f]

    over all edges k→j but the reverse of e (the same pair with the opposite shift: other images of
    i do count), with Legendre polynomials P_l. It is the directional message passing of DimeNet
    (Klicpera et al., ICLR 2020, eq. 9): the radial part of its spherical basis, contracted with the
    first linear map, is ``radial``. No tensor with a dimension of triplets is made.

    With ``weight`` the channels are contracted too, ``Σ_p weight[f, p] y[e, p, f]``: DimeNet++'s
    product with the projected basis. Without, a bilinear layer (DimeNet) contracts ``y``
    afterwards.

    ==============  =============================================================
    ``angle``       α
    ==============  =============================================================
    ``"kji"``       at j, between i and k, as in the paper
    ``"plusplus"``  π minus that, as in DimeNet++'s published code
    ``"at_i"``      at i, between j and k, as in DimeNet's published code
    ==============  =============================================================

    Twice differentiable by all tensors, also where atoms lie on a line. Results are the same bits
    on every run and for every number of threads.

    Args:
        x: messages of the edges k→j, ``[E, F]``, float32 or float64.
        radial: coefficients of the same edges, ``[E, L, P]``, L from 1 to 16.
        vectors: from receiver to sender, ``[E, 3]``, any unit: only directions count, for
            ``"at_i"`` also ratios of lengths. See :meth:`molkern.NeighborList.vectors`.
        graph: the :class:`molkern.NeighborList` of the edges. One that is not symmetric is searched
            for reverse edges.
        weight: ``[F, P]``, as of a linear layer.
        angle: a convention as above.
        method: ``"direct"`` takes time for every triplet, ``"moments"`` for every edge (by the
            addition theorem of spherical harmonics; not for ``"at_i"``); ``"auto"`` takes the
            faster one for each atom's number of neighbors.

    Returns:
        ``[E, P, F]``, or ``[E, F]`` with ``weight``.

    Raises:
        ValueError: shapes or devices that do not fit together, an unknown name, or moments of an
            angle that does not factorise.
        TypeError: types other than float32 and float64, or two different ones. Under
            ``torch.autocast`` 16-bit types are taken, as float32.
        RuntimeError: when a third derivative is taken.

    >>> import torch, molkern
    >>> positions = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0]])
    >>> graph = molkern.neighbor_list(positions, cutoff=1.2)  # a right angle
    >>> x, radial = torch.ones(4, 1), torch.ones(4, 2, 1)
    >>> y = molkern.ops.triplet_sum(x, radial, graph.vectors(positions), graph)
    >>> y.flatten()  # P_0 + P_1(cos 90°) where another neighbor is
    tensor([1., 0., 0., 1.])
    """
    if angle not in ANGLES:
        allowed = ", ".join(repr(name) for name in ANGLES)
        raise ValueError(f"triplet_sum: angle must be one of {allowed}, got {angle!r}")
    if radial.dim() != 3:
        raise ValueError(f"triplet_sum: radial must have shape [E, L, P], got {list(radial.shape)}")
    moments_from = _moments_from(method, angle, radial, weight)
    row_ptr, senders, _ = graph.by_receiver
    return operators.triplet_sum(
        x,
        radial,
        vectors,
        weight,
        row_ptr,
        senders,
        *graph.by_sender,
        graph.reverse_edges(),
        graph.padded,
        ANGLES.index(angle),
        moments_from,
    )


def _moments_from(method: str, angle: str, radial: Tensor, weight: Tensor | None) -> int:
    """The number of incoming edges from which an atom is summed by moments."""
    if method not in ("auto", "direct", "moments"):
        raise ValueError(
            f"triplet_sum: method must be 'auto', 'direct' or 'moments', got {method!r}"
        )
    if method == "moments" and angle == "at_i":
        raise ValueError(
            "triplet_sum: the angle at_i does not factorise, so it has no moments; use the method "
            "'auto' or 'direct'"
        )
    if method == "direct" or angle == "at_i":
        return _NEVER
    if method == "moments":
        return 0
    # For n neighbors and each feature an edge costs n P multiply-adds directly; by moments 2 L² and
    # L P for the weights, or 2 L² P without any. A multiply-add of the latter takes 1.6 (1.45)
    # times as long: measured at L = 7, P = 8, where the methods meet at 31 and at 140 neighbors.
    _, orders, channels = radial.shape
    if weight is None:
        return math.ceil(1.45 * 2 * orders**2)
    return math.ceil(1.6 * (2 * orders**2 / channels + orders))


# The arguments of the schema from x to moments_from, and what is among them.
_ARGUMENTS = 13


@torch.library.register_fake("molkern::triplet_sum")
def _(x: Tensor, q: Tensor, v: Tensor, w: Tensor | None, *rest: Any) -> Tensor:
    if w is None:
        return x.new_empty(x.shape[0], q.shape[2], x.shape[1])
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_gradients(
    x: Tensor, q: Tensor, v: Tensor, w: Tensor | None, need_weight: bool
) -> tuple[Tensor, ...]:
    like = [t.new_empty(t.shape) for t in (x, q, v)]
    features = x.shape[1] if need_weight and w is not None else 0
    return *like, x.new_empty(features, q.shape[2])


@torch.library.register_fake("molkern::triplet_sum_grad")
def _(g: Tensor, x: Tensor, q: Tensor, v: Tensor, w: Any, *rest: Any) -> tuple[Tensor, ...]:
    return _fake_gradients(x, q, v, w, rest[-1])


@torch.library.register_fake("molkern::triplet_sum_hvp")
def _(
    hx: Any, hq: Any, hv: Any, hw: Any, g: Tensor, x: Tensor, q: Tensor, v: Tensor, w: Any,
    *rest: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    return g.new_empty(g.shape), *_fake_gradients(x, q, v, w, rest[-1])


# s = <g, y>: the gradient of s, then the gradient of <h, gradient>.


def _value_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.padded, ctx.angle, ctx.moments_from = inputs
    ctx.save_for_backward(*tensors)


def _value_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    need_weight = ctx.needs_input_grad[3]
    form = ctx.padded, ctx.angle, ctx.moments_from
    grads = operators.triplet_sum_grad(g, *ctx.saved_tensors, *form, need_weight)
    return *grads[:3], grads[3] if need_weight else None, *[None] * (_ARGUMENTS - 4)


def _gradient_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.padded, ctx.angle, ctx.moments_from, ctx.gave_weight = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _gradient_backward(
    ctx: Any, hx: Tensor | None, hq: Tensor | None, hv: Tensor | None, hw: Tensor | None
) -> tuple[Tensor | None, ...]:
    need_weight = ctx.needs_input_grad[4]
    form = ctx.padded, ctx.angle, ctx.moments_from
    if not ctx.gave_weight:
        hw = None
    tg, *products = operators.triplet_sum_hvp(
        hx, hq, hv, hw, *ctx.saved_tensors, *form, need_weight
    )
    weight = products[3] if need_weight else None
    return tg, *products[:3], weight, *[None] * (_ARGUMENTS - 3)


def _product_backward(ctx: Any, *grads: Tensor) -> None:
    no_third_derivative("triplet_sum")


differentiable("triplet_sum", _value_backward, _value_setup)
differentiable("triplet_sum_grad", _gradient_backward, _gradient_setup)
differentiable("triplet_sum_hvp", _product_backward)
full_precision("triplet_sum", "triplet_sum_grad", "triplet_sum_hvp")
