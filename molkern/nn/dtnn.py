"""DTNN's interaction."""

import torch
from torch import Tensor, nn

from .. import ops
from ..graph import NeighborList
from ..ops._arguments import checked, explained
from .activations import dense, product_weight
from .splines import SplineFilter


class DTNNInteraction(nn.Module):
    """DTNN's interaction: ``c_i + Σ_j tanh(W_fc ((W_cf c_j + b) ∘ f_ij))``.

    Schütt et al., Nat. Commun. 8, 13890 (2017). There is no bias inside the tanh, so factors
    of zero are a message of zero. Sums follow the order of the edges: the same bits on every run.
    Memory for a step grows with E × (factors + hidden_channels), but for factors that are splines:
    then nothing of that size exists.

    Args:
        hidden_channels: width of the atoms' features.
        num_factors: width in which features and distances meet.
        zero_start: whether ``W_fc`` starts at zero, as in the authors' code, so that a new model
            has no interactions.

    Raises:
        ValueError: a width below 1.

    >>> import torch, molkern
    >>> neighbors = molkern.neighbor_list(torch.rand(3, 3), cutoff=5.0)
    >>> block = molkern.nn.DTNNInteraction(30, 60)
    >>> block(torch.rand(3, 30), torch.rand(6, 60), neighbors).shape
    torch.Size([3, 30])
    """

    @checked
    def __init__(self, hidden_channels: int, num_factors: int, *, zero_start: bool = True):
        super().__init__()
        self.lin_in = dense(hidden_channels, num_factors)
        self.lin_out = dense(num_factors, hidden_channels, bias=False)
        if zero_start:
            nn.init.zeros_(self.lin_out.weight)

    @explained
    def forward(self, x: Tensor, factors: Tensor | SplineFilter, neighbors: NeighborList) -> Tensor:
        """x ``[N, C]``, factors of the distances ``[E, F]``, or as splines → ``[N, C]``."""
        if isinstance(factors, SplineFilter):
            weight = product_weight(self.lin_out)
            if weight is not None:
                return x + ops.dtnn_message(
                    self.lin_in(x),
                    factors.table,
                    factors.distances,
                    weight,
                    neighbors,
                    factors.grid,
                    bins=factors.bins,
                )
            factors = factors.values()
        senders = ops.gather_senders(self.lin_in(x), neighbors)
        messages = torch.tanh(self.lin_out(senders * factors))
        return x + ops.sum_edges(messages, neighbors)
