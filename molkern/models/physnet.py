"""PhysNet (Unke & Meuwly, JCTC 15, 3678 (2019)) in its published variants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import AtomicBatch, NeighborList
from ..nn import (
    ChargeCorrection,
    D3Dispersion,
    ElementScaling,
    ExponentialBasis,
    GaussianBasis,
    PhysNetInteraction,
    PhysNetOutput,
    ShieldedElectrostatics,
)
from ..nn.activations import product_weight, smooth_activations
from ..nn.dispersion import BOHR, HARTREE, HARTREE_FOCK
from ..nn.electrostatics import COULOMB_CONSTANT
from ..nn.physnet import checked_total_charge, nonhierarchicality
from ..nn.plain import is_plain
from ..nn.precision import network_tensor
from ..ops._arguments import checked
from ..ops._library import as_tensor, is_recorded
from .arguments import arguments_are_fixed
from .checks import plain
from .potential import Potential
from .readout import Readout
from .structure import Structure, largest_extent


@arguments_are_fixed
class PhysNet(Potential):
    """PhysNet: atomic energies and charges from message passing, and their long-range energies.

    ``E = Σ_i E_i + k_e Σ_{i<j} q_i q_j χ(d_ij) + E_D3``, with ``(E_i, q_i)`` a sum over modules,
    scaled and shifted for every element, and charges corrected to the total charge. Unke & Meuwly,
    JCTC 15, 3678 (2019), as the published code computes it; lengths in Å and energies in eV unless
    ``coulomb_constant``, ``bohr`` and ``hartree`` say otherwise. The basis depends on the unit of
    length.

    ``model(batch, total_charge=q)`` takes the charge of the systems, a number or ``[B]``, 0 by
    default, and predicts

    - ``"energy"`` ``[B]`` and ``"atomic_energies"`` ``[N]``, its parts, all contributions included,
    - ``"charges"`` ``[N]``, which add up to the total charge, and ``"dipole"`` ``[B, 3]``,
      ``Σ q_i r_i`` of the positions as given (for ions it depends on the origin),
    - ``"nonhierarchicality"``, the penalty of the paper: a scalar to add to a training loss, with
      0.01 there. It is not part of the energy.
    - ``"charge_error"`` ``[B]``, by how much the charges missed the total before they were
      corrected, which the paper trains to be small.

    All but the penalty are float64, also in a model of float32.

    With another ``prediction`` the charges serve it alone, and nothing has long-range energies:
    ``"dipole_moment"`` predicts ``{"dipole_moment": [B], "dipole": [B, 3]}`` about the centre of
    mass, of charges that add up to the total charge, and ``"electronic_spatial_extent"`` that of
    numbers per atom that are not corrected; both beside the charges and the penalty.

    With ``readout="mean"`` the energy is the mean of the atomic energies, which are then those of
    the network alone: for a property that does not grow with the system (an orbital's energy, say).

    Without ``lr_cut`` electrostatics and dispersion sum over all pairs of atoms; periodic systems
    need one. With the default arguments the model is that of the published code, but that
    dispersion, which needs the package tad-dftd3, is off; :meth:`asparagus` makes the variant of
    Asparagus.

    Args:
        hidden_channels: features per atom.
        num_basis: number of radial functions K.
        num_interactions: number of modules.
        cutoff: range of the messages.
        num_residual_atomic: residual blocks on the features after an interaction.
        num_residual_interaction: residual blocks on the message.
        num_residual_output: residual blocks before a module's output.
        num_elements: size of the embedding; atomic numbers are 0 to ``num_elements − 1``.
        use_electrostatics: whether the energy has the charges' Coulomb energy.
        use_dispersion: whether it has D3(BJ) dispersion, see :class:`molkern.nn.D3Dispersion`.
        lr_cut: range of both, or None for all pairs.
        activation: ``"ssp"``, ``"tanh"`` or ``"silu"``; also ``"ssp_exact"`` and others, see
            :class:`molkern.nn.ShiftedSoftplus`.
        output_activation: of the outputs; by default ``activation``.
        basis: ``"exponential"``, or ``"gaussian"`` (from ``gaussian_start`` to ``cutoff``).
        gaussian_start, gaussian_coefficient: first centre and γ of the Gaussians.
        cutoff_function: of the basis, ``"physnet"`` or another one.
        activated_skip, activated_output: see :class:`molkern.nn.PhysNetInteraction` and
            :class:`molkern.nn.PhysNetOutput`.
        switch_range: distance from which on charges are not shielded; by default ``cutoff / 2``.
        shift_shielded: see :class:`molkern.nn.ShieldedElectrostatics`.
        dispersion_switch: where dispersion starts to be switched off, see
            :class:`molkern.nn.D3Dispersion`.
        dispersion_parameters: s6, s8, a1 and a2 to start from.
        trainable_dispersion: whether they are parameters.
        energy_scale, energy_shift, charge_scale, charge_shift: what scales and shifts start from, a
            number or one for each atomic number, ``num_elements`` of them. Trainable, unlike the
            other models' ``reference`` and ``mean``, in whose place goes their sum:
            ``energy_shift=[e + mean for e in reference]``.
        coulomb_constant, bohr, hartree: in the units of energy and length.
        prediction: ``"energy"``, ``"dipole_moment"`` or ``"electronic_spatial_extent"``.
        filters, spline_tolerance: of the masks, see :class:`molkern.models.Potential`.
        readout: ``"sum"`` over the atoms of a system, or ``"mean"``, which needs
            ``use_electrostatics=False`` and no dispersion.

    Raises:
        ValueError: a size out of range, a cutoff that is not positive and finite, scales or shifts
            of another length, an unknown basis, cutoff function, activation, prediction or readout,
            or the mean of another prediction than an energy, or of long-range energies.
        ImportError: dispersion without the package tad-dftd3.

    >>> import torch, molkern
    >>> model = molkern.models.PhysNet(hidden_channels=16, num_basis=8, num_interactions=2).eval()
    >>> hydroxide = molkern.AtomicBatch(
    ...     torch.tensor([8, 1]), torch.tensor([[0.0, 0, 0], [0.97, 0, 0]])
    ... )
    >>> out = model(hydroxide, forces=True, total_charge=-1)
    >>> out["energy"].shape, out["forces"].shape, out["dipole"].shape
    (torch.Size([1]), torch.Size([2, 3]), torch.Size([1, 3]))
    >>> out["charges"].sum()
    tensor(-1., dtype=torch.float64)
    """

    lr_cut: float | None

    @checked
    def __init__(
        self,
        hidden_channels: int = 128,
        num_basis: int = 64,
        num_interactions: int = 5,
        cutoff: float = 10.0,
        *,
        num_residual_atomic: int = 2,
        num_residual_interaction: int = 3,
        num_residual_output: int = 1,
        num_elements: int = 95,
        use_electrostatics: bool = True,
        use_dispersion: bool = False,
        lr_cut: float | None = None,
        activation: str = "ssp",
        output_activation: str | None = None,
        basis: str = "exponential",
        gaussian_start: float = 0.0,
        gaussian_coefficient: float | None = None,
        cutoff_function: str = "physnet",
        activated_skip: bool = False,
        activated_output: bool = False,
        switch_range: float | None = None,
        shift_shielded: bool = True,
        dispersion_switch: float | None = None,
        dispersion_parameters: Sequence[float] = HARTREE_FOCK,
        trainable_dispersion: bool = True,
        energy_scale: float | Sequence[float] = 1.0,
        energy_shift: float | Sequence[float] = 0.0,
        charge_scale: float | Sequence[float] = 1.0,
        charge_shift: float | Sequence[float] = 0.0,
        coulomb_constant: float = COULOMB_CONSTANT,
        bohr: float = BOHR,
        hartree: float = HARTREE,
        prediction: str = "energy",
        filters: str = "exact",
        spline_tolerance: float | None = None,
        readout: str = "sum",
    ):
        cutoff = float(cutoff)
        lr_cut = None if lr_cut is None else float(lr_cut)
        dispersion_parameters = [float(value) for value in dispersion_parameters]
        energy_scale, energy_shift = plain(energy_scale), plain(energy_shift)
        charge_scale, charge_shift = plain(charge_scale), plain(charge_shift)
        # Before any other variable: what locals() has here is what a saved model is rebuilt from
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        self.remember(**config)
        _check(config)
        self._fix(cutoff=cutoff, num_elements=num_elements, lr_cut=lr_cut)
        self.embedding = nn.Embedding(num_elements, hidden_channels)
        nn.init.uniform_(self.embedding.weight, -math.sqrt(3), math.sqrt(3))
        self.basis = _radial_basis(config)
        self.interactions = nn.ModuleList(
            PhysNetInteraction(
                hidden_channels,
                num_basis,
                num_residual_interaction=num_residual_interaction,
                num_residual_atomic=num_residual_atomic,
                activation_name=activation,
                activated_skip=activated_skip,
            )
            for _ in range(num_interactions)
        )
        self.outputs = nn.ModuleList(
            PhysNetOutput(
                hidden_channels,
                num_residual=num_residual_output,
                activation_name=output_activation or activation,
                activated=activated_output,
            )
            for _ in range(num_interactions)
        )
        self.scaling = ElementScaling(num_elements)
        self._set_scaling((energy_scale, charge_scale), (energy_shift, charge_shift))
        self.charge_correction = ChargeCorrection()
        self.readout = Readout(prediction, readout=readout)
        self.differentiated = prediction
        self.electrostatics = self.dispersion = None
        if use_electrostatics and prediction == "energy":
            self.electrostatics = ShieldedElectrostatics(
                cutoff / 2 if switch_range is None else switch_range,
                lr_cut,
                coulomb_constant=coulomb_constant,
                shift_shielded=shift_shielded,
            )
        if use_dispersion and prediction == "energy":
            self.dispersion = D3Dispersion(
                lr_cut,
                switch_start=dispersion_switch,
                parameters=dispersion_parameters,
                trainable=trainable_dispersion,
                bohr=bohr,
                hartree=hartree,
            )

    @classmethod
    @checked
    def asparagus(
        cls,
        hidden_channels: int = 128,
        num_basis: int = 64,
        num_interactions: int = 5,
        cutoff: float = 8.0,
        lr_cut: float = 12.0,
        **options: Any,
    ) -> PhysNet:
        """The variant of Asparagus: Gaussians, activated skips and outputs, shielding up to cutoff.

        Gaussians of width 1 Å from 1 Å to the cutoff; electrostatics force-shifted at ``lr_cut``.
        Other arguments as for the class. Weights start as PhysNet's own do.
        """
        variant: dict[str, Any] = {
            "activation": "ssp_pyg",
            "basis": "gaussian",
            "gaussian_start": 1.0,
            "gaussian_coefficient": 0.5,
            "activated_skip": True,
            "activated_output": True,
            "switch_range": cutoff,
            "shift_shielded": False,
            "lr_cut": lr_cut,
        }
        return cls(hidden_channels, num_basis, num_interactions, cutoff, **{**variant, **options})

    def atomic_properties(self, structure: Structure) -> tuple[Tensor, Tensor, Tensor]:
        """Energies and charges ``[N]`` of the atoms as the network gives them, and the penalty.

        Scaled and shifted, in float64; without long-range energies, charges not corrected.
        """
        neighbors = structure.neighbors
        if self._long_range or not self._masks_end():
            neighbors = structure.within(self.cutoff)
        distances = neighbors.distances(structure.positions, structure.cell)
        bases: Sequence[Any] | None = self.spline_filters(distances, neighbors)
        if bases is None:
            bases = [self.basis(distances)] * len(self.interactions)
        x = self.embedding(structure.numbers)
        outputs = []
        for interaction, basis, output in zip(self.interactions, bases, self.outputs, strict=True):
            x = interaction(x, basis, neighbors)
            outputs.append(output(x))
        scaled = self.scaling(torch.stack(outputs).sum(0), structure.numbers)
        return scaled[:, 0], scaled[:, 1], nonhierarchicality(outputs)

    conditions = ("total_charge",)

    def predict(  # type: ignore[override]
        self, structure: Structure, *, total_charge: Tensor | float = 0.0
    ) -> dict[str, Tensor]:
        energies, charges, penalty = self.atomic_properties(structure)
        if self.differentiated == "electronic_spatial_extent":
            extent = self.readout(charges, structure)
            return {**extent, "charges": charges, "nonhierarchicality": penalty}
        total_charge = checked_total_charge(total_charge, structure.batch.num_systems, charges)
        excess = structure.sum_atoms(charges) - total_charge
        charges = self.charge_correction(charges, total_charge, structure.batch.system_ptr)
        if self.differentiated == "dipole_moment":
            return {**self.readout(charges, structure), "nonhierarchicality": penalty}
        if self._long_range:
            distances = structure.distances()
            if self.electrostatics is not None:
                charge = charges.to(distances.dtype)
                energies = energies + self.electrostatics(charge, distances, structure.neighbors)
            if self.dispersion is not None:
                numbers = structure.numbers
                energies = energies + self.dispersion(numbers, distances, structure.neighbors)
        places, offsets = structure.positions.double(), structure.batch.offsets
        if offsets is not None:  # the origin is that of the positions as given
            places = places + offsets
        moments = charges.unsqueeze(1) * places
        return {
            **self.readout(energies, structure),
            "atomic_energies": energies,
            "charges": charges,
            "dipole": structure.sum_atoms(moments),
            "nonhierarchicality": penalty,
            "charge_error": excess,
        }

    def _masks_end(self) -> bool:
        """Whether the masks are known to be zero beyond the cutoff, as lists may reach farther."""
        blocks: list[Any] = list(self.interactions)
        return (
            is_plain(self.basis, ExponentialBasis, GaussianBasis)
            and self.basis.cutoff_function != "none"
            and not self.spline_obstacle()
            and all(product_weight(block.filters) is not None for block in blocks)
        )

    def filter_values(self, distances: Tensor) -> list[Tensor]:
        blocks: list[Any] = list(self.interactions)
        with smooth_activations():
            basis = self.basis(distances).to(network_tensor(self).dtype)
            return [block.filters(basis) for block in blocks]

    def filter_modules(self) -> list[nn.Module]:
        blocks: list[Any] = list(self.interactions)
        return [self.basis, *(block.filters for block in blocks)]

    def spline_obstacle(self) -> str:
        for k, block in enumerate(self.interactions):
            if not is_plain(block, PhysNetInteraction):
                return f"interactions.{k} is replaced, wrapped or hooked"
        return ""

    def filter_span(self) -> tuple[float, float, bool]:
        """From 0.04 of the cutoff on (0.4 of 10 Å): towards zero the basis takes many knots."""
        return 0.04 * self.cutoff, self.cutoff, True

    def list_cutoff(self, batch: AtomicBatch) -> float:
        """How far a neighbor list must reach: to ``lr_cut``, or over the largest system.

        Raises:
            ValueError: a periodic batch, of which a model without ``lr_cut`` needs all pairs.
        """
        if not self._long_range:
            return self.cutoff
        if self.lr_cut is not None:
            return max(self.cutoff, self.lr_cut)
        self._refuse_periodic(batch)
        return max(self.cutoff, largest_extent(batch))

    @property
    def _long_range(self) -> bool:
        """Whether there are energies beyond the range of the messages."""
        return self.electrostatics is not None or self.dispersion is not None

    def _check_reach(self, batch: AtomicBatch, neighbors: NeighborList) -> None:
        if self.lr_cut is not None or not self._long_range:
            return super()._check_reach(batch, neighbors)
        self._refuse_periodic(batch)
        if is_recorded(batch.positions):
            return
        atoms = (batch.system_ptr[1:] - batch.system_ptr[:-1]).long()
        pairs = int((atoms * (atoms - 1)).sum())
        if neighbors.num_edges < pairs:
            raise ValueError(
                f"the neighbor list has {neighbors.num_edges} edges, but the model sums over all "
                f"{pairs} pairs of atoms: make it with model.neighbors(batch), or set lr_cut when "
                "it is made"
            )

    def _refuse_periodic(self, batch: AtomicBatch) -> None:
        if batch.pbc is not None and bool(batch.pbc.any()):
            raise ValueError(
                "the batch is periodic, but the model sums electrostatics or dispersion over all "
                "pairs of atoms: set its lr_cut (12.0, say) when it is made"
            )

    @torch.no_grad()
    def _set_scaling(self, scales: tuple[Any, Any], shifts: tuple[Any, Any]) -> None:
        for target, values in ((self.scaling.scale, scales), (self.scaling.shift, shifts)):
            for column, value in enumerate(values):
                target[:, column] = as_tensor(value, torch.float64, target.device)

    def extra_repr(self) -> str:
        return f"parameters={sum(p.numel() for p in self.parameters()):,}"


def _check(config: dict[str, Any]) -> None:
    for name in ("hidden_channels", "num_basis", "num_interactions", "num_elements"):
        if config[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {config[name]}")
    for name in ("num_residual_atomic", "num_residual_interaction", "num_residual_output"):
        if config[name] < 0:
            raise ValueError(f"{name} must not be negative, got {config[name]}")
    for name in ("energy_scale", "energy_shift", "charge_scale", "charge_shift"):
        value, count = config[name], config["num_elements"]
        if isinstance(value, list) and len(value) != count:
            raise ValueError(
                f"{name} has {len(value)} values, but num_elements is {count}: pass one for each "
                f"atomic number (0 to {count - 1})"
            )
    if config["lr_cut"] is not None and not 0 < config["lr_cut"] < math.inf:
        raise ValueError(f"lr_cut must be positive and finite, got {config['lr_cut']}")
    for name in ("use_electrostatics", "use_dispersion"):
        if config["readout"] == "mean" and config["prediction"] == "energy" and config[name]:
            raise ValueError(
                "readout='mean' averages learned energies of atoms, not long-range ones: pass "
                f"{name}=False, got {config[name]}"
            )


def _radial_basis(config: dict[str, Any]) -> ExponentialBasis | GaussianBasis:
    name, options = config["basis"], {"cutoff_function": config["cutoff_function"]}
    if name == "exponential":
        return ExponentialBasis(
            config["num_basis"], config["cutoff"], trainable=True, positive=True, **options
        )
    if name == "gaussian":
        return GaussianBasis(
            config["num_basis"],
            config["cutoff"],
            start=config["gaussian_start"],
            coefficient=config["gaussian_coefficient"],
            trainable=True,
            **options,
        )
    raise ValueError(f"basis must be 'exponential' or 'gaussian', got {name!r}")
