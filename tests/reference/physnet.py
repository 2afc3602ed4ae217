"""PhysNet's pair energies as sums over all pairs of atoms, by their formulas."""

import torch


def switch(x):
    """PhysNet's cutoff function of x = d / range."""
    return torch.where(x < 1, 1 - 6 * x**5 + 15 * x**4 - 10 * x**3, 0)


def coulomb(d, switch_range, cutoff=None, shift_shielded=True, shielding=1.0):
    """χ of two unit charges in units of 1 / length."""
    shielded = (d**2 + shielding**2).sqrt()
    weight = switch(d / switch_range)
    if cutoff is None:
        return weight / shielded + (1 - weight) / d
    plain = 1 / d + d / cutoff**2 - 2 / cutoff
    if shift_shielded:
        soft = 1 / shielded + shielded / cutoff**2 - 2 / cutoff
    else:
        soft = 1 / shielded + d / cutoff**2 - 2 / cutoff
    return torch.where(d <= cutoff, weight * soft + (1 - weight) * plain, 0)


def coulomb_energy(charges, positions, constant, *arguments, **options):
    """The Coulomb energy of a molecule."""
    d = torch.pdist(positions)
    i, j = torch.triu_indices(len(charges), len(charges), 1)
    return constant * (charges[i] * charges[j] * coulomb(d, *arguments, **options)).sum()
