"""Published weights with spline filters: forces of the exact models and of the authors' codes."""

import numpy as np
import pytest
import torch
from interop.test_interop import batch_of

from molkern.interop import load

#: Weights, reference data, and its names for types and forces.
CASES = {
    "energy_c20": ("schnet2017_c20_energy_model", "schnet2017_c20", "Z", "F_energy_model_f64"),
    "force_c20": ("schnet2017_c20_force_model", "schnet2017_c20", "Z", "F_force_model_f64"),
    "chignolin": ("schnet_cg_chignolin", "schnet_cg_chignolin", "atom_types", "F_f64"),
}


@pytest.mark.unemulated  # takes long and runs the kernels that others run
@pytest.mark.parametrize("name", CASES)
def test_forces(reference, name):
    weights, file, types, forces = CASES[name]
    data = reference(f"{file}_reference.npz")
    model = load(reference.path(f"{weights}_weights.npz"))
    frames = len(data["R"])
    numbers = np.tile(data[types], frames)
    batch = batch_of(numbers, data["R"].reshape(-1, 3), [len(data[types])] * frames)
    published = data[forces].reshape(frames, -1, len(data[types]), 3)[:, 0].reshape(-1, 3)
    found = {}
    for dtype in (torch.float32, torch.float64):
        model = model.to(dtype)
        for filters in ("exact", "spline"):
            model.filters = filters
            found[filters] = model(batch.to(dtype=dtype), forces=True)["forces"].double().numpy()
        scale = np.abs(published).max()
        errors = {key: np.abs(value - published).max() / scale for key, value in found.items()}
        if dtype == torch.float64:
            assert np.abs(found["spline"] - found["exact"]).max() <= 1e-6 * scale
            assert errors["spline"] <= 1e-6
        else:
            assert errors["spline"] <= 2 * errors["exact"] + 1e-6
