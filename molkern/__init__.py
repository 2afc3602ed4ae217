"""Fast message passing on molecules: DTNN, SchNet, PhysNet and DimeNet on hand-written kernels."""

from importlib.metadata import PackageNotFoundError, version

from . import interop, md, models, nn, ops
from .graph import AtomicBatch, NeighborList, neighbor_list
from .host import empty_cache
from .ops._library import build_info

try:
    __version__ = version("molkern")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0.0.0"

__all__ = [
    "AtomicBatch",
    "NeighborList",
    "build_info",
    "empty_cache",
    "interop",
    "md",
    "models",
    "neighbor_list",
    "nn",
    "ops",
]
