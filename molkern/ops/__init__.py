"""Operations: typed functions over the compiled kernels, with their derivatives."""

from ._standins import dense
from .cfconv import cfconv, segment_sum
from .edges import gather_receivers, gather_senders, sum_edges
from .radial import radial_basis
from .triplets import triplet_sum

__all__ = [
    "cfconv",
    "dense",
    "gather_receivers",
    "gather_senders",
    "radial_basis",
    "segment_sum",
    "sum_edges",
    "triplet_sum",
]
