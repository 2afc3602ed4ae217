"""Atoms in an order in which neighbors are close in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import AtomicBatch

_BITS = 20  # per axis, of a box's number


def spatial_order(batch: AtomicBatch, size: float) -> Tensor:
    """Atoms of each system along a Z-order curve through boxes of a size: a permutation ``[N]``.

    Morton, A Computer Oriented Geodetic Data Base, IBM (1966). Atoms are wrapped into their cells;
    those in one box keep their order.
    """
    positions = _wrapped(batch)
    boxes = torch.div(positions - positions.amin(0), size, rounding_mode="floor")
    boxes = boxes.clamp(max=2**_BITS - 1).long()
    key = torch.zeros_like(boxes[:, 0])
    for bit in range(_BITS):
        for axis in range(3):
            key |= ((boxes[:, axis] >> bit) & 1) << (3 * bit + axis)
    order = torch.argsort(key, stable=True)
    if batch.batch is None:
        return order
    return order[torch.argsort(batch.batch[order], stable=True)]


def _wrapped(batch: AtomicBatch) -> Tensor:
    """Positions within their cells along periodic axes, float64."""
    positions = batch.positions.double()
    if batch.cell is None or batch.pbc is None:
        return positions
    system = torch.zeros_like(batch.numbers) if batch.batch is None else batch.batch.long()
    # Axes that are not periodic may have no vector
    identity = torch.eye(3, dtype=torch.float64, device=positions.device)
    cells = torch.where(batch.pbc.unsqueeze(2), batch.cell.double(), identity)
    inverse = torch.linalg.pinv(cells)[system]
    fractions = torch.einsum("na,nab->nb", positions, inverse).floor()
    fractions = fractions * batch.pbc[system]
    return positions - torch.einsum("na,nab->nb", fractions, cells[system])
