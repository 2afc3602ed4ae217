"""Operations: typed functions over the compiled kernels, with their derivatives."""

from .cfconv import cfconv, segment_sum
from .radial import radial_basis
from .spherical import spherical_radial

__all__ = ["cfconv", "radial_basis", "segment_sum", "spherical_radial"]
