"""SchNet's layers: the filter network, the convolution and the interaction block."""

import math

from torch import Tensor, nn

from ..graph import NeighborList
from ..ops._arguments import checked, explained
from .activations import activation, dense
from .basis import CutoffFunction
from .fixed import FixedModule
from .splines import SplineFilter, convolve


class FilterNetwork(FixedModule):
    """Filters from a radial basis: ``dense, activation, dense [, activation]``, times cutoff.

    Schütt et al., J. Chem. Phys. 148, 241722 (2018), Fig. 2; the published code has the second
    activation, SchNetPack and PyTorch Geometric have a cutoff function instead.

    Args:
        num_basis: number of radial functions K.
        num_filters: number of filters F.
        cutoff: range of the cutoff function.
        activation_name: ``"ssp"``, ``"tanh"`` or ``"silu"``.
        cutoff_function: ``"cosine"`` or another one; ``"none"`` is a hard cutoff.
        final_activation: whether the second layer is activated too.
        final_bias: whether the second layer has a bias.

    Raises:
        ValueError: a width below 1, a cutoff that is not positive and finite, or an unknown
            activation or cutoff function.

    >>> import torch, molkern
    >>> d = torch.rand(7)
    >>> basis = molkern.nn.GaussianBasis(50, cutoff=5.0)
    >>> molkern.nn.FilterNetwork(50, 128, cutoff=5.0)(basis(d), d).shape
    torch.Size([7, 128])
    """

    fixed = frozenset({"cutoff"})

    @checked
    def __init__(
        self,
        num_basis: int,
        num_filters: int,
        cutoff: float,
        *,
        activation_name: str = "ssp",
        cutoff_function: str = "cosine",
        final_activation: bool = False,
        final_bias: bool = True,
    ):
        super().__init__()
        self.layers = nn.Sequential(
            dense(num_basis, num_filters),
            activation(activation_name),
            dense(num_filters, num_filters, bias=final_bias),
        )
        if final_activation:
            self.layers.append(activation(activation_name))
        self.cutoff = float(cutoff)
        function = CutoffFunction(cutoff_function, cutoff)
        self.cutoff_function = None if cutoff_function == "none" else function

    def forward(self, basis: Tensor, distances: Tensor) -> Tensor:
        """basis ``[E, K]``, distances ``[E]`` → filters ``[E, F]``."""
        filters = self.layers(basis)
        if self.cutoff_function is None:  # a list may reach farther than the model
            return filters * (distances < self.cutoff).unsqueeze(1)
        return filters * self.cutoff_function(distances)


class CFConv(FixedModule):
    """Continuous-filter convolution between two dense layers: ``W_out Σ_j (W_in x_j) ∘ w_ij + b``.

    Takes the place of PyTorch Geometric's and SchNetPack's layer where filters are at hand.

    Args:
        in_channels, num_filters, out_channels: widths before, in and after the convolution.
        aggregation: ``"sum"`` or ``"mean"`` over neighbors.

    Raises:
        ValueError: a width below 1, or an unknown aggregation.

    >>> import torch, molkern
    >>> pairs = torch.tensor([[0, 1], [1, 0]])
    >>> graph = molkern.NeighborList.from_edge_index(pairs, num_atoms=2)
    >>> conv = molkern.nn.CFConv(16, 32, 16)
    >>> conv(torch.rand(2, 16), torch.rand(2, 32), graph).shape
    torch.Size([2, 16])
    """

    fixed = frozenset({"aggregation"})

    @checked
    def __init__(
        self, in_channels: int, num_filters: int, out_channels: int, *, aggregation: str = "sum"
    ):
        super().__init__()
        if aggregation not in ("sum", "mean"):
            raise ValueError(f"aggregation must be 'sum' or 'mean', got {aggregation!r}")
        self.lin_in = dense(in_channels, num_filters, bias=False)
        self.lin_out = dense(num_filters, out_channels)
        self.aggregation = aggregation

    @explained
    def forward(
        self,
        x: Tensor,
        filters: Tensor | SplineFilter,
        neighbors: NeighborList,
        counts: Tensor | None = None,
    ) -> Tensor:
        """x ``[N, in]``, filters ``[E, F]`` in the order of ``neighbors`` → ``[N, out]``.

        Filters may also be splines. A mean is over all neighbors in the list, or over ``counts``
        ``[N]`` of them.
        """
        summed = convolve(
            self.lin_in(x), filters, neighbors, aggregation=self.aggregation, counts=counts
        )
        return self.lin_out(summed)


class SchNetInteraction(nn.Module):
    """SchNet's interaction block: ``x + W₂ a(W₁ Σ_j (W_in x_j) ∘ W(d_ij) + b₁) + b₂``.

    Schütt et al., J. Chem. Phys. 148, 241722 (2018), Fig. 2.

    Args:
        hidden_channels: width of the atoms' features.
        num_filters: width of the convolution.
        filter_network: makes filters from a basis, see :class:`FilterNetwork`.
        activation_name: activation a.
        aggregation: ``"sum"`` or ``"mean"`` over neighbors.

    Raises:
        ValueError: a width below 1, or an unknown activation or aggregation.

    >>> import torch, molkern
    >>> x = torch.rand(3, 16)
    >>> neighbors = molkern.neighbor_list(torch.rand(3, 3), cutoff=5.0)
    >>> d = torch.rand(6)
    >>> network = molkern.nn.FilterNetwork(8, 32, cutoff=5.0)
    >>> block = molkern.nn.SchNetInteraction(16, 32, network)
    >>> block(x, torch.rand(6, 8), d, neighbors).shape
    torch.Size([3, 16])
    """

    @checked
    def __init__(
        self,
        hidden_channels: int,
        num_filters: int,
        filter_network: FilterNetwork,
        *,
        activation_name: str = "ssp",
        aggregation: str = "sum",
    ):
        super().__init__()
        self.aggregation = aggregation
        self.cutoff = float(getattr(filter_network, "cutoff", math.inf))
        self.filter_network = filter_network
        self.conv = CFConv(hidden_channels, num_filters, hidden_channels, aggregation=aggregation)
        self.activation = activation(activation_name)
        self.lin = dense(hidden_channels, hidden_channels)

    @explained
    def forward(
        self,
        x: Tensor,
        basis: Tensor | SplineFilter,
        distances: Tensor,
        neighbors: NeighborList,
    ) -> Tensor:
        """x ``[N, C]``, basis ``[E, K]``, distances ``[E]`` → ``[N, C]``.

        The filters as splines may take the place of the basis that they are made from.
        """
        spline = isinstance(basis, SplineFilter)
        filters = basis if spline else self.filter_network(basis, distances)
        counts = None
        # Of the layers, if they still have these, or as they were made
        if getattr(self.conv, "aggregation", self.aggregation) == "mean":
            # A list may reach farther than the model
            reach = getattr(self.filter_network, "cutoff", self.cutoff)
            counts = neighbors.counts(distances < reach)
        return x + self.lin(self.activation(self.conv(x, filters, neighbors, counts)))
