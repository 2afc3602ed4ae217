"""Continuous-filter convolution with explicit filters (csrc/cfconv)."""

from typing import Any

import torch
from torch import Tensor

from ._arguments import explained
from ._derivatives import differentiable
from ._library import Graph, full_precision, operators
from ._modes import read


@explained
def cfconv(
    x: Tensor,
    filters: Tensor,
    graph: Graph,
    *,
    aggregation: str = "sum",
    counts: Tensor | None = None,
) -> Tensor:
    """Continuous-filter convolution ``y_i = Σ_j x_j ∘ w_ij`` over the neighbors of each atom.

    Schütt et al., J. Chem. Phys. 148, 241722 (2018), eq. 3. Differentiable to any order in ``x``
    and ``filters``; no tensor of size E×F is made besides the gradient of ``filters``. A row is
    summed in the order of its edges, so results are the same bits on every run.

    Args:
        x: features of the atoms, ``[N, F]``, float32 or float64.
        filters: one filter for every edge in the graph's order, ``[E, F]``.
        graph: the :class:`molkern.NeighborList` to sum over, symmetric or not.
        aggregation: ``"sum"``, or ``"mean"`` to divide by the number of neighbors (atoms without
            neighbors give zero).
        counts: for ``"mean"`` the number of neighbors of each atom, ``[N]``, where the list
            reaches farther than the filters do; by default all that the list has.

    Returns:
        ``[N, F]``.

    Raises:
        ValueError: shapes or devices that do not fit together, or an unknown aggregation.
        TypeError: types other than float32 and float64, or two different ones. Under
            ``torch.autocast`` 16-bit types are taken, as float32.

    >>> import torch, molkern
    >>> pairs = torch.tensor([[0, 1, 2], [1, 0, 1]])  # j -> i: 0 -> 1, 1 -> 0, 2 -> 1
    >>> graph = molkern.NeighborList.from_edge_index(pairs, num_atoms=3)
    >>> x = torch.tensor([[1.0], [2.0], [3.0]])
    >>> molkern.ops.cfconv(x, torch.ones(3, 1), graph)
    tensor([[2.],
            [4.],
            [0.]])
    """
    if aggregation not in ("sum", "mean"):
        raise ValueError(f"aggregation must be 'sum' or 'mean', got {aggregation!r}")
    if x.dim() != 2:
        raise ValueError(f"x must have shape [N, F], got {list(x.shape)}")
    y = operators.cfconv(
        x.contiguous(), filters.contiguous(), *graph.by_receiver, *graph.by_sender, graph.padded
    )
    if aggregation == "mean":
        row_ptr = graph.by_receiver[0]
        lengths = row_ptr[1:] - row_ptr[:-1] if counts is None else counts
        y = y / lengths.clamp(min=1).unsqueeze(1)
    return y


#: Numbers that torch sums in one thread on the CPU; with more, its order follows the threads.
_ONE_THREAD = 32768
_CHUNK = 1024


@explained
def segment_sum(values: Tensor, segment_ptr: Tensor) -> Tensor:
    """Sums rows of ``values`` over consecutive segments, in a fixed order.

    Differentiable to any order. Results are the same bits on every run and for every number of
    threads.

    Args:
        values: ``[N, F]``, float32 or float64.
        segment_ptr: first row of each segment, then N: ``[B + 1]``, int32, not decreasing. On CUDA
            its values are not checked, which would wait for the device.

    Returns:
        ``[B, F]``.

    Raises:
        ValueError: shapes or devices that do not fit together, or pointers other than above.
        TypeError: types other than those above. Under ``torch.autocast`` 16-bit types are taken,
            as float32.

    >>> import torch, molkern
    >>> pointers = torch.tensor([0, 1, 3], dtype=torch.int32)
    >>> molkern.ops.segment_sum(torch.tensor([[1.0], [2.0], [3.0]]), pointers)
    tensor([[1.],
            [5.]])
    """
    if values.dim() != 2:
        raise ValueError(f"segment_sum: values must have shape [N, F], got {list(values.shape)}")
    if values.dtype not in (torch.float32, torch.float64):
        if not (values.is_floating_point() and torch.is_autocast_enabled(values.device.type)):
            raise TypeError(
                f"segment_sum: values must be float32 or float64, got {values.dtype}; convert them "
                "with .float()"
            )
        values = values.float()
    _check_segments("segment_sum", segment_ptr, values, values.shape[0])
    return _sum_segments(values, segment_ptr)


def _check_segments(name: str, segment_ptr: Tensor, values: Tensor, count: int) -> None:
    if segment_ptr.dtype != torch.int32:
        raise TypeError(
            f"{name}: segment_ptr must be int32, got {segment_ptr.dtype}; convert it with .int()"
        )
    if segment_ptr.dim() != 1 or segment_ptr.shape[0] == 0:
        raise ValueError(
            f"{name}: segment_ptr must have shape [B + 1], got {list(segment_ptr.shape)}"
        )
    if segment_ptr.device != values.device:
        raise ValueError(
            f"{name}: segment_ptr is on {segment_ptr.device} but values is on "
            f"{values.device}; move one of them with .to()"
        )
    # The values cannot be read while a compiler traces, and on CUDA they would have to be awaited.
    if segment_ptr.device.type != "cpu" or torch.compiler.is_compiling():
        return
    first_rows = read(segment_ptr)
    if first_rows is None:
        return
    if first_rows[0] != 0 or first_rows[-1] != count:
        raise ValueError(
            f"{name}: segment_ptr must begin with 0 and end with {count}, the number of "
            f"rows, got {first_rows[0]} and {first_rows[-1]}"
        )
    if len(first_rows) == 2:
        return
    falls = first_rows[1:] < first_rows[:-1]
    if falls.any():
        k = int(falls.argmax())
        raise ValueError(
            f"{name}: segment_ptr must not decrease, but segment_ptr[{k + 1}] is "
            f"{first_rows[k + 1]} after {first_rows[k]}; sort the rows by segment"
        )


def _sum_segments(values: Tensor, segment_ptr: Tensor) -> Tensor:
    """A convolution with filters of one; a single segment is summed by torch or in chunks."""
    count, device = values.shape[0], values.device
    if segment_ptr.shape[0] == 2:
        if device.type != "cpu" or values.numel() < _ONE_THREAD:
            return values.sum(0, keepdim=True)
        if count > _CHUNK:
            starts = _chunk_starts(count, device)
            chunks = _sum_segments(values, starts)
            ends = torch.tensor([0, chunks.shape[0]], dtype=torch.int32, device=device)
            return _sum_segments(chunks, ends)
    by_segment, by_row = _segment_graph(segment_ptr, count)
    ones = torch.ones_like(values, memory_format=torch.contiguous_format)
    return operators.cfconv(values.contiguous(), ones, *by_segment, *by_row, False)


@explained
def segment_expand(values: Tensor, segment_ptr: Tensor, count: int) -> Tensor:
    """Gives every row of consecutive segments its segment's value: :func:`segment_sum` transposed.

    Differentiable to any order; its backward pass sums in a fixed order.

    Args:
        values: ``[B, F]``, float32 or float64.
        segment_ptr: first row of each segment, then N: ``[B + 1]``, int32, not decreasing.
        count: the number of rows N.

    Returns:
        ``[N, F]``.

    Raises:
        ValueError: shapes or devices that do not fit together, or pointers other than above.
        TypeError: types other than those above.

    >>> import torch, molkern
    >>> pointers = torch.tensor([0, 1, 3], dtype=torch.int32)
    >>> molkern.ops.segment_expand(torch.tensor([[1.0], [2.0]]), pointers, 3)
    tensor([[1.],
            [2.],
            [2.]])
    """
    if values.dim() != 2 or values.shape[0] + 1 != segment_ptr.shape[0]:
        raise ValueError(
            f"segment_expand: values must have shape [{segment_ptr.shape[0] - 1}, F], one row for "
            f"each segment, got {list(values.shape)}"
        )
    _check_segments("segment_expand", segment_ptr, values, count)
    device = values.device
    if values.shape[0] == 1:
        if device.type != "cpu" or count * values.shape[1] < _ONE_THREAD:
            return values.expand(count, values.shape[1])
        if count > _CHUNK:  # in two steps, whose transposes sum in chunks
            starts = _chunk_starts(count, device)
            ends = torch.tensor([0, starts.shape[0] - 1], dtype=torch.int32, device=device)
            chunks = segment_expand(values, ends, starts.shape[0] - 1)
            return segment_expand(chunks, starts, count)
    by_segment, by_row = _segment_graph(segment_ptr, count)
    ones = values.new_ones(count, values.shape[1])
    return operators.cfconv(values.contiguous(), ones, *by_row, *by_segment, False)


def _chunk_starts(count: int, device: torch.device) -> Tensor:
    starts = torch.arange(0, count + _CHUNK, _CHUNK, dtype=torch.int32, device=device)
    return starts.clamp(max=count)


def _segment_graph(segment_ptr: Tensor, count: int) -> tuple[Any, Any]:
    """The graph whose edges join each row to its segment, by segments and by rows."""
    device = segment_ptr.device
    rows = torch.arange(count, dtype=torch.int32, device=device)
    lengths = segment_ptr[1:] - segment_ptr[:-1]
    segments = torch.arange(lengths.shape[0], dtype=torch.int32, device=device)
    owner = torch.repeat_interleave(segments, lengths, output_size=count)
    one_each = torch.arange(count + 1, dtype=torch.int32, device=device)
    return (segment_ptr.contiguous(), rows, None), (one_each, owner, None)


@torch.library.register_fake("molkern::cfconv")
def _(x: Tensor, filters: Tensor, row_ptr: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(row_ptr.shape[0] - 1, x.shape[1])


@torch.library.register_fake("molkern::edge_product")
def _(a: Tensor, b: Tensor, row_ptr: Tensor, neighbors: Tensor, *rest: Any) -> Tensor:
    return a.new_empty(neighbors.shape[0], a.shape[1])


# s = Σ_e Σ_f x_jf w_ef g_if is linear in x, w and g: the derivatives of both operators are the two
# operators again, over the graph seen from the other side where the sum runs over receivers.


def _cfconv_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.padded = inputs
    ctx.save_for_backward(*tensors)


def _cfconv_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, filters, *graph = ctx.saved_tensors
    here, there = graph[:3], graph[3:]
    grad_x = grad_filters = None
    if ctx.needs_input_grad[0]:
        grad_x = operators.cfconv(g.contiguous(), filters, *there, *here, ctx.padded)
    if ctx.needs_input_grad[1]:
        grad_filters = _edge_product(g.contiguous(), x, here, there, ctx.padded)
    return (grad_x, grad_filters, *[None] * 7)


def _edge_product(a: Tensor, b: Tensor, here: Any, there: Any, padded: bool) -> Tensor:
    """The product in edge order: rows of ``here`` index ``a``, its neighbors ``b``."""
    if (
        there[2] is None
    ):  # this side lies in edge order: walk it, so that memory is written in order
        a, b, here, there = b, a, there, here
    return operators.edge_product(a, b, *here, *there, padded)


def _edge_product_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.padded = inputs
    ctx.save_for_backward(*tensors)


def _edge_product_backward(ctx: Any, h: Tensor) -> tuple[Any, ...]:
    a, b, *graph = ctx.saved_tensors
    here, there = graph[:3], graph[3:]
    grad_a = grad_b = None
    if ctx.needs_input_grad[0]:
        grad_a = operators.cfconv(b, h.contiguous(), *here, *there, ctx.padded)
    if ctx.needs_input_grad[1]:
        grad_b = operators.cfconv(a, h.contiguous(), *there, *here, ctx.padded)
    return (grad_a, grad_b, *[None] * 7)


differentiable("cfconv", _cfconv_backward, _cfconv_setup)
differentiable("edge_product", _edge_product_backward, _edge_product_setup)
full_precision("cfconv", "edge_product")
