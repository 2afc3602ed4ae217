"""Operations: typed functions over the compiled kernels, with their derivatives."""

from .cfconv import cfconv, segment_sum
from .dense import dense
from .radial import radial_basis

__all__ = ["cfconv", "dense", "radial_basis", "segment_sum"]
