"""Triplets as a list, for layers that have to be called for each of them."""

import torch
from torch import Tensor

from .. import ops
from ..graph import NeighborList


class TripletList:
    """The triplets k→j→i of a graph: pairs of an edge k→j and an edge j→i but for its reverse.

    In the order of the edges j→i. :func:`molkern.ops.triplet_sum` sums the same without a list; it
    takes the first linear map of the angular basis as a matrix.

    Args:
        graph: the list of edges; one with a capacity is waited for.
    """

    def __init__(self, graph: NeighborList):
        row_ptr, edges = graph.row_ptr.long(), graph.num_edges
        senders = graph.senders[:edges].long()
        counts = row_ptr.diff()[senders]  # of edges that the sender receives
        ends = counts.cumsum(0)
        out = torch.repeat_interleave(torch.arange(edges, device=senders.device), counts)
        place = torch.arange(len(out), device=senders.device) - (ends - counts)[out]
        into = row_ptr[senders[out]] + place
        keep = into != graph.reverse_edges()[:edges].long()[out]
        #: Edges k→j and j→i of each triplet, ``[T]``.
        self.into, self.out = into[keep], out[keep]
        kept = torch.bincount(self.out, minlength=graph.senders.shape[0])
        self._ptr = torch.cat([kept.new_zeros(1), kept.cumsum(0)]).int()

    def angular_basis(self, spherical: Tensor, vectors: Tensor, angle: str) -> Tensor:
        """DimeNet's spherical basis: ``[E, L, R]`` → ``[T, L R]``.

        ``spherical[kj, l, n] P_l(cos α)`` with vectors ``[E, 3]`` and the angle by its name, see
        :func:`molkern.ops.triplet_sum`.
        """
        to_k, to_j = vectors[self.into], vectors[self.out]
        first, second = {
            "kji": (-to_j, to_k),
            "plusplus": (to_j, to_k),
            "at_i": (to_j, to_j + to_k),
        }[angle]
        lengths = ops.geometry.edge_norm(first) * ops.geometry.edge_norm(second)
        cosines = (first * second).sum(1) / torch.where(lengths == 0, 1, lengths)
        polynomials = legendre(cosines, spherical.shape[1])
        # An edge of length zero has no direction: only order 0 counts
        counts = (lengths > 0).unsqueeze(1).expand_as(polynomials[:, 1:])
        polynomials = torch.cat([polynomials[:, :1], polynomials[:, 1:] * counts], 1)
        return (spherical[self.into] * polynomials.unsqueeze(2)).flatten(1)

    def sum(self, x: Tensor, weights: Tensor) -> Tensor:
        """``Σ_kj x[kj] ∘ w[kji]`` per edge j→i: x ``[E, F]``, w ``[T, F or 1]`` → ``[E, F]``."""
        return ops.segment_sum((x[self.into] * weights).contiguous(), self._ptr)


def legendre(x: Tensor, orders: int) -> Tensor:
    """Legendre polynomials P_0(x) … P_{orders−1}(x), in a new last dimension."""
    values = [torch.ones_like(x), x]
    for order in range(2, orders):
        values.append(((2 * order - 1) * x * values[-1] - (order - 1) * values[-2]) / order)
    return torch.stack(values[:orders], -1)
