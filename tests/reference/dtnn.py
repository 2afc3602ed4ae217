"""DTNN from arrays under the authors' names, over all pairs and images at once."""

import itertools
import math

import torch


def images(cell, pbc, cutoff):
    """Whole cells that the authors' code looks at, ``[M, 3]``."""
    volume = abs(float(torch.linalg.det(cell)))
    ranges = []
    for axis in range(3):
        a, b = (cell[k] for k in range(3) if k != axis)
        height = volume / float(torch.linalg.cross(a, b).norm())
        reach = math.floor(cutoff / height) if pbc[axis] else 0
        ranges.append(range(-reach, reach + 1))
    return torch.tensor(list(itertools.product(*ranges)), dtype=cell.dtype)


def atomic_energies(
    arrays, numbers, positions, *, passes, cutoff, spacing, cell=None, pbc=None, summed=False
):
    """Atomic energies ``[N]``.

    Without a cell all pairs. With one an edge for every image closer than ``cutoff``; or, with
    ``summed``, the authors' periodic code: Gaussians of all images in one message per pair.
    """
    v = {name.split("model/")[1]: torch.as_tensor(a).double() for name, a in arrays.items()}
    count = v["Dense_1/W"].shape[0]
    centers = torch.linspace(0.0, count * spacing, count, dtype=torch.float64)
    atoms = len(numbers)
    other = ~torch.eye(atoms, dtype=torch.bool)
    if cell is None:
        shifts = torch.zeros(1, 3, dtype=torch.float64)
    elif summed:
        shifts = images(cell, pbc, cutoff)
    else:  # one cell more on either side, for atoms that the cell does not hold
        shifts = images(cell, pbc, cutoff + 2 * float(cell.norm()))
    moved = positions[None, None] + (shifts if cell is None else shifts @ cell)[:, None, None]
    distances = (moved - positions[None, :, None]).square().sum(-1)  # [M, receiver, sender]
    itself = torch.eye(atoms, dtype=torch.bool) & (shifts == 0).all(1)[:, None, None]
    distances = (distances + itself).sqrt()  # no derivative of a square root at zero
    gaussians = torch.exp(-((distances[..., None] - centers) ** 2) / (2 * spacing**2))
    if summed:
        gaussians, use = gaussians.sum(0, keepdim=True), other[None]
    else:
        use = ~itself if cell is None else ~itself & (distances < cutoff)
    factors = gaussians @ v["Dense_1/W"] + v["Dense_1/b"]
    x = v["Dense/W"][numbers]
    for _ in range(passes):
        projected = x @ v["in2fac/W"] + v["in2fac/b"]
        messages = torch.tanh((projected[None, None] * factors) @ v["fac2out/W"])
        x = x + (messages * use[..., None]).sum((0, 2))
    hidden = torch.tanh(x @ v["Dense_2/W"] + v["Dense_2/b"])
    y = (hidden @ v["Dense_3/W"] + v["Dense_3/b"]).squeeze(1)
    return y * v["std"] + v["mu"] + v["Embedding/W"][numbers, 0]


def random_arrays(*, elements=9, hidden=5, factors=7, basis=20, head=3, seed=0, names="{}"):
    """Variables of any sizes under the authors' names."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "Dense/W": (elements, hidden),
        "Dense_1/W": (basis, factors),
        "Dense_1/b": (factors,),
        "in2fac/W": (hidden, factors),
        "in2fac/b": (factors,),
        "fac2out/W": (factors, hidden),
        "Dense_2/W": (hidden, head),
        "Dense_2/b": (head,),
        "Dense_3/W": (head, 1),
        "Dense_3/b": (1,),
        "mu": (1,),
        "std": (1,),
        "Embedding/W": (elements + 3, 1),
    }
    return {
        names.format(f"model/{name}"): 0.4
        * torch.randn(shape, generator=generator, dtype=torch.float64).numpy()
        for name, shape in shapes.items()
    }
