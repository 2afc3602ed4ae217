"""PyTorch Geometric's DimeNet and DimeNet++ on a graph that they are given.

Their own ``forward`` searches neighbors without periodicity and excludes triplets by atom numbers.
Here their layers, unchanged and in their order, run on a graph and triplets made beforehand, which
is to their advantage: neither is in the time that is measured.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.nn import DimeNetPlusPlus
from torch_geometric.nn.models import dimenet

import molkern

# Without weights, and made by sympy, which takes many seconds: one for all models.
dimenet.SphericalBasisLayer = functools.cache(dimenet.SphericalBasisLayer)


class GivenTriplets(NamedTuple):
    """What PyTorch Geometric keeps of a graph: edges j→i and triplets k→j→i, as int64."""

    senders: Tensor
    receivers: Tensor
    kj: Tensor
    ji: Tensor

    @classmethod
    def of(cls, neighbors: molkern.NeighborList) -> "GivenTriplets":
        senders, receivers = neighbors.edge_index
        row_ptr = neighbors.row_ptr.long()
        degrees = (row_ptr[1:] - row_ptr[:-1])[senders]
        ji = torch.repeat_interleave(degrees)
        first = degrees.cumsum(0) - degrees
        kj = row_ptr[senders][ji] + torch.arange(len(ji)) - first[ji]
        kept = kj != neighbors.reverse_edges().long()[ji]
        return cls(senders, receivers, kj[kept], ji[kept])


def energies(
    model: torch.nn.Module,
    numbers: Tensor,
    vectors: Tensor,
    graph: GivenTriplets,
    systems: Tensor | None = None,
) -> Tensor:
    """The model's property per system, ``[B, T]`` (``[T]`` without systems)."""
    senders, receivers, kj, ji = graph
    distances = vectors.pow(2).sum(dim=-1).sqrt()
    first, second = vectors[ji], vectors[kj]
    if not isinstance(model, DimeNetPlusPlus):
        second = first + second
    cosine = (first * second).sum(dim=-1)
    sine = torch.cross(first, second, dim=1).norm(dim=-1)
    rbf = model.rbf(distances)
    sbf = model.sbf(distances, torch.atan2(sine, cosine), kj)
    x = model.emb(numbers, rbf, receivers, senders)
    total = model.output_blocks[0](x, rbf, receivers, num_nodes=len(numbers))
    for block, output in zip(model.interaction_blocks, model.output_blocks[1:], strict=True):
        x = block(x, rbf, sbf, kj, ji)
        total = total + output(x, rbf, receivers, num_nodes=len(numbers))
    if systems is None:
        return total.sum(dim=0)
    count = int(systems[-1]) + 1
    return total.new_zeros(count, total.shape[1]).index_add(0, systems, total)
