"""Batches cost next to nothing beside the steps that they are for."""

import statistics
import time

import numpy as np

from molkern.data import load_qm9
from molkern.training.config import read_config
from molkern.training.objective import Objective, match_labels
from molkern.training.standardize import build_model, standards


def test_batches_of_qm9_take_under_a_tenth_of_a_step(reference):
    config, data = read_config("schnet-qm9-small"), load_qm9(reference.path("qm9_5k.npz"))
    labels, train = match_labels(config), np.arange(4000)
    model = build_model(config, labels, standards(config, labels, data, train))
    objective = Objective(config, labels, data, train)
    rng = np.random.default_rng(0)
    loading, steps = [], []  # time of this thread, which other work on the machine does not change
    for _ in range(8):
        start = time.thread_time()
        sample = data.collate(rng.choice(4000, 128, replace=False), ["U0"])
        middle = time.thread_time()
        objective.loss(model(sample.batch), sample, 128, sample.batch.num_atoms).backward()
        loading.append(middle - start)
        steps.append(time.thread_time() - start)
    assert statistics.median(loading[2:]) < 0.1 * statistics.median(steps[2:])
