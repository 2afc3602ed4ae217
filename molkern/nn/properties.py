"""Dipole moment and electronic spatial extent from a number per atom."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..graph import AtomicBatch
from ..ops import segment_sum
from ..ops._arguments import checked, explained
from ..ops.geometry import edge_norm
from .masses import ATOMIC_MASSES
from .precision import Float64Module


class CentredSum(Float64Module):
    """What the properties share: sums over atoms about the centre of mass, in float64.

    Args:
        masses: by atomic number, ``[Z]``; by default :data:`molkern.nn.masses.ATOMIC_MASSES`.
    """

    masses: Tensor

    @checked
    def __init__(self, masses: Tensor | Sequence[float] | None = None):
        super().__init__()
        values = torch.as_tensor(ATOMIC_MASSES if masses is None else masses, dtype=torch.float64)
        if values.dim() != 1:
            raise ValueError(f"masses must have shape [Z], got {list(values.shape)}")
        self.register_buffer("masses", values.clone())

    def sums(
        self, charges: Tensor, batch: AtomicBatch, positions: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``Σ q``, ``Σ q r``, ``Σ q r²`` and the centre of mass ``c`` of each system.

        All relative to a constant c₀, the value of c: what is derived from them by
        ``r − c = (r − c₀) − (c − c₀)`` has every derivative, loses no digits far from the origin,
        and needs no gather whose gradient would be summed in no fixed order.
        """
        positions = (batch.positions if positions is None else positions).double()
        self._check(charges, batch, positions)
        weights = self.masses[batch.numbers].unsqueeze(1)
        total = segment_sum(weights, batch.system_ptr)
        total = total + (total == 0)  # a system without atoms
        origin = segment_sum(weights * positions.detach(), batch.system_ptr) / total
        owner = torch.zeros_like(batch.numbers) if batch.batch is None else batch.batch.long()
        r = positions - origin[owner]
        q = charges.double().unsqueeze(1)
        terms = torch.cat([q, q * r, q * r.square().sum(1, keepdim=True), weights * r], 1)
        sums = segment_sum(terms, batch.system_ptr)
        return sums[:, 0:1], sums[:, 1:4], sums[:, 4:5], sums[:, 5:8] / total

    def _check(self, charges: Tensor, batch: AtomicBatch, positions: Tensor) -> None:
        count, known = batch.num_atoms, self.masses.shape[0]
        if charges.shape != (count,):
            raise ValueError(f"charges must have shape [{count}], got {list(charges.shape)}")
        if positions.shape != (count, 3):
            raise ValueError(f"positions must have shape [{count}, 3], got {list(positions.shape)}")
        if torch.compiler.is_compiling():
            return
        low, high = batch.number_range
        if low < 0 or high >= known:
            wrong = low if low < 0 else high
            atom = int((batch.numbers == wrong).nonzero()[0])
            raise ValueError(
                f"atom {atom} has number {wrong}, but there are masses for 0 to {known - 1}"
            )

    def extra_repr(self) -> str:
        return f"masses={list(self.masses.shape)}"


class DipoleMoment(CentredSum):
    """Dipole moment of each system, ``μ = Σ_i q_i (r_i − r_cm)``, and its magnitude.

    r_cm is the centre of mass, on which the dipole of a charged system depends. Schütt et al.,
    J. Chem. Phys. 148, 241722 (2018), for QM9's μ. Twice differentiable; where the dipole
    is zero the derivatives of the magnitude are zero. Summed in float64.

    The unit is that of charge times length: e Å for e and Å, and 1 e Å = 4.8032 D; for a dipole in
    D the charges are in D/Å.

    Args:
        masses: by atomic number, ``[Z]``; by default :data:`molkern.nn.masses.ATOMIC_MASSES`.

    Raises:
        ValueError: wrong shapes, or an atomic number without a mass.

    >>> import torch, molkern
    >>> positions = torch.tensor([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    >>> water = molkern.AtomicBatch(torch.tensor([8, 1, 1]), positions)
    >>> vector, magnitude = molkern.nn.DipoleMoment()(torch.tensor([-0.8, 0.4, 0.4]), water)
    >>> vector
    tensor([[0.2880, 0.3720, 0.0000]], dtype=torch.float64)
    >>> magnitude
    tensor([0.4705], dtype=torch.float64)
    """

    @explained
    def forward(
        self, charges: Tensor, batch: AtomicBatch, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """charges ``[N]``, positions ``[N, 3]`` (by default the batch's) → ``[B, 3]``, ``[B]``."""
        charge, dipole, _, centre = self.sums(charges, batch, positions)
        vector = dipole - charge * centre
        return vector, edge_norm(vector)


class ElectronicSpatialExtent(CentredSum):
    """Electronic spatial extent of each system, ``⟨R²⟩ = Σ_i q_i |r_i − r_cm|²``.

    r_cm is the centre of mass. Schütt et al., J. Chem. Phys. 148, 241722 (2018), for QM9's
    ⟨R²⟩. Twice differentiable, summed in float64. The unit is that of q times length²: with
    positions in Å and q in a0²/Å², it is a0², as in QM9.

    Args:
        masses: by atomic number, ``[Z]``; by default :data:`molkern.nn.masses.ATOMIC_MASSES`.

    Raises:
        ValueError: wrong shapes, or an atomic number without a mass.

    >>> import torch, molkern
    >>> positions = torch.tensor([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0]])
    >>> nitrogen = molkern.AtomicBatch(torch.tensor([7, 7]), positions)
    >>> molkern.nn.ElectronicSpatialExtent()(torch.tensor([7.0, 7.0]), nitrogen)
    tensor([4.2350], dtype=torch.float64)
    """

    @explained
    def forward(
        self, charges: Tensor, batch: AtomicBatch, positions: Tensor | None = None
    ) -> Tensor:
        """charges ``[N]``, positions ``[N, 3]`` (by default the batch's) → ``[B]``."""
        charge, dipole, square, centre = self.sums(charges, batch, positions)
        cross = (centre * dipole).sum(1, keepdim=True)
        return (square - 2 * cross + charge * centre.square().sum(1, keepdim=True)).squeeze(1)
