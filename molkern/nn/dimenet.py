"""DimeNet's layers, and those of DimeNet++: messages on edges that meet at an angle."""

import math

import torch
from torch import Tensor, nn

from .. import ops
from ..graph import NeighborList
from ..ops._arguments import checked, explained
from ..ops._library import keeps_first_only
from ..ops.triplets import ANGLES
from .activations import (
    Dense,
    apply_dense,
    fused_activation,
    is_matrix,
    orthogonal_,
    product_weight,
)
from .activations import activation as activation_layer
from .again import computed_again
from .plain import is_plain
from .triplets import TripletList

OUTPUT_INITS = ("zeros", "glorot_orthogonal")


def glorot_orthogonal_(weight: Tensor, scale: float = 2.0) -> None:
    """Orthogonal rows or columns whose entries have the mean square ``scale / (in + out)``.

    The initialisation of DimeNet's published code; ``weight`` is a matrix.
    """
    rows, columns = weight.shape
    orthogonal_(weight, math.sqrt(scale * max(rows, columns) / (rows + columns)))


def dense(inputs: int, outputs: int, bias: bool = True, activation: str = "none") -> Dense:
    """A fused dense layer, initialised as in DimeNet's published code."""
    layer = Dense(inputs, outputs, bias=bias, activation=activation)
    glorot_orthogonal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class DimeNetEmbedding(nn.Module):
    """First messages: ``m_ji = σ(W [h_i ‖ h_j ‖ σ(W_rbf e_ji + b_rbf)] + b)``.

    Klicpera et al., ICLR 2020, sec. 5, "Embedding block"; h are learned for each element and e is
    the radial basis. The parts of W for h are applied to atoms, not to edges.

    Args:
        num_radial: number of radial functions R.
        hidden_channels: width of the messages F.
        num_elements: size of the embedding; atomic numbers are 0 to ``num_elements − 1``, which is
            not checked: it would wait for the device.
        activation: σ, by the name that :class:`molkern.nn.Dense` knows.

    Shape: numbers ``[N]``, basis ``[E, R]`` in the order of the edges, graph → ``[E, F]``.

    Raises:
        ValueError: a size below 1, or an unknown activation.

    >>> import torch, molkern
    >>> positions = 2 * torch.rand(4, 3)
    >>> graph = molkern.neighbor_list(positions, cutoff=5.0)
    >>> basis = molkern.nn.BesselBasis(6, cutoff=5.0)(graph.distances(positions))
    >>> embedding = molkern.nn.DimeNetEmbedding(6, 128)
    >>> embedding(torch.tensor([6, 1, 1, 8]), basis, graph).shape
    torch.Size([12, 128])
    """

    @checked
    def __init__(
        self,
        num_radial: int,
        hidden_channels: int,
        num_elements: int = 95,
        *,
        activation: str = "silu",
    ):
        super().__init__()
        _check_sizes(num_elements=num_elements)
        self.lin_rbf = dense(num_radial, hidden_channels, activation=activation)
        self.lin = dense(3 * hidden_channels, hidden_channels)
        self.emb = nn.Embedding(num_elements, hidden_channels)
        nn.init.uniform_(self.emb.weight, -math.sqrt(3.0), math.sqrt(3.0))
        self.activation = activation_layer(activation)

    @explained
    def forward(self, numbers: Tensor, basis: Tensor, graph: NeighborList) -> Tensor:
        h = self.emb(numbers)
        if not (is_plain(self.lin, Dense) and fused_activation(self.lin.unfused) == "none"):
            parts = ops.gather_receivers(h, graph), ops.gather_senders(h, graph)
            return self.activation(self.lin(torch.cat([*parts, self.lin_rbf(basis)], 1)))
        weight, width = self.lin.weight, h.shape[1]
        # Not by chunk: torch refuses its views after a step of an optimizer in another thread
        of_receiver, of_sender = weight[:, :width], weight[:, width : 2 * width]
        of_basis = weight[:, 2 * width :]
        receivers = ops.gather_receivers(ops.dense(h, of_receiver, self.lin.bias), graph)
        senders = ops.gather_senders(ops.dense(h, of_sender), graph)
        atoms = receivers + senders
        return self.activation(ops.dense(self.lin_rbf(basis), of_basis, residual=atoms))


class DimeNetResidual(nn.Module):
    """Two activated dense layers beside an identity: ``x + σ(W₂ σ(W₁ x + b₁) + b₂)``.

    Klicpera et al., ICLR 2020, Fig. 4.

    Args:
        channels: width F.
        activation: σ, by name.

    Shape: ``[E, F]`` → ``[E, F]``.

    Raises:
        ValueError: a width below 1, or an unknown activation.

    >>> import torch, molkern
    >>> molkern.nn.DimeNetResidual(128)(torch.rand(12, 128)).shape
    torch.Size([12, 128])
    """

    @checked
    def __init__(self, channels: int, *, activation: str = "silu"):
        super().__init__()
        self.lin1 = dense(channels, channels, activation=activation)
        self.lin2 = dense(channels, channels, activation=activation)

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        """x ``[E, F]``; ``recompute`` as for :func:`molkern.ops.dense_residual`."""
        first, second = self.lin1, self.lin2
        plain = is_matrix(x) and is_plain(first, Dense) and is_plain(second, Dense)
        name = fused_activation(first.unfused) if plain else None
        if name is None or fused_activation(second.unfused) != name:
            return apply_dense(second, first(x), x)
        return ops.dense_residual(
            x,
            first.weight,
            first.bias,
            second.weight,
            second.bias,
            activation=name,
            recompute=recompute,
        )


class _Interaction(nn.Module):
    """What the interaction blocks share: all that happens to one edge alone."""

    #: Whether some residual layers are computed twice rather than kept: a little time where the
    #: bilinear layer takes most of it.
    saves_memory = False

    @checked
    def __init__(
        self,
        hidden_channels: int,
        num_spherical: int,
        num_before_skip: int,
        num_after_skip: int,
        angle: str,
        activation: str,
    ):
        super().__init__()
        for name, count in dict(before=num_before_skip, after=num_after_skip).items():
            if count < 0:
                raise ValueError(f"num_{name}_skip must not be negative, got {count}")
        if angle not in ANGLES:
            raise ValueError(f"angle must be one of {', '.join(map(repr, ANGLES))}, got {angle!r}")
        self.num_spherical, self.angle = num_spherical, angle
        self.lin_kj = dense(hidden_channels, hidden_channels, activation=activation)
        self.lin_ji = dense(hidden_channels, hidden_channels, activation=activation)
        self.layers_before_skip = _residuals(num_before_skip, hidden_channels, activation)
        self.lin = dense(hidden_channels, hidden_channels, activation=activation)
        self.layers_after_skip = _residuals(num_after_skip, hidden_channels, activation)

    def _update(self, messages: Tensor, x: Tensor) -> Tensor:
        """New messages, given the sum of what came from the edge itself and from its neighbors."""
        for layer in self.layers_before_skip:
            x = layer(x)
        x = apply_dense(self.lin, x, messages)
        for layer in self.layers_after_skip:
            own = is_plain(layer, DimeNetResidual)
            x = layer(x, recompute=self.saves_memory) if own else layer(x)
        return x

    def _gated(self, messages: Tensor, basis: Tensor, *layers: nn.Module) -> Tensor:
        """``lin_kj(messages)`` times these layers of the basis, one after the other."""
        if is_plain(self.lin_kj, Dense) and all(product_weight(x) is not None for x in layers):
            product = _weight(layers[0])
            for layer in layers[1:]:
                product = _weight(layer) @ product
            return self.lin_kj(messages, gate=(basis, product))
        for layer in layers:
            basis = layer(basis)
        return self.lin_kj(messages) * basis


class DimeNetInteraction(_Interaction):
    """DimeNet's interaction: messages k→j reach j→i by their distance and angle.

    Klicpera et al., ICLR 2020, eq. 4 and Fig. 4. With ``x_kj = σ(W_kj m_kj + b) ∘ (W_rbf e_kj)``

    ``t_ji[f] = Σ_k Σ_p Σ_g B[f, p, g] (W_sbf a_kji)_p x_kj[g]``,
    ``m_ji ← after(m_ji + σ(W before(σ(W_ji m_ji + b) + t_ji) + b))``

    where k runs over the neighbors of j but for the reverse of j→i, and ``a_kji[l, n]`` is the
    spherical basis: ``spherical[kj, l, n]`` times the Legendre polynomial ``P_l(cos α)``. Triplets
    are not listed, and the bilinear layer B is applied after the sum over k.

    Args:
        hidden_channels: width of the messages F.
        num_bilinear: size of the bilinear layer P.
        num_spherical, num_radial: orders L and functions R of the spherical basis.
        num_before_skip, num_after_skip: number of residual layers, 0 or more.
        angle: where α is taken, see :func:`molkern.ops.triplet_sum`: ``"at_i"`` in the published
            code, ``"kji"`` in the paper.
        activation: σ, by name.

    Shape: messages ``[E, F]``, basis ``[E, R]``, spherical ``[E, L, R]``, vectors ``[E, 3]`` from
    receiver to sender in a unit of length, all in the order of the edges, and graph → ``[E, F]``.

    Raises:
        ValueError: a size below 1, or an unknown angle or activation.

    >>> import torch, molkern
    >>> positions = 2 * torch.rand(4, 3)
    >>> graph = molkern.neighbor_list(positions, cutoff=5.0)
    >>> vectors, d = graph.vectors(positions), graph.distances(positions)
    >>> basis = molkern.nn.BesselBasis(6, cutoff=5.0)(d)
    >>> spherical = molkern.nn.SphericalRadialBasis(7, 6, cutoff=5.0)(d)
    >>> block = molkern.nn.DimeNetInteraction(128)
    >>> block(torch.rand(12, 128), basis, spherical, vectors, graph).shape
    torch.Size([12, 128])
    """

    saves_memory = True

    @checked
    def __init__(
        self,
        hidden_channels: int,
        num_bilinear: int = 8,
        num_spherical: int = 7,
        num_radial: int = 6,
        *,
        num_before_skip: int = 1,
        num_after_skip: int = 2,
        angle: str = "at_i",
        activation: str = "silu",
    ):
        _check_sizes(num_bilinear=num_bilinear, num_spherical=num_spherical, num_radial=num_radial)
        skips = num_before_skip, num_after_skip
        super().__init__(hidden_channels, num_spherical, *skips, angle, activation)
        self.lin_rbf = dense(num_radial, hidden_channels, bias=False)
        self.lin_sbf = dense(num_spherical * num_radial, num_bilinear, bias=False)
        self.bilinear = nn.Parameter(torch.empty(hidden_channels, num_bilinear, hidden_channels))
        nn.init.normal_(self.bilinear, std=2.0 / hidden_channels)

    @explained
    def forward(
        self,
        messages: Tensor,
        basis: Tensor,
        spherical: Tensor,
        vectors: Tensor,
        graph: NeighborList,
    ) -> Tensor:
        if self.sums_by_order():
            return self.from_radial(messages, basis, self.radial(spherical), vectors, graph)
        triplets = TripletList(graph)
        angular = self.lin_sbf(triplets.angular_basis(spherical, vectors, self.angle))
        x_kj = self._gated(messages, basis, self.lin_rbf)
        parts = [triplets.sum(x_kj, column) for column in angular.split(1, 1)]
        return self._after_sum(messages, torch.stack(parts, 1))

    @property
    def radial_layer(self) -> nn.Module:
        """The layer that :meth:`radial` applies."""
        return self.lin_sbf

    def sums_by_order(self) -> bool:
        """Whether the layers of the spherical basis are products, to be taken before the angle."""
        return product_weight(self.lin_sbf) is not None

    def radial(self, spherical: Tensor) -> Tensor:
        """The functions of each order that this block sums: ``[E, L, R]`` → ``[E, L, P]``."""
        return _per_order(spherical, _weight(self.lin_sbf))

    def from_radial(
        self, messages: Tensor, basis: Tensor, radial: Tensor, vectors: Tensor, graph: NeighborList
    ) -> Tensor:
        """The block, given what :meth:`radial` makes of the spherical basis."""
        x_kj = self._gated(messages, basis, self.lin_rbf)
        return self._after_sum(
            messages, ops.triplet_sum(x_kj, radial, vectors, graph, angle=self.angle)
        )

    def _after_sum(self, messages: Tensor, y: Tensor) -> Tensor:
        """New messages from the sums over triplets, ``[E, P, F]``."""
        x = ops.dense(y.flatten(1), self.bilinear.flatten(1), residual=self.lin_ji(messages))
        return self._update(messages, x)


class DimeNetPlusPlusInteraction(_Interaction):
    """DimeNet++'s interaction: as :class:`DimeNetInteraction`, with fewer features in the sum.

    Klicpera et al., arXiv 2011.14115. In place of the bilinear layer

    ``t_ji = σ(W_up Σ_k x_kj ∘ (W_s2 W_s1 a_kji))``,
    ``x_kj = σ(W_down (σ(W_kj m_kj + b) ∘ (W_r2 W_r1 e_kj)))``.

    The two linear maps of a basis are multiplied before they meet an edge.

    Args:
        hidden_channels: width of the messages F.
        int_emb_size: features in the sum over k.
        basis_emb_size: width between the two linear maps of a basis.
        num_spherical, num_radial, num_before_skip, num_after_skip, activation: as in
            :class:`DimeNetInteraction`.
        angle: ``"plusplus"`` in the published code.

    Shape: as :class:`DimeNetInteraction`.

    Raises:
        ValueError: a size below 1, or an unknown angle or activation.

    >>> import torch, molkern
    >>> positions = 2 * torch.rand(4, 3)
    >>> graph = molkern.neighbor_list(positions, cutoff=5.0)
    >>> vectors, d = graph.vectors(positions), graph.distances(positions)
    >>> basis = molkern.nn.BesselBasis(6, cutoff=5.0)(d)
    >>> spherical = molkern.nn.SphericalRadialBasis(7, 6, cutoff=5.0)(d)
    >>> block = molkern.nn.DimeNetPlusPlusInteraction(128)
    >>> block(torch.rand(12, 128), basis, spherical, vectors, graph).shape
    torch.Size([12, 128])
    """

    @checked
    def __init__(
        self,
        hidden_channels: int,
        int_emb_size: int = 64,
        basis_emb_size: int = 8,
        num_spherical: int = 7,
        num_radial: int = 6,
        *,
        num_before_skip: int = 1,
        num_after_skip: int = 2,
        angle: str = "plusplus",
        activation: str = "silu",
    ):
        _check_sizes(
            int_emb_size=int_emb_size,
            basis_emb_size=basis_emb_size,
            num_spherical=num_spherical,
            num_radial=num_radial,
        )
        skips = num_before_skip, num_after_skip
        super().__init__(hidden_channels, num_spherical, *skips, angle, activation)
        self.lin_rbf1 = dense(num_radial, basis_emb_size, bias=False)
        self.lin_rbf2 = dense(basis_emb_size, hidden_channels, bias=False)
        self.lin_sbf1 = dense(num_spherical * num_radial, basis_emb_size, bias=False)
        self.lin_sbf2 = dense(basis_emb_size, int_emb_size, bias=False)
        self.lin_down = dense(hidden_channels, int_emb_size, bias=False, activation=activation)
        self.lin_up = dense(int_emb_size, hidden_channels, bias=False, activation=activation)

    @explained
    def forward(
        self,
        messages: Tensor,
        basis: Tensor,
        spherical: Tensor,
        vectors: Tensor,
        graph: NeighborList,
    ) -> Tensor:
        if self.sums_by_order():
            return self.from_radial(messages, basis, self.radial(spherical), vectors, graph)
        triplets = TripletList(graph)
        angular = triplets.angular_basis(spherical, vectors, self.angle)
        angular = self.lin_sbf2(self.lin_sbf1(angular))
        x_kj = self.lin_down(self._gated(messages, basis, self.lin_rbf1, self.lin_rbf2))
        return self._after_sum(messages, triplets.sum(x_kj, angular))

    @property
    def radial_layer(self) -> nn.Module:
        """The layer that :meth:`radial` applies."""
        return self.lin_sbf1

    def sums_by_order(self) -> bool:
        """Whether the layers of the spherical basis are products, to be taken before the angle."""
        layers = self.lin_sbf1, self.lin_sbf2
        return all(product_weight(layer) is not None for layer in layers)

    def radial(self, spherical: Tensor) -> Tensor:
        """The functions of each order that this block sums: ``[E, L, R]`` → ``[E, L, P]``."""
        return _per_order(spherical, _weight(self.lin_sbf1))

    def from_radial(
        self, messages: Tensor, basis: Tensor, radial: Tensor, vectors: Tensor, graph: NeighborList
    ) -> Tensor:
        """The block, given what :meth:`radial` makes of the spherical basis."""
        x_kj = self.lin_down(self._gated(messages, basis, self.lin_rbf1, self.lin_rbf2))
        weight = _weight(self.lin_sbf2)
        return self._after_sum(
            messages, ops.triplet_sum(x_kj, radial, vectors, graph, weight, angle=self.angle)
        )

    def _after_sum(self, messages: Tensor, y: Tensor) -> Tensor:
        """New messages from the sums over triplets."""
        return self._update(messages, apply_dense(self.lin_up, y, self.lin_ji(messages)))


class _Output(nn.Module):
    """What the output blocks share: the sum over edges, and dense layers of some width."""

    #: Whether the factors of the messages, as large as they are, are computed twice.
    saves_memory = False

    @checked
    def __init__(
        self,
        num_radial: int,
        hidden_channels: int,
        width: int,
        num_targets: int,
        num_layers: int,
        activation: str,
        output_init: str,
    ):
        super().__init__()
        if output_init not in OUTPUT_INITS:
            raise ValueError(
                f"output_init must be 'zeros' or 'glorot_orthogonal', got {output_init!r}"
            )
        if num_layers < 0:
            raise ValueError(f"num_layers must not be negative, got {num_layers}")
        self.lin_rbf = dense(num_radial, hidden_channels, bias=False)
        self.lins = nn.ModuleList(
            dense(width, width, activation=activation) for _ in range(num_layers)
        )
        self.lin = dense(width, num_targets, bias=False)
        if output_init == "zeros":
            nn.init.zeros_(self.lin.weight)

    @explained
    def forward(self, messages: Tensor, basis: Tensor, graph: NeighborList) -> Tensor:
        # What is computed again would be called again
        if self.saves_memory and keeps_first_only() and is_plain(self.lin_rbf, Dense):
            x = computed_again(lambda m, b: self._sum(m, b, graph), messages, basis)
        else:
            x = self._sum(messages, basis, graph)
        x = self._widen(x)
        for layer in self.lins:
            x = layer(x)
        return self.lin(x)

    def _sum(self, messages: Tensor, basis: Tensor, graph: NeighborList) -> Tensor:
        return ops.sum_edges(messages, graph, factors=self.lin_rbf(basis))

    def _widen(self, x: Tensor) -> Tensor:
        return x


class DimeNetOutput(_Output):
    """What the messages say about each atom: ``W_out f(Σ_{j→i} (W_rbf e_ji) ∘ m_ji)``.

    Klicpera et al., ICLR 2020, sec. 5, "Output block"; f is a few activated dense layers.

    Args:
        num_radial: number of radial functions R.
        hidden_channels: width of the messages F.
        num_targets: outputs T.
        num_layers: number of dense layers, 0 or more.
        activation: theirs, by name.
        output_init: of the last layer, which has no bias: ``"zeros"`` or ``"glorot_orthogonal"``.

    Shape: messages ``[E, F]``, basis ``[E, R]`` in the order of the edges, graph → ``[N, T]``.

    Raises:
        ValueError: a size below 1, or an unknown activation or initialisation.

    >>> import torch, molkern
    >>> positions = 2 * torch.rand(4, 3)
    >>> graph = molkern.neighbor_list(positions, cutoff=5.0)
    >>> basis = molkern.nn.BesselBasis(6, cutoff=5.0)(graph.distances(positions))
    >>> output = molkern.nn.DimeNetOutput(6, 128, num_targets=2)
    >>> output(torch.rand(12, 128), basis, graph).shape
    torch.Size([4, 2])
    """

    saves_memory = True

    @checked
    def __init__(
        self,
        num_radial: int,
        hidden_channels: int,
        num_targets: int = 1,
        num_layers: int = 3,
        *,
        activation: str = "silu",
        output_init: str = "zeros",
    ):
        sizes = hidden_channels, hidden_channels, num_targets, num_layers
        super().__init__(num_radial, *sizes, activation, output_init)


class DimeNetPlusPlusOutput(_Output):
    """DimeNet++'s output: as :class:`DimeNetOutput`, with a wider network per atom.

    Klicpera et al., arXiv 2011.14115: a linear layer without bias goes from F to ``out_emb_size``
    features before the dense layers.

    Args:
        num_radial: number of radial functions R.
        hidden_channels: width of the messages F.
        out_emb_size: width of the dense layers.
        num_targets, num_layers, activation, output_init: as in :class:`DimeNetOutput`.

    Shape: as :class:`DimeNetOutput`.

    Raises:
        ValueError: a size below 1, or an unknown activation or initialisation.

    >>> import torch, molkern
    >>> positions = 2 * torch.rand(4, 3)
    >>> graph = molkern.neighbor_list(positions, cutoff=5.0)
    >>> basis = molkern.nn.BesselBasis(6, cutoff=5.0)(graph.distances(positions))
    >>> output = molkern.nn.DimeNetPlusPlusOutput(6, 128, 256)
    >>> output(torch.rand(12, 128), basis, graph).shape
    torch.Size([4, 1])
    """

    @checked
    def __init__(
        self,
        num_radial: int,
        hidden_channels: int,
        out_emb_size: int = 256,
        num_targets: int = 1,
        num_layers: int = 3,
        *,
        activation: str = "silu",
        output_init: str = "zeros",
    ):
        sizes = hidden_channels, out_emb_size, num_targets, num_layers
        super().__init__(num_radial, *sizes, activation, output_init)
        self.lin_up = dense(hidden_channels, out_emb_size, bias=False)

    def _widen(self, x: Tensor) -> Tensor:
        return self.lin_up(x)


def _weight(layer: nn.Module) -> Tensor:
    weight = product_weight(layer)
    if weight is None:
        raise RuntimeError("the layer is more than a product: see sums_by_order")
    return weight


def _per_order(spherical: Tensor, weight: Tensor) -> Tensor:
    """Σ_n spherical[e, l, n] weight[p, l R + n]: ``[E, L, R]``, ``[P, L R]`` → ``[E, L, P]``.

    One product with a matrix that is diagonal in l; the zeros in it cost less than the copies of
    one product for each l.
    """
    orders, functions = spherical.shape[1:]
    blocks = weight.unflatten(1, (orders, functions)).permute(2, 0, 1).diag_embed()  # [R, P, L, L]
    matrix = blocks.permute(3, 1, 2, 0).reshape(-1, orders * functions)  # [L P, L R]
    return ops.dense(spherical.flatten(1), matrix).unflatten(1, (orders, -1))


def _residuals(count: int, channels: int, activation: str) -> nn.ModuleList:
    return nn.ModuleList(DimeNetResidual(channels, activation=activation) for _ in range(count))


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
