"""The structures that the benchmarks run on. All are made here, from fixed seeds; units are Å."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

DATA = Path(__file__).parent / "data"


class Structure(NamedTuple):
    """One system, or several in one: ``batch`` is the system of each atom, None for one system."""

    numbers: np.ndarray  # [N] int64
    positions: np.ndarray  # [N, 3] float64
    cell: np.ndarray | None = None  # [3, 3], rows are lattice vectors; None: not periodic
    batch: np.ndarray | None = None  # [N] int64


def rotations(count: int, rng: np.random.Generator) -> np.ndarray:
    """Uniform random rotation matrices [count, 3, 3], from unit quaternions."""
    q = rng.normal(size=(count, 4))
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.array(rows).transpose(2, 0, 1)


def water(molecules: int, seed: int = 0) -> Structure:
    """A cubic box of rigid water at 0.997 g/cm3, randomly oriented on a grid, not equilibrated.

    Where ``molecules`` is not a cube, the rest of the grid's sites, chosen at random, stay empty.
    """
    rng = np.random.default_rng(seed)
    length = (molecules * 18.01528 / 0.997 / 0.602214076) ** (1 / 3)
    sites = int(np.ceil(molecules ** (1 / 3) - 1e-9))
    grid = np.stack(np.meshgrid(*[np.arange(sites)] * 3, indexing="ij"), -1).reshape(-1, 3)
    grid = grid[np.sort(rng.permutation(len(grid))[:molecules])]
    centres = (grid + 0.5) * (length / sites) + rng.uniform(-0.15, 0.15, size=(molecules, 3))
    half = np.deg2rad(104.52) / 2
    oh = 0.9572
    molecule = [[0, 0, 0], [oh * np.sin(half), oh * np.cos(half), 0]]
    molecule += [[-oh * np.sin(half), oh * np.cos(half), 0]]
    atoms = np.einsum("mij,aj->mai", rotations(molecules, rng), np.array(molecule))
    positions = (centres[:, None] + atoms).reshape(-1, 3)
    return Structure(np.tile([8, 1, 1], molecules), positions, np.eye(3) * length)


def triclinic_crystal(repeats: int = 13) -> Structure:
    """Quartz-like: two atoms per cell of a skewed lattice, rattled by 0.05 Å; by default 4,394."""
    rng = np.random.default_rng(0)
    lattice = np.array([[2.9, 0.0, 0.0], [1.1, 2.7, 0.0], [0.7, 0.9, 3.1]])
    grid = np.stack(np.meshgrid(*[np.arange(repeats)] * 3, indexing="ij"), -1).reshape(-1, 1, 3)
    positions = (grid + np.array([[0.0, 0.0, 0.0], [0.4, 0.45, 0.5]])).reshape(-1, 3) @ lattice
    positions += rng.normal(scale=0.05, size=positions.shape)
    return Structure(np.tile([14, 8], repeats**3), positions, lattice * repeats)


def aspirin() -> Structure:
    """One frame of aspirin, 21 atoms, from GFN2-xTB dynamics at 500 K."""
    from ase.io import read

    atoms = read(DATA / "aspirin.xyz")
    return Structure(atoms.numbers.astype(np.int64), atoms.positions)


def aspirins(count: int) -> Structure:
    """A batch of so many times the same frame, randomly rotated."""
    one = aspirin()
    turns = rotations(count, np.random.default_rng(0))
    positions = np.concatenate([one.positions @ turn.T for turn in turns])
    batch = np.repeat(np.arange(count), len(one.numbers))
    return Structure(np.tile(one.numbers, count), positions, batch=batch)


def molecules(count: int = 128, *, largest: bool = False) -> Structure:
    """A batch of small molecules: the G2 set, randomly rotated, repeated up to ``count``.

    With ``largest`` the largest come first: 32 of them have 329 atoms and 3,370 pairs within 5 Å.
    """
    from ase.build import molecule
    from ase.collections import g2

    rng = np.random.default_rng(0)
    made = [molecule(name) for name in g2.names]
    made = [atoms for atoms in made if len(atoms) > 3]
    if largest:
        made.sort(key=len, reverse=True)
    chosen = [made[k % len(made)] for k in range(count)]
    turns = rotations(count, rng)
    positions = [atoms.positions @ turn.T for atoms, turn in zip(chosen, turns, strict=True)]
    return Structure(
        np.concatenate([atoms.numbers for atoms in chosen]).astype(np.int64),
        np.concatenate(positions),
        batch=np.repeat(np.arange(count), [len(atoms) for atoms in chosen]),
    )
