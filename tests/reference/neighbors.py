"""Neighbor lists by brute force: every pair in every image that could be in range, in float64."""

import numpy as np


def complete_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Rows of axes that are not periodic, replaced by unit vectors across the periodic ones."""
    completed = np.where(pbc[:, None], cell, 0.0)
    _, _, directions = np.linalg.svd(completed)
    completed[~pbc] = directions[pbc.sum() :]
    return completed


def images_in_reach(positions, cutoff, cell, pbc) -> np.ndarray:
    """Shifts [M, 3] in ascending order, among them all that any pair within the cutoff may have.

    A pair's vector has fractional coordinates f + s, and |v| ≥ |f_k + s_k| · (spacing of planes).
    """
    inverse = np.linalg.inv(complete_cell(cell, pbc))
    fractional = positions @ inverse
    spread = np.ptp(fractional, axis=0) + cutoff * np.linalg.norm(inverse, axis=0)
    bound = np.where(pbc, np.floor(spread + 1e-6), 0).astype(int)
    axes = [np.arange(-b, b + 1) for b in bound]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def neighbor_list(positions, cutoff, cell=None, pbc=None) -> np.ndarray:
    """Edges of one system, [E, 5]: receiver, sender and shift, sorted."""
    positions = np.asarray(positions, np.float64)
    count = len(positions)
    shifts, offsets = np.zeros((1, 3), int), np.zeros((1, 3))
    if count and cell is not None and np.any(pbc):
        cell = np.asarray(cell, np.float64)
        shifts = images_in_reach(positions, cutoff, cell, np.asarray(pbc))
        s = shifts[:, :, None]
        offsets = (s[:, 0] * cell[0] + s[:, 1] * cell[1]) + s[:, 2] * cell[2]
    # [receiver, sender, image, 3]
    vectors = (positions[None] - positions[:, None])[:, :, None] + offsets
    squared = (vectors[..., 0] ** 2 + vectors[..., 1] ** 2) + vectors[..., 2] ** 2
    near = squared < cutoff * cutoff
    near[np.arange(count), np.arange(count), np.all(shifts == 0, axis=1).argmax()] = False
    receivers, senders, images = near.nonzero()
    return np.column_stack([receivers, senders, shifts[images]])


def batch_neighbor_list(positions, cutoff, counts, cells=None, pbcs=None) -> np.ndarray:
    """Edges of several systems of ``counts`` atoms each, atoms numbered throughout."""
    edges, first = [np.empty((0, 5), int)], 0
    for system, count in enumerate(counts):
        own = (None, None) if cells is None else (cells[system], pbcs[system])
        found = neighbor_list(positions[first : first + count], cutoff, *own)
        edges.append(found + np.array([first, first, 0, 0, 0]))
        first += count
    return np.concatenate(edges)
