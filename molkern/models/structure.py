"""What a model sees of a batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

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

    @property
    def numbers(self) -> Tensor:
        return self.batch.numbers

    def distances(self) -> Tensor:
        """Lengths of the edges, ``[E]``, without their vectors."""
        return self.neighbors.distances(self.positions, self.cell)

    def vectors(self) -> Tensor:
        """Vectors of the edges, from receiver to sender, ``[E, 3]``."""
        return self.neighbors.vectors(self.positions, self.cell)

    def sum_atoms(self, values: Tensor) -> Tensor:
        """Sums over the atoms of each system: ``[N]`` → ``[B]`` or ``[N, F]`` → ``[B, F]``."""
        if values.dim() == 1:
            return segment_sum(values.unsqueeze(1), self.batch.system_ptr).squeeze(1)
        return segment_sum(values, self.batch.system_ptr)
