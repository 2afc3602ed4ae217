"""What tests of the command line look into."""

import numpy as np

from molkern.md.checkpoint import Checkpoint


def arrays(path):
    """What is in a checkpoint, as bytes."""
    found = Checkpoint.load(path)
    return {k: np.ascontiguousarray(v).tobytes() for k, v in found.arrays.items()}
