"""What every potential does around its atomic energies."""

from dataclasses import replace

import pytest
import torch

import molkern
from molkern.models import SchNet


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SchNet(8, 8, 2, 8, cutoff=3.5).double().eval()


def test_derivatives_need_no_gradient_mode(model, crystal):
    numbers, positions, cell = crystal
    batch = molkern.AtomicBatch(numbers, positions, cell=cell)
    expected = model(batch, forces=True, stress=True)
    with torch.no_grad():
        out = model(batch, forces=True, stress=True)
    for name in ("energy", "forces", "stress"):
        assert torch.equal(out[name], expected[name]), name
        assert out[name].abs().max() > 1e-4


def test_inference_mode_is_refused(model, crystal):
    numbers, positions, cell = crystal
    batch = molkern.AtomicBatch(numbers, positions, cell=cell)
    with torch.inference_mode():
        model(batch)
        with pytest.raises(RuntimeError, match=r"use torch\.no_grad\(\)"):
            model(batch, forces=True)


def test_lists_of_another_batch_are_refused(model, crystal):
    numbers, positions, cell = crystal
    batch = molkern.AtomicBatch(numbers, positions, cell=cell)
    open_list = molkern.neighbor_list(positions, 3.5)
    with pytest.raises(ValueError, match="the neighbor list has no shifts"):
        model(batch, neighbors=open_list)
    two = molkern.AtomicBatch(numbers, positions, batch=torch.tensor([0] * 5 + [1] * 5))
    with pytest.raises(ValueError, match=r"is for 1 system\(s\), the batch has 2"):
        model(two, neighbors=open_list)


def test_list_beyond_its_capacity_is_refused(model, crystal):
    """On CUDA the search itself raises nothing: the list comes back without edges."""
    numbers, positions, cell = crystal
    batch = molkern.AtomicBatch(numbers, positions, cell=cell)
    whole = batch.neighbors(3.5, capacity=10_000)
    overflowed = replace(
        whole,
        row_ptr=torch.zeros_like(whole.row_ptr),
        status=torch.tensor([whole.num_edges, 0]),
        **{
            name: getattr(whole, name)[:100]
            for name in ("senders", "receivers", "shifts", "reverse")
        },
    )
    assert whole.num_edges > 100
    with pytest.raises(ValueError, match=f"{whole.num_edges}"):
        model(batch, neighbors=overflowed)


def test_positions_that_are_not_finite_are_refused_with_any_list(model, crystal):
    numbers, positions, cell = crystal
    neighbors = molkern.neighbor_list(positions, 3.5, cell)
    positions = positions.clone()
    positions[7, 1] = torch.nan
    batch = molkern.AtomicBatch(numbers, positions, cell=cell)
    for given in (None, neighbors):
        with pytest.raises(ValueError, match="of atom 7 is NaN or infinite"):
            model(batch, neighbors=given)


def test_a_graph_of_ones_own_for_a_batch(model, crystal):
    numbers, positions, cell = crystal
    two = molkern.AtomicBatch(
        numbers, positions, torch.tensor([0] * 5 + [1] * 5), torch.stack([cell, 1.1 * cell])
    )
    made = two.neighbors(3.5)
    given = molkern.NeighborList.from_edge_index(made.edge_index, 10, made.shifts, two.batch)
    expected = model(two, forces=True)
    out = model(two, forces=True, neighbors=given)
    torch.testing.assert_close(out["energy"], expected["energy"])
    torch.testing.assert_close(out["forces"], expected["forces"])


def test_number_of_targets(model):
    assert model.num_targets == 1
    assert molkern.models.DimeNet(8, num_targets=3, num_blocks=1).num_targets == 3
