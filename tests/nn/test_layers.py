"""Filter network, convolution, heads and references as layers."""

import math

import pytest
import torch

import molkern
from molkern.nn import (
    AtomicReference,
    AtomwiseHead,
    CFConv,
    FilterNetwork,
    SchNetInteraction,
    ShiftedSoftplus,
)


def test_shifted_softplus():
    x = torch.linspace(-30, 30, 61, dtype=torch.float64)
    plain = torch.log(0.5 * torch.exp(x) + 0.5)
    torch.testing.assert_close(ShiftedSoftplus()(x), plain, rtol=0, atol=3e-9)
    torch.testing.assert_close(ShiftedSoftplus(threshold=40)(x), plain, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("cutoff_function", ["none", "cosine"])
def test_filters_vanish_beyond_the_cutoff(cutoff_function):
    network = FilterNetwork(5, 4, 3.0, cutoff_function=cutoff_function)
    filters = network(torch.rand(3, 5), torch.tensor([2.9, 3.0, 3.1]))
    assert filters[0].all()
    assert not filters[1:].any()


@pytest.mark.parametrize("aggregation", ["sum", "mean"])
def test_convolution_is_a_sum_over_neighbors(device, aggregation):
    pairs = torch.tensor([[1, 2, 0], [0, 0, 1]], device=device)
    graph = molkern.NeighborList.from_edge_index(pairs, num_atoms=3)
    conv = CFConv(4, 5, 6, aggregation=aggregation).double().to(device)
    x = torch.rand(3, 4, dtype=torch.float64, device=device)
    filters = torch.rand(3, 5, dtype=torch.float64, device=device)
    y = x @ conv.lin_in.weight.T
    first = y[1] * filters[0] + y[2] * filters[1]
    if aggregation == "mean":
        first = first / 2
    summed = torch.stack([first, y[0] * filters[2], torch.zeros_like(first)])
    plain = summed @ conv.lin_out.weight.T + conv.lin_out.bias
    torch.testing.assert_close(conv(x, graph.sort_edges(filters), graph), plain)


def test_head_of_one_feature_still_sees_it():
    head = AtomwiseHead(1)
    assert head(torch.tensor([[1.0], [2.0]])).unique().numel() == 2


def test_reference_energies():
    shift = AtomicReference(scale=2.0, mean=-1.0, reference=[0.0, -13.6])
    numbers = torch.tensor([1, 0])
    assert shift(torch.ones(2), numbers).tolist() == [2 - 1 - 13.6, 1.0]
    with pytest.raises(ValueError, match=r"reference must have shape \[Z\], got \[2, 1\]"):
        AtomicReference(reference=torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"scale must be a number, got shape \[2\]"):
        AtomicReference(scale=[1.0, 2.0])


def test_references_of_several_targets():
    shift = AtomicReference([2.0, 1.0], -1.0, [[0.0, 5.0], [-13.6, 6.0]], num_targets=2)
    y = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert shift(y, torch.tensor([1, 0])).tolist() == [[2 - 1 - 13.6, 7.0], [5.0, 8.0]]
    assert "scale=[2], mean=-1, reference=[2, 2]" in repr(shift)
    one = AtomicReference(reference=[0.0, -13.6], num_targets=1, trainable=True)
    assert one.reference.shape == (2, 1)
    assert one(y[:, :1], torch.tensor([1, 0])).shape == (2, 1)
    with pytest.raises(ValueError, match=r"reference must have shape \[Z, 2\], got \[3\]"):
        AtomicReference(reference=torch.zeros(3), num_targets=2)


def test_references_of_numbers_of_any_type():
    shift = AtomicReference(reference=[0.0, -13.6, 5.0])
    for kind in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        assert shift(torch.zeros(3), torch.tensor([2, 0, 1], dtype=kind)).tolist() == [5, 0, -13.6]
    for kind in (torch.float32, torch.bool):
        with pytest.raises(TypeError, match="numbers must be integers"):
            shift(torch.zeros(3), torch.tensor([1, 0, 1], dtype=kind))


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("wrong", [-1, -2, 2])
def test_references_of_numbers_that_are_none(wrong, trainable):
    shift = AtomicReference(reference=[0.0, -13.6], trainable=trainable)
    with pytest.raises(ValueError, match=rf"from 0 to 1, got {wrong}"):
        shift(torch.zeros(2), torch.tensor([1, wrong]))
    assert shift(torch.zeros(0), torch.tensor([], dtype=torch.int64)).shape == (0,)


def interaction(**options):
    return SchNetInteraction(8, 6, FilterNetwork(5, 6, 4.0), **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FilterNetwork(5, 6, -1.0, cutoff_function="none"), "cutoff must be positive .*-1"),
        (lambda: FilterNetwork(5, 6, 0.0), "cutoff must be positive and finite, got 0"),
        (lambda: FilterNetwork(5, 6, math.nan), "cutoff must be positive and finite, got nan"),
        (lambda: FilterNetwork(5, 6, 4.0, cutoff_function="foo"), "must be one of .* got 'foo'"),
        (lambda: FilterNetwork(5, 6, 4.0, activation_name="foo"), "activation must be one of"),
        (lambda: FilterNetwork(0, 6, 4.0), "at least 1, got 0 inputs and 6 outputs"),
        (lambda: CFConv(8, 0, 8), "at least 1, got 8 inputs and 0 outputs"),
        (lambda: CFConv(8, 6, 8, aggregation="foo"), "must be 'sum' or 'mean', got 'foo'"),
        (lambda: interaction(aggregation="max"), "must be 'sum' or 'mean', got 'max'"),
        (lambda: AtomwiseHead(8, [4, 0]), "at least 1, got 4 inputs and 0 outputs"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
