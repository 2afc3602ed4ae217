"""Data sets in memory, readers of common files, and what is shipped with the package."""

from .dataset import Dataset, Sample
from .frames import load_ase
from .loading import load_dataset, open_dataset, save_dataset
from .npz import load_npz
from .qm9 import load_qm9
from .shipped import Frames, ethanol_frames, ethanol_model

__all__ = [
    "Dataset",
    "Frames",
    "Sample",
    "ethanol_frames",
    "ethanol_model",
    "load_ase",
    "load_dataset",
    "load_npz",
    "load_qm9",
    "open_dataset",
    "save_dataset",
]
