"""Wrong indices are errors that name them, wherever tensors can be handed in; none is followed.

In a process of its own, for what would be read or written outside of a tensor may end it.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import test_memory_layouts as layouts
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import molkern
from molkern import NeighborList, ops

#: Beyond every size here, and what a sum of them would wrap around to.
WRONG = (10**6, -7, 2**31 - 1, -(2**31))


class Recorder(TorchDispatchMode):
    """Keeps the calls of molkern's operators, those of backward passes too."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name().startswith("molkern::"):
            self.calls.append((function, args))
        return function(*args, **(kwargs or {}))


def recorded() -> list:
    with Recorder() as recorder:
        for cases in layouts.CASES.values():
            for case in cases.values():
                layouts.run(case, layouts.tensors_of(case), layouts.is_dense)
    calls = {function.name(): (function, args) for function, args in recorder.calls}
    return [calls[name] for name in sorted(calls)]


def is_index(argument) -> bool:
    return isinstance(argument, torch.Tensor) and argument.dtype == torch.int32


def follow_wrong_indices() -> None:
    """Calls every operator with each index wrong in turn; prints how often that was refused."""
    for function, args in recorded():
        refused = tried = 0
        for k in [k for k, argument in enumerate(args) if is_index(argument)]:
            for place in {0, 1, args[k].numel() // 2, args[k].numel() - 1}:
                for wrong in WRONG:
                    changed = args[k].clone()
                    changed.view(-1)[place] = wrong
                    tried += 1
                    try:
                        function(*args[:k], changed, *args[k + 1 :])
                    except ValueError as error:
                        refused += str(wrong) in str(error) or "row" in str(error)
        print(function.name(), tried, refused)


def test_every_operator():
    process = subprocess.run(
        [sys.executable, "-c", "import test_indices as t; t.follow_wrong_indices()"],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    lines = [line.split() for line in process.stdout.splitlines()]
    refused = {name: int(count) for name, _, count in lines}
    # All that read a graph; the others have no indices, or copy them.
    graphs = {"cfconv", "edge_product", "edge_vectors", "edge_distances", "edge_vectors_adjoint"}
    for name in ("spline_cfconv", "dtnn_message", "triplet_sum"):
        graphs |= {name, f"{name}_grad", f"{name}_hvp"}
    graphs.add("schnet_energy_grad")
    assert {name for name in graphs if not refused.get(f"molkern::{name}")} == set()


@pytest.fixture
def graph():
    positions = torch.rand(7, 3) * 3
    return molkern.neighbor_list(positions, 2.5)


def changed(tensor: torch.Tensor, place: int, value: int) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[place] = value
    return tensor


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("senders", 99, r"senders\[3\] is 99, but there are 7 atoms \(0 to 6\)"),
        ("senders", -1, r"senders\[3\] is -1, but there are 7 atoms"),
        ("receivers", 99, r"receivers\[3\] is 99, but there are 7 atoms"),
        ("receivers", 6, r"receivers\[3\] is 6, but by row_ptr it is 0"),
        ("reverse", 10**6, r"reverse\[3\] is 1000000, but there are \d+ edges"),
        ("reverse", 3, r"reverse\[3\] is 3, but edge 3 joins"),
        ("row_ptr", 10**6, r"row_ptr must not decrease, but row_ptr\[4\] is \d+ after 1000000"),
        ("row_ptr", -1, r"row_ptr must not decrease, but row_ptr\[3\] is -1"),
    ],
)
def test_lists_made_by_hand(graph, name, value, message):
    wrong = changed(getattr(graph, name), 3, value)
    with pytest.raises(ValueError, match=message):
        replace(graph, **{name: wrong})
    # Made right and then changed, it is refused by every operator or by check()
    graph.check()
    getattr(graph, name)[3] = value
    with pytest.raises(ValueError, match=message):
        graph.check()


def test_lists_made_by_hand_have_shapes_and_types(graph):
    with pytest.raises(ValueError, match="receivers must have shape"):
        replace(graph, senders=graph.senders[1:])
    with pytest.raises(ValueError, match=r"reverse must have shape \[\d+\]"):
        replace(graph, reverse=graph.reverse[1:])
    with pytest.raises(TypeError, match=r"senders must be int32, got torch\.int64"):
        replace(graph, senders=graph.senders.long())
    with pytest.raises(ValueError, match="needs reverse, or transposed"):
        replace(graph, reverse=None)
    with pytest.raises(ValueError, match=r"row_ptr must have shape \[N \+ 1\], got \[0\]"):
        replace(graph, row_ptr=graph.row_ptr[:0])
    with pytest.raises(ValueError, match="row_ptr must begin with 0, got 1"):
        replace(graph, row_ptr=changed(graph.row_ptr, 0, 1))
    with pytest.raises(ValueError, match="row_ptr must end with"):
        replace(graph, row_ptr=changed(graph.row_ptr, 7, graph.num_edges - 1))
    with pytest.raises(ValueError, match=r"system\[0\] is 1, but there are 1 systems"):
        replace(graph, system=torch.ones(7, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"reverse is on meta but row_ptr is on cpu"):
        replace(graph, reverse=graph.reverse.to("meta"))


def test_lists_that_are_not_symmetric():
    made = NeighborList.from_edge_index(torch.tensor([[0, 1, 2], [1, 2, 0]]), 4)
    rows, ends, edges = made.transposed
    replace(made, transposed=(rows, ends, edges))
    for wrong, message in (
        ((rows, ends, changed(edges, 1, 9)), r"transposed\[2\]\[1\] is 9, but there are 3 edges"),
        ((rows, ends, changed(edges, 1, 0)), r"transposed\[2\] must name every edge once"),
        ((rows, changed(ends, 0, 3), edges), r"transposed\[1\]\[0\] is 3, but the receiver"),
        ((changed(rows, 1, 9), ends, edges), r"transposed\[0\] must not decrease"),
        ((rows[1:], ends, edges), r"transposed \(row pointers\) must have shape \[5\]"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(made, transposed=wrong)


def test_lists_with_room_for_more():
    found = molkern.neighbor_list(torch.rand(7, 3) * 3, 2.5, capacity=60)
    replace(found, cutoff=2.0)  # padding is no error
    found.check()
    with pytest.raises(ValueError, match="a list with more room than edges is padded=True"):
        replace(found, padded=False)


def test_lists_that_a_search_makes_are_not_read_again(graph, monkeypatch):
    """What a list is made from is right, and steps of molecular dynamics are short."""
    monkeypatch.setattr("molkern.graph.check_indices", lambda graph: pytest.fail("read again"))
    positions = torch.rand(7, 3) * 3
    made = molkern.neighbor_list(positions, 2.5)
    made.within(2.0, positions).to("cpu")
    NeighborList.from_edge_index(made.edge_index, 7)
    molkern.neighbor_list(positions, 2.5, capacity=60)


def test_a_model_of_raw_tensors():
    model = molkern.models.SchNet(8, 8, 2, cutoff=3.0, num_elements=10, filters="spline").eval()
    lean = molkern.models.LeanSchNet(model)
    batch = molkern.AtomicBatch(torch.tensor([1, 6, 8]), torch.rand(3, 3) * 2)
    inputs = lean.inputs(batch, model.neighbors(batch))
    lean(*inputs)
    with pytest.raises(ValueError, match=r"numbers at 1 is 10, but the embedding has 10 \(0 to 9"):
        lean(changed(inputs[0], 1, 10), *inputs[1:])
    with pytest.raises(ValueError, match="numbers at 2 is -1"):
        lean(changed(inputs[0], 2, -1), *inputs[1:])
    for place, name in ((3, "row_ptr"), (4, "neighbors"), (5, "t_row_ptr"), (7, "t_edges")):
        with pytest.raises(ValueError, match=f"{name} .*at [12] is"):
            lean(*inputs[:place], changed(inputs[place], 1, 77), *inputs[place + 1 :])


def test_bins_of_another_graph():
    positions = torch.rand(7, 3) * 3
    graph, grid = molkern.neighbor_list(positions, 2.5), ops.SplineGrid(0.0, 3.0, 8)
    distances, edges = graph.distances(positions), graph.num_edges
    x, table = torch.rand(7, 4), torch.rand(grid.rows, 4, requires_grad=True)
    bins = grid.bins(distances, graph)
    for place, name in ((9, "edges"), (9 + edges, "senders"), (9 + 2 * edges, "receivers")):
        wrong = changed(bins, place, 10**6)
        y = ops.spline_cfconv(x, table, distances, graph, grid, bins=wrong)
        with pytest.raises(ValueError, match=rf"bins \(their {name}\) at 0 is 1000000"):
            y.sum().backward()
    y = ops.spline_cfconv(x, table, distances, graph, grid, bins=changed(bins, 3, 10**6))
    with pytest.raises(ValueError, match=r"bins \(their rows\) must not decrease"):
        y.sum().backward()


def test_large_indices_are_checked_by_several_threads(threads):
    threads(2)
    senders = torch.arange(1000)
    graph = NeighborList.from_edge_index(torch.stack([senders, senders.flip(0)]), 1000)
    x, filters = torch.rand(1000, 2), torch.rand(1000, 2)
    ops.cfconv(x, filters, graph)
    for place in (0, 499, 500, 999):
        wrong = graph._with(senders=changed(graph.senders, place, 1000))
        with pytest.raises(ValueError, match=f"at {place} is 1000, but there are 1000 atoms"):
            ops.cfconv(x, filters, wrong)
        wrong = graph._with(row_ptr=changed(graph.row_ptr, place, 2000))
        with pytest.raises(ValueError, match=r"row_ptr must (not decrease|begin with 0)"):
            ops.cfconv(x, filters, wrong)
