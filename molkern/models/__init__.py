"""Neural-network potentials assembled from molkern's layers."""

from .physnet import PhysNet
from .potential import Potential, load
from .schnet import SchNet
from .structure import Structure

#: Models by the name that saved files carry.
MODELS: dict[str, type[Potential]] = {"PhysNet": PhysNet, "SchNet": SchNet}

__all__ = ["MODELS", "PhysNet", "Potential", "SchNet", "Structure", "load"]
