"""Neural-network potentials assembled from molkern's layers."""

from .dimenet import DimeNet, DimeNetPlusPlus
from .dtnn import DTNN
from .lean import LeanSchNet
from .physnet import PhysNet
from .potential import Potential
from .saved import load
from .schnet import SchNet
from .structure import Structure

#: Models by the name that saved files carry.
MODELS: dict[str, type[Potential]] = {
    "DTNN": DTNN,
    "DimeNet": DimeNet,
    "DimeNetPlusPlus": DimeNetPlusPlus,
    "PhysNet": PhysNet,
    "SchNet": SchNet,
}

__all__ = [
    "DTNN",
    "MODELS",
    "DimeNet",
    "DimeNetPlusPlus",
    "LeanSchNet",
    "PhysNet",
    "Potential",
    "SchNet",
    "Structure",
    "load",
]
