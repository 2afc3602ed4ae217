import copy
import pickle

import pytest
import torch

from molkern.md.kept import KeptEvaluators
from molkern.models import DimeNet, SchNet


@pytest.fixture
def model():
    return SchNet(4, 4, 1, num_basis=4, cutoff=3.0).double()


def arguments(count=2):
    """Two waters in a box each."""
    numbers = torch.tensor([8, 1, 1] * count)
    positions = torch.rand(3 * count, 3, dtype=torch.float64)
    system = torch.arange(count).repeat_interleave(3)
    cell = 9.0 * torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    return numbers, positions, cell, torch.ones(count, 3, dtype=torch.bool), system, count


def test_a_batch_is_found_again_and_the_oldest_dropped(model):
    kept = KeptEvaluators(model, most=2)
    first, second, third = (kept.find(*arguments(count)) for count in (1, 2, 3))
    assert kept.evaluators == [third, second]
    assert kept.find(*arguments(2)) is second
    assert kept.evaluators == [second, third]
    assert kept.find(*arguments(1)) is not first


@pytest.mark.parametrize("changed", ["numbers", "pbc", "system", "num_systems", "cell"])
def test_what_makes_another_batch(model, changed):
    kept = KeptEvaluators(model, most=2)
    numbers, positions, cell, pbc, system, count = arguments()
    first = kept.find(numbers, positions, cell, pbc, system, count)
    if changed == "numbers":
        numbers[0] = 7  # in place, as engines do
    elif changed == "pbc":
        pbc[1, 2] = False
    elif changed == "system":
        system[2] = 1
    elif changed == "num_systems":
        cell, pbc, count = torch.cat([cell, cell[:1]]), torch.cat([pbc, pbc[:1]]), 3
    else:
        cell = pbc = None
    assert kept.find(numbers, positions, cell, pbc, system, count) is not first


def test_evaluators_are_of_the_models_type(model):
    numbers, positions, cell, pbc, system, count = arguments()
    evaluator = KeptEvaluators(model).find(
        numbers.int(), positions.float(), cell.float(), pbc, system, count
    )
    assert evaluator.batch.positions.dtype == evaluator.batch.cell.dtype == torch.float64


def test_copies(model):
    kept = KeptEvaluators(model)
    kept.find(*arguments())()
    for twin in (copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
        assert twin.evaluators == []
        assert twin.find(*arguments()).model is twin.model


def test_refusals(model):
    with pytest.raises(ValueError, match="at least 1 evaluator must be kept, got 0"):
        KeptEvaluators(model, most=0)
    with pytest.raises(ValueError, match="skin must not be negative and must be finite, got -1"):
        KeptEvaluators(model, skin=-1)
    with pytest.raises(ValueError, match="this SchNet predicts 'dipole_moment'"):
        KeptEvaluators(SchNet(4, 4, 1, num_basis=4, cutoff=3.0, prediction="dipole_moment"))
    with pytest.raises(ValueError, match="this DimeNet predicts 'property'"):
        KeptEvaluators(DimeNet(8, num_blocks=1, num_targets=2))
    KeptEvaluators(DimeNet(8, num_blocks=1))
