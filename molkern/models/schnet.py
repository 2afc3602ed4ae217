"""SchNet (Schütt et al., J. Chem. Phys. 148, 241722 (2018)) in its published variants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..nn import (
    AtomicReference,
    AtomwiseHead,
    CFConv,
    CutoffFunction,
    ExponentialBasis,
    FilterNetwork,
    GaussianBasis,
    SchNetInteraction,
)
from ..nn.activations import smooth_activations
from ..nn.heads import per_atom
from ..nn.plain import is_plain
from ..nn.precision import network_tensor
from ..ops._arguments import checked
from ..ops.splines import SplineGrid
from .arguments import arguments_are_fixed
from .checks import check_sizes
from .lean import LeanSchNet
from .potential import Potential
from .readout import Readout
from .structure import Structure


@arguments_are_fixed
class SchNet(Potential):
    """SchNet: continuous-filter convolutions over neighbors, energies as sums over atoms.

    ``x_i ← x_i + W₂ a(W₁ Σ_j (W_in x_j) ∘ W(d_ij) + b₁) + b₂``, T times, then a dense head per
    atom: ``E = Σ_i scale · ŷ_i + mean + E0[Z_i]``. Schütt et al.,
    J. Chem. Phys. 148, 241722 (2018).

    By default the variant of PyTorch Geometric and SchNetPack (Gaussians scaled by their spacing,
    cosine cutoff, linear second filter layer); :meth:`official` makes the one of the 2018 code.

    Args:
        hidden_channels: features per atom.
        num_filters: width of the convolution.
        num_interactions: number of interaction blocks T.
        num_basis: number of radial functions K.
        cutoff: in the unit of the positions.
        num_elements: size of the embedding; atomic numbers are 0 to ``num_elements − 1``.
        basis: ``"gaussian"``, or ``"exponential"`` (with its cosine cutoff, as in mlcg).
        gaussian_coefficient: γ of the Gaussians, where it does not follow from the spacing.
        cutoff_function: of the filters, ``"cosine"``, ``"none"`` or another one.
        activation: ``"ssp"``, ``"tanh"`` or ``"silu"``; also ``"ssp_official"`` and ``"ssp_pyg"``,
            see :class:`molkern.nn.ShiftedSoftplus`.
        head_activation: of the head; by default ``activation``.
        head_hidden: widths of the head's activated layers; by default ``[hidden_channels // 2]``.
        filter_activation: whether the second filter layer is activated too.
        filter_bias: whether the second filter layer has a bias.
        head_bias: whether the last layer has a bias.
        aggregation: ``"sum"`` or ``"mean"`` over neighbors.
        scale, mean, reference: see :class:`molkern.nn.AtomicReference`; ``reference`` here is the
            list of energies by atomic number, at least ``num_elements`` of them.
        trainable_reference: whether the references are parameters.
        prediction: ``"energy"``, ``"dipole_moment"`` or ``"electronic_spatial_extent"``. The last
            two, for molecules, take the number of each atom for a charge q_i, see
            :class:`molkern.nn.DipoleMoment` and :class:`molkern.nn.ElectronicSpatialExtent`; then
            the model returns ``{"dipole_moment": [B], "dipole": [B, 3], "charges": [N]}`` or
            ``{"electronic_spatial_extent": [B]}``, and ``forces=True`` adds minus its gradient.
        trainable_basis: whether centres and widths of the basis are parameters.
        basis_cutoff_function: of the basis itself; by default ``"none"`` for the Gaussians and
            ``"cosine"`` for the exponential basis.
        filters, spline_tolerance: see :class:`molkern.models.Potential`.
        readout: ``"sum"`` of the atoms' energies, or their ``"mean"`` for a property that does not
            grow with the system, which comes out as ``"energy"`` too.

    Raises:
        ValueError: a size below 1, a cutoff that is not positive and finite, too few references,
            an unknown basis, cutoff function, activation, aggregation, prediction or readout, or
            the mean of another prediction than an energy.

    >>> import torch, molkern
    >>> model = molkern.models.SchNet(hidden_channels=16, num_filters=16, num_interactions=2)
    >>> water = molkern.AtomicBatch(
    ...     torch.tensor([8, 1, 1]), torch.tensor([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    ... )
    >>> out = model(water, forces=True)
    >>> out["energy"].shape, out["forces"].shape
    (torch.Size([1]), torch.Size([3, 3]))
    """

    @checked
    def __init__(
        self,
        hidden_channels: int = 128,
        num_filters: int = 128,
        num_interactions: int = 6,
        num_basis: int = 50,
        cutoff: float = 10.0,
        *,
        num_elements: int = 100,
        basis: str = "gaussian",
        gaussian_coefficient: float | None = None,
        cutoff_function: str = "cosine",
        activation: str = "ssp",
        head_activation: str | None = None,
        head_hidden: Sequence[int] | None = None,
        filter_activation: bool = False,
        filter_bias: bool = True,
        head_bias: bool = True,
        aggregation: str = "sum",
        scale: float = 1.0,
        mean: float = 0.0,
        reference: Sequence[float] | None = None,
        trainable_reference: bool = False,
        prediction: str = "energy",
        trainable_basis: bool = False,
        basis_cutoff_function: str | None = None,
        filters: str = "exact",
        spline_tolerance: float | None = None,
        readout: str = "sum",
    ):
        cutoff, scale, mean = float(cutoff), float(scale), float(mean)
        head_hidden = None if head_hidden is None else list(head_hidden)
        reference = None if reference is None else [float(value) for value in reference]
        # Before any other variable: what locals() has here is what a saved model is rebuilt from
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        self.remember(**config)
        check_sizes(
            config,
            "hidden_channels",
            "num_filters",
            "num_interactions",
            "num_basis",
            "num_elements",
        )
        self._fix(cutoff=cutoff, num_elements=num_elements)
        self.embedding = nn.Embedding(num_elements, hidden_channels)
        nn.init.normal_(self.embedding.weight, std=hidden_channels**-0.25)
        self.basis = _radial_basis(
            basis, num_basis, cutoff, gaussian_coefficient, basis_cutoff_function, trainable_basis
        )
        self.interactions = nn.ModuleList(
            SchNetInteraction(
                hidden_channels,
                num_filters,
                FilterNetwork(
                    num_basis,
                    num_filters,
                    cutoff,
                    activation_name=activation,
                    cutoff_function=cutoff_function,
                    final_activation=filter_activation,
                    final_bias=filter_bias,
                ),
                activation_name=activation,
                aggregation=aggregation,
            )
            for _ in range(num_interactions)
        )
        self.head = AtomwiseHead(
            hidden_channels,
            head_hidden,
            activation_name=head_activation or activation,
            final_bias=head_bias,
        )
        self.reference = AtomicReference(scale, mean, reference, trainable=trainable_reference)
        self.readout = Readout(prediction, readout=readout)
        self.differentiated = prediction

    @classmethod
    @checked
    def official(
        cls,
        hidden_channels: int = 64,
        num_interactions: int = 6,
        cutoff: float = 20.0,
        *,
        num_filters: int | None = None,
        scale: float = 1.0,
        mean: float = 0.0,
        reference: Sequence[float] | None = None,
    ) -> SchNet:
        """The model of the authors' 2018 code: both filter layers activated, no cutoff function.

        Gaussians ``exp(−10 Å⁻² (d − μ)²)`` on about 0.1 Å; lengths are in Å.
        """
        return cls(
            hidden_channels,
            num_filters or hidden_channels,
            num_interactions,
            num_basis=math.ceil(cutoff / 0.1),
            cutoff=cutoff,
            gaussian_coefficient=10.0,
            cutoff_function="none",
            activation="ssp_official",
            filter_activation=True,
            scale=scale,
            mean=mean,
            reference=reference,
        )

    def predict(self, structure: Structure, **_conditions: Any) -> dict[str, Tensor]:
        neighbors = structure.neighbors
        if not self._filters_end():
            neighbors = structure.within(self.cutoff)
        distances = neighbors.distances(structure.positions, structure.cell)
        bases: Sequence[Any] | None = self.spline_filters(distances, neighbors)
        if bases is None:
            bases = [self.basis(distances)] * len(self.interactions)
        x = self.embedding(structure.numbers)
        for interaction, basis in zip(self.interactions, bases, strict=True):
            x = interaction(x, basis, distances, neighbors)
        values = per_atom(self.head(x), structure.numbers)
        return self.readout(self.reference(values, structure.numbers), structure)

    def _filters_end(self) -> bool:
        """Whether the filters are known to be zero beyond the cutoff, as lists may reach farther.

        Not those of a user's own network or block, nor what a hook makes of them.
        """
        if self.spline_obstacle():
            return False
        blocks: list[Any] = list(self.interactions)
        return all(_ends(block.filter_network) for block in blocks)

    def filter_values(self, distances: Tensor) -> list[Tensor]:
        blocks: list[Any] = list(self.interactions)
        with smooth_activations():
            basis = self.basis(distances).to(network_tensor(self).dtype)
            return [block.filter_network(basis, distances) for block in blocks]

    def filter_modules(self) -> list[nn.Module]:
        blocks: list[Any] = list(self.interactions)
        return [self.basis, *(block.filter_network for block in blocks)]

    def spline_obstacle(self) -> str:
        for k, block in enumerate(self.interactions):
            if not (is_plain(block, SchNetInteraction) and is_plain(block.conv, CFConv)):
                return f"interactions.{k} or its conv is replaced, wrapped or hooked"
        return ""

    def lean(self) -> LeanSchNet | None:
        if self.filters != "spline" or not self._predicts_as_made():
            return None
        made = self._splines.constant(self)
        return made.lean if made.serves else None

    def make_lean(self, grid: SplineGrid, tables: list[Tensor]) -> LeanSchNet | None:
        return LeanSchNet.of(self, grid, tables)

    def _predicts_as_made(self) -> bool:
        """Whether no subclass or assignment has changed what is computed from the layers."""
        kind = type(self)
        return (
            kind.predict is SchNet.predict
            and kind.spline_filters is Potential.spline_filters
            and "predict" not in self.__dict__
        )

    def extra_repr(self) -> str:
        return f"parameters={sum(p.numel() for p in self.parameters()):,}"


def _ends(network: nn.Module) -> bool:
    """Whether filters are multiplied by the cutoff function, or by 0 beyond the cutoff."""
    if not is_plain(network, FilterNetwork):
        return False
    function: Any = network.cutoff_function
    return function is None or (is_plain(function, CutoffFunction) and function.name != "none")


def _radial_basis(
    name: str,
    num_basis: int,
    cutoff: float,
    coefficient: float | None,
    cutoff_function: str | None,
    trainable: bool,
) -> GaussianBasis | ExponentialBasis:
    if name == "gaussian":
        return GaussianBasis(
            num_basis,
            cutoff,
            coefficient=coefficient,
            cutoff_function=cutoff_function or "none",
            trainable=trainable,
        )
    if name == "exponential":
        return ExponentialBasis(
            num_basis,
            cutoff,
            alpha=5.0 / cutoff if cutoff else 1.0,  # the basis refuses a cutoff of 0
            cutoff_function=cutoff_function or "cosine",
            trainable=trainable,
        )
    raise ValueError(f"basis must be 'gaussian' or 'exponential', got {name!r}")
