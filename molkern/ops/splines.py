"""Filters that are splines of the distance, and the convolution with them (csrc/splines)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._arguments import explained, number
from ._derivatives import differentiable, mapped, no_third_derivative
from ._library import Graph, full_precision, gradient_wanted, operators

DEGREES = (3, 5)


@dataclass(frozen=True)
class SplineGrid:
    """Evenly spaced knots of B-splines, and what a spline is outside of them.

    A table for the grid has ``intervals + degree`` rows of coefficients, one column per filter:
    ``w_f(d) = Σ_k b_k(u) table[m + k, f]`` where d lies in interval m. Splines of degree 3 have two
    continuous derivatives, of degree 5 four (de Boor, *A Practical Guide to Splines*, ch. IX).
    Below ``start`` a spline has its value at ``start`` and derivatives of zero.

    Attributes:
        start, stop: first and last knot, in the unit of the distances.
        intervals: number of intervals between them.
        degree: 3 or 5.
        zero_beyond: whether the spline is zero from ``stop`` on; else it has its value there.

    Raises:
        ValueError: knots that are not finite or do not ascend, no interval, or another degree.

    >>> from molkern.ops import SplineGrid
    >>> SplineGrid(0.0, 5.0, intervals=512).rows
    515
    """

    start: float
    stop: float
    intervals: int
    degree: int = 3
    zero_beyond: bool = True

    def __post_init__(self) -> None:
        number("start", self.start), number("stop", self.stop)
        if not -math.inf < self.start < self.stop < math.inf:
            raise ValueError(
                f"start and stop must be finite and ascend, got {self.start} and {self.stop}"
            )
        if not 1 <= self.intervals < 2**24:
            raise ValueError(f"intervals must be from 1 to {2**24 - 1}, got {self.intervals}")
        if self.degree not in DEGREES:
            raise ValueError(f"degree must be 3 or 5, got {self.degree}")

    @property
    def rows(self) -> int:
        """Rows of a table of coefficients."""
        return self.intervals + self.degree

    @property
    def form(self) -> tuple[float, float, int, bool]:
        """The arguments by which the operators know the grid; the table tells the intervals."""
        return float(self.start), float(self.stop), self.degree, self.zero_beyond

    @explained
    def bins(self, distances: Tensor, graph: Graph) -> Tensor:
        """The edges of a graph by interval, for the gradient of tables: once for all of them.

        Distances ``[E]`` → int32 ``[intervals + 1 + 3 E]``: first entry of each interval, then
        edges, senders and receivers by interval. Edges beyond the knots that count for zero, and
        padding, are in none.
        """
        senders = graph.by_receiver[1]
        return operators.spline_bins(
            distances.detach(),
            senders,
            graph.receivers,
            float(self.start),
            float(self.stop),
            self.intervals,
            self.zero_beyond,
        )


@explained
def spline_cfconv(
    x: Tensor,
    table: Tensor,
    distances: Tensor,
    graph: Graph,
    grid: SplineGrid,
    *,
    aggregation: str = "sum",
    counts: Tensor | None = None,
    bins: Tensor | None = None,
) -> Tensor:
    """Continuous-filter convolution ``y_i = Σ_j x_j ∘ w(d_ij)`` whose filters are splines.

    As :func:`molkern.ops.cfconv` (Schütt et al., J. Chem. Phys. 148, 241722 (2018), eq. 3) with
    filters ``w`` that are taken from a table where they are used: no tensor of size E×F is made, in
    first and second derivatives by ``x``, ``table`` and ``distances`` neither. Sums run in a fixed
    order, the same bits on every run and for every number of threads.

    Args:
        x: features of the atoms, ``[N, F]``, float32 or float64.
        table: coefficients of the splines, ``[intervals + degree, F]``.
        distances: of the edges, in the graph's order, ``[E]``.
        graph: the :class:`molkern.NeighborList` to sum over, symmetric or not.
        grid: knots of the splines.
        aggregation: ``"sum"``, or ``"mean"`` to divide by the number of neighbors (atoms without
            neighbors give zero).
        counts: for ``"mean"`` the number of neighbors of each atom, ``[N]``, where the list
            reaches farther than the filters do; by default all that the list has.
        bins: ``grid.bins(distances, graph)``, where several convolutions share the edges; by
            default made when the gradient of the table may be needed.

    Returns:
        ``[N, F]``.

    Raises:
        ValueError: shapes or devices that do not fit together, or an unknown aggregation.
        TypeError: types other than float32 and float64, or two different ones. Under
            ``torch.autocast`` 16-bit types are taken, as float32.
        RuntimeError: when a third derivative is taken.

    >>> import torch, molkern
    >>> from molkern.ops import SplineGrid, spline_cfconv
    >>> pairs = torch.tensor([[0, 1], [1, 0]])
    >>> graph = molkern.NeighborList.from_edge_index(pairs, num_atoms=2)
    >>> grid = SplineGrid(0.0, 2.0, intervals=4)
    >>> x, d = torch.tensor([[1.0], [2.0]]), torch.tensor([0.5, 3.0])
    >>> spline_cfconv(x, torch.ones(grid.rows, 1), d, graph, grid)  # the second is beyond 2
    tensor([[2.],
            [0.]])
    """
    if aggregation not in ("sum", "mean"):
        raise ValueError(f"aggregation must be 'sum' or 'mean', got {aggregation!r}")
    if x.dim() != 2:
        raise ValueError(f"x must have shape [N, F], got {list(x.shape)}")
    if table.dim() != 2 or table.shape[0] != grid.rows:
        raise ValueError(
            f"the table must have shape [{grid.rows}, F], the rows of its grid, got "
            f"{list(table.shape)}"
        )
    if bins is None and table.requires_grad and torch.is_grad_enabled():
        bins = grid.bins(distances, graph)
    y = operators.spline_cfconv(
        x.contiguous(),
        table.contiguous(),
        distances.contiguous(),
        *graph.by_receiver,
        *graph.by_sender,
        bins,
        *grid.form,
        graph.padded,
    )
    if aggregation == "mean":
        row_ptr = graph.by_receiver[0]
        lengths = row_ptr[1:] - row_ptr[:-1] if counts is None else counts
        y = y / lengths.clamp(min=1).unsqueeze(1)
    return y


@torch.library.register_fake("molkern::spline_bins")
def _(
    distances: Tensor,
    senders: Tensor,
    receivers: Tensor,
    start: float,
    stop: float,
    intervals: int,
    zero: bool,
) -> Tensor:
    return senders.new_empty(intervals + 1 + 3 * distances.shape[0])


@torch.library.register_fake("molkern::spline_cfconv")
def _(x: Tensor, table: Tensor, distances: Tensor, row_ptr: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(row_ptr.shape[0] - 1, x.shape[1])


def _new_gradients(x: Tensor, table: Tensor, d: Tensor, need_table: bool) -> tuple[Tensor, ...]:
    """Derivatives by x, distances and table, which is empty where it is not needed."""
    rows = table.shape[0] if need_table else 0
    return torch.empty_like(x), torch.empty_like(d), table.new_empty(rows, table.shape[1])


@torch.library.register_fake("molkern::spline_cfconv_grad")
def _(g: Tensor, x: Tensor, table: Tensor, distances: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return _new_gradients(x, table, distances, rest[-1])


@torch.library.register_fake("molkern::spline_cfconv_hvp")
def _(
    hx: Any, hd: Any, hc: Any, g: Tensor, x: Tensor, table: Tensor, distances: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return torch.empty_like(g), *_new_gradients(x, table, distances, rest[-1])


# s = <g, y>: the gradient of s, then the gradient of <h, gradient>; absent cotangents stay None, so
# that a kernel can leave out what they would multiply.


def _value_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, table, distances, *graph, bins, start, stop, degree, zero, ctx.padded = inputs
    ctx.form = start, stop, degree, zero
    ctx.save_for_backward(x, table, distances, *graph, bins)


def _value_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, table, distances, *graph = ctx.saved_tensors
    need = gradient_wanted(ctx, 1)
    gx, gd, gc = operators.spline_cfconv_grad(
        g.contiguous(), x, table, distances, None, *graph, *ctx.form, ctx.padded, need
    )
    return gx, gc if need else None, gd, *[None] * 12


def _gradient_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    g, x, table, distances, _, *graph, bins = inputs[:12]
    *ctx.form, ctx.padded, ctx.gave_table = inputs[12:]
    ctx.save_for_backward(g, x, table, distances, *graph, bins)
    ctx.set_materialize_grads(False)


def _gradient_backward(
    ctx: Any, hx: Tensor | None, hd: Tensor | None, hc: Tensor | None
) -> tuple[Any, ...]:
    g, x, table, distances, *graph = ctx.saved_tensors
    need = ctx.needs_input_grad[2]
    direction = [None if h is None else h.contiguous() for h in (hx, hd, hc)]
    if not ctx.gave_table:
        direction[2] = None
    gg, gx, gd, gc = operators.spline_cfconv_hvp(
        *direction, g, x, table, distances, *graph, *ctx.form, ctx.padded, need
    )
    added = hd if ctx.needs_input_grad[4] else None
    return gg, gx, gc if need else None, gd, added, *[None] * 13


def _product_backward(ctx: Any, *grads: Tensor) -> None:
    no_third_derivative("spline_cfconv")


mapped("spline_bins")
differentiable("spline_cfconv", _value_backward, _value_setup)
differentiable("spline_cfconv_grad", _gradient_backward, _gradient_setup)
differentiable("spline_cfconv_hvp", _product_backward)
full_precision("spline_bins", "spline_cfconv", "spline_cfconv_grad", "spline_cfconv_hvp")
