"""From atoms to edges and back, in a fixed order: what layers of edge features are made of."""

import torch
from torch import Tensor

from ._library import Graph, operators


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


def sum_edges(values: Tensor, graph: Graph) -> Tensor:
    """The sum over the edges that each atom receives, ``[E, F]`` → ``[N, F]``.

    Differentiable to any order; the same bits on every run.

    Args:
        values: ``[E, F]`` in the graph's order, float32 or float64.
        graph: the :class:`molkern.NeighborList` to sum over.

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
    if values.dim() != 2:
        raise ValueError(f"values must have shape [E, F], got {list(values.shape)}")
    atoms = graph.by_receiver[0].shape[0] - 1
    ones = values.new_ones(atoms, values.shape[1])
    return operators.cfconv(
        ones, values.contiguous(), *graph.by_receiver, *graph.by_sender, graph.padded
    )
