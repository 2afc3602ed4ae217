import os
import subprocess
import sys

import pytest
import torch
from reference.triplets import triplet_list
from reference.triplets import triplet_sum as reference_sum
from torch.autograd import gradcheck, gradgradcheck

import molkern
from molkern.ops import triplet_sum

FORMS = [
    ("kji", "direct"),
    ("plusplus", "direct"),
    ("at_i", "direct"),
    ("kji", "moments"),
    ("plusplus", "moments"),
]


def molecule(atoms=9, device="cpu"):
    positions = torch.rand(atoms, 3, dtype=torch.float64, device=device) * 2.5
    return molkern.neighbor_list(positions, 2.0), positions, None


def periodic(device="cpu"):
    """A small cell: images of the same pair, and atoms that see themselves."""
    cell = torch.tensor([[2.5, 0.2, 0.0], [0.3, 2.2, -0.4], [0.0, 0.1, 2.4]], dtype=torch.float64)
    cell = cell.to(device)
    positions = torch.rand(2, 3, dtype=torch.float64, device=device) @ cell
    return molkern.neighbor_list(positions, 2.6, cell), positions, cell


def directed(device="cpu"):
    """Edges of which only some have a reverse."""
    pairs = torch.randint(0, 6, (2, 20), device=device)
    pairs = pairs[:, pairs[0] != pairs[1]].unique(dim=1)
    pairs = torch.cat([pairs, torch.tensor([[0, 1], [1, 0]], device=device)], 1).unique(dim=1)
    graph = molkern.NeighborList.from_edge_index(pairs, 6)
    return graph, torch.rand(6, 3, dtype=torch.float64, device=device), None


GRAPHS = {"molecule": molecule, "periodic": periodic, "directed": directed}


def tensors(case, features, orders, channels, weighted, dtype=torch.float64):
    graph, positions, cell = case
    vectors = graph.vectors(positions, cell).to(dtype)
    edges = len(graph.senders)
    options = {"dtype": dtype, "device": vectors.device}
    x = torch.randn(edges, features, **options)
    radial = torch.randn(edges, orders, channels, **options)
    weight = torch.randn(features, channels, **options) if weighted else None
    return [None if t is None else t.requires_grad_() for t in (x, radial, vectors, weight)]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(("angle", "method"), FORMS)
@pytest.mark.parametrize("weighted", [True, False])
def test_equals_a_list_of_triplets(graph, angle, method, weighted, device):
    case = GRAPHS[graph](device=device)
    inputs = tensors(case, 5, 4, 3, weighted)
    ours = triplet_sum(*inputs[:3], case[0], inputs[3], angle=angle, method=method)
    plain = reference_sum(*inputs[:3], case[0], inputs[3], angle=angle)
    assert len(triplet_list(case[0])[0]) > 0
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)
    g = torch.randn_like(ours)
    wanted = [t for t in inputs if t is not None]
    for a, b in zip(
        torch.autograd.grad(ours, wanted, g), torch.autograd.grad(plain, wanted, g), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("features", "orders", "channels"),
    [(1, 1, 1), (3, 2, 1), (8, 7, 8), (31, 3, 5), (64, 7, 8), (40, 10, 9), (130, 5, 4)],
)
@pytest.mark.parametrize(("angle", "method"), FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sizes(features, orders, channels, angle, method, dtype, device):
    case = molecule(device=device)
    scale = features**0.5 * channels
    tolerance = {torch.float32: 2e-5 * scale, torch.float64: 1e-13 * scale}[dtype]
    for weighted in (True, False):
        inputs = tensors(case, features, orders, channels, weighted, dtype)
        wanted = [t for t in inputs if t is not None]
        ours = triplet_sum(*inputs[:3], case[0], inputs[3], angle=angle, method=method)
        exact = [None if t is None else t.detach().double().requires_grad_() for t in inputs]
        plain = reference_sum(*exact[:3], case[0], exact[3], angle=angle)
        g = torch.randn_like(ours)
        first = torch.autograd.grad(ours, wanted, g)
        wanted = [t for t in exact if t is not None]
        second = torch.autograd.grad(plain, wanted, g.double(), materialize_grads=True)
        for a, b in zip((ours, *first), (plain, *second), strict=True):
            error = (a.detach() - b.detach()).abs().max()
            assert error <= tolerance * max(1.0, float(b.detach().abs().max()))


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize(("angle", "method"), FORMS)
@pytest.mark.parametrize("weighted", [True, False])
def test_derivatives(graph, angle, method, weighted, device):
    case = molecule(5, device) if graph == "molecule" else GRAPHS[graph](device=device)
    inputs = tensors(case, 2, 3, 2, weighted)

    def function(*inputs):
        return triplet_sum(*inputs[:3], case[0], *inputs[3:], angle=angle, method=method)

    wanted = [t for t in inputs if t is not None]
    assert gradcheck(function, wanted, fast_mode=True)
    assert gradgradcheck(function, wanted, fast_mode=True)


def test_auto_mixes_the_methods(device):
    """Two clusters: one whose atoms have more neighbors than moments need, one with fewer."""
    dense = torch.rand(40, 3, dtype=torch.float64, device=device)
    positions = torch.cat([dense, torch.rand(6, 3, dtype=torch.float64, device=device) + 9])
    graph = molkern.neighbor_list(positions, 2.0)
    inputs = tensors((graph, positions, None), 6, 3, 4, True)
    results = []
    for method in ("auto", "direct", "moments"):
        y = triplet_sum(*inputs[:3], graph, inputs[3], method=method)
        results.append((y, *torch.autograd.grad(y.sin().sum(), inputs)))
    edges = 40 * 39
    assert torch.equal(results[0][0][:edges], results[2][0][:edges])
    assert torch.equal(results[0][0][edges:], results[1][0][edges:])
    for a, b in zip(results[0], results[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("angle", ["kji", "plusplus", "at_i"])
@pytest.mark.parametrize("method", ["direct", "auto"])
def test_atoms_on_a_line(angle, method, device):
    positions = torch.zeros(4, 3, dtype=torch.float64, device=device)
    positions[:, 0] = torch.tensor([0.0, 1.0, 2.2, 3.1])
    graph = molkern.neighbor_list(positions, 5.0)
    positions.requires_grad_()
    x, radial, _, weight = tensors((graph, positions.detach(), None), 2, 4, 2, True)
    inputs = x.detach(), radial.detach(), weight.detach()

    def function(positions):
        vectors = graph.vectors(positions)
        return triplet_sum(*inputs[:2], vectors, graph, inputs[2], angle=angle, method=method)

    assert gradcheck(function, (positions,))
    assert gradgradcheck(function, (positions,))


@pytest.mark.parametrize("weighted", [True, False])
def test_opcheck(weighted, device):
    for case in (molecule(5, device), directed(device)):
        graph = case[0]
        inputs = tensors(case, 3, 3, 2, weighted)
        row_ptr, senders, _ = graph.by_receiver
        rest = (row_ptr, senders, *graph.by_sender, graph.reverse_edges(), False, 0, 2**31 - 1)
        torch.library.opcheck(torch.ops.molkern.triplet_sum.default, (*inputs, *rest))
        shape = (len(senders), 3) if weighted else (len(senders), 2, 3)
        g = torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)
        arguments = (g, *inputs, *rest, weighted)
        torch.library.opcheck(torch.ops.molkern.triplet_sum_grad.default, arguments)
        directions = [None if t is None else torch.randn_like(t) for t in inputs]
        plain = [None if t is None else t.detach() for t in (g, *inputs)]
        torch.library.opcheck(
            torch.ops.molkern.triplet_sum_hvp.default, (*directions, *plain, *rest, weighted)
        )


@pytest.mark.parametrize(("angle", "method"), FORMS)
def test_same_bits_for_every_number_of_threads(angle, method, threads):
    case = molecule(40)
    inputs = tensors(case, 20, 4, 3, True, torch.float32)
    results = []
    # Emulated kernels run on one thread, and slowly: that they repeat their bits is enough
    for count in (1, 2) if molkern.build_info()["cuda_emulation"] else (1, 2, 3, 1):
        threads(count)
        y = triplet_sum(*inputs[:3], case[0], inputs[3], angle=angle, method=method)
        grads = torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)
        results.append((y, *grads, *second))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_padding_is_neither_read_nor_summed(device):
    graph, positions, _ = molecule(device=device)
    padded = molkern.neighbor_list(positions, 2.0, capacity=graph.num_edges + 5)
    inputs = tensors((graph, positions, None), 4, 3, 2, True)
    more = []
    for t in inputs[:3]:
        filler = torch.full((5, *t.shape[1:]), torch.nan, dtype=t.dtype, device=device)
        more.append(torch.cat([t.detach(), filler]).requires_grad_())
    y = triplet_sum(*inputs[:3], graph, inputs[3])
    z = triplet_sum(*more, padded, inputs[3])
    assert torch.equal(y, z[:-5])
    assert not z[-5:].any()
    for a, b in zip(
        torch.autograd.grad(y.sin().sum(), inputs),
        torch.autograd.grad(z.sin().sum(), [*more, inputs[3]]),
        strict=True,
    ):
        assert torch.equal(a, b[: len(a)])
        assert not b[len(a) :].any()


def test_coincident_atoms_spoil_nothing_else(device):
    positions = torch.rand(5, 3, dtype=torch.float64, device=device)
    positions[1] = positions[0]
    graph = molkern.neighbor_list(positions, 3.0)
    for angle, method in FORMS:
        inputs = tensors((graph, positions, None), 3, 3, 2, True)
        y = triplet_sum(*inputs[:3], graph, inputs[3], angle=angle, method=method)
        grads = torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in grads), inputs)
        assert all(t.isfinite().all() for t in (y, *grads, *second))


@pytest.mark.parametrize(("angle", "method"), FORMS)
def test_coincident_atoms_do_not_point_anywhere(angle, method, device):
    positions = torch.rand(6, 3, dtype=torch.float64, device=device)
    positions[1] = positions[0]
    graph = molkern.neighbor_list(positions, 3.0)
    inputs = tensors((graph, positions, None), 3, 5, 2, True)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    vectors = inputs[2].detach()
    y, z = (
        triplet_sum(*inputs[:2], v, graph, inputs[3], angle=angle, method=method)
        for v in (vectors, vectors @ turn.to(device))
    )
    torch.testing.assert_close(y, z, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("atoms", [0, 1, 2])
def test_no_triplets(atoms, device):
    graph, positions, _ = molecule(atoms, device)
    inputs = tensors((graph, positions, None), 3, 2, 2, True)
    y = triplet_sum(*inputs[:3], graph, inputs[3])
    assert y.shape == (graph.num_edges, 3)
    assert not y.any()
    y.sum().backward()
    assert not inputs[3].grad.any()


def test_compiles():
    case = molecule()
    inputs = tensors(case, 4, 3, 2, True)

    def function(*inputs):
        return triplet_sum(*inputs[:3], case[0], inputs[3])

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), function(*inputs))


SCRIPT = """
import sys, torch, molkern
torch.manual_seed(0)
torch.set_num_threads(1)
positions = torch.rand(30, 3, dtype=torch.float64) * 2.5
graph = molkern.neighbor_list(positions, 2.0)
edges = graph.num_edges
x = torch.randn(edges, 13, dtype=torch.float64, requires_grad=True)
radial = torch.randn(edges, 5, 3, dtype=torch.float64, requires_grad=True)
weight = torch.randn(13, 3, dtype=torch.float64, requires_grad=True)
vectors = graph.vectors(positions).requires_grad_()
out = []
for angle, method in (("at_i", "direct"), ("kji", "direct"), ("kji", "moments")):
    y = molkern.ops.triplet_sum(x, radial, vectors, graph, weight, angle=angle, method=method)
    out += [y, *torch.autograd.grad(y.sin().sum(), (x, radial, vectors, weight))]
torch.save([t.detach() for t in out], sys.argv[1])
"""


@pytest.mark.unemulated
def test_instruction_sets_agree(tmp_path):
    results = []
    for isa in molkern.build_info()["cpu_instruction_sets"]:
        path = tmp_path / f"{isa}.pt"
        environment = {**os.environ, "MOLKERN_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([sys.executable, "-c", SCRIPT, str(path)], check=True, env=environment)
        results.append(torch.load(path))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda x, q, v, w: (x[0], q, v, w), ValueError, "x must have 2 dimension"),
        (lambda x, q, v, w: (x[1:], q, v, w), ValueError, "x must have size .* in dimension 0"),
        (
            lambda x, q, v, w: (x, q[:, :, 0], v, w),
            ValueError,
            r"radial must have shape .E, L, P., got",
        ),
        (lambda x, q, v, w: (x, q[1:], v, w), ValueError, "radial must have size"),
        (lambda x, q, v, w: (x, q, v[:, :2], w), ValueError, "vectors must have size 3"),
        (lambda x, q, v, w: (x, q, v, w[1:]), ValueError, "weight must have size 4"),
        (lambda x, q, v, w: (x, q, v, w[:, 1:]), ValueError, "weight must have size 2"),
        (lambda x, q, v, w: (x, q.float(), v, w), TypeError, "radial is float but x is double"),
        (lambda x, q, v, w: (x.half(), q, v, w), TypeError, "x must be float32 or float64"),
        (lambda x, q, v, w: (x[:, :0], q, v, w[:0]), ValueError, "must be at least 1"),
        (
            lambda x, q, v, w: (x, q.repeat(1, 6, 1), v, w),
            ValueError,
            "at most 16 orders are supported, got 18",
        ),
    ],
)
def test_wrong_input(change, error, message):
    case = molecule()
    x, q, v, w = change(*(t.detach() for t in tensors(case, 4, 3, 2, True)))
    with pytest.raises(error, match=f"(?i){message}"):
        triplet_sum(x, q, v, case[0], w)


def test_wrong_names():
    case = molecule()
    x, q, v, w = tensors(case, 4, 3, 2, True)
    with pytest.raises(ValueError, match=r"angle must be one of 'kji', .*, got 'ijk'"):
        triplet_sum(x, q, v, case[0], w, angle="ijk")
    with pytest.raises(ValueError, match=r"method must be 'auto', .*, got 'fast'"):
        triplet_sum(x, q, v, case[0], w, method="fast")
    with pytest.raises(ValueError, match="at_i does not factorise"):
        triplet_sum(x, q, v, case[0], w, angle="at_i", method="moments")


def test_autocast_takes_float32(device):
    case = molecule(device=device)
    x, q, v, w = (t.detach() for t in tensors(case, 4, 3, 2, True, torch.float32))
    half = x.bfloat16()
    with torch.autocast(device.type, torch.bfloat16):
        y = triplet_sum(half, q, v, case[0], w)
    assert torch.equal(y, triplet_sum(half.float(), q, v, case[0], w))
