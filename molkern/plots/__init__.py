"""Pictures of training, of predictions, and of what a model has learned; they need matplotlib.

Every function writes a file and returns the matplotlib ``Figure`` that it wrote.
"""

from .basis import draw_basis
from .filters import draw_filters, filter_profiles
from .training import error_histogram, learning_curves, parity

__all__ = [
    "draw_basis",
    "draw_filters",
    "error_histogram",
    "filter_profiles",
    "learning_curves",
    "parity",
]
