"""DTNN's messages with filters that are splines of the distance (csrc/dtnn)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._arguments import explained
from ._derivatives import differentiable, no_third_derivative
from ._library import Graph, build_info, full_precision, gradient_wanted, operators
from .splines import SplineGrid


@explained
def dtnn_message(
    x: Tensor,
    table: Tensor,
    distances: Tensor,
    weight: Tensor,
    graph: Graph,
    grid: SplineGrid,
    *,
    bins: Tensor | None = None,
) -> Tensor:
    """DTNN's messages, summed: ``y_i = Σ_j tanh(W (x_j ∘ f(d_ij)))``, with f from a table.

    The interaction of Schütt et al., Nat. Commun. 8, 13890 (2017), for x the projected features
    ``W_cf c_j + b`` and f the factors of the distance, here splines. Factors and messages of an
    edge are computed where they are used: no tensor of size E×K or E×C is made, in first and second
    derivatives by ``x``, ``table``, ``distances`` and ``weight`` neither. Sums run in a fixed
    order, the same bits on every run and for every number of threads.

    Args:
        x: features of the atoms, ``[N, K]``, float32 or float64.
        table: coefficients of the splines, ``[intervals + degree, K]``.
        distances: of the edges, in the graph's order, ``[E]``.
        weight: W, ``[C, K]``, as in :class:`torch.nn.Linear`.
        graph: the :class:`molkern.NeighborList` to sum over, symmetric or not.
        grid: knots of the splines. Where it makes them zero beyond the last, so are messages.
        bins: ``grid.bins(distances, graph)``, where several sums share the edges. Only GPUs use
            them, for the gradient of the table; there they are by default made when it may be
            needed.

    Returns:
        ``[N, C]``.

    Raises:
        ValueError: shapes or devices that do not fit together.
        TypeError: types other than float32 and float64, or two different ones. Under
            ``torch.autocast`` 16-bit types are taken, as float32.
        RuntimeError: when a third derivative is taken, or when so many factors and channels (some
            hundreds) do not fit in the shared memory of a GPU.

    >>> import torch, molkern
    >>> from molkern.ops import SplineGrid, dtnn_message
    >>> pairs = torch.tensor([[0, 1], [1, 0]])
    >>> graph = molkern.NeighborList.from_edge_index(pairs, num_atoms=2)
    >>> grid = SplineGrid(0.0, 2.0, intervals=4)
    >>> x, d = torch.tensor([[1.0], [2.0]]), torch.tensor([0.5, 3.0])
    >>> weight = torch.tensor([[0.0], [1.0], [-1.0]])
    >>> dtnn_message(x, torch.ones(grid.rows, 1), d, weight, graph, grid)  # tanh(2 W); beyond 2
    tensor([[ 0.0000,  0.9640, -0.9640],
            [ 0.0000,  0.0000,  0.0000]])
    """
    if x.dim() != 2:
        raise ValueError(f"x must have shape [N, K], got {list(x.shape)}")
    if table.dim() != 2 or table.shape[0] != grid.rows:
        raise ValueError(
            f"the table must have shape [{grid.rows}, K], the rows of its grid, got "
            f"{list(table.shape)}"
        )
    if bins is None and table.requires_grad and torch.is_grad_enabled() and _sums_by_interval(x):
        bins = grid.bins(distances, graph)
    return operators.dtnn_message(
        x.contiguous(),
        table.contiguous(),
        distances.contiguous(),
        weight.contiguous(),
        *graph.by_receiver,
        *graph.by_sender,
        bins,
        *grid.form,
        graph.padded,
    )


def _sums_by_interval(x: Tensor) -> bool:
    """Whether the kernels for a tensor take the gradient of a table from the edges by interval."""
    return x.is_cuda or bool(build_info()["cuda_emulation"])


@torch.library.register_fake("molkern::dtnn_message")
def _(
    x: Tensor, table: Tensor, distances: Tensor, weight: Tensor, row_ptr: Tensor, *rest: Any
) -> Tensor:
    return x.new_empty(row_ptr.shape[0] - 1, weight.shape[0])


def _new_gradients(
    x: Tensor, table: Tensor, d: Tensor, weight: Tensor, need_table: bool, need_weight: bool
) -> tuple[Tensor, ...]:
    """Derivatives by all arguments; the latter two are empty where they are not needed."""
    rows, channels = (table.shape[0] if need_table else 0), (weight.shape[0] if need_weight else 0)
    factors = x.shape[1]
    return (
        torch.empty_like(x),
        torch.empty_like(d),
        table.new_empty(rows, factors),
        weight.new_empty(channels, factors),
    )


@torch.library.register_fake("molkern::dtnn_message_grad")
def _(
    g: Tensor, x: Tensor, table: Tensor, distances: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return _new_gradients(x, table, distances, weight, *rest[-2:])


@torch.library.register_fake("molkern::dtnn_message_hvp")
def _(
    hx: Any,
    hd: Any,
    hc: Any,
    hw: Any,
    g: Tensor,
    x: Tensor,
    table: Tensor,
    distances: Tensor,
    weight: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    return torch.empty_like(g), *_new_gradients(x, table, distances, weight, *rest[-2:])


# s = <g, y>: the gradient of s, then the gradient of <h, gradient>; absent cotangents stay None, so
# that a kernel can leave out what they would multiply.


def _value_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, table, distances, weight, *graph, bins, start, stop, degree, zero, ctx.padded = inputs
    ctx.form = start, stop, degree, zero
    ctx.save_for_backward(x, table, distances, weight, *graph, bins)


def _value_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, table, distances, weight, *graph = ctx.saved_tensors
    need_table, need_weight = gradient_wanted(ctx, 1), gradient_wanted(ctx, 3)
    gx, gd, gc, gw = operators.dtnn_message_grad(
        g.contiguous(),
        x,
        table,
        distances,
        weight,
        None,
        *graph,
        *ctx.form,
        ctx.padded,
        need_table,
        need_weight,
    )
    return gx, gc if need_table else None, gd, gw if need_weight else None, *[None] * 12


def _gradient_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    g, x, table, distances, weight, _, *graph, bins = inputs[:13]
    *ctx.form, ctx.padded, ctx.gave_table, ctx.gave_weight = inputs[13:]
    ctx.save_for_backward(g, x, table, distances, weight, *graph, bins)
    ctx.set_materialize_grads(False)


def _gradient_backward(
    ctx: Any, hx: Tensor | None, hd: Tensor | None, hc: Tensor | None, hw: Tensor | None
) -> tuple[Any, ...]:
    g, x, table, distances, weight, *graph = ctx.saved_tensors
    need_table, need_weight = gradient_wanted(ctx, 2), gradient_wanted(ctx, 4)
    direction = [None if h is None else h.contiguous() for h in (hx, hd, hc, hw)]
    if not ctx.gave_table:
        direction[2] = None
    if not ctx.gave_weight:
        direction[3] = None
    gg, gx, gd, gc, gw = operators.dtnn_message_hvp(
        *direction,
        g,
        x,
        table,
        distances,
        weight,
        *graph,
        *ctx.form,
        ctx.padded,
        need_table,
        need_weight,
    )
    added = hd if ctx.needs_input_grad[5] else None
    gradients = gg, gx, gc if need_table else None, gd, gw if need_weight else None, added
    return *gradients, *[None] * 14


def _product_backward(ctx: Any, *grads: Tensor) -> None:
    no_third_derivative("dtnn_message")


differentiable("dtnn_message", _value_backward, _value_setup)
differentiable("dtnn_message_grad", _gradient_backward, _gradient_setup)
differentiable("dtnn_message_hvp", _product_backward)
full_precision("dtnn_message", "dtnn_message_grad", "dtnn_message_hvp")
