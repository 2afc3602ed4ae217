import pytest
import torch
from reference.cfconv import cfconv as reference_cfconv
from torch.autograd import gradcheck, gradgradcheck

import molkern
from molkern.ops import cfconv, segment_expand, segment_sum


def random_graph(atoms, edges, symmetric, device="cpu"):
    pairs = torch.randint(0, max(atoms, 1), (2, edges))
    if symmetric:
        pairs = torch.cat([pairs, pairs.flip(0)], 1)
    return molkern.NeighborList.from_edge_index(pairs.to(device), atoms)


def inputs(graph, features, dtype=torch.float64):
    device = graph.row_ptr.device
    x = torch.randn(graph.num_atoms, features, dtype=dtype, device=device, requires_grad=True)
    shape = (graph.num_edges, features)
    w = torch.randn(shape, dtype=dtype, device=device, requires_grad=True)
    return x, w


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("features", [1, 3, 8, 31, 64, 130])
def test_equals_plain_torch(features, dtype, symmetric, device):
    graph = random_graph(40, 300, symmetric, device)
    assert (graph.reverse is not None) == symmetric
    x, w = inputs(graph, features, dtype)
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {}
    ours, plain = cfconv(x, w, graph), reference_cfconv(x, w, graph.edge_index, 40)
    torch.testing.assert_close(ours, plain, **tolerance)
    g = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, (x, w), g), torch.autograd.grad(plain, (x, w), g), strict=True
    ):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("aggregation", ["sum", "mean"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_derivatives(symmetric, aggregation, device):
    graph = random_graph(6, 10, symmetric, device)
    x, w = inputs(graph, 3)

    def function(x, w):
        return cfconv(x, w, graph, aggregation=aggregation)

    assert gradcheck(function, (x, w))
    assert gradgradcheck(function, (x, w))


def test_derivatives_of_the_product(device):
    graph = random_graph(6, 10, False, device)
    a = torch.randn(6, 3, dtype=torch.float64, device=device, requires_grad=True)
    b = torch.randn(6, 3, dtype=torch.float64, device=device, requires_grad=True)

    def function(a, b):
        sides = (*graph.by_receiver, *graph.by_sender)
        return torch.ops.molkern.edge_product(a, b, *sides, False)

    assert gradcheck(function, (a, b))
    assert gradgradcheck(function, (a, b))


def test_third_derivatives(device):
    graph = random_graph(5, 8, True, device)
    x, w = inputs(graph, 2)
    sides = (*graph.by_receiver, *graph.by_sender)

    def gradient(x, w):
        y = torch.ops.molkern.cfconv(x, w, *sides, False)
        return torch.autograd.grad(y.pow(3).sum(), (x, w), create_graph=True)

    assert gradgradcheck(gradient, (x, w))


@pytest.mark.parametrize("symmetric", [True, False])
def test_opcheck(symmetric, device):
    graph = random_graph(6, 10, symmetric, device)
    x, w = inputs(graph, 3)
    sides = (*graph.by_receiver, *graph.by_sender)
    torch.library.opcheck(torch.ops.molkern.cfconv.default, (x, w, *sides, False))
    a, b = torch.randn_like(x), torch.randn_like(x)
    arguments = (a.requires_grad_(), b.requires_grad_(), *sides, False)
    torch.library.opcheck(torch.ops.molkern.edge_product.default, arguments)


def test_mean_divides_by_the_number_of_neighbors(device):
    graph = molkern.NeighborList.from_edge_index(
        torch.tensor([[1, 2, 0], [0, 0, 1]], device=device), 3
    )
    x = torch.tensor([[1.0], [2.0], [4.0]], device=device)
    y = cfconv(x, torch.ones(3, 1, device=device), graph, aggregation="mean")
    assert y.flatten().tolist() == [3.0, 1.0, 0.0]


def test_same_bits_for_every_number_of_threads(threads):
    graph = random_graph(300, 4000, True)
    x, w = inputs(graph, 33, torch.float32)
    results = []
    for count in (1, 2, 3, 1):
        threads(count)
        y = cfconv(x, w, graph)
        results.append((y, *torch.autograd.grad(y.sin().sum(), (x, w))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_padding_is_neither_read_nor_summed(device):
    positions = torch.rand(12, 3, device=device) * 3
    exact = molkern.neighbor_list(positions, 2.0)
    padded = molkern.neighbor_list(positions, 2.0, capacity=exact.num_edges + 7)
    x, w = inputs(exact, 5)
    more = torch.cat([w.detach(), torch.full((7, 5), torch.nan, device=device)]).requires_grad_()
    y, z = cfconv(x, w, exact), cfconv(x, more, padded)
    assert torch.equal(y, z)
    g = torch.randn_like(y)
    gx, gw = torch.autograd.grad(y, (x, w), g)
    hx, hw = torch.autograd.grad(z, (x, more), g)
    assert torch.equal(gx, hx)
    assert torch.equal(gw, hw[:-7])
    assert not hw[-7:].any()


@pytest.mark.parametrize("aggregation", ["sum", "mean"])
def test_derivatives_of_a_padded_graph(aggregation, device):
    positions = torch.rand(6, 3, device=device)
    graph = molkern.neighbor_list(positions, 0.6, capacity=30)
    assert 0 < graph.num_edges < 30
    x = torch.randn(6, 3, dtype=torch.float64, device=device, requires_grad=True)
    w = torch.randn(30, 3, dtype=torch.float64, device=device, requires_grad=True)

    def function(x, w):
        return cfconv(x, w, graph, aggregation=aggregation)

    assert gradcheck(function, (x, w))
    assert gradgradcheck(function, (x, w))
    sides = (*graph.by_receiver, *graph.by_sender)
    torch.library.opcheck(torch.ops.molkern.cfconv.default, (x, w, *sides, True))
    arguments = (x, torch.randn_like(x), *sides, True)
    torch.library.opcheck(torch.ops.molkern.edge_product.default, arguments)


@pytest.mark.parametrize("atoms", [0, 1, 5])
def test_no_edges(atoms, device):
    graph = random_graph(atoms, 0, True, device)
    x, w = inputs(graph, 4)
    y = cfconv(x, w, graph)
    assert y.shape == (atoms, 4)
    assert not y.any()
    y.sum().backward()
    assert not x.grad.any()


def test_segment_sum(device):
    values = torch.randn(7, 2, dtype=torch.float64, device=device, requires_grad=True)
    pointers = torch.tensor([0, 3, 3, 7], dtype=torch.int32, device=device)
    sums = segment_sum(values, pointers)
    expected = torch.stack([values[:3].sum(0), values[3:3].sum(0), values[3:].sum(0)])
    torch.testing.assert_close(sums, expected)
    assert gradcheck(lambda v: segment_sum(v, pointers), (values,))
    assert gradgradcheck(lambda v: segment_sum(v, pointers).pow(2), (values,))


def pointers_of(*first_rows):
    return torch.tensor(first_rows, dtype=torch.int32)


@pytest.mark.parametrize(
    ("values", "pointers", "error", "message"),
    [
        (torch.ones(7), pointers_of(0, 7), ValueError, r"values must have shape .* got \[7\]"),
        (torch.ones(7, 1), pointers_of(0, 3), ValueError, "end with 7, .* got 0 and 3"),
        (torch.ones(7, 1), pointers_of(1, 7), ValueError, "begin with 0 .* got 1 and 7"),
        (torch.ones(7, 1), pointers_of(0, 3, 9), ValueError, "got 0 and 9"),
        (torch.ones(7, 1), pointers_of(0), ValueError, "got 0 and 0"),
        (torch.ones(7, 1), pointers_of(0, 5, 3, 7), ValueError, r"ptr\[2\] is 3 after 5; sort"),
        (torch.ones(7, 1), pointers_of(), ValueError, r"shape \[B \+ 1\], got \[0\]"),
        (torch.ones(7, 1), pointers_of(0, 7)[None], ValueError, r"got \[1, 2\]"),
        (torch.ones(7, 1), pointers_of(0, 7).to("meta"), ValueError, "on meta .* on cpu; move"),
        (torch.ones(7, 1), pointers_of(0, 7).long(), TypeError, r"got torch.int64; .* \.int\(\)"),
        (torch.ones(7, 1).half(), pointers_of(0, 7), TypeError, r"got torch.float16; .*float\(\)"),
        (torch.ones(7, 1).int(), pointers_of(0, 3, 7), TypeError, "got torch.int32; convert"),
    ],
)
def test_wrong_segments(values, pointers, error, message):
    with pytest.raises(error, match=message):
        segment_sum(values, pointers)


@pytest.mark.parametrize("rows", [0, 5, 1024, 1025, 33000, 200_000])
@pytest.mark.parametrize("features", [1, 33])
def test_one_segment_has_the_same_bits_for_every_number_of_threads(rows, features, threads):
    rows = rows if features == 1 else rows // 16
    values = torch.randn(rows, features, requires_grad=True)
    sums = []
    for count in (1, 2, 3):
        threads(count)
        sums.append(segment_sum(values, pointers_of(0, rows)))
    expected = values.double().sum(0, keepdim=True)
    torch.testing.assert_close(sums[0].double(), expected, rtol=1e-5, atol=1e-3)
    assert all(torch.equal(sums[0], other) for other in sums[1:])
    direction = torch.randn(1, features)
    gradient, *_ = torch.autograd.grad(sums[0], values, direction)
    assert torch.equal(gradient, direction.expand_as(values))


def test_second_derivative_of_a_sum_in_chunks():
    values = torch.randn(40_000, 1, dtype=torch.float64, requires_grad=True)
    total = segment_sum(values.square(), pointers_of(0, 40_000)).square().sum()
    (first,) = torch.autograd.grad(total, values, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), values)
    x, square = values.detach(), values.detach().square().sum()
    torch.testing.assert_close(first.detach(), 4 * square * x)
    torch.testing.assert_close(second, 4 * square + 8 * x.sum() * x)


def test_segment_expand_is_the_transpose(device):
    values = torch.randn(3, 2, dtype=torch.float64, device=device, requires_grad=True)
    pointers = torch.tensor([0, 3, 3, 7], dtype=torch.int32, device=device)
    expanded = segment_expand(values, pointers, 7)
    assert torch.equal(expanded, values[torch.tensor([0] * 3 + [2] * 4, device=device)])
    for last, rows in ((pointers, values), (pointers[[0, 3]], values[:1].detach())):
        argument = rows.detach().requires_grad_()
        assert gradcheck(lambda v, p=last: segment_expand(v, p, 7), (argument,))
        assert gradgradcheck(lambda v, p=last: segment_expand(v, p, 7).sin(), (argument,))


@pytest.mark.parametrize("rows", [0, 5, 33_000])
def test_one_value_for_many_rows_has_the_same_gradient_bits_for_every_number_of_threads(
    rows, threads
):
    value, direction = torch.randn(1, 1, requires_grad=True), torch.randn(rows, 1)
    gradients = []
    for count in (1, 2, 3):
        threads(count)
        expanded = segment_expand(value, pointers_of(0, rows), rows)
        assert torch.equal(expanded, value.expand(rows, 1))
        gradients.append(torch.autograd.grad(expanded, value, direction)[0])
    expected = direction.double().sum().reshape(1, 1)
    torch.testing.assert_close(gradients[0].double(), expected, rtol=1e-5, atol=1e-3)
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])


def test_wrong_rows_of_segments():
    with pytest.raises(ValueError, match=r"values must have shape \[2, F\], .* got \[3, 1\]"):
        segment_expand(torch.ones(3, 1), pointers_of(0, 1, 4), 4)
    with pytest.raises(ValueError, match=r"segment_expand: .* end with 5, the number of rows"):
        segment_expand(torch.ones(2, 1), pointers_of(0, 1, 4), 5)
    with pytest.raises(TypeError, match="segment_expand: segment_ptr must be int32"):
        segment_expand(torch.ones(2, 1), pointers_of(0, 1, 4).long(), 4)


def test_segment_sum_under_autocast(device):
    values = torch.ones(7, 1, device=device).bfloat16()
    with torch.autocast(device.type, torch.bfloat16):
        for pointers in (pointers_of(0, 7), pointers_of(0, 3, 7)):
            assert segment_sum(values, pointers.to(device)).dtype == torch.float32


def test_segment_sum_compiles():
    values = torch.randn(9, 2)
    for pointers in (pointers_of(0, 9), pointers_of(0, 4, 9)):
        compiled = torch.compile(segment_sum, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(values, pointers), segment_sum(values, pointers))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, w: (x[0], w), ValueError, r"x must have shape \[N, F\], got \[4\]"),
        (lambda x, w: (x, w[:-1]), ValueError, "filters must have size 20 in dimension 0"),
        (lambda x, w: (x, w[:, :3]), ValueError, "filters must have size 4 in dimension 1"),
        (lambda x, w: (x, w.float()), TypeError, "filters is float but x is double; convert"),
        (lambda x, w: (x.int(), w.int()), TypeError, "x must be float32 or float64, got int"),
        (lambda x, w: (x[:-1], w), ValueError, "x must have size 6 in dimension 0"),
    ],
)
def test_wrong_input(change, error, message):
    graph = random_graph(6, 10, True)
    x, w = inputs(graph, 4)
    with pytest.raises(error, match=f"(?i){message}"):
        cfconv(*change(x, w), graph)
    with pytest.raises(ValueError, match="aggregation must be 'sum' or 'mean', got 'max'"):
        cfconv(x, w, graph, aggregation="max")


def test_autocast_takes_float32(device):
    graph = random_graph(6, 10, True, device)
    x, w = inputs(graph, 4)
    half = [t.detach().bfloat16().requires_grad_() for t in (x, w)]
    single = [t.detach().float().requires_grad_() for t in half]
    expected = cfconv(*single, graph)
    with pytest.raises(TypeError, match=r"got BFloat16; convert it with .float\(\)"):
        cfconv(*half, graph)
    with torch.autocast(device.type, torch.bfloat16):
        y = cfconv(*half, graph)
        assert cfconv(x, w, graph).dtype == torch.float64
        assert torch.equal(y, expected)
        gradients = torch.autograd.grad(y.square().sum(), half, create_graph=True)
        second = torch.autograd.grad(sum(g.float().square().sum() for g in gradients), half)
    assert [g.dtype for g in gradients] == [torch.bfloat16] * 2
    first = torch.autograd.grad(expected.square().sum(), single)
    for ours, plain in zip(gradients, first, strict=True):
        assert torch.equal(ours, plain.bfloat16())
    assert all(torch.isfinite(g).all() for g in second)


@pytest.mark.parametrize("argument", range(5))  # the others only derivatives read
def test_mixed_devices(argument):
    """On the CPU's kernels, which torch would not choose if one tensor is on another device."""
    graph = random_graph(6, 10, False)
    x, w = (t.detach() for t in inputs(graph, 4))
    sides = (*graph.by_sender, *graph.by_receiver)
    cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    for operator, data in (("cfconv", (x, w)), ("edge_product", (x, x))):
        arguments = [*data, *sides]
        arguments[argument] = arguments[argument].to("meta")
        with pytest.raises(ValueError, match=r"on meta.*; move one of them"):
            getattr(torch.ops.molkern, operator).default.redispatch(cpu, *arguments, False)
