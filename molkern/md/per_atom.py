"""Energies and virials of single atoms, and derivatives by the vectors of edges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ..graph import AtomicBatch, NeighborList
from ..models import Potential
from ..models.structure import Structure
from ..ops._library import first_derivatives_only, operators


@dataclass(eq=False)
class GivenVectors(NeighborList):
    """A graph whose edges have vectors of their own, whatever the positions.

    Attributes:
        given: ``[E, 3]``, from receiver to sender, which models are differentiated by.
    """

    given: Tensor = None  # type: ignore[assignment]

    @classmethod
    def of(cls, graph: NeighborList, vectors: Tensor) -> GivenVectors:
        """The edges of a graph, with such vectors."""
        known = {f.name: getattr(graph, f.name) for f in fields(graph) if f.init}
        return cls(**known, given=vectors.detach().requires_grad_(True))

    def vectors(self, positions: Tensor, cell: Tensor | None = None) -> Tensor:
        return self.given

    def distances(self, positions: Tensor, cell: Tensor | None = None) -> Tensor:
        return self.given.square().sum(1).sqrt()

    def only(self, keep: Tensor) -> NeighborList:
        return super().only(keep)._with(given=self.given[keep])


@dataclass(eq=False)
class _RecordedSums(Structure):
    """A structure that remembers what was summed over atoms."""

    sums: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def sum_atoms(self, values: Tensor) -> Tensor:
        total = super().sum_atoms(values)
        self.sums.append((values, total))
        return total


@dataclass(frozen=True)
class EdgeDerivatives:
    """What a model gives for a graph with vectors.

    Attributes:
        energy: ``[B]``.
        gradient: of their sum by the vectors, ``[E, 3]``.
        atomic: energies of the atoms, ``[N]``; None where the energy is no sum over atoms.
    """

    energy: Tensor
    gradient: Tensor
    atomic: Tensor | None


def edge_derivatives(
    model: Potential, batch: AtomicBatch, graph: GivenVectors, conditions: Mapping[str, Any]
) -> EdgeDerivatives:
    """Evaluates a model's energy, with derivatives by the edges' vectors."""
    with torch.enable_grad(), first_derivatives_only():
        structure = _RecordedSums(batch, graph, batch.positions, batch.cell)
        out = model.predict(structure, **conditions)
        if "energy" not in out:
            raise ValueError(f"this {type(model).__name__} predicts {', '.join(out)}, no energy")
        total = out["energy"].sum()
        (gradient,) = torch.autograd.grad(total, [graph.given], materialize_grads=True)
    return EdgeDerivatives(out["energy"].detach(), gradient, _atomic_energies(out, structure))


def _atomic_energies(out: dict[str, Tensor], structure: _RecordedSums) -> Tensor | None:
    if "atomic_energies" in out:
        return out["atomic_energies"].detach()
    energy = out["energy"].detach()
    for values, total in structure.sums:
        if values.numel() != structure.batch.num_atoms or total.numel() != energy.numel():
            continue
        # A mean over atoms is a sum, too
        for share in (torch.ones_like(structure.counts()), structure.counts()):
            if torch.allclose(total.detach().reshape(-1) / share, energy):
                owners = structure.batch.owners
                return values.detach().reshape(-1) / share.to(values.dtype)[owners]
    return None


def atomic_virials(graph: GivenVectors, gradient: Tensor) -> Tensor:
    """Virials ``[N, 3, 3]``, float64, whose sum is that of the system: ``−Σ_e d_e ⊗ dE/dd_e``.

    Half of each edge belongs to either of its atoms, as LAMMPS shares those of pairs.
    """
    vectors, slopes = graph.given.detach().double(), gradient.double()
    half = -0.5 * (vectors.unsqueeze(2) * slopes.unsqueeze(1)).reshape(-1, 9)
    here, there, ones = graph.by_receiver, graph.by_sender, half.new_ones(graph.num_atoms, 9)
    # In the order of the edges: adding by index is not the same bits on every run of a GPU
    found = operators.cfconv(ones, half, *here, *there, graph.padded)
    found = found + operators.cfconv(ones, half, *there, *here, graph.padded)
    found = found.reshape(-1, 3, 3)
    return 0.5 * (found + found.transpose(1, 2))
