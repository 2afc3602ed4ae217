"""A neighbor list that is kept while it is valid."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..graph import AtomicBatch, NeighborList
from .near import NearPositions


class VerletList:
    """The neighbor list of a batch whose positions and cells change in place.

    Verlet, Phys. Rev. 159, 98 (1967). A list with cutoff + skin holds every pair within the cutoff
    as long as no atom has moved farther than skin / 2 and the cells are the same.

    Args:
        batch: looked at again in every :meth:`update`.
        cutoff: of the batch, in the unit of its positions (a model's ``list_cutoff``).
        skin: in the same unit; a skin of 0 makes a list every time.
        near: by which the batch is written; it is settled before a list is made.

    Raises:
        ValueError: a negative or infinite skin.

    Attributes:
        neighbors: the list; None before the first :meth:`update`.
        builds: how often a list was made.
    """

    def __init__(
        self,
        batch: AtomicBatch,
        cutoff: Callable[[AtomicBatch], float],
        skin: float,
        near: NearPositions | None = None,
    ):
        if not 0 <= skin < float("inf"):
            raise ValueError(f"skin must not be negative and must be finite, got {skin}")
        self.batch, self.cutoff, self.skin = batch, cutoff, skin
        self.near = near if near is not None and near.narrow else None
        self.neighbors: NeighborList | None = None
        self.builds = 0
        self._positions = torch.empty_like(batch.positions)
        self._cell = None if batch.cell is None else torch.empty_like(batch.cell)

    def valid(self) -> bool:
        """Whether the list still holds every pair within the cutoff; waits for the device."""
        if self.neighbors is None or self.skin == 0:
            return False
        cell = self.batch.cell
        if self._cell is not None and cell is not None and not torch.equal(self._cell, cell):
            return False
        # Not a number compares as false: the search is to find it
        return bool(largest_step(self.batch.positions, self._positions) < 0.25 * self.skin**2)

    def build(self) -> None:
        """Makes the list anew.

        Raises:
            ValueError: positions or cells that are not finite, singular cells.
        """
        self.neighbors = None  # its memory serves the next one
        if self.near is not None:
            self.near.settle()
        self.neighbors = self.batch.neighbors(self.cutoff(self.batch) + self.skin)
        self._positions.copy_(self.batch.positions)
        if self._cell is not None and self.batch.cell is not None:
            self._cell.copy_(self.batch.cell)
        self.builds += 1


def largest_step(positions: Tensor, before: Tensor) -> Tensor:
    """The largest square of the distance that an atom has moved; ``[]``, 0 without atoms."""
    if positions.shape[0] == 0:
        return positions.new_zeros(())
    return (positions - before).square_().sum(1).max()
