"""Batches cost next to nothing beside the steps that they are for."""

import statistics
import time

import numpy as np
import pytest

from molkern.data import load_qm9
from molkern.training.config import read_config
from molkern.training.objective import Objective, match_labels
from molkern.training.standardize import build_model, standards


def test_batches_of_qm9_take_under_a_tenth_of_a_step(reference):
    path = reference.path("qm9_5k.npz")
    if not path.exists():
        pytest.skip(f"reference data not found: {path} (set MOLKERN_REFERENCE_DATA)")
    config, data = read_config("schnet-qm9-small"), load_qm9(path)
    labels, train = match_labels(config), np.arange(4000)
    model = build_model(config, labels, standards(config, labels, data, train))
    objective = Objective(config, labels, data, train)
    rng = np.random.default_rng(0)
    loading, steps = [], []
    for _ in range(8):
        start = time.perf_counter()
        sample = data.collate(rng.choice(4000, 128, replace=False), ["U0"])
        middle = time.perf_counter()
        objective.loss(model(sample.batch), sample, 128, sample.batch.num_atoms).backward()
        loading.append(middle - start)
        steps.append(time.perf_counter() - start)
    assert statistics.median(loading[2:]) < 0.1 * statistics.median(steps[2:])
