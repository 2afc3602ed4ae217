import subprocess
import sys

import pytest
import torch
from reference.splines import dtnn_message as reference_message
from torch.autograd import gradcheck, gradgradcheck

import molkern
from molkern.ops import SplineGrid, dtnn_message

GRIDS = [
    SplineGrid(0.5, 4.0, 9, degree, zero_beyond)
    for degree in (3, 5)
    for zero_beyond in (True, False)
]


def random_graph(atoms, edges, symmetric, device="cpu"):
    pairs = torch.randint(0, max(atoms, 1), (2, edges))
    if symmetric:
        pairs = torch.cat([pairs, pairs.flip(0)], 1)
    return molkern.NeighborList.from_edge_index(pairs.to(device), atoms)


def inputs(graph, factors, channels, grid, dtype=torch.float64):
    """x, table, distances and weight; some distances lie outside the knots, none on one."""
    device = graph.row_ptr.device
    x = torch.randn(graph.num_atoms, factors, dtype=dtype)
    table = torch.randn(grid.rows, factors, dtype=dtype)
    low, high = grid.start - 0.3, grid.stop + 0.3
    d = low + (high - low) * torch.rand(graph.num_edges, dtype=dtype)
    weight = torch.randn(channels, factors, dtype=dtype) / max(factors, 1) ** 0.5
    return tuple(value.to(device).requires_grad_() for value in (x, table, d, weight))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("factors", "channels"), [(1, 1), (3, 30), (30, 3), (60, 30), (65, 65), (8, 60)]
)
@pytest.mark.parametrize("grid", GRIDS)
def test_equals_the_formula(grid, factors, channels, dtype, symmetric, device):
    graph = random_graph(20, 150, symmetric, device)
    arguments = inputs(graph, factors, channels, grid, dtype)
    y = dtnn_message(*arguments, graph, grid)
    exact = [value.detach().double().cpu().requires_grad_() for value in arguments]
    plain = reference_message(*exact, graph.edge_index.cpu(), 20, grid)
    tolerance = {"rtol": 5e-5, "atol": 2e-5} if dtype == torch.float32 else {}
    torch.testing.assert_close(y.double().cpu(), plain, **tolerance)
    g = torch.randn_like(y)
    ours = torch.autograd.grad(y, arguments, g)
    for a, b in zip(ours, torch.autograd.grad(plain, exact, g.double().cpu()), strict=True):
        scale = max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a.double().cpu() / scale, b / scale, **tolerance)


def second_derivatives(arguments, function):
    """Of a function of the gradient by all arguments."""
    y = function(*arguments)
    first = torch.autograd.grad(y.sin().sum(), arguments, create_graph=True)
    loss = sum(value.square().sum() for value in first)
    return torch.autograd.grad(loss, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("factors", "channels"), [(60, 30), (5, 65), (200, 100)])
@pytest.mark.parametrize("grid", GRIDS[::3])
def test_second_derivatives_equal_the_formula(grid, factors, channels, dtype, device):
    graph = random_graph(20, 100, False, device)
    arguments = inputs(graph, factors, channels, grid, dtype)
    ours = second_derivatives(arguments, lambda *a: dtnn_message(*a, graph, grid))
    exact = [value.detach().double().cpu().requires_grad_() for value in arguments]
    pairs = graph.edge_index.cpu()
    plain = second_derivatives(exact, lambda *a: reference_message(*a, pairs, 20, grid))
    tolerance = {"rtol": 5e-4, "atol": 5e-5} if dtype == torch.float32 else {}
    for a, b in zip(ours, plain, strict=True):
        scale = max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a.double().cpu() / scale, b / scale, **tolerance)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("grid", GRIDS)
def test_derivatives(grid, symmetric, device):
    graph = random_graph(5, 9, symmetric, device)
    arguments = inputs(graph, 3, 2, grid)
    assert gradcheck(lambda *a: dtnn_message(*a, graph, grid), arguments)
    assert gradgradcheck(lambda *a: dtnn_message(*a, graph, grid), arguments)


def test_derivatives_of_a_part_of_the_arguments(device):
    """A kernel leaves out what is not wanted: each choice of arguments has a path of its own."""
    grid = GRIDS[0]
    graph = random_graph(5, 9, True, device)
    for wanted in ([0], [1], [2], [3], [0, 2], [1, 2], [2, 3]):
        arguments = [value.detach() for value in inputs(graph, 3, 2, grid)]
        for k in wanted:
            arguments[k].requires_grad_()
        assert gradgradcheck(lambda *a: dtnn_message(*a, graph, grid), arguments)


@pytest.mark.parametrize("wanted", [[], [1], [3], [1, 3]])
def test_forces_in_training(wanted, device):
    """A gradient by the distances alone, differentiated by some of the parameters."""
    grid = GRIDS[0]
    graph = random_graph(6, 20, True, device)
    arguments = [value.detach() for value in inputs(graph, 5, 4, grid)]
    for k in (0, 2, *wanted):
        arguments[k].requires_grad_()
    exact = [value.detach().cpu().requires_grad_(value.requires_grad) for value in arguments]
    pairs = graph.edge_index.cpu()

    def gradients(values, function):
        y = function(*values).sin().sum()
        (force,) = torch.autograd.grad(y, values[2], create_graph=True)
        return torch.autograd.grad(y + force.square().sum(), [v for v in values if v.requires_grad])

    ours = gradients(arguments, lambda *a: dtnn_message(*a, graph, grid))
    plain = gradients(exact, lambda *a: reference_message(*a, pairs, 6, grid))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a.cpu(), b)


def test_third_derivatives_are_refused(device):
    grid, graph = GRIDS[0], random_graph(5, 9, True, device)
    arguments = inputs(graph, 3, 2, grid)
    d = arguments[2]
    y = dtnn_message(*arguments, graph, grid)
    (first,) = torch.autograd.grad(y.square().sum(), d, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), d, create_graph=True)
    with pytest.raises(RuntimeError, match="third derivative"):
        torch.autograd.grad(second.square().sum(), d)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("degree", [3, 5])
def test_opcheck(degree, symmetric, device):
    grid = SplineGrid(0.5, 4.0, 9, degree)
    graph = random_graph(5, 9, symmetric, device)
    arguments = inputs(graph, 3, 2, grid)
    bins = grid.bins(arguments[2], graph)
    sides = (*graph.by_receiver, *graph.by_sender)
    tail = (bins, *grid.form, False)
    operators = torch.ops.molkern
    torch.library.opcheck(operators.dtnn_message.default, (*arguments, *sides, *tail))
    g = torch.randn(5, 2, dtype=torch.float64, device=device).requires_grad_()
    torch.library.opcheck(
        operators.dtnn_message_grad.default, (g, *arguments, None, *sides, *tail, True, True)
    )


def results(graph, arguments, grid):
    """The value, its gradient, and a gradient of the gradient."""
    y = dtnn_message(*arguments, graph, grid)
    first = torch.autograd.grad(y.sin().sum(), arguments, create_graph=True)
    loss = sum(value.square().sum() for value in first)
    return (y, *first, *torch.autograd.grad(loss, arguments))


def test_same_bits_for_every_number_of_threads(threads):
    """Here the edges are enough for sixteen blocks of rows, those that sums are taken over."""
    grid = SplineGrid(0.0, 4.0, 100)
    graph = random_graph(300, 4000, True)
    arguments = inputs(graph, 33, 13, grid, torch.float32)
    found = []
    for count in (1, 2, 3, 1):
        threads(count)
        found.append(results(graph, arguments, grid))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_long_and_empty_rows(device):
    """One atom that all others send to, and that sends to all: blocks of every length."""
    grid = SplineGrid(0.0, 4.0, 5)
    atoms = 200
    others = torch.arange(1, atoms - 1, device=device)
    hub = torch.zeros_like(others)
    pairs = torch.stack([torch.cat([others, hub[:37]]), torch.cat([hub, others[:37]])])
    graph = molkern.NeighborList.from_edge_index(pairs, atoms)
    arguments = inputs(graph, 9, 17, grid)
    exact = [value.detach().cpu().requires_grad_() for value in arguments]
    pairs = graph.edge_index.cpu()
    ours = second_derivatives(arguments, lambda *a: dtnn_message(*a, graph, grid))
    plain = second_derivatives(exact, lambda *a: reference_message(*a, pairs, atoms, grid))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a.cpu(), b)


def test_padding_is_neither_read_nor_summed(device):
    grid = SplineGrid(0.0, 2.0, 10)
    positions = torch.rand(12, 3, device=device) * 3
    exact = molkern.neighbor_list(positions, 2.0)
    padded = molkern.neighbor_list(positions, 2.0, capacity=exact.num_edges + 7)
    x, table, d, weight = inputs(exact, 5, 4, grid, torch.float32)
    more = torch.cat([d.detach(), torch.full((7,), torch.nan, device=device)]).requires_grad_()
    ours = results(padded, (x, table, more, weight), grid)
    theirs = results(exact, (x, table, d, weight), grid)
    for a, b in zip(ours, theirs, strict=True):
        if a.shape[:1] == more.shape:
            assert a[-7:].eq(0).all()
            a = a[:-7]
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_nan_is_passed_on(device):
    grid, graph = GRIDS[0], random_graph(4, 6, True, device)
    x, table, d, weight = inputs(graph, 2, 3, grid)
    y = dtnn_message(x, table, torch.full_like(d, torch.nan), weight, graph, grid)
    assert y[graph.receivers.long()].isnan().all()


def test_messages_beyond_the_knots_are_zero(device):
    graph = random_graph(6, 20, True, device)
    for grid in GRIDS:
        x, table, d, weight = inputs(graph, 4, 3, grid)
        far = torch.full_like(d, grid.stop).requires_grad_()
        y = dtnn_message(x, table, far, weight, graph, grid)
        assert bool(y.eq(0).all()) == grid.zero_beyond
        gradients = torch.autograd.grad(y.sum(), (x, table, far, weight))
        assert gradients[2].eq(0).all()
        if grid.zero_beyond:
            assert all(value.eq(0).all() for value in gradients)


def test_large_arguments(device):
    """Saturated messages are one, with gradients of zero."""
    grid, graph = SplineGrid(0.0, 4.0, 4, 3, False), random_graph(4, 6, True, device)
    x, table, d, weight = inputs(graph, 2, 3, grid, torch.float32)
    ones = [torch.ones_like(value).requires_grad_() for value in (table, weight)]
    y = dtnn_message(1e4 + x.abs(), ones[0], d, ones[1], graph, grid)
    row_ptr = graph.row_ptr
    torch.testing.assert_close(y, (row_ptr[1:] - row_ptr[:-1]).float()[:, None].expand(-1, 3))
    assert all(v.eq(0).all() for v in torch.autograd.grad(y.sum(), (x, d, *ones)))


def test_no_tensor_has_edges_and_features(device):
    """Not in second derivatives either: the largest is smaller than one number per both."""
    grid = SplineGrid(0.0, 4.0, 20)
    graph = random_graph(30, 4000, True, device)
    arguments = inputs(graph, 64, 32, grid, torch.float32)
    with torch.profiler.profile(profile_memory=True) as profile:
        results(graph, arguments, grid)
    sizes = [e.nbytes() for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert 0 < max(sizes) < graph.num_edges * 32 * 4


def test_empty(device):
    grid = SplineGrid(0.0, 4.0, 20)
    for atoms in (0, 3):
        graph = random_graph(atoms, 0, True, device)
        found = results(graph, inputs(graph, 4, 2, grid), grid)
        assert found[0].shape == (atoms, 2)
        assert all(value.eq(0).all() for value in found)
    graph = random_graph(3, 5, True, device)
    assert results(graph, inputs(graph, 4, 0, grid), grid)[0].shape == (3, 0)
    assert results(graph, inputs(graph, 0, 2, grid), grid)[0].eq(0).all()


SAMPLE = """
import torch, molkern
from molkern.ops import SplineGrid, dtnn_message
from dtnn.test_dtnn_message import inputs, random_graph, results
torch.manual_seed(0)
torch.set_num_threads(1)
for degree in (3, 5):
    grid = SplineGrid(0.5, 4.0, 30, degree)
    graph = random_graph(30, 200, True)
    for value in results(graph, inputs(graph, 37, 21, grid), grid):
        print(*value.flatten().tolist())
"""


@pytest.mark.unemulated
def test_instruction_sets_agree(monkeypatch):
    monkeypatch.setenv(
        "PYTHONPATH", ":".join([__file__.rsplit("/", 2)[0], *filter(None, sys.path)])
    )
    rows = []
    for isa in ("baseline", "avx2", "avx512"):
        monkeypatch.setenv("MOLKERN_ISA", isa)
        done = subprocess.run([sys.executable, "-c", SAMPLE], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        rows.append(torch.tensor([float(v) for v in done.stdout.split()], dtype=torch.float64))
    for other in rows[1:]:
        torch.testing.assert_close(rows[0], other, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(table=torch.ones(11, 2)), r"must have shape \[12, K\]"),
        (dict(table=torch.ones(12, 3)), "table must have size 2 in dimension 1"),
        (dict(weight=torch.ones(4, 3)), "weight must have size 2 in dimension 1"),
        (dict(weight=torch.ones(2)), "weight must have 2 dimension"),
        (dict(x=torch.ones(4, 2)), "x must have size 3 in dimension 0"),
        (dict(x=torch.ones(3)), r"x must have shape \[N, K\]"),
        (dict(distances=torch.ones(3)), "distances must have size 2"),
    ],
)
def test_wrong_arguments(change, message, device):
    graph = molkern.NeighborList.from_edge_index(
        torch.tensor([[0, 1], [1, 0]], device=device), num_atoms=3
    )
    arguments = dict(
        x=torch.ones(3, 2),
        table=torch.ones(12, 2),
        distances=torch.ones(2),
        weight=torch.ones(4, 2),
    )
    arguments = {key: value.to(device) for key, value in {**arguments, **change}.items()}
    with pytest.raises(ValueError, match=message):
        dtnn_message(**arguments, graph=graph, grid=SplineGrid(0.0, 2.0, 9))


def test_bins_of_other_edges_are_refused(device):
    grid = SplineGrid(0.5, 4.0, 9)
    graph = random_graph(3, 2, True, device)
    x, table, d, weight = inputs(graph, 2, 2, grid)
    bins = torch.zeros(3, dtype=torch.int32, device=device)
    y = dtnn_message(x, table, d, weight, graph, grid, bins=bins)
    with pytest.raises(ValueError, match="bins must have size"):
        torch.autograd.grad(y.sum(), table)


def test_bins_can_be_shared(device):
    grid = SplineGrid(0.5, 4.0, 9)
    graph = random_graph(6, 20, True, device)
    arguments = inputs(graph, 4, 3, grid)
    bins = grid.bins(arguments[2], graph)
    shared = dtnn_message(*arguments, graph, grid, bins=bins)
    own = dtnn_message(*arguments, graph, grid)
    for y in (shared, own):
        assert torch.equal(y, own)
    ours, theirs = (torch.autograd.grad(y.sum(), arguments[1])[0] for y in (shared, own))
    assert torch.equal(ours, theirs)


def test_what_does_not_fit_on_a_gpu_is_refused(device):
    if device.type == "cpu" and not molkern.build_info()["cuda_emulation"]:
        pytest.skip("no kernels for GPUs")
    graph = random_graph(3, 2, True, device)
    arguments = inputs(graph, 2000, 2, GRIDS[0])
    with pytest.raises(RuntimeError, match="2000 factors and 2 channels do not fit"):
        dtnn_message(*arguments, graph, GRIDS[0])


@pytest.mark.parametrize("name", ["table", "distances", "weight"])
def test_types_must_agree(name, device):
    graph = random_graph(3, 2, True, device)
    names = ("x", "table", "distances", "weight")
    arguments = dict(zip(names, inputs(graph, 2, 2, GRIDS[0]), strict=True))
    arguments[name] = arguments[name].float()
    with pytest.raises(TypeError, match=rf"{name} is .* but x is"):
        dtnn_message(**arguments, graph=graph, grid=GRIDS[0])
