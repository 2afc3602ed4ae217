"""Sums over atoms about the centre of mass, system by system."""

import torch

from molkern.nn.masses import ATOMIC_MASSES


def dipoles_and_extents(charges, batch, positions=None):
    """Dipoles ``[B, 3]`` and extents ``[B]``, system by system."""
    positions = batch.positions if positions is None else positions
    masses = torch.tensor(ATOMIC_MASSES, dtype=torch.float64, device=positions.device)
    dipoles, extents = [], []
    for system in range(batch.num_systems):
        mine = torch.arange(batch.num_atoms, device=positions.device)
        mine = mine[batch.batch == system] if batch.batch is not None else mine
        m, q, r = masses[batch.numbers[mine], None], charges[mine, None], positions[mine]
        r = r - (m * r).sum(0) / m.sum() if len(mine) else r
        dipoles.append((q * r).sum(0))
        extents.append((q * r.square()).sum())
    return torch.stack(dipoles), torch.stack(extents)
