"""An evaluator's positions near the origin, whatever the engine's coordinates are."""

from __future__ import annotations

import torch
from torch import Tensor

from ..centering import NEAR, bounds, far_parts, shifted
from ..graph import AtomicBatch


class NearPositions:
    """Writes positions and cells into a batch whose float32 positions stay near the origin.

    What is taken off (:func:`molkern.centering.far_parts`) changes only where a list is made
    (:meth:`settle`): between two lists no atom moves far. All of it is float64 and stays where it
    is, for captured steps; ``batch.offsets`` follows. Batches of float64 are written as they are.

    Args:
        batch: written into.
        order: the atoms of what is given that the batch's atoms are, ``[N]``; None: the same.

    Attributes:
        narrow: whether the batch is of float32.
    """

    def __init__(self, batch: AtomicBatch, order: Tensor | None):
        self.batch, self._order, self._owner = batch, order, batch.owners
        self.narrow = batch.positions.dtype == torch.float32
        #: Whether anything is taken off, whole cells among it; whether offsets came with the batch.
        self._moved = self._wrapped = False
        self._foreign = batch.offsets is not None
        wide = batch.positions.double()
        self._given = None if order is None else torch.empty_like(wide)
        if not self.narrow:
            return
        self._near, self._taken = wide, torch.zeros_like(wide)
        self._offset = wide.new_zeros(batch.num_systems, 3)
        self._cells = torch.zeros_like(wide)
        self._cell = None if batch.cell is None else batch.cell.double()
        if batch.exact_cell is not None:
            self._cell = batch.exact_cell
        self._limit = wide.new_zeros(batch.num_atoms)
        if batch.offsets is None:
            batch.offsets = torch.zeros_like(wide)

    def write(self, positions: Tensor | None, cell: Tensor | None) -> None:
        """Takes over positions ``[N, 3]`` and cells of any floating type, or None as before."""
        batch = self.batch
        if cell is not None:
            assert batch.cell is not None
            batch.cell.copy_(cell)
            if self.narrow and self._cell is not None:
                self._cell.copy_(cell)
                if self._wrapped:
                    self._follow_cell(positions is None)
        if positions is not None:
            self._write(positions)

    def _write(self, positions: Tensor) -> None:
        batch = self.batch
        target = self._near if self.narrow else batch.positions
        if self._order is None or self._given is None:
            target.copy_(positions)
        else:
            self._given.copy_(positions)
            torch.index_select(self._given, 0, self._order, out=target)
        if self._moved:
            target.sub_(self._taken)
        if self.narrow:
            batch.positions.copy_(target)
        if self._foreign and batch.offsets is not None:  # those were of other positions
            batch.offsets.copy_(self._taken) if self.narrow else batch.offsets.zero_()
            self._foreign = False

    def _follow_cell(self, same_positions: bool) -> None:
        change = self._all_taken().sub_(self._taken)
        self._taken.add_(change)
        assert self.batch.offsets is not None
        self.batch.offsets.add_(change)
        if same_positions:
            self._near.sub_(change)
            self.batch.positions.copy_(self._near)

    def _all_taken(self) -> Tensor:
        taken = self._offset[self._owner]
        return (
            taken if self._cell is None else taken + shifted(self._cells, self._cell, self._owner)
        )

    def far(self) -> Tensor:
        """Whether an atom is twice as far as its system was large: ``[]``, on the device."""
        return (self._near.abs().amax(1) > self._limit).any()

    def settle(self) -> bool:
        """Moves systems that have gone far; whether any has. Waits for the device."""
        if not self.narrow or not bool(self.far()):
            return False
        batch, owner = self.batch, self._owner
        offset, cells = far_parts(self._near, self._cell, batch.pbc, batch.system_ptr, owner)
        moved = bool(offset.any())
        self._offset.add_(offset)
        if cells is not None and bool(cells.any()):
            self._cells.add_(cells)
            moved = self._wrapped = True
        if moved:
            self._moved = True
            change = self._all_taken().sub_(self._taken)
            self._taken.add_(change)
            assert batch.offsets is not None
            batch.offsets.add_(change)
            self._near.sub_(change)
            batch.positions.copy_(self._near)
        low, high = bounds(self._near, owner, batch.num_systems)
        sizes = torch.maximum(low.abs(), high.abs()).amax(1).clamp(min=NEAR)
        self._limit.copy_(2.0 * sizes[owner])
        return moved
