"""Data sets in memory, what is shipped with the package, and readers of common files."""

from .dataset import Dataset, Sample
from .shipped import Frames, ethanol_frames, ethanol_model

__all__ = ["Dataset", "Frames", "Sample", "ethanol_frames", "ethanol_model"]
