import numpy as np
import pytest
import torch

import molkern
from molkern import AtomicBatch, NeighborList


def test_neighbor_list_and_pairs_agree(device):
    positions = torch.rand(30, 3, device=device) * 6
    cell = 6 * torch.eye(3, device=device)
    nl = molkern.neighbor_list(positions, 3.5, cell)
    order = torch.randperm(nl.num_edges, device=device)
    again = NeighborList.from_edge_index(nl.edge_index[:, order], 30, nl.shifts[order])
    for name in ("row_ptr", "senders", "receivers", "shifts", "reverse"):
        assert torch.equal(getattr(nl, name), getattr(again, name)), name
    values = torch.arange(nl.num_edges, device=device)
    assert torch.equal(again.sort_edges(values[order]), values)


def test_sides_of_a_graph_that_is_not_symmetric(device):
    pairs = torch.tensor([[2, 0, 0, 1, 1], [0, 1, 2, 1, 1]], device=device)
    graph = NeighborList.from_edge_index(pairs, 3)
    assert graph.reverse is None
    assert graph.row_ptr.tolist() == [0, 1, 4, 5]
    assert graph.senders.tolist() == [2, 0, 1, 1, 0]
    row_ptr, receivers, edges = graph.by_sender
    for sender in range(3):
        for k in range(row_ptr[sender], row_ptr[sender + 1]):
            assert graph.senders[edges[k]] == sender
            assert graph.receivers[edges[k]] == receivers[k]


def test_shifts_of_any_size_sort_alike():
    pairs = torch.tensor([[0, 0, 1, 0, 1, 0], [1, 1, 0, 1, 0, 1]])
    few = torch.tensor([[1, 0, 0], [-1, 0, 1], [1, 0, -1], [-1, 0, 0], [-1, 0, 0], [0, 2, 0]])
    near = NeighborList.from_edge_index(pairs, 2, few)
    far = NeighborList.from_edge_index(pairs, 2, few * 2**29)  # too far apart for a single key
    assert torch.equal(near.shifts * 2**29, far.shifts)
    assert torch.equal(near.permutation, far.permutation)
    assert near.senders.tolist() == [1, 1, 0, 0, 0, 0]
    assert near.shifts[2:].tolist() == sorted(few[[0, 1, 3, 5]].tolist())


def test_reverse_of_given_pairs_with_loops_and_doubles():
    pairs = torch.tensor([[0, 1, 0, 1, 2, 2], [1, 0, 1, 0, 2, 2]])
    graph = NeighborList.from_edge_index(pairs, 3)
    reverse = graph.reverse.long()
    assert torch.equal(reverse[reverse], torch.arange(6))
    assert torch.equal(graph.senders[reverse], graph.receivers)


PAIR = torch.tensor([[0], [1]])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(3, 2, dtype=torch.int64), 4), ValueError, r"shape \[2, E\], got \[3, 2\]"),
        ((torch.zeros(2, 2), 4), TypeError, "must be int64 or int32, got torch.float32"),
        (
            (torch.tensor([[0, 4], [1, 2]]), 4),
            ValueError,
            r"edge 1 joins atoms \[4, 2\], but there",
        ),
        ((torch.tensor([[0, 1], [1, -1]]), 4), ValueError, r"edge 1 joins atoms \[1, -1\]"),
        ((PAIR, 4, torch.zeros(2, 3)), ValueError, r"shifts must have shape \[1, 3\]"),
        ((PAIR, 4, torch.full((1, 3), 0.5)), TypeError, "shifts count whole cells"),
        ((PAIR, 4, torch.full((1, 3), 2**40)), ValueError, f"one of {2**40} cells"),
        ((PAIR, -1), ValueError, "num_atoms must be from 0 to 2147483647, got -1"),
        ((PAIR, 4, None, torch.tensor([0, 1])), ValueError, r"batch must have shape \[4\]"),
        ((PAIR, 2, None, torch.tensor([0, 1])), ValueError, "of different systems"),
        ((PAIR, 2, None, torch.tensor([1, 0])), ValueError, "batch must be sorted"),
        ((PAIR, 2, None, torch.zeros(2)), TypeError, "batch must be int64 or int32"),
    ],
)
def test_wrong_pairs(arguments, error, message):
    with pytest.raises(error, match=message):
        NeighborList.from_edge_index(*arguments)


def test_batch_from_ase():
    build = pytest.importorskip("ase.build")
    water, salt = build.molecule("H2O"), build.bulk("NaCl", "rocksalt", a=5.6)
    batch = AtomicBatch.from_ase([water, salt], dtype=torch.float64)
    assert batch.num_systems == 2
    assert batch.numbers.tolist() == [8, 1, 1, 11, 17]
    assert batch.system_ptr.tolist() == [0, 3, 5]
    assert batch.pbc.tolist() == [[False] * 3, [True] * 3]
    neighbors = batch.neighbors(3.0)
    assert neighbors.receivers.bincount().tolist() == [2, 2, 2, 6, 6]
    assert AtomicBatch.from_ase(water).cell is None
    with pytest.raises(ValueError, match="at least one Atoms object"):
        AtomicBatch.from_ase([])


def test_batch_moves():
    batch = AtomicBatch(torch.tensor([1, 1]), torch.zeros(2, 3), torch.tensor([0, 1]))
    assert batch.to(dtype=torch.float64).positions.dtype == torch.float64
    assert batch.to("cpu").num_systems == 2
    assert "2 systems" in repr(batch)
    with pytest.raises(TypeError, match=r"positions must be float32 or float64, got torch.int64"):
        batch.to(dtype=torch.int64)


def full_batch(device="cpu"):
    """With everything that a batch may have; the last system has no atoms."""
    return AtomicBatch(
        torch.tensor([8, 1, 6], dtype=torch.int32, device=device),
        torch.rand(3, 3, device=device),
        torch.tensor([0, 0, 1], dtype=torch.int32, device=device),
        torch.eye(3, device=device),
        [True, False, True],
        num_systems=3,
    )


TENSORS = ("numbers", "positions", "batch", "cell", "pbc", "system_ptr")


def test_moved_batch_has_everything(device):
    batch = full_batch()
    moved = batch.to(device, torch.float64, non_blocking=True)
    back = moved.to("cpu")
    for name in TENSORS:
        before, after = getattr(batch, name), getattr(back, name)
        assert getattr(moved, name).device.type == device.type, name
        floats = before.is_floating_point()
        assert after.dtype == (torch.float64 if floats else before.dtype), name
        assert torch.equal(after, before.to(after.dtype)), name
    assert moved.num_systems == 3
    assert moved.number_range == back.number_range == (1, 8)
    assert vars(moved).keys() == vars(batch).keys()
    batch.positions.requires_grad_()
    batch.to(device, torch.float64).positions.sum().backward()
    assert torch.equal(batch.positions.grad, torch.ones(3, 3))
    plain = AtomicBatch(batch.numbers, batch.positions).to(device)
    assert plain.batch is plain.cell is plain.pbc is None


def test_moving_does_not_check_again(monkeypatch):
    """Each check would wait for a GPU."""
    batch = full_batch()
    monkeypatch.setattr(AtomicBatch, "__init__", lambda *_: pytest.fail("checked again"))
    assert batch.to(dtype=torch.float64).positions.dtype == torch.float64


def test_range_travels_to_and_from_a_gpu(monkeypatch):
    class OnDevice(torch.Tensor):
        is_cpu = False

    batch = full_batch()
    reads = []
    read = molkern.graph._value_range
    monkeypatch.setattr(molkern.graph, "_value_range", lambda x: reads.append(type(x)) or read(x))
    there = batch._mapped(lambda value: value.as_subclass(OnDevice))
    again = there.to(dtype=torch.float64)
    assert there.number_range == again.number_range == (1, 8)
    assert reads == [torch.Tensor]  # on the CPU
    again.numbers[0] = 17
    assert again.number_range == (1, 17)
    there.numbers = torch.tensor([7, 7, 7]).as_subclass(OnDevice)
    assert there.to(dtype=torch.float64)._notes().range is None  # not known, not waited for
    with torch.inference_mode():
        assert there.to(dtype=torch.float64).number_range == (7, 7)


def test_pinned_batch(monkeypatch):
    batch = full_batch()
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    pinned = batch.pin_memory()
    assert pinned.num_systems == 3
    for name in TENSORS:
        assert torch.equal(getattr(pinned, name), getattr(batch, name))
        assert getattr(pinned, name) is not getattr(batch, name)
        assert getattr(pinned, name).is_pinned() == torch.cuda.is_available()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"positions": torch.zeros(2, 2)}, ValueError, r"\[N, 3\], got \[2, 2\]"),
        ({"positions": torch.zeros(2, 3).half()}, TypeError, "float32 or float64, got"),
        ({"numbers": torch.ones(3, dtype=torch.int64)}, ValueError, r"numbers must have shape"),
        ({"numbers": torch.ones(2)}, TypeError, "numbers must be integers, got torch.float32"),
        ({"batch": torch.tensor([0])}, ValueError, r"batch must have shape \[2\]"),
        ({"batch": torch.tensor([1, 0])}, ValueError, "batch must not decrease"),
        ({"batch": torch.tensor([-1, 0])}, ValueError, "batch must not decrease and lie in"),
        (
            {"batch": torch.tensor([0.0, 1.0])},
            TypeError,
            "batch must be int64 or int32, got torch.f",
        ),
        ({"num_systems": 3}, ValueError, "num_systems is 3 but batch is missing"),
        ({"num_systems": 0}, ValueError, "num_systems is 0 but batch is missing"),
        ({"cell": torch.eye(3).repeat(2, 1, 1)}, ValueError, "is 2 but batch is missing"),
        ({"pbc": True}, ValueError, "pbc is set but there is no cell"),
        (
            {"cell": torch.eye(3, dtype=torch.float64)},
            TypeError,
            r"cell is torch.float64 but positions is torch.float32; convert .* with .to\(\)",
        ),
        (
            {"cell": torch.eye(3, device="meta")},
            ValueError,
            "cell is on meta but positions is on cpu; move",
        ),
        (
            {"cell": torch.eye(3), "pbc": torch.ones(3, dtype=torch.bool, device="meta")},
            ValueError,
            "pbc is on meta but positions is on cpu; move",
        ),
        ({"numbers": torch.ones(2, dtype=torch.int64, device="meta")}, ValueError, "numbers is on"),
        ({"batch": torch.zeros(2, dtype=torch.int64, device="meta")}, ValueError, "batch is on"),
        ({"cell": torch.eye(3), "pbc": [True]}, ValueError, r"pbc must be a bool, \[3\]"),
        ({"cell": torch.zeros(2, 3)}, ValueError, r"cell must have shape"),
    ],
)
def test_wrong_batch(options, error, message):
    arguments = {"numbers": torch.ones(2, dtype=torch.int64), "positions": torch.zeros(2, 3)}
    with pytest.raises(error, match=message):
        AtomicBatch(**{**arguments, **options})


def test_number_range_follows_the_numbers(device):
    batch = AtomicBatch(torch.tensor([8, 1, 1], device=device), torch.zeros(3, 3, device=device))
    assert batch.number_range == (1, 8)
    batch.numbers[0] = 17
    assert batch.number_range == (1, 17)
    batch.numbers = torch.tensor([6, 6, 6], device=device)
    assert batch.number_range == (6, 6)
    assert AtomicBatch(batch.numbers[:0], batch.positions[:0]).number_range == (0, 0)
    with torch.inference_mode():  # tensors without a version
        assert batch.to(dtype=torch.float64).number_range == (6, 6)
        ones = torch.ones(3, dtype=torch.int64, device=device)
        assert AtomicBatch(ones, batch.positions).number_range == (1, 1)


def test_number_range_follows_an_array_that_shares_its_memory():
    numbers = np.array([8, 1, 1])
    batch = AtomicBatch(torch.from_numpy(numbers), torch.zeros(3, 3))
    assert batch.number_range == (1, 8)
    numbers[0] = 17
    assert batch.number_range == (1, 17)


def test_number_range_waits_for_a_gpu_only_after_a_change(monkeypatch):
    class OnDevice(torch.Tensor):
        is_cpu = False

    reads = []
    read = molkern.graph._value_range
    monkeypatch.setattr(molkern.graph, "_value_range", lambda x: reads.append(1) or read(x))
    batch = AtomicBatch(torch.tensor([8, 1, 1]), torch.zeros(3, 3))
    batch.numbers = batch.numbers.as_subclass(OnDevice)
    assert batch.number_range == batch.number_range == (1, 8)
    assert len(reads) == 1
    batch.numbers[0] = 17
    assert batch.number_range == batch.number_range == (1, 17)
    assert len(reads) == 2


def test_capacity():
    positions = torch.rand(20, 3) * 4
    exact = molkern.neighbor_list(positions, 2.0)
    padded = molkern.neighbor_list(positions, 2.0, capacity=exact.num_edges + 5)
    assert padded.padded
    padded.check()
    assert padded.senders.shape[0] == exact.num_edges + 5
    assert padded.num_edges == exact.num_edges
    assert torch.equal(padded.edge_index, exact.edge_index)
    assert padded.senders[-5:].tolist() == [-1] * 5
    assert not padded.distances(positions)[-5:].any()
    with pytest.raises(ValueError, match=f"{exact.num_edges} edges are needed"):
        molkern.neighbor_list(positions, 2.0, capacity=exact.num_edges - 1).check()  # CUDA: here


@pytest.mark.parametrize("periodic", [False, True])
def test_shorter_edges_of_a_list(crystal, periodic, device):
    _, positions, cell = (t.to(device) for t in crystal)
    cell = cell if periodic else None
    long, short = (molkern.neighbor_list(positions, cutoff, cell) for cutoff in (6.0, 3.5))
    found = long.within(3.5, positions, cell)
    for name in ("row_ptr", "senders", "receivers", "reverse", *(["shifts"] if periodic else [])):
        expected = getattr(short, name)
        assert torch.equal(getattr(found, name), expected), name
        assert getattr(found, name).dtype == expected.dtype
    assert found.cutoff == 3.5
    given = NeighborList.from_edge_index(long.edge_index.flip(1), 10, _flipped(long.shifts))
    values = given.sort_edges(torch.arange(long.num_edges, device=device))
    kept = given.within(3.5, positions, cell)
    assert torch.equal(kept.senders, short.senders)
    d = given.distances(positions, cell)
    assert torch.equal(
        kept.sort_edges(torch.arange(long.num_edges, device=device)), values[d < 3.5]
    )


def _flipped(values):
    return None if values is None else values.flip(0)


def test_lists_without_longer_edges_stay_as_they_are(crystal):
    _, positions, cell = crystal
    made = molkern.neighbor_list(positions, 3.5, cell)
    assert made.within(3.5, positions, cell) is made
    assert made.within(9.0, positions, cell) is made
    padded = molkern.neighbor_list(positions, 3.5, cell, capacity=2000)
    assert padded.within(1.0, positions, cell) is padded
    directed = NeighborList.from_edge_index(torch.tensor([[0, 1], [1, 2]]), 10)
    assert directed.within(0.1, positions) is directed
