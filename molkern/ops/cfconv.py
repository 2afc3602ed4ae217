"""Continuous-filter convolution with explicit filters (csrc/cfconv)."""

from typing import Any

import torch
from torch import Tensor

from ._library import Graph, full_precision, operators


def cfconv(x: Tensor, filters: Tensor, graph: Graph, *, aggregation: str = "sum") -> Tensor:
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
        y = y / (row_ptr[1:] - row_ptr[:-1]).clamp(min=1).unsqueeze(1)
    return y


def segment_sum(values: Tensor, segment_ptr: Tensor) -> Tensor:
    """Sums rows of ``values`` ``[N, F]`` over consecutive segments, in a fixed order: ``[B, F]``.

    ``segment_ptr`` ``[B + 1]``, int32, holds the first row of each segment. Differentiable to any
    order: it is a convolution with filters of one.
    """
    if segment_ptr.numel() == 2:
        return values.sum(0, keepdim=True)
    count, device = values.shape[0], values.device
    rows = torch.arange(count, dtype=torch.int32, device=device)
    lengths = segment_ptr[1:] - segment_ptr[:-1]
    segments = torch.arange(lengths.shape[0], dtype=torch.int32, device=device)
    owner = torch.repeat_interleave(segments, lengths, output_size=count)
    one_each = torch.arange(count + 1, dtype=torch.int32, device=device)
    return operators.cfconv(
        values.contiguous(),
        torch.ones_like(values),
        *(segment_ptr, rows, None),
        *(one_each, owner, None),
        False,
    )


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


torch.library.register_autograd("molkern::cfconv", _cfconv_backward, setup_context=_cfconv_setup)
torch.library.register_autograd(
    "molkern::edge_product", _edge_product_backward, setup_context=_edge_product_setup
)
full_precision("cfconv", "edge_product")
