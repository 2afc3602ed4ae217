"""Operations: typed functions over the compiled kernels, with their derivatives."""

from .cfconv import cfconv, segment_sum
from .geometry import edge_distances, edge_norm, edge_vectors
from .radial import radial_basis

__all__ = ["cfconv", "edge_distances", "edge_norm", "edge_vectors", "radial_basis", "segment_sum"]
