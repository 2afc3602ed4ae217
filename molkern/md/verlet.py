"""A neighbor list that is kept while it is valid."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..graph import AtomicBatch, NeighborList


class VerletList:
    """Makes neighbor lists with a skin and reuses them until an atom has moved half of it.

    Verlet, Phys. Rev. 159, 98 (1967). A list with cutoff + skin holds every pair within the cutoff
    as long as no atom has moved farther than skin / 2 and the cell is the same.

    Args:
        cutoff: in the unit of the positions, or a function of the batch that gives it (a model's
            ``list_cutoff``).
        skin: in the same unit; a skin of 0 makes a list every time.

    Attributes:
        builds: how often a list was made.
    """

    def __init__(self, cutoff: float | Callable[[AtomicBatch], float], skin: float):
        if not skin >= 0:
            raise ValueError(f"skin must not be negative, got {skin}")
        self.cutoff, self.skin = cutoff, skin
        self.builds = 0
        self._made_for: tuple[Tensor | None, ...] = ()
        self._neighbors: NeighborList | None = None

    def __call__(self, batch: AtomicBatch) -> NeighborList:
        """A list that holds every pair of ``batch`` within the cutoff."""
        if self._neighbors is None or not self._valid(batch):
            cutoff = self.cutoff(batch) if callable(self.cutoff) else self.cutoff
            self._neighbors = batch.neighbors(cutoff + self.skin)
            self._made_for = _geometry(batch)
            self.builds += 1
        return self._neighbors

    def _valid(self, batch: AtomicBatch) -> bool:
        for before, now in zip(self._made_for[1:], _geometry(batch)[1:], strict=True):
            if (before is None) != (now is None):
                return False
            if before is not None and now is not None and not torch.equal(before, now):
                return False
        positions = self._made_for[0]
        if positions is None or self.skin == 0 or positions.shape != batch.positions.shape:
            return False
        if batch.num_atoms == 0:
            return True
        moved = (batch.positions - positions).square().sum(1).max()
        return bool(moved < (0.5 * self.skin) ** 2)


def _geometry(batch: AtomicBatch) -> tuple[Tensor | None, ...]:
    """What a list depends on, copied: positions may be changed in place."""
    tensors = (batch.positions, batch.cell, batch.pbc, batch.batch)
    return tuple(None if t is None else t.detach().clone() for t in tensors)
