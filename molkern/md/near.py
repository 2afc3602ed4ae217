"""An evaluator's positions near the origin, whatever the engine's coordinates are."""

from __future__ import annotations

import torch
from torch import Tensor

from ..centering import GAIN, NEAR, far_parts, shifted
from ..graph import AtomicBatch


class NearPositions:
    """Writes positions and cells into a batch whose float32 positions stay near the origin.

    What is taken off (:func:`molkern.centering.far_parts`) follows from the positions and cells for
    which a list is made (:meth:`settle`) alone, so that a run that goes on from there has the same
    bits: until the next list no atom moves far and no cell changes. It is float64, and its tensors
    stay where they are, for captured steps. Batches of float64 are written as they are.

    Args:
        batch: written into; its ``offsets`` are what is taken off.
        order: the atoms of what is given that the batch's atoms are, ``[N]``; None: the same.

    Attributes:
        narrow: whether the batch is of float32.
    """

    def __init__(self, batch: AtomicBatch, order: Tensor | None):
        self.batch, self._order, self._owner = batch, order, batch.owners
        self.narrow = batch.positions.dtype == torch.float32
        self._wide = batch.positions
        self._given = None if order is None else torch.empty_like(self._wide.double())
        if not self.narrow:
            return
        self._moved = batch.offsets is not None
        self._wide = self._wide.double()
        if batch.offsets is None:
            batch.offsets = torch.zeros_like(self._wide)
        self._taken = batch.offsets
        self._wide += self._taken
        self._near = torch.empty_like(self._wide)
        self._cell = batch.exact_cell
        if self._cell is None and batch.cell is not None:
            self._cell = batch.cell.double()

    def write(self, positions: Tensor | None, cell: Tensor | None) -> None:
        """Takes over positions ``[N, 3]`` and cells of any floating type, or None as before."""
        batch = self.batch
        if cell is not None:
            assert batch.cell is not None
            batch.cell.copy_(cell)
            if self.narrow and self._cell is not None:
                self._cell.copy_(cell)
        if positions is None:
            return
        if self._order is None or self._given is None:
            self._wide.copy_(positions)
        else:
            self._given.copy_(positions)
            torch.index_select(self._given, 0, self._order, out=self._wide)
        if self.narrow:
            self._place()
        elif batch.offsets is not None:  # of the positions that the batch came with
            batch.offsets.zero_()

    def _place(self) -> None:
        if self._moved:
            torch.sub(self._wide, self._taken, out=self._near)
            self.batch.positions.copy_(self._near)
        else:
            self.batch.positions.copy_(self._wide)

    def settle(self) -> None:
        """Moves each system near the origin, where that gains something; waits for no GPU."""
        if not self.narrow or self.batch.num_atoms == 0:
            return
        batch, owner, on_host = self.batch, self._owner, self._wide.is_cpu
        if on_host and float(self._wide.abs().max()) < GAIN * NEAR:
            if self._moved:
                self._moved = False
                self._taken.zero_()
                self._place()
            return
        offset, cells = far_parts(self._wide, self._cell, batch.pbc, batch.system_ptr, owner)
        taken = offset[owner]
        if cells is not None and self._cell is not None:
            taken = taken + shifted(cells, self._cell, owner)
        self._taken.copy_(taken)
        self._moved = not on_host or bool(taken.any())
        self._place()
