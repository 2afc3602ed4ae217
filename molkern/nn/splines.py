"""Filters as splines of the distance: fitted to a function, measured, used in a convolution."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..graph import NeighborList
from ..ops._derivatives import differentiable
from ..ops._modes import ordinary_tensors, without_autocast
from ..ops.splines import SplineGrid, spline_cfconv

#: Distances ``[P]`` → the filters there, some tensors ``[P, F]``.
FilterFunction = Callable[[Tensor], list[Tensor]]

MAX_INTERVALS = 2**15
_CHUNK = 2048


@dataclass(frozen=True)
class SplineFilter:
    """Filters of a convolution as splines, in place of a tensor ``[E, F]``.

    Attributes:
        table: coefficients ``[rows of the grid, F]``.
        grid: knots of the splines.
        distances: of the edges, ``[E]``.
        bins: ``grid.bins(distances, graph)``, which the gradient of the table needs, or None.

    >>> import torch, molkern
    >>> positions = torch.rand(3, 3)
    >>> neighbors = molkern.neighbor_list(positions, cutoff=5.0)
    >>> grid = molkern.ops.SplineGrid(0.0, 5.0, intervals=16)
    >>> filters = molkern.nn.SplineFilter(
    ...     torch.rand(grid.rows, 32), grid, neighbors.distances(positions)
    ... )
    >>> molkern.nn.CFConv(16, 32, 16)(torch.rand(3, 16), filters, neighbors).shape
    torch.Size([3, 16])
    """

    table: Tensor
    grid: SplineGrid
    distances: Tensor
    bins: Tensor | None = None

    def __repr__(self) -> str:
        return (
            f"SplineFilter({self.distances.shape[0]} edges, {self.table.shape[1]} filters, "
            f"{self.grid}, {self.table.dtype} on {self.table.device})"
        )

    def convolve(self, x: Tensor, neighbors: NeighborList, **options: Any) -> Tensor:
        """``Σ_j x_j ∘ w_ij``, options as for :func:`molkern.ops.cfconv`: ``[N, F]``."""
        return spline_cfconv(
            x, self.table, self.distances, neighbors, self.grid, bins=self.bins, **options
        )

    def values(self) -> Tensor:
        """The filters themselves, ``[E, F]``, for few of them."""
        return spline(self.table, self.distances, self.grid)


def convolve(
    x: Tensor, filters: Tensor | SplineFilter, neighbors: NeighborList, **options: Any
) -> Tensor:
    """A convolution with filters of either kind, options as for :func:`molkern.ops.cfconv`."""
    if isinstance(filters, SplineFilter):
        return filters.convolve(x, neighbors, **options)
    return ops.cfconv(x, filters, neighbors, **options)


@dataclass(frozen=True)
class SplineReport:
    """What a model's splines cost and how far they are from its filters.

    Errors are the largest ones on a grid four times as fine, in float64, each relative to the
    largest absolute value of what it is an error of, over all tables.

    Attributes:
        grid: knots of all tables.
        tables: number of tables.
        bytes: size of all tables.
        tolerance: what was asked for: ``value_error`` at most this, ``slope_error`` at most 100
            times and ``curvature_error`` at most 10,000 times as much.
        value_error, slope_error, curvature_error: of filters, first and second derivatives.
    """

    grid: SplineGrid
    tables: int
    bytes: int
    tolerance: float
    value_error: float
    slope_error: float
    curvature_error: float

    @property
    def knots(self) -> int:
        """Number of knots from the first to the last distance."""
        return self.grid.intervals + 1

    @property
    def excess(self) -> float:
        """The largest error over what the tolerance allows for it."""
        errors = self.value_error, self.slope_error / 1e2, self.curvature_error / 1e4
        return max(errors, key=lambda e: math.inf if math.isnan(e) else e) / self.tolerance

    def __repr__(self) -> str:
        return f"SplineReport({self})"

    def __str__(self) -> str:
        grid = self.grid
        return (
            f"{self.tables} tables of degree {grid.degree} on {self.knots} knots from "
            f"{grid.start:g} to {grid.stop:g}, {self.bytes / 1024:.0f} kB; relative errors: value "
            f"{self.value_error:.1e}, slope {self.slope_error:.1e}, curvature "
            f"{self.curvature_error:.1e}"
        )


def _points(grid: SplineGrid, device: torch.device | str = "cpu") -> Tensor:
    """Where a spline is fitted: at all knots, and between those at either end as often as needed.

    The last point lies just below the end, where filters with a hard cutoff have their limit.
    """
    on: Any = {"dtype": torch.float64, "device": device}
    knots = torch.arange(grid.intervals + 1, **on)
    between = torch.arange((grid.degree - 1) // 2, **on) + 0.5
    t = torch.cat([knots, between, grid.intervals - between]).sort().values
    points = grid.start + t * ((grid.stop - grid.start) / grid.intervals)
    points[-1] = torch.nextafter(points[-1], points[0])
    return points


def _basis(grid: SplineGrid, points: Tensor) -> tuple[Tensor, Tensor]:
    """The B-splines that are not zero at points within the knots: the first, and values, float64.

    ``[P]`` → ``[P]``, int64, and ``[P, degree + 1]``, by the recursion of de Boor.
    """
    h = (grid.stop - grid.start) / grid.intervals
    t = (points - grid.start) / h
    interval = t.floor().clamp(0, grid.intervals - 1)
    u = (t - interval).unsqueeze(1)
    b = torch.ones_like(u)
    for p in range(1, grid.degree + 1):
        k = torch.arange(p + 1, dtype=torch.float64, device=points.device)
        lower = nn.functional.pad(b, (1, 0))
        upper = nn.functional.pad(b, (0, 1))
        b = ((u + p - k) * lower + (k + 1 - u) * upper) / p
    return interval.long(), b


#: Rows of the inverse that are computed together, and how far from them it is zero but for 1e-17.
_BLOCK, _REACH = 128, 64


def _inverse(grid: SplineGrid, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From values at the points to coefficients: rows, columns and values of a sparse matrix.

    The inverse of the collocation matrix decays by a factor of 0.27 (degree 3) or 0.43 (degree 5)
    for each knot away from its diagonal, so that its rows follow from a part of the matrix.
    """
    first, b = _basis(grid, points)
    count = len(points)
    found = []
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        low, high = max(0, start - _REACH), min(count, stop + _REACH)
        column = first[low:high].unsqueeze(1) + torch.arange(grid.degree + 1, device=b.device) - low
        inside = (column >= 0) & (column < high - low)
        part = b.new_zeros(high - low, high - low)
        part.scatter_add_(1, column.clamp(0, high - low - 1), b[low:high] * inside)
        rows = torch.linalg.inv(part)[start - low : stop - low]
        row, column = (rows.abs() > 1e-15 * rows.abs().amax(1, True)).nonzero(as_tuple=True)
        found.append((row + start, column + low, rows[row, column]))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]


@lru_cache(maxsize=16)
def _fit(grid: SplineGrid, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Points ``[P]``, and the sparse matrix from values there to coefficients, transposed first.

    In float64 for float32 too: at the ends coefficients depend strongly on the values.
    """
    with ordinary_tensors():  # what is kept here serves whatever comes later
        points = _points(grid)
        row, column, value = _inverse(grid, points)
        size = len(points)
        rows = _compressed([row, column], value, size, device)
        columns = _compressed([column, row], value, size, device)
        return points.to(device), columns, rows


def _compressed(indices: list[Tensor], value: Tensor, size: int, device: torch.device) -> Tensor:
    """A square sparse matrix by rows."""
    matrix = torch.sparse_coo_tensor(
        torch.stack(indices), value, (size, size), check_invariants=False
    )
    return matrix.to(device).coalesce().to_sparse_csr()


def _hear_of_beta() -> None:
    """Torch calls these matrices a beta, once per process: it says so here, unheard.

    Now, not where they are made: there other threads may change the filters of warnings too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.zeros(1, 1, device="cpu").to_sparse_csr()


_hear_of_beta()


_library = torch.library.Library("molkern", "FRAGMENT")
_library.define(
    "spline_coefficients(Tensor values, float start, float stop, int intervals, int degree, "
    "bool transposed) -> Tensor"
)


def _coefficients(
    values: Tensor, start: float, stop: float, intervals: int, degree: int, transposed: bool
) -> Tensor:
    """From values at the points to coefficients, ``[P, F]``, or that transposed: float64."""
    return _fit(SplineGrid(start, stop, intervals, degree), values.device)[2 - transposed] @ values


def _coefficients_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *ctx.grid, ctx.transposed = inputs


def _coefficients_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    back = torch.ops.molkern.spline_coefficients(g.contiguous(), *ctx.grid, not ctx.transposed)
    return back, *[None] * 5


_library.impl("spline_coefficients", _coefficients, "CompositeExplicitAutograd")
torch.library.register_fake(
    "molkern::spline_coefficients", lambda values, *rest: values.new_empty(values.shape)
)
differentiable("spline_coefficients", _coefficients_backward, _coefficients_setup)


def spline_tables(function: FilterFunction, grid: SplineGrid, like: Tensor) -> list[Tensor]:
    """Coefficients ``[rows, F]`` of splines through a function's filters, of the type of ``like``.

    The function is called once, with float64 distances within the knots, and not under autocast,
    which would round what slopes are made of. Differentiable to any order by what the function
    depends on.
    """
    if torch.compiler.is_compiling():
        points = _points(grid, like.device)
    else:
        points = _fit(grid, like.device)[0]
    with without_autocast(points):
        filters = [value.double() for value in function(points)]
    widths, values = [f.shape[1] for f in filters], torch.cat(filters, 1)
    form = float(grid.start), float(grid.stop), grid.intervals, grid.degree
    joined = torch.ops.molkern.spline_coefficients(values, *form, False).to(like.dtype)
    return [table.contiguous() for table in joined.split(widths, 1)]


def _with_slope(function: FilterFunction, d: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Filters and their derivatives by distance, each ``[P, F]``.

    By two backward passes: the first is linear in what it multiplies, which is differentiated.
    """
    with torch.enable_grad():
        d = d.detach().requires_grad_(True)
        for y in function(d):
            v = torch.zeros_like(y).requires_grad_(True)
            # As one number, see Potential.compute
            (g,) = torch.autograd.grad((y * v).sum(), d, create_graph=True, retain_graph=True)
            (slope,) = torch.autograd.grad(g.sum(), v, retain_graph=True)
            yield y.detach(), slope


def _measure(
    function: FilterFunction, grid: SplineGrid, tolerance: float, element: int
) -> SplineReport:
    """The report on splines through a function of float64 on a grid."""
    points = _points(grid)
    like = points.new_empty(0)
    with torch.no_grad():
        tables = spline_tables(function, grid, like)
    h = (grid.stop - grid.start) / grid.intervals
    step = 1e-3 * h  # for second derivatives, as differences of first ones
    quarters = torch.arange(4 * grid.intervals, dtype=torch.float64, device=points.device)
    fine = quarters * (h / 4) + (grid.start + h / 8)
    worst = points.new_zeros(3, len(tables))  # errors by table
    scale = torch.zeros_like(worst)
    for chunk in fine.split(_CHUNK):
        d = torch.cat([chunk, chunk + step])
        exact = list(_with_slope(function, d))
        splines = [next(_with_slope(_evaluator(table, grid), d)) for table in tables]
        for k, ((y, slope), (z, tilt)) in enumerate(zip(exact, splines, strict=True)):
            bend, curve = (s[len(chunk) :] - s[: len(chunk)] for s in (slope, tilt))
            for row, (a, b) in enumerate([(y, z), (slope, tilt), (bend, curve)]):
                worst[row, k] = torch.maximum(worst[row, k], (a - b).abs().max())
                scale[row, k] = torch.maximum(scale[row, k], a.abs().max())
    value, slope, curvature = (worst / scale.clamp(min=1e-300)).amax(1).tolist()
    size = grid.rows * sum(table.shape[1] for table in tables) * element
    return SplineReport(grid, len(tables), size, tolerance, value, slope, curvature)


def _evaluator(table: Tensor, grid: SplineGrid) -> FilterFunction:
    """Splines as a function of the distance: a convolution along one edge for each of them."""

    def function(d: Tensor) -> list[Tensor]:
        return [spline(table, d, grid)]

    return function


def spline(table: Tensor, distances: Tensor, grid: SplineGrid) -> Tensor:
    """Splines at distances ``[E]`` → ``[E, F]``, twice differentiable by both.

    The convolution of ones over a graph of one edge for each distance.
    """
    ones = table.new_ones(distances.shape[0], table.shape[1])
    return spline_cfconv(ones, table, distances, _OneEdgeEach(distances), grid)


class _OneEdgeEach:
    """The graph of as many atoms as edges, each with an edge to itself."""

    padded = False

    def __init__(self, distances: Tensor):
        count = distances.shape[0]
        numbers = torch.arange(count + 1, dtype=torch.int32, device=distances.device)
        self.receivers = numbers[:count]
        self.by_receiver = self.by_sender = (numbers, self.receivers, None)

    def reverse_edges(self) -> Tensor:
        return self.receivers


@ordinary_tensors()
def choose_grid(
    function: FilterFunction,
    start: float,
    stop: float,
    *,
    tolerance: float,
    degree: int,
    zero_beyond: bool = True,
    element: int = 8,
    intervals: int = 128,
) -> SplineReport:
    """A grid that holds a tolerance, and its errors: the first of ever finer ones.

    Args:
        function: filters of float64 by distance, twice differentiable.
        start, stop: first and last knot, in the unit of the distances.
        tolerance: see :class:`SplineReport`.
        degree: 3 or 5.
        zero_beyond: see :class:`molkern.ops.SplineGrid`.
        element: bytes of a number in the tables.
        intervals: of the first grid to try.

    Raises:
        ValueError: a tolerance that is not positive, or that finer grids come no closer to:
            filters that are not smooth, or a tolerance below rounding.
    """
    if not tolerance > 0:
        raise ValueError(f"the spline tolerance must be positive, got {tolerance}")
    before = float("inf")
    while True:
        grid = SplineGrid(start, stop, intervals, degree, zero_beyond)
        report = _measure(function, grid, tolerance, element)
        if report.excess <= 1.0:
            return report
        if not math.isfinite(report.excess):
            raise ValueError(
                f"no splines: the filters are not finite between {start:g} and {stop:g}, because "
                "weights of the model are NaN, infinite or very large"
            )
        if intervals == MAX_INTERVALS or report.excess > 0.7 * before:  # it does not converge
            raise ValueError(
                f"no splines hold the tolerance {tolerance:g}, {intervals} intervals do not "
                f"({report}): the filters are not smooth or the tolerance is below rounding; raise "
                "spline_tolerance, or use filters='exact'"
            )
        # The curvature converges slowest, with the power degree - 1; the others are faster
        before = report.excess
        growth = min(4.0, max(1.25, 1.03 * report.excess ** (1.0 / (degree + 1))))
        intervals = min(MAX_INTERVALS, -(-int(intervals * growth) // 32) * 32)
