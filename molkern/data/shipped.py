"""Files that are shipped with the package: a data set and the model trained on it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import as_file, files

import numpy as np
import torch
from torch import Tensor

from ..graph import AtomicBatch
from ..models import Potential, load
from .indices import Index, as_indices


@dataclass
class Frames:
    """Geometries of one molecule with energies and forces.

    Attributes:
        numbers: atomic numbers, ``[n]``.
        positions: ``[M, n, 3]``, Å, float64.
        energies: ``[M]``, eV, float64.
        forces: ``[M, n, 3]``, eV/Å, float64.
    """

    numbers: Tensor
    positions: Tensor
    energies: Tensor
    forces: Tensor

    def __len__(self) -> int:
        return self.positions.shape[0]

    def __repr__(self) -> str:
        frames, atoms = self.positions.shape[:2]
        return f"Frames({frames:,} of {atoms} atoms, {self.positions.dtype})"

    def __getitem__(self, index: Index) -> Frames:
        """Some frames; of an integer, the one frame. See :class:`molkern.data.Dataset`."""
        if isinstance(index, tuple):
            raise TypeError("frames have one axis: give a list of frames, and choose atoms after")
        chosen = torch.from_numpy(as_indices(index, len(self), "frames"))
        chosen = chosen.to(self.positions.device)
        return Frames(
            self.numbers, self.positions[chosen], self.energies[chosen], self.forces[chosen]
        )

    def batch(self, dtype: torch.dtype = torch.float32) -> AtomicBatch:
        """All frames side by side."""
        frames, atoms, _ = self.positions.shape
        system = (
            None if frames == 1 else torch.arange(frames, device="cpu").repeat_interleave(atoms)
        )
        positions = self.positions.reshape(-1, 3).to(dtype)
        return AtomicBatch(self.numbers.repeat(frames), positions, system, num_systems=frames)


def ethanol_frames() -> dict[str, Frames]:
    """The ethanol set, GFN2-xTB at 500 K, split as for the shipped model.

    2,000 frames of one trajectory, 5 fs apart, split at random (seed 0) into ``"train"`` (1,000),
    ``"validation"`` (200) and ``"test"`` (800), as is the custom for such sets: a test frame may
    lie between two training frames.
    """
    with as_file(files("molkern.data") / "ethanol_gfn2_500K.npz") as path, np.load(path) as data:
        frames = Frames(
            torch.as_tensor(data["z"], dtype=torch.int64, device="cpu"),
            torch.as_tensor(data["R"], dtype=torch.float64, device="cpu"),
            torch.as_tensor(data["E"], dtype=torch.float64, device="cpu").flatten(),
            torch.as_tensor(data["F"], dtype=torch.float64, device="cpu"),
        )
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(frames)))
    bounds = {"train": (0, 1000), "validation": (1000, 1200), "test": (1200, 2000)}
    return {name: frames[order[first:last]] for name, (first, last) in bounds.items()}


def ethanol_model() -> Potential:
    """The SchNet that is shipped with molkern, trained on :func:`ethanol_frames`; eV and Å."""
    with as_file(files("molkern.data") / "ethanol_schnet.safetensors") as path:
        return load(path)
