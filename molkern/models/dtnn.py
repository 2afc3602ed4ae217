"""DTNN (Schütt et al., Nat. Commun. 8, 13890 (2017)) as in the authors' code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import AtomicBatch, NeighborList
from ..nn import AtomicReference, AtomwiseHead, DTNNInteraction, GaussianBasis, SplineFilter
from ..nn.activations import dense, product_weight, smooth_activations
from ..nn.heads import per_atom
from ..nn.plain import is_plain
from ..nn.precision import network_tensor
from ..ops._arguments import checked
from ..ops._library import is_recorded
from .arguments import arguments_are_fixed
from .checks import check_sizes
from .potential import Potential
from .readout import Readout
from .structure import Structure, largest_extent


@arguments_are_fixed
class DTNN(Potential):
    """DTNN, the deep tensor neural network: every pair of atoms exchanges messages.

    With ``f_ij = W_df g(d_ij) + b`` from Gaussians ``g_k = exp(−(d − μ_k)² / (2σ²))``, computed
    once, T passes that share all weights do

    ``c_i ← c_i + Σ_{j≠i} tanh( W_fc ((W_cf c_j + b) ∘ f_ij) )``,

    and a dense head makes energies: ``E = Σ_i scale · ŷ_i + mean + E0[Z_i]``. Schütt et al.,
    Nat. Commun. 8, 13890 (2017). By default everything is as in the authors' code: 100
    centres from 0 to 20 Å (the paper has them from −1 Å on by 0.2 Å: ``num_basis=106,
    first_center=-1.0``), σ = 0.2 Å, and ``W_fc`` and the head's last layer start at zero, so that
    a new model gives ``Σ_i mean + E0[Z_i]``.

    **Without periodicity there is no cutoff.** All pairs of a molecule interact at any distance;
    far apart ``f_ij`` is the bias b, not zero. The cost is quadratic in the atoms of a system, and
    a system's energy is that of its parts only as far as the weights learned it.

    **In a periodic system** each image closer than ``cutoff`` is an edge of its own, an atom's own
    images too, with a hard cutoff, and the energy does not change when an atom moves to another
    cell. The authors' code does otherwise: it adds up the Gaussians of all images of a pair before
    ``W_df``, so that a pair has one message whatever the number of images; it leaves out an
    atom's own images; and it takes whole cells on either side, ``floor(cutoff / height)`` of them,
    for positions as given. The two agree where no image is in reach, not otherwise, and weights
    trained there on crystals have another meaning here.

    Args:
        hidden_channels: features per atom.
        num_factors: width in which features and distances meet.
        num_interactions: number of passes T.
        num_basis: number of Gaussians.
        cutoff: last centre (unless given), and range of periodic systems, in the unit of the
            positions.
        num_elements: size of the embedding; atomic numbers are 0 to ``num_elements − 1``.
        first_center, last_center: of the Gaussians.
        width: their standard deviation σ.
        head_hidden: widths of the head's tanh layers; by default ``[hidden_channels // 2]``.
        zero_start: whether ``W_fc`` and the head's last layer start at zero.
        scale, mean, reference: see :class:`molkern.nn.AtomicReference`; ``reference`` here is the
            list of energies by atomic number, at least ``num_elements`` of them.
        trainable_reference: whether the references are parameters.
        filters, spline_tolerance: of ``f_ij``, see :class:`molkern.models.Potential`. Splines end
            nine widths beyond the last centre, where the Gaussians are nothing but rounding; beyond
            that ``f_ij`` is the bias.
        prediction: ``"energy"``, or for molecules ``"dipole_moment"`` or
            ``"electronic_spatial_extent"``, as in :class:`molkern.models.SchNet`.
        readout: ``"sum"`` of the atoms' energies, or their ``"mean"`` for a property that does not
            grow with the system, which comes out as ``"energy"`` too.

    Raises:
        ValueError: a size below 1, a cutoff or width that is not positive and finite, centres that
            do not ascend, too few references, an unknown prediction or readout, or the mean of
            another prediction than an energy.

    >>> import torch, molkern
    >>> model = molkern.models.DTNN()
    >>> sum(p.numel() for p in model.parameters())
    10801
    >>> water = molkern.AtomicBatch(
    ...     torch.tensor([8, 1, 1]), torch.tensor([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    ... )
    >>> out = model(water, forces=True)
    >>> out["energy"].shape, out["forces"].shape
    (torch.Size([1]), torch.Size([3, 3]))
    """

    fixed = frozenset({"reach"})
    num_interactions: int
    #: Beyond it factors are the bias.
    reach: float

    @checked
    def __init__(
        self,
        hidden_channels: int = 30,
        num_factors: int = 60,
        num_interactions: int = 3,
        num_basis: int = 100,
        cutoff: float = 20.0,
        *,
        num_elements: int = 20,
        first_center: float = 0.0,
        last_center: float | None = None,
        width: float = 0.2,
        head_hidden: Sequence[int] | None = None,
        zero_start: bool = True,
        scale: float = 1.0,
        mean: float = 0.0,
        reference: Sequence[float] | None = None,
        trainable_reference: bool = False,
        filters: str = "exact",
        spline_tolerance: float | None = None,
        prediction: str = "energy",
        readout: str = "sum",
    ):
        cutoff, width, first_center = float(cutoff), float(width), float(first_center)
        last_center = None if last_center is None else float(last_center)
        scale, mean = float(scale), float(mean)
        head_hidden = None if head_hidden is None else list(head_hidden)
        reference = None if reference is None else [float(value) for value in reference]
        # Before any other variable: what locals() has here is what a saved model is rebuilt from
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        self.remember(**config)
        check_sizes(
            config,
            "hidden_channels",
            "num_factors",
            "num_interactions",
            "num_basis",
            "num_elements",
        )
        for name in ("cutoff", "width"):
            if not 0 < config[name] < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {config[name]}")
        last = cutoff if last_center is None else last_center
        if not -math.inf < first_center < last < math.inf:
            raise ValueError(
                f"centres must ascend from the first to the last, got {first_center} and {last}"
            )
        self._fix(cutoff=cutoff, num_elements=num_elements)
        self._fix(reach=max(cutoff, last + 9 * width), num_interactions=num_interactions)
        self.embedding = nn.Embedding(num_elements, hidden_channels)
        nn.init.normal_(self.embedding.weight, std=hidden_channels**-0.25)
        self.basis = GaussianBasis(
            num_basis, last, start=first_center, coefficient=0.5 / width**2, cutoff_function="none"
        )
        self.lin_distance = dense(num_basis, num_factors)
        self.interaction = DTNNInteraction(hidden_channels, num_factors, zero_start=zero_start)
        self.head = AtomwiseHead(hidden_channels, head_hidden, activation_name="tanh")
        if zero_start:
            last_layer: Any = self.head.layers[-1]
            nn.init.zeros_(last_layer.weight)
        self.reference = AtomicReference(scale, mean, reference, trainable=trainable_reference)
        self.readout = Readout(prediction, readout=readout)
        self.differentiated = prediction

    def list_cutoff(self, batch: AtomicBatch) -> float:
        """Beyond all pairs of systems that are not periodic; at least the cutoff.

        In a batch of both the list reaches as far for the periodic ones as for the largest of the
        others. Waits for the device.
        """
        return max(self.cutoff, largest_extent(batch))

    def predict(self, structure: Structure, **_conditions: Any) -> dict[str, Tensor]:
        neighbors = structure.neighbors
        distances = structure.distances()
        reached = self._reached(structure, distances)
        if reached is not None and not self._messages_end() and neighbors.can_be_cut:
            keep = reached | reached[neighbors.reverse_edges().long()]
            neighbors, distances, reached = neighbors.only(keep), distances[keep], reached[keep]
        factors = self._factors(distances, reached, neighbors)
        x = self.embedding(structure.numbers)
        for _ in range(self.num_interactions):
            x = self.interaction(x, factors, neighbors)
        values = per_atom(self.head(x), structure.numbers)
        return self.readout(self.reference(values, structure.numbers), structure)

    def _factors(
        self, distances: Tensor, reached: Tensor | None, neighbors: NeighborList
    ) -> Tensor | SplineFilter:
        """``f_ij`` of the edges, ``[E, K]`` or splines, zero where they are not reached."""
        # Zero beyond the knots, where what does not count is put; what counts is kept below
        below = self.reach * (1 - 2 * torch.finfo(distances.dtype).eps)
        held = distances.clamp(max=below)
        if reached is not None:
            held = held.masked_fill(~reached, math.inf)
        splines = self.spline_filters(held, neighbors)
        if splines is not None:
            return splines[0]
        factors = self.lin_distance(self.basis(distances))
        return factors if reached is None else factors * reached.unsqueeze(1)

    def _messages_end(self) -> bool:
        """Whether factors of zero are known to be messages of zero."""
        block = self.interaction
        return is_plain(block, DTNNInteraction) and product_weight(block.lin_out) is not None

    def filter_values(self, distances: Tensor) -> list[Tensor]:
        with smooth_activations():
            return [self.lin_distance(self.basis(distances).to(network_tensor(self).dtype))]

    def filter_modules(self) -> list[nn.Module]:
        return [self.basis, self.lin_distance]

    def spline_obstacle(self) -> str:
        plain = is_plain(self.interaction, DTNNInteraction)
        return "" if plain else "the interaction is replaced, wrapped or hooked"

    def filter_span(self) -> tuple[float, float, bool]:
        return 0.0, self.reach, True

    def _reached(self, structure: Structure, distances: Tensor) -> Tensor | None:
        """Which edges count, ``[E]``: a list may reach farther than a periodic system does."""
        batch = structure.batch
        if batch.pbc is None:
            return None
        within = distances < self.cutoff
        open_systems = ~batch.pbc.any(1)
        if batch.batch is None:
            return within | open_systems
        return within | open_systems[batch.batch][structure.neighbors.receivers.long()]

    def _check_reach(self, batch: AtomicBatch, neighbors: NeighborList) -> None:
        """Open systems need all their pairs, periodic ones a list that reaches the cutoff."""
        periodic = None if batch.pbc is None else batch.pbc.any(1)
        if periodic is not None and bool(periodic.any()):
            self._require_cutoff(neighbors, self.cutoff)
        if neighbors.cutoff is None:
            return  # a graph of the user's own
        if is_recorded(batch.positions):
            return
        ends = neighbors.row_ptr[batch.system_ptr.long()].long()
        atoms = batch.system_ptr.long().diff()
        missing = ends.diff() < atoms * (atoms - 1)
        if periodic is not None:
            missing = missing & ~periodic
        if bool(missing.any()):
            system = int(missing.nonzero()[0])
            raise ValueError(
                f"the neighbor list with cutoff {neighbors.cutoff} lacks pairs of system {system}, "
                "but DTNN has no cutoff in systems that are not periodic: leave the list out, or "
                "make it with model.neighbors(batch)"
            )

    def extra_repr(self) -> str:
        return (
            f"passes={self.num_interactions}, "
            f"parameters={sum(p.numel() for p in self.parameters()):,}"
        )
