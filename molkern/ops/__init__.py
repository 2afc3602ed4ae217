"""Operations: typed functions over the compiled kernels, with their derivatives."""

from .cfconv import cfconv, segment_expand, segment_sum
from .edges import gather_receivers, gather_senders, sum_edges
from .radial import radial_basis

__all__ = [
    "cfconv",
    "gather_receivers",
    "gather_senders",
    "radial_basis",
    "segment_expand",
    "segment_sum",
    "sum_edges",
]
