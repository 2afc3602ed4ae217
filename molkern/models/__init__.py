"""Neural-network potentials assembled from molkern's layers."""

from .dtnn import DTNN
from .potential import Potential, load
from .schnet import SchNet
from .structure import Structure

#: Models by the name that saved files carry.
MODELS: dict[str, type[Potential]] = {"DTNN": DTNN, "SchNet": SchNet}

__all__ = ["DTNN", "MODELS", "Potential", "SchNet", "Structure", "load"]
