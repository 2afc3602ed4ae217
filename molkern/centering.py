"""Positions near the origin: what float64 positions lose before they become float32.

float32 keeps about seven digits: a molecule 10,000 Å from the origin is rounded to 0.001 Å, while
distances and forces depend on differences alone. So each system is moved as a whole, and atoms that
have left their periodic cell far behind are put back by whole cells, in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Positions are changed only where the largest coordinate of a system gets so many times smaller;
GAIN = 3.0
#: below this length smaller ones are no gain: what lies within 15 units of the origin stays there.
NEAR = 5.0


def far_parts(
    positions: Tensor,
    cell: Tensor | None,
    pbc: Tensor | None,
    system_ptr: Tensor,
    owner: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """What to take off positions so that float32 holds them well; zeros where nothing is gained.

    A whole number of units of length for each system, its middle. Where atoms lie far outside of
    their cell, whole cells for each atom besides. Left alone are systems whose largest coordinate
    would not get at least :data:`GAIN` times smaller, those within 15 units of the origin, those
    whose positions are float32 numbers already, and those with positions that are not finite.
    Nothing waits for the device.

    Args:
        positions: ``[N, 3]``, float64.
        cell, pbc: ``[B, 3, 3]``, float64, and ``[B, 3]``, or None twice.
        system_ptr: first atom of each system and the end, ``[B + 1]``.
        owner: system of each atom, ``[N]``, int64.

    Returns:
        offsets ``[B, 3]`` and, with cells, numbers of cells ``[N, 3]``, float64.
    """
    count = system_ptr.shape[0] - 1
    if positions.shape[0] == 0:
        none = None if cell is None else torch.zeros_like(positions)
        return positions.new_zeros(count, 3), none
    low, high = bounds(positions, owner, count)
    middle = _middle(low, high)
    given, moved = _size(low, high), _size(low - middle, high - middle)
    centred = _gains(moved, given) & _rounded(positions, owner, count)
    if cell is None or pbc is None:
        return torch.where(centred.unsqueeze(1), middle, 0.0), None
    first = positions[system_ptr[:-1].long().clamp(max=positions.shape[0] - 1)]
    cells = _whole_cells(positions - first[owner], cell, pbc, owner)
    low, high = bounds(positions - shifted(cells, cell, owner), owner, count)
    inner = _middle(low, high)
    wrapped = _gains(_size(low - inner, high - inner), torch.minimum(given, moved))
    offset = torch.where(
        wrapped.unsqueeze(1), inner, torch.where(centred.unsqueeze(1), middle, 0.0)
    )
    return offset, torch.where(wrapped[owner].unsqueeze(1), cells, 0.0)


def shifted(cells: Tensor, cell: Tensor, owner: Tensor) -> Tensor:
    """Lengths of whole cells: ``[N, 3]`` cells → ``[N, 3]`` in the unit of the cell."""
    return _products(cells, cell, owner)


def bounds(positions: Tensor, owner: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest coordinates of each system, ``[B, 3]``; zeros of one without atoms."""
    if count == 1:
        return positions.amin(0, keepdim=True), positions.amax(0, keepdim=True)
    index, ends = owner.unsqueeze(1).expand(-1, 3), positions.new_zeros(count, 3)
    low = ends.scatter_reduce(0, index, positions, "amin", include_self=False)
    return low, ends.scatter_reduce(0, index, positions, "amax", include_self=False)


def _products(rows: Tensor, matrices: Tensor, owner: Tensor) -> Tensor:
    """Each row times its system's matrix."""
    if matrices.shape[0] == 1:
        return rows @ matrices[0]
    return (rows.unsqueeze(2) * matrices[owner]).sum(1)


def _middle(low: Tensor, high: Tensor) -> Tensor:
    return (0.5 * (low + high)).round()


def _size(low: Tensor, high: Tensor) -> Tensor:
    """The largest coordinate, ``[B]``."""
    return torch.maximum(low.abs(), high.abs()).amax(1)


def _gains(size: Tensor, before: Tensor) -> Tensor:
    """Whether it is worth it, ``[B]``."""
    return GAIN * size.clamp(min=NEAR) <= before


def _rounded(positions: Tensor, owner: Tensor, count: int) -> Tensor:
    """Whether float32 would change any of a system's positions, ``[B]``."""
    changed = (positions.float().double() != positions).any(1).to(positions)
    found = positions.new_zeros(count).scatter_reduce(0, owner, changed, "amax")
    return found > 0


def _whole_cells(vectors: Tensor, cell: Tensor, pbc: Tensor, owner: Tensor) -> Tensor:
    """Whole cells along periodic axes that bring vectors near zero, ``[N, 3]``; 0 if singular."""
    axes = torch.where(pbc.unsqueeze(2), cell, 0.0)
    # Any number of axes, which may be at any angle: least squares
    gram = axes @ axes.transpose(1, 2) + torch.diag_embed((~pbc).to(axes))
    a, b, c = gram.unbind(1)
    cross = torch.linalg.cross
    adjugate = torch.stack([cross(b, c), cross(c, a), cross(a, b)], 2)
    volume = (a * cross(b, c)).sum(1).reshape(-1, 1, 1)
    duals = (adjugate / volume) @ axes
    fractions = _products(vectors, duals.transpose(1, 2), owner)
    return torch.where(fractions.isfinite() & pbc[owner], fractions.round(), 0.0)
