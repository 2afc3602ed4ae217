"""Electrostatic energies of atomic charges."""

import math

import torch
from torch import Tensor

from .. import ops
from ..graph import NeighborList
from ..ops._arguments import checked, explained
from .basis import CutoffFunction
from .fixed import FixedModule

#: e² / (4 π ε₀) in eV·Å, as PhysNet's published code has it.
COULOMB_CONSTANT = 14.399645351950548


class ShieldedElectrostatics(FixedModule):
    """Coulomb energy of atomic charges, shielded at short range: per atom, ``[N]``.

    ``E_i = ½ k_e q_i Σ_j q_j χ(d_ij)`` with ``χ(d) = φ(d) / √(d² + s²) + (1 − φ(d)) / d``, where φ
    is PhysNet's cutoff function of range ``switch_range``; Unke & Meuwly, JCTC 15, 3678 (2019).
    With a ``cutoff`` r_c energy and force go to zero there: every ``1 / D`` becomes
    ``1 / D + D / r_c² − 2 / r_c``, with the shielded distance ``D = √(d² + s²)`` in the shielded
    term (published code) or with d in both (Asparagus); pairs beyond it are left out. Energies are
    finite at distance zero.

    Without a cutoff the list must hold all pairs; it can not be used with periodic systems then.

    Args:
        switch_range: distance from which on charges are not shielded; half of PhysNet's cutoff.
        cutoff: r_c, or None to take all pairs of the list.
        coulomb_constant: k_e in the units of energy and length, for charges in e.
        shielding: s, in the unit of the distances; 1 Å in the published code.
        shift_shielded: whether the shift of the shielded term is of the shielded distance.

    Raises:
        ValueError: a range, cutoff or shielding that is not positive and finite.

    >>> import torch, molkern
    >>> positions = torch.tensor([[0.0, 0, 0], [8, 0, 0]])
    >>> neighbors = molkern.neighbor_list(positions, cutoff=10.0)
    >>> coulomb = molkern.nn.ShieldedElectrostatics(switch_range=5.0)
    >>> coulomb(torch.tensor([1.0, -1.0]), neighbors.distances(positions), neighbors).sum()
    tensor(-1.8000)
    """

    fixed = frozenset({"switch_range", "shielding", "cutoff", "coulomb_constant", "shift_shielded"})

    @checked
    def __init__(
        self,
        switch_range: float,
        cutoff: float | None = None,
        *,
        coulomb_constant: float = COULOMB_CONSTANT,
        shielding: float = 1.0,
        shift_shielded: bool = True,
    ):
        super().__init__()
        checked = {"switch_range": switch_range, "shielding": shielding}
        if cutoff is not None:
            checked["cutoff"] = cutoff
        for name, value in checked.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        self.switch = CutoffFunction("physnet", switch_range)
        self.switch_range, self.shielding = float(switch_range), float(shielding)
        self.cutoff = None if cutoff is None else float(cutoff)
        self.coulomb_constant, self.shift_shielded = float(coulomb_constant), shift_shielded

    @explained
    def forward(self, charges: Tensor, distances: Tensor, neighbors: NeighborList) -> Tensor:
        """charges ``[N]`` and distances ``[E]``, of one type → energies ``[N]``."""
        charge = charges.unsqueeze(1)
        potential = ops.cfconv(charge, self.kernel(distances).unsqueeze(1), neighbors)
        return (0.5 * self.coulomb_constant * charge * potential).squeeze(1)

    def kernel(self, distances: Tensor) -> Tensor:
        """χ with its shift, ``[E]`` → ``[E]``, in units of 1 / length."""
        shielded = torch.sqrt(distances.square() + self.shielding**2)
        weight = self.switch(distances).squeeze(1)
        kernel = weight / shielded + self._unshielded(distances)
        if self.cutoff is None:
            return kernel
        reach = weight * shielded + (1 - weight) * distances if self.shift_shielded else distances
        kernel = kernel + reach / self.cutoff**2 - 2 / self.cutoff
        return torch.where(distances <= self.cutoff, kernel, 0.0)

    def _unshielded(self, distances: Tensor) -> Tensor:
        """``(1 − φ(d)) / d``, in which d cancels where φ is not zero."""
        x = (distances / self.switch_range).clamp(max=1.0)
        inside = ((6 * x - 15) * x + 10) * x.square() / self.switch_range
        outside = 1 / distances.clamp(min=self.switch_range)
        return torch.where(distances < self.switch_range, inside, outside)

    def extra_repr(self) -> str:
        return (
            f"switch_range={self.switch_range}, cutoff={self.cutoff}, shielding={self.shielding}, "
            f"coulomb_constant={self.coulomb_constant:g}, shift_shielded={self.shift_shielded}"
        )
