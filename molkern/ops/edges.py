"""From atoms to edges and back, in a fixed order: what layers of edge features are made of."""

import torch
from torch import Tensor

from ._arguments import explained
from ._library import Graph, operators


@explained
def gather_senders(x: Tensor, graph: Graph) -> Tensor:
    """The sender's row of ``x`` for every edge, ``[N, F]`` → ``[E, F]``.

    Differentiable to any order. Its backward pass sums in the order of the edges, so gradients are
    the same bits on every run; indexing a tensor is not, on a GPU.

    Args:
        x: ``[N, F]``, float32 or float64.
        graph: the :class:`molkern.NeighborList` whose edges are meant.

    Raises:
        ValueError: shapes or devices that do not fit together.
        TypeError: types other than those above.

    >>> import torch, molkern
    >>> graph = molkern.NeighborList.from_edge_index(torch.tensor([[2, 0], [0, 1]]), 3)
    >>> molkern.ops.gather_senders(torch.tensor([[1.0], [2.0], [4.0]]), graph)
    tensor([[4.],
            [1.]])
    """
    return _gather(x, graph, receivers=False)


@explained
def gather_receivers(x: Tensor, graph: Graph) -> Tensor:
    """The receiver's row of ``x`` for every edge; otherwise as :func:`gather_senders`."""
    return _gather(x, graph, receivers=True)


def _gather(x: Tensor, graph: Graph, receivers: bool) -> Tensor:
    if x.dim() != 2:
        raise ValueError(f"x must have shape [N, F], got {list(x.shape)}")
    # A product with ones, whose derivatives are there.
    x = x.contiguous()
    pair = (x, torch.ones_like(x)) if receivers else (torch.ones_like(x), x)
    return operators.edge_product(*pair, *graph.by_receiver, *graph.by_sender, graph.padded)


@explained
def sum_edges(values: Tensor, graph: Graph, *, factors: Tensor | None = None) -> Tensor:
    """The sum over the edges that each atom receives, ``[E, F]`` → ``[N, F]``.

    Differentiable to any order; the same bits on every run.

    Args:
        values: ``[E, F]`` in the graph's order, float32 or float64.
        graph: the :class:`molkern.NeighborList` to sum over.
        factors: what the values are multiplied by before, ``[E, F]``; the product is not stored.

    Raises:
        ValueError: shapes or devices that do not fit together.
        TypeError: types other than those above.

    >>> import torch, molkern
    >>> pairs = torch.tensor([[1, 2, 0], [0, 0, 1]])
    >>> graph = molkern.NeighborList.from_edge_index(pairs, 3)
    >>> molkern.ops.sum_edges(torch.tensor([[1.0], [2.0], [4.0]]), graph)
    tensor([[3.],
            [4.],
            [0.]])
    """
    for name, tensor in (("values", values), ("factors", factors)):
        if tensor is not None and tensor.dim() != 2:
            raise ValueError(f"{name} must have shape [E, F], got {list(tensor.shape)}")
    row_ptr = graph.by_receiver[0]
    if factors is None:
        ones = values.new_ones(row_ptr.shape[0] - 1, values.shape[1])
        return operators.cfconv(
            ones, values.contiguous(), *graph.by_receiver, *graph.by_sender, graph.padded
        )
    # A convolution over a graph in which the edges are the senders, each of one receiver.
    edges = graph.receivers.shape[0]
    places = torch.arange(edges + 1, dtype=torch.int32, device=row_ptr.device)
    once = torch.minimum(places, row_ptr[-1]) if graph.padded else places
    return operators.cfconv(
        values.contiguous(),
        factors.contiguous(),
        *(row_ptr, places[:-1], None),
        *(once, graph.receivers, None),
        graph.padded,
    )
