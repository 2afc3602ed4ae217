import functools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import molkern
from molkern.ops.geometry import edge_norm


def plain_vectors(neighbors, positions, cell):
    senders, receivers = neighbors.edge_index
    system = 0 if neighbors.system is None else neighbors.system.long()[receivers]
    cells = cell.reshape(-1, 3, 3)[system].expand(len(senders), 3, 3)
    shift = torch.einsum("ea,eab->eb", neighbors.shifts.to(positions.dtype), cells)
    return positions[senders] + shift - positions[receivers]


def batch_of_two(crystal, device):
    _, positions, cell = crystal
    cells = torch.stack([cell, cell * 1.1 + 0.1])
    both = torch.cat([positions[:4], positions[4:] * 1.1])
    system = torch.tensor([0] * 4 + [1] * 6)
    return both.to(device), cells.to(device), system.to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_of_a_batch(crystal, dtype, device):
    positions, cells, system = batch_of_two(crystal, device)
    positions, cells = positions.to(dtype), cells.to(dtype)
    neighbors = molkern.neighbor_list(positions, 4.5, cells, True, system)
    vectors = neighbors.vectors(positions, cells)
    torch.testing.assert_close(vectors, plain_vectors(neighbors, positions, cells))
    torch.testing.assert_close(neighbors.distances(positions, cells), vectors.norm(dim=1))
    assert float(neighbors.distances(positions, cells).max()) <= 4.5 * (1 + 1e-6)


def test_cell_gradients_of_large_systems(device):
    """On CUDA they are added in chunks of atoms, which begin and end within systems."""
    counts = torch.tensor([300, 5, 0, 130, 256, 70])
    system = torch.repeat_interleave(torch.arange(6), counts).to(device)
    cells = (6 + torch.rand(6, 1, 1)) * torch.eye(3) + 0.3 * torch.rand(6, 3, 3)
    cells = cells.double().to(device).requires_grad_()
    positions = torch.einsum(
        "na,nab->nb", torch.rand(len(system), 3, device=device).double(), cells.detach()[system]
    )
    neighbors = molkern.neighbor_list(positions, 1.5, cells.detach(), True, system)
    weights = torch.randn(neighbors.num_edges, 3, device=device).double()
    found, expected = (
        torch.autograd.grad((weights * vectors(positions, cells)).sum(), cells)[0]
        for vectors in (neighbors.vectors, functools.partial(plain_vectors, neighbors))
    )
    torch.testing.assert_close(found, expected)


def test_derivatives_in_positions_and_cell(crystal, device):
    positions, cells, system = batch_of_two(crystal, device)
    neighbors = molkern.neighbor_list(positions, 3.0, cells, True, system)
    assert neighbors.num_edges > 20
    arguments = (positions.requires_grad_(), cells.requires_grad_())
    for function in (neighbors.vectors, neighbors.distances):
        assert gradcheck(function, arguments)
        assert gradgradcheck(function, arguments)


def test_derivatives_without_a_cell(device):
    positions = torch.rand(6, 3, dtype=torch.float64, device=device, requires_grad=True)
    neighbors = molkern.neighbor_list(positions, 2.0)
    assert gradcheck(neighbors.distances, (positions,))
    assert gradgradcheck(neighbors.distances, (positions,))


def test_derivatives_of_a_padded_graph(crystal, device):
    positions, cells, system = batch_of_two(crystal, device)
    exact = molkern.neighbor_list(positions, 3.0, cells, True, system)
    padded = molkern.neighbor_list(
        positions, 3.0, cells, True, system, capacity=exact.num_edges + 5
    )
    arguments = (positions.requires_grad_(), cells.requires_grad_())
    assert torch.equal(padded.distances(*arguments)[:-5], exact.distances(*arguments))
    assert not padded.distances(*arguments)[-5:].any()
    for function in (padded.vectors, padded.distances):
        assert gradcheck(function, arguments)
        assert gradgradcheck(function, arguments)


def test_derivatives_of_the_norm(device):
    vectors = torch.randn(5, 3, dtype=torch.float64, device=device, requires_grad=True)
    assert gradcheck(edge_norm, (vectors,))
    assert gradgradcheck(edge_norm, (vectors,))


def test_derivatives_on_a_graph_that_is_not_symmetric(device):
    pairs = torch.tensor([[0, 1, 2, 3, 1], [1, 2, 0, 0, 0]], device=device)
    shifts = torch.tensor([[0, 0, 1], [0, 0, 0], [1, 0, 0], [0, -1, 0], [0, 0, 0]], device=device)
    graph = molkern.NeighborList.from_edge_index(pairs, 4, shifts)
    assert graph.reverse is None
    positions = torch.rand(4, 3, dtype=torch.float64, device=device, requires_grad=True)
    cell = (3 * torch.eye(3, dtype=torch.float64, device=device)).requires_grad_()
    torch.testing.assert_close(
        graph.vectors(positions, cell), plain_vectors(graph, positions, cell)
    )
    assert gradcheck(graph.distances, (positions, cell))
    assert gradgradcheck(graph.distances, (positions, cell))


def test_cell_alone_and_positions_alone(crystal):
    _, positions, cell = crystal
    neighbors = molkern.neighbor_list(positions, 3.0, cell)
    assert gradgradcheck(lambda p: neighbors.distances(p, cell), (positions.requires_grad_(),))
    positions = positions.detach()
    assert gradgradcheck(lambda c: neighbors.distances(positions, c), (cell.requires_grad_(),))


def test_distance_zero_has_zero_derivatives(device):
    vectors = torch.zeros(2, 3, dtype=torch.float64, device=device)
    vectors[1] = torch.tensor([1.0, 2.0, 2.0])
    vectors.requires_grad_()
    distances = edge_norm(vectors)
    assert distances.tolist() == [0.0, 3.0]
    (gradient,) = torch.autograd.grad(distances.sum(), vectors, create_graph=True)
    torch.testing.assert_close(gradient[1], vectors[1] / 3)
    assert not gradient[0].any()
    (second,) = torch.autograd.grad(gradient.square().sum() + gradient.sum(), vectors)
    assert torch.isfinite(second).all()
    assert not second[0].any()


def test_atoms_on_top_of_each_other(device):
    positions = torch.zeros(3, 3, dtype=torch.float64, device=device)
    positions[2, 0] = 2.0
    neighbors = molkern.neighbor_list(positions, 3.0)
    positions.requires_grad_()
    distances = neighbors.distances(positions)
    assert distances.tolist() == [0.0, 2.0, 0.0, 2.0, 2.0, 2.0]
    (gradient,) = torch.autograd.grad(distances.sum(), positions, create_graph=True)
    assert gradient.tolist() == [[-2.0, 0.0, 0.0], [-2.0, 0.0, 0.0], [4.0, 0.0, 0.0]]
    (second,) = torch.autograd.grad(gradient.pow(2).sum(), positions)
    assert torch.isfinite(second).all()


def test_third_derivative_is_refused():
    vectors = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(edge_norm(vectors).sum(), vectors, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), vectors, create_graph=True)
    with pytest.raises(RuntimeError, match="edge_norm has no third derivative"):
        second.sum().backward()


def test_same_bits_for_every_number_of_threads(crystal, threads):
    _, positions, cell = crystal
    positions, cell = positions.float(), cell.float()
    neighbors = molkern.neighbor_list(positions, 9.0, cell)
    arguments = (positions.requires_grad_(), cell.requires_grad_())
    results = []
    for count in (1, 2, 3):
        threads(count)
        distances = neighbors.distances(*arguments)
        results.append((distances, *torch.autograd.grad(distances.sin().sum(), arguments)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("capacity", [None, 400])
def test_opcheck(capacity, crystal, device):
    positions, cells, system = batch_of_two(crystal, device)
    nl = molkern.neighbor_list(positions, 3.0, cells, True, system, capacity=capacity)
    padded = nl.padded
    sides = (*nl.by_receiver, *nl.by_sender)
    positions.requires_grad_()
    cells.requires_grad_()
    ops = torch.ops.molkern
    images = (nl.shifts, nl.system)
    check = torch.library.opcheck
    check(ops.edge_vectors.default, (positions, cells, *images, *sides, padded))
    check(ops.edge_distances.default, (positions, cells, *images, *sides, padded))
    check(ops.edge_distances.default, (positions, None, None, None, *sides, padded))
    vectors = nl.vectors(positions, cells).detach().requires_grad_()
    for need_cell in (True, False):
        arguments = (vectors, *images, 2, need_cell, *sides, padded)
        check(ops.edge_vectors_adjoint.default, arguments)
    g = torch.randn(vectors.shape[0], dtype=torch.float64, device=device, requires_grad=True)
    check(ops.edge_norm.default, (vectors,))
    check(ops.edge_norm_grad.default, (g, vectors))
    check(ops.edge_norm_hvp.default, (torch.randn_like(vectors), g.detach(), vectors.detach()))


def test_wrong_input(crystal):
    _, positions, cell = crystal
    nl = molkern.neighbor_list(positions, 3.0, cell)
    with pytest.raises(ValueError, match=r"positions must have shape \[10, 3\]"):
        nl.vectors(positions[:-1], cell)
    with pytest.raises(ValueError, match="this neighbor list is periodic: pass the cell too"):
        nl.vectors(positions)
    with pytest.raises(ValueError, match=r"cell must have shape \[3, 3\] or \[1, 3, 3\]"):
        nl.vectors(positions, cell.expand(2, 3, 3))
    with pytest.raises(TypeError, match="cell is Float but positions is Double"):
        nl.vectors(positions, cell.float())


def test_autocast_takes_float32(crystal, device):
    positions, cells, system = batch_of_two(crystal, device)
    nl = molkern.neighbor_list(positions, 3.0, cells, True, system)
    half = positions.bfloat16().requires_grad_(), cells.bfloat16().requires_grad_()
    single = [t.detach().float() for t in half]
    with torch.autocast(device.type, torch.bfloat16):
        distances, vectors = nl.distances(*half), nl.vectors(*half)
        assert nl.distances(positions, cells).dtype == torch.float64
        norm = edge_norm(vectors.bfloat16())
        gradients = torch.autograd.grad(distances.sum() + norm.sum(), half, create_graph=True)
        second = torch.autograd.grad(sum(g.float().square().sum() for g in gradients), half)
    assert torch.equal(distances, nl.distances(*single))
    assert torch.equal(vectors, nl.vectors(*single))
    assert torch.equal(norm, edge_norm(vectors.bfloat16().float()))
    assert all(torch.isfinite(g).all() for g in second)


WRONG_IMAGES = {
    "shifts type": (dict(shifts=lambda t: t.long()), TypeError, "shifts must be int32, got Long"),
    "shifts length": (dict(shifts=lambda t: t[1:]), ValueError, r"shifts must .* shape \[44, 3\]"),
    "shifts device": (dict(shifts=lambda t: t.to("meta")), ValueError, "shifts is on meta but"),
    "system type": (dict(system=lambda t: t.long()), TypeError, "system must be int32, got Long"),
    "system length": (dict(system=lambda t: t[1:]), ValueError, "system must have size 10"),
    "system shape": (dict(system=lambda t: t[:, None]), ValueError, "system must be a vector"),
    "system device": (dict(system=lambda t: t.to("meta")), ValueError, "system is on meta but"),
    "cell device": (dict(cell=lambda t: t.to("meta")), ValueError, "cell is on meta but positions"),
    "graph device": (dict(row_ptr=lambda t: t.to("meta")), ValueError, "row_ptr is on meta but"),
}


@pytest.mark.parametrize("name", WRONG_IMAGES)
@pytest.mark.parametrize("operator", ["edge_vectors", "edge_distances", "edge_vectors_adjoint"])
def test_wrong_images(operator, name, crystal):
    """On the CPU's kernel, which torch would not choose if one tensor is on another device."""
    changes, error, message = WRONG_IMAGES[name]
    positions, cells, system = batch_of_two(crystal, "cpu")
    nl = molkern.neighbor_list(positions, 3.0, cells, True, system)
    given = dict(cell=cells, shifts=nl.shifts, system=nl.system, row_ptr=nl.row_ptr)
    given |= {key: change(given[key]) for key, change in changes.items()}
    graph = (given["row_ptr"], *nl.by_receiver[1:], *nl.by_sender, False)
    if operator != "edge_vectors_adjoint":
        arguments = (positions, given["cell"], given["shifts"], given["system"], *graph)
    elif "cell" in changes:
        pytest.skip("takes no cell")
    else:
        g = torch.zeros(nl.num_edges, 3, dtype=torch.float64)
        arguments = (g, given["shifts"], given["system"], 2, True, *graph)
    kernel = getattr(torch.ops.molkern, operator).default
    with pytest.raises(error, match=message):
        kernel.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *arguments)
