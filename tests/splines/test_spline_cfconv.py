import subprocess
import sys

import pytest
import torch
from reference.splines import cfconv as reference_cfconv
from torch.autograd import gradcheck, gradgradcheck

import molkern
from molkern.ops import SplineGrid, spline_cfconv

GRIDS = [
    SplineGrid(0.5, 4.0, 9, degree, zero_beyond)
    for degree in (3, 5)
    for zero_beyond in (True, False)
]
GRIDS += [SplineGrid(-1.0, 3.0, 1, 3), SplineGrid(0.0, 4.0, 70, 5)]


def random_graph(atoms, edges, symmetric, device="cpu"):
    pairs = torch.randint(0, max(atoms, 1), (2, edges))
    if symmetric:
        pairs = torch.cat([pairs, pairs.flip(0)], 1)
    return molkern.NeighborList.from_edge_index(pairs.to(device), atoms)


def inputs(graph, features, grid, dtype=torch.float64):
    """x, table and distances, of which some lie outside the knots, none on one."""
    device = graph.row_ptr.device
    x = torch.randn(graph.num_atoms, features, dtype=dtype)
    table = torch.randn(grid.rows, features, dtype=dtype)
    low, high = grid.start - 0.3, grid.stop + 0.3
    d = low + (high - low) * torch.rand(graph.num_edges, dtype=dtype)
    return tuple(value.to(device).requires_grad_() for value in (x, table, d))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("features", [1, 3, 31, 64, 130])
@pytest.mark.parametrize("grid", GRIDS)
def test_equals_the_recursion(grid, features, dtype, symmetric, device):
    graph = random_graph(20, 150, symmetric, device)
    x, table, d = inputs(graph, features, grid, dtype)
    y = spline_cfconv(x, table, d, graph, grid)
    exact = [value.detach().double().cpu().requires_grad_() for value in (x, table, d)]
    plain = reference_cfconv(*exact, graph.edge_index.cpu(), 20, grid)
    tolerance = {"rtol": 2e-5, "atol": 2e-4} if dtype == torch.float32 else {}
    torch.testing.assert_close(y.double().cpu(), plain, **tolerance)
    g = torch.randn_like(y)
    ours = torch.autograd.grad(y, (x, table, d), g)
    for a, b in zip(ours, torch.autograd.grad(plain, exact, g.double().cpu()), strict=True):
        scale = max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a.double().cpu() / scale, b / scale, **tolerance)


@pytest.mark.parametrize("aggregation", ["sum", "mean"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("grid", GRIDS[:5])
def test_derivatives(grid, symmetric, aggregation, device):
    graph = random_graph(5, 9, symmetric, device)
    arguments = inputs(graph, 3, grid)

    def function(x, table, d):
        return spline_cfconv(x, table, d, graph, grid, aggregation=aggregation)

    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments)


def test_derivatives_of_a_part_of_the_arguments(device):
    """A kernel leaves out what is not wanted: each choice of arguments has a path of its own."""
    grid = GRIDS[0]
    graph = random_graph(5, 9, True, device)
    for wanted in ([0], [1], [2], [0, 2], [1, 2]):
        arguments = [value.detach() for value in inputs(graph, 3, grid)]
        for k in wanted:
            arguments[k].requires_grad_()
        assert gradgradcheck(lambda *a: spline_cfconv(*a, graph, grid), arguments)


def test_third_derivatives_are_refused(device):
    grid, graph = GRIDS[0], random_graph(5, 9, True, device)
    x, table, d = inputs(graph, 3, grid)
    y = spline_cfconv(x, table, d, graph, grid)
    (first,) = torch.autograd.grad(y.square().sum(), d, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), d, create_graph=True)
    with pytest.raises(RuntimeError, match="third derivative"):
        torch.autograd.grad(second.square().sum(), d)


@pytest.mark.parametrize("degree", [3, 5])
def test_smoothness(degree):
    """Value and all derivatives but the last are continuous where intervals meet."""
    grid = SplineGrid(0.0, 4.0, 8, degree)
    graph = molkern.NeighborList.from_edge_index(torch.tensor([[0, 1], [1, 0]]), 2)
    table = torch.randn(grid.rows, 1, dtype=torch.float64)
    x = torch.ones(2, 1, dtype=torch.float64)

    def derivatives(at):
        d = torch.tensor([at, at], dtype=torch.float64, requires_grad=True)
        y = spline_cfconv(x, table, d, graph, grid).sum()
        (first,) = torch.autograd.grad(y, d, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), d)
        return torch.stack([y.detach(), first[0].detach(), second[0]])

    for knot in (0.5, 1.0, 3.5):
        close = derivatives(knot - 1e-9), derivatives(knot + 1e-9)
        torch.testing.assert_close(*close, rtol=1e-6, atol=1e-6)


def test_outside_the_knots(device):
    graph = molkern.NeighborList.from_edge_index(
        torch.tensor([[0, 1, 2], [1, 2, 0]], device=device), 3
    )
    x = torch.ones(3, 2, dtype=torch.float64, device=device)
    for zero_beyond in (True, False):
        grid = SplineGrid(1.0, 2.0, 4, 3, zero_beyond)
        table = torch.randn(grid.rows, 2, dtype=torch.float64, device=device)
        value = {}
        for at in (0.0, 1.0, 2.0 - 1e-15, 2.0, 9.0):
            d = torch.full((3,), at, dtype=torch.float64, device=device, requires_grad=True)
            y = spline_cfconv(x, table, d, graph, grid)
            value[at] = y[0].tolist()
            if at in (0.0, 9.0):
                assert torch.autograd.grad(y.sum(), d)[0].eq(0).all()
        assert value[0.0] == value[1.0]
        assert value[9.0] == value[2.0]
        end = value[2.0 - 1e-15]
        assert value[9.0] == ([0.0, 0.0] if zero_beyond else pytest.approx(end, rel=1e-12))


def test_nan_is_passed_on(device):
    grid, graph = GRIDS[0], random_graph(4, 6, True, device)
    x, table, d = inputs(graph, 2, grid)
    y = spline_cfconv(x, table, torch.full_like(d, torch.nan), graph, grid)
    assert y[graph.receivers.long()].isnan().all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("degree", [3, 5])
def test_opcheck(degree, symmetric, device):
    grid = SplineGrid(0.5, 4.0, 9, degree)
    graph = random_graph(5, 9, symmetric, device)
    x, table, d = inputs(graph, 3, grid)
    bins = grid.bins(d, graph)
    sides = (*graph.by_receiver, *graph.by_sender)
    tail = (bins, *grid.form, False)
    operators = torch.ops.molkern
    torch.library.opcheck(operators.spline_cfconv.default, (x, table, d, *sides, *tail))
    g = torch.randn_like(x).requires_grad_()
    torch.library.opcheck(
        operators.spline_cfconv_grad.default, (g, x, table, d, None, *sides, *tail, True)
    )
    arguments = (d.detach(), graph.senders, graph.receivers, 0.5, 4.0, 9, True)
    torch.library.opcheck(operators.spline_bins.default, arguments)


def results(graph, x, table, d, grid):
    """The value, its gradient, and a gradient of the gradient."""
    y = spline_cfconv(x, table, d, graph, grid)
    first = torch.autograd.grad(y.sin().sum(), (x, table, d), create_graph=True)
    loss = sum(value.square().sum() for value in first)
    return (y, *first, *torch.autograd.grad(loss, (x, table, d)))


def test_many_edges(device):
    """As many rows and edges as fill a GPU, whose kernels deal them out in another way then."""
    grid = SplineGrid(0.5, 4.0, 60)
    graph = random_graph(8200, 17000, True, device)
    arguments = inputs(graph, 40, grid, torch.float32)
    exact = [value.detach().double().cpu().requires_grad_() for value in arguments]
    y = spline_cfconv(*arguments, graph, grid)
    plain = reference_cfconv(*exact, graph.edge_index.cpu(), 8200, grid)
    torch.testing.assert_close(y.double().cpu(), plain, rtol=2e-5, atol=2e-4)
    ours = torch.autograd.grad(y.sum(), arguments, create_graph=True)
    theirs = torch.autograd.grad(plain.sum(), exact, create_graph=True)
    ours += torch.autograd.grad(sum(value.square().sum() for value in ours), arguments)
    theirs += torch.autograd.grad(sum(value.square().sum() for value in theirs), exact)
    for a, b in zip(ours, theirs, strict=True):
        scale = float(b.detach().abs().max())
        torch.testing.assert_close(a.double().cpu() / scale, b / scale, rtol=1e-4, atol=2e-5)


def test_same_bits_for_every_number_of_threads(threads):
    grid = SplineGrid(0.0, 4.0, 100)
    graph = random_graph(300, 4000, True)
    arguments = inputs(graph, 33, grid, torch.float32)
    found = []
    for count in (1, 2, 3, 1):
        threads(count)
        found.append(results(graph, *arguments, grid))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_padding_is_neither_read_nor_summed(device):
    grid = SplineGrid(0.0, 2.0, 10)
    positions = torch.rand(12, 3, device=device) * 3
    exact = molkern.neighbor_list(positions, 2.0)
    padded = molkern.neighbor_list(positions, 2.0, capacity=exact.num_edges + 7)
    x, table, d = inputs(exact, 5, grid, torch.float32)
    more = torch.cat([d.detach(), torch.full((7,), torch.nan, device=device)]).requires_grad_()
    ours, theirs = results(padded, x, table, more, grid), results(exact, x, table, d, grid)
    for a, b in zip(ours, theirs, strict=True):
        if a.shape[:1] == more.shape:
            assert a[-7:].eq(0).all()
            a = a[:-7]
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_edges_by_interval(device):
    grid = SplineGrid(1.0, 3.0, 4)
    graph = random_graph(6, 40, True, device)
    d = 4 * torch.rand(graph.num_edges, dtype=torch.float64, device=device)
    ptr, *parts = grid.bins(d, graph).split([5, *[graph.num_edges] * 3])
    edges, senders, receivers = (part[: ptr[-1]].long() for part in parts)
    assert ptr[0] == 0
    assert ptr[-1] == (d < 3.0).sum()
    assert torch.equal(senders, graph.senders[edges].long())
    assert torch.equal(receivers, graph.receivers[edges].long())
    for m in range(4):
        inside = edges[ptr[m] : ptr[m + 1]]
        assert torch.equal(inside, inside.sort().values)
        expected = ((d - 1.0) * 2).long().clamp(0, 3) == m
        assert torch.equal(inside, (expected & (d < 3.0)).nonzero().flatten())


def test_no_tensor_has_edges_and_features(device):
    """Not in second derivatives either: the largest is smaller than one number per both."""
    grid = SplineGrid(0.0, 4.0, 20)
    graph = random_graph(30, 4000, True, device)
    features = 64
    arguments = inputs(graph, features, grid, torch.float32)
    with torch.profiler.profile(profile_memory=True) as profile:
        results(graph, *arguments, grid)
    sizes = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert 0 < max(sizes) < graph.num_edges * features * 4


def test_empty(device):
    grid = SplineGrid(0.0, 4.0, 20)
    for atoms in (0, 3):
        graph = random_graph(atoms, 0, True, device)
        arguments = inputs(graph, 4, grid)
        assert results(graph, *arguments, grid)[0].shape == (atoms, 4)


SAMPLE = """
import torch, molkern
from molkern.ops import SplineGrid, spline_cfconv
from splines.test_spline_cfconv import inputs, random_graph, results
torch.manual_seed(0)
torch.set_num_threads(1)
grid = SplineGrid(0.5, 4.0, 30, {degree})
graph = random_graph(30, 200, True)
for value in results(graph, *inputs(graph, 37, grid), grid):
    print(*value.flatten().tolist())
"""


@pytest.mark.unemulated
@pytest.mark.parametrize("degree", [3, 5])
def test_instruction_sets_agree(degree, monkeypatch):
    monkeypatch.setenv(
        "PYTHONPATH", ":".join([__file__.rsplit("/", 2)[0], *filter(None, sys.path)])
    )
    rows = []
    for isa in ("baseline", "avx2", "avx512"):
        monkeypatch.setenv("MOLKERN_ISA", isa)
        done = subprocess.run(
            [sys.executable, "-c", SAMPLE.format(degree=degree)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        rows.append(torch.tensor([float(v) for v in done.stdout.split()], dtype=torch.float64))
    for other in rows[1:]:
        torch.testing.assert_close(rows[0], other, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(table=torch.ones(11, 2)), r"must have shape \[12, F\]"),
        (dict(table=torch.ones(12, 3)), "table must have size 2 in dimension 1"),
        (dict(x=torch.ones(4, 2)), "x must have size 3 in dimension 0"),
        (dict(x=torch.ones(3)), r"x must have shape \[N, F\]"),
        (dict(distances=torch.ones(3)), "distances must have size 2"),
        (dict(aggregation="max"), "aggregation must be 'sum' or 'mean', got 'max'"),
    ],
)
def test_wrong_arguments(change, message, device):
    graph = molkern.NeighborList.from_edge_index(
        torch.tensor([[0, 1], [1, 0]], device=device), num_atoms=3
    )
    arguments = dict(x=torch.ones(3, 2), table=torch.ones(12, 2), distances=torch.ones(2))
    arguments = {**arguments, **change}
    arguments = {
        key: value.to(device) if isinstance(value, torch.Tensor) else value
        for key, value in arguments.items()
    }
    with pytest.raises(ValueError, match=message):
        spline_cfconv(**arguments, graph=graph, grid=SplineGrid(0.0, 2.0, 9))


def test_bins_of_other_edges_are_refused(device):
    grid = SplineGrid(0.5, 4.0, 9)
    graph = random_graph(3, 2, True, device)
    x, table, d = inputs(graph, 2, grid)
    bins = torch.zeros(3, dtype=torch.int32, device=device)
    y = spline_cfconv(x, table, d, graph, grid, bins=bins)
    with pytest.raises(ValueError, match="bins must have size"):
        torch.autograd.grad(y.sum(), table)


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_of_distances_add_up(symmetric, device):
    """What is given is added to, also for edges that are zero; that is linear in it."""
    grid = GRIDS[0]
    graph = random_graph(6, 20, symmetric, device)
    x, table, d = (value.detach() for value in inputs(graph, 5, grid))
    d[0] = grid.stop + 0.1  # zero, and its derivative
    g, added = torch.randn_like(x), torch.randn_like(d).requires_grad_()
    rest = (*graph.by_receiver, *graph.by_sender, None, *grid.form, False, False)
    gradient = torch.ops.molkern.spline_cfconv_grad
    alone, total = (gradient(g, x, table, d, start, *rest)[1] for start in (None, added))
    assert alone[0] == 0
    torch.testing.assert_close(total, alone + added, rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad(total.sum(), added)
    assert slope.eq(1).all()


def test_types_must_agree(device):
    graph = random_graph(3, 2, True, device)
    x, table, d = inputs(graph, 2, GRIDS[0])
    with pytest.raises(TypeError, match=r"table is .* but x is"):
        spline_cfconv(x, table.float(), d, graph, GRIDS[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 1.0, 4), "finite and ascend, got 1.0 and 1.0"),
        ((0.0, float("inf"), 4), "finite and ascend, got 0.0 and inf"),
        ((0.0, 1.0, 0), "intervals must be from 1 to .*, got 0"),
        ((0.0, 1.0, 4, 4), "degree must be 3 or 5, got 4"),
    ],
)
def test_wrong_grids(arguments, message):
    with pytest.raises(ValueError, match=message):
        SplineGrid(*arguments)
