"""Neural-network potentials assembled from molkern's layers."""

from .potential import Potential, load
from .schnet import SchNet
from .structure import Structure

#: Models by the name that saved files carry.
MODELS: dict[str, type[Potential]] = {"SchNet": SchNet}

__all__ = ["MODELS", "Potential", "SchNet", "Structure", "load"]
