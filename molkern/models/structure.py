"""What a model sees of a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..centering import bounds
from ..graph import AtomicBatch, NeighborList
from ..ops import segment_sum


@dataclass(eq=False)
class Structure:
    """A batch with its neighbor list, as the thing that is differentiated.

    Attributes:
        batch: the systems as given.
        neighbors: the list, which may reach farther than the model.
        positions: ``[N, 3]``, moved by the strain if there is one.
        cell: ``[B, 3, 3]`` under the same strain, or None.
    """

    batch: AtomicBatch
    neighbors: NeighborList
    positions: Tensor
    cell: Tensor | None

    def __repr__(self) -> str:
        return f"Structure({self.batch}, {self.neighbors})"

    @property
    def numbers(self) -> Tensor:
        return self.batch.numbers

    def distances(self) -> Tensor:
        """Lengths of the edges, ``[E]``, without their vectors."""
        return self.neighbors.distances(self.positions, self.cell)

    def within(self, cutoff: float) -> NeighborList:
        """The list without the edges that are longer, where nothing is compiled."""
        if torch.compiler.is_compiling():
            return self.neighbors
        return self.neighbors.within(cutoff, self.positions, self.cell)

    def vectors(self) -> Tensor:
        """Vectors of the edges, from receiver to sender, ``[E, 3]``."""
        return self.neighbors.vectors(self.positions, self.cell)

    def sum_atoms(self, values: Tensor) -> Tensor:
        """Sums over the atoms of each system: ``[N]`` → ``[B]`` or ``[N, F]`` → ``[B, F]``."""
        if values.dim() == 1:
            return segment_sum(values.unsqueeze(1), self.batch.system_ptr).squeeze(1)
        return segment_sum(values, self.batch.system_ptr)

    def counts(self) -> Tensor:
        """Numbers of atoms to divide sums by, ``[B]``, int32: 1 for a system without atoms."""
        return self.batch.system_ptr.diff().clamp(min=1)


def largest_extent(batch: AtomicBatch) -> float:
    """A length beyond every distance within a system that is not periodic; 0 if there is none."""
    if torch.jit.is_tracing():
        raise RuntimeError(
            "torch.jit.trace would keep the size of these systems for all that follow: give "
            "neighbors=, or use torch.compile or torch.export"
        )
    positions, count = batch.positions.detach().double(), batch.num_systems
    if batch.num_atoms == 0:
        return 0.0
    low, high = bounds(positions, batch.owners, count)
    diagonals = (high - low).norm(dim=1)
    if batch.pbc is not None:
        diagonals = diagonals.masked_fill(batch.pbc.any(1), 0.0)
    longest = float(diagonals.max())
    # With positions that are not finite the search is to find them
    return 1.001 * longest if math.isfinite(longest) else 0.0
