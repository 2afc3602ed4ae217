"""Operations: typed functions over the compiled kernels, with their derivatives."""

from .cfconv import cfconv, segment_expand, segment_sum
from .dense import dense
from .dense_residual import dense_residual
from .dtnn import dtnn_message
from .edges import gather_receivers, gather_senders, sum_edges
from .radial import radial_basis
from .spherical import spherical_radial
from .splines import SplineGrid, spline_cfconv
from .triplets import triplet_sum

__all__ = [
    "SplineGrid",
    "cfconv",
    "dense",
    "dense_residual",
    "dtnn_message",
    "gather_receivers",
    "gather_senders",
    "radial_basis",
    "segment_expand",
    "segment_sum",
    "spherical_radial",
    "spline_cfconv",
    "sum_edges",
    "triplet_sum",
]
