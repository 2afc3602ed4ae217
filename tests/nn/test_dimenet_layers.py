"""DimeNet's layers against the same in plain torch, with every triplet in a list."""

import math

import pytest
import torch
from reference.triplets import cosines, legendre, triplet_list
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import linear, silu

import molkern
from molkern import nn

CUTOFF = 3.0
ANGLES = ["kji", "plusplus", "at_i"]


def geometry(crystal, device):
    """A periodic graph whose cutoff reaches images of an atom itself, and its vectors."""
    _, positions, cell = crystal
    positions, cell = positions[:4].to(device), 0.7 * cell.to(device)
    graph = molkern.neighbor_list(0.7 * positions, CUTOFF, cell=cell)
    vectors = graph.vectors(0.7 * positions, cell)
    assert (graph.senders == graph.receivers).any()
    return graph, vectors


def bases(vectors):
    distances = vectors.norm(dim=1)
    radial = nn.BesselBasis(3, CUTOFF).double().to(vectors.device)(distances)
    spherical = nn.SphericalRadialBasis(4, 3, CUTOFF).to(vectors.device)(distances)
    return radial.detach(), spherical


def randomised(layer, device):
    layer = layer.double().to(device)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return layer


def apply(layer, x):
    return linear(x, layer.weight, layer.bias)


def residual(layer, x):
    return x + silu(apply(layer.lin2, silu(apply(layer.lin1, x))))


def update(block, messages, x):
    for layer in block.layers_before_skip:
        x = residual(layer, x)
    x = messages + silu(apply(block.lin, x))
    for layer in block.layers_after_skip:
        x = residual(layer, x)
    return x


def angular_basis(spherical, vectors, graph, angle):
    """The 2D basis of every triplet, ``[T, L R]``, and the edges of the triplets."""
    kj, ji = triplet_list(graph)
    polynomials = legendre(cosines(vectors, kj, ji, angle), spherical.shape[1])
    return (spherical[kj] * polynomials.unsqueeze(2)).flatten(1), kj, ji


def test_embedding(crystal, device):
    graph, vectors = geometry(crystal, device)
    basis, _ = bases(vectors)
    numbers = torch.tensor([3, 0, 8, 1], device=device)
    layer = randomised(nn.DimeNetEmbedding(3, 5, num_elements=9), device)
    senders, receivers = graph.edge_index
    h = layer.emb.weight[numbers]
    joined = torch.cat([h[receivers], h[senders], silu(apply(layer.lin_rbf, basis))], 1)
    torch.testing.assert_close(layer(numbers, basis, graph), silu(apply(layer.lin, joined)))


def test_residual(device):
    layer = randomised(nn.DimeNetResidual(6), device)
    x = torch.randn(7, 6, dtype=torch.float64, device=device)
    torch.testing.assert_close(layer(x), residual(layer, x))


@pytest.mark.parametrize("angle", ANGLES)
def test_interaction(crystal, device, angle):
    graph, vectors = geometry(crystal, device)
    basis, spherical = bases(vectors)
    block = randomised(nn.DimeNetInteraction(5, 2, 4, 3, angle=angle), device)
    messages = torch.randn(graph.num_edges, 5, dtype=torch.float64, device=device)
    of_angle, kj, ji = angular_basis(spherical, vectors, graph, angle)
    x_kj = silu(apply(block.lin_kj, messages)) * linear(basis, block.lin_rbf.weight)
    terms = torch.einsum(
        "tp,tg,fpg->tf", linear(of_angle, block.lin_sbf.weight), x_kj[kj], block.bilinear
    )
    x = silu(apply(block.lin_ji, messages)).index_add(0, ji, terms)
    expected = update(block, messages, x)
    torch.testing.assert_close(block(messages, basis, spherical, vectors, graph), expected)


@pytest.mark.parametrize("angle", ANGLES)
def test_interaction_of_plus_plus(crystal, device, angle):
    graph, vectors = geometry(crystal, device)
    basis, spherical = bases(vectors)
    block = randomised(nn.DimeNetPlusPlusInteraction(5, 4, 2, 4, 3, angle=angle), device)
    messages = torch.randn(graph.num_edges, 5, dtype=torch.float64, device=device)
    of_angle, kj, ji = angular_basis(spherical, vectors, graph, angle)
    gate = apply(block.lin_rbf2, apply(block.lin_rbf1, basis))
    x_kj = silu(apply(block.lin_down, silu(apply(block.lin_kj, messages)) * gate))
    terms = x_kj[kj] * apply(block.lin_sbf2, apply(block.lin_sbf1, of_angle))
    summed = torch.zeros_like(x_kj).index_add(0, ji, terms)
    x = silu(apply(block.lin_ji, messages)) + silu(apply(block.lin_up, summed))
    expected = update(block, messages, x)
    torch.testing.assert_close(block(messages, basis, spherical, vectors, graph), expected)


@pytest.mark.parametrize("kind", [nn.DimeNetOutput, nn.DimeNetPlusPlusOutput])
def test_output(crystal, device, kind):
    graph, vectors = geometry(crystal, device)
    basis, _ = bases(vectors)
    plain = kind is nn.DimeNetOutput
    layer = kind(3, 5, num_targets=2) if plain else kind(3, 5, 7, num_targets=2)
    layer = randomised(layer, device)
    messages = torch.randn(graph.num_edges, 5, dtype=torch.float64, device=device)
    terms = linear(basis, layer.lin_rbf.weight) * messages
    x = terms.new_zeros(4, 5).index_add(0, graph.edge_index[1], terms)
    if not plain:
        x = linear(x, layer.lin_up.weight)
    for dense in layer.lins:
        x = silu(apply(dense, x))
    expected = linear(x, layer.lin.weight)
    torch.testing.assert_close(layer(messages, basis, graph), expected)


@pytest.mark.parametrize("kind", [nn.DimeNetInteraction, nn.DimeNetPlusPlusInteraction])
def test_derivatives(kind, device):
    pairs = torch.tensor([[1, 0, 2, 1, 2, 0], [0, 1, 1, 2, 0, 2]], device=device)
    graph = molkern.NeighborList.from_edge_index(pairs, 3)
    block = randomised(kind(3, 2, *([] if kind is nn.DimeNetInteraction else [2]), 2, 1), device)
    shapes = [(6, 3), (6, 1), (6, 2, 1), (6, 3)]
    inputs = [
        torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)
        for shape in shapes
    ]
    assert gradcheck(lambda *tensors: block(*tensors, graph), inputs)
    assert gradgradcheck(lambda *tensors: block(*tensors, graph), inputs)
    parameters = (
        [block.lin_kj.weight, block.lin_rbf.weight]
        if hasattr(block, "lin_rbf")
        else [
            block.lin_rbf1.weight,
            block.lin_sbf1.weight,
        ]
    )
    assert gradcheck(lambda *_: block(*inputs, graph), parameters)


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (1, 7), (7, 1), (1, 1)])
def test_weights_start_orthogonal(shape):
    from molkern.nn.dimenet import dense

    weight = dense(shape[1], shape[0]).weight.detach().double()
    gram = weight @ weight.T if shape[0] <= shape[1] else weight.T @ weight
    variance = 2.0 / sum(shape)
    expected = variance * max(shape) * torch.eye(min(shape), dtype=torch.float64)
    torch.testing.assert_close(gram, expected, rtol=1e-5, atol=1e-6)


def test_initialisation():
    torch.manual_seed(1)
    embedding = nn.DimeNetEmbedding(6, 64)
    assert 1.6 < embedding.emb.weight.abs().max() < math.sqrt(3)
    assert embedding.emb.weight.std().item() == pytest.approx(1, rel=0.05)
    block = nn.DimeNetInteraction(64)
    assert block.bilinear.std().item() == pytest.approx(2 / 64, rel=0.05)
    assert not any(p.any() for name, p in block.named_parameters() if name.endswith("bias"))
    assert not nn.DimeNetOutput(6, 64).lin.weight.any()
    assert nn.DimeNetOutput(6, 64, output_init="glorot_orthogonal").lin.weight.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.DimeNetEmbedding(0, 8), "at least 1, got 0 inputs"),
        (lambda: nn.DimeNetEmbedding(6, 8, 0), "num_elements must be at least 1, got 0"),
        (lambda: nn.DimeNetEmbedding(6, 8, activation="foo"), "activation must be one of"),
        (lambda: nn.DimeNetResidual(0), "at least 1, got 0 inputs and 0 outputs"),
        (lambda: nn.DimeNetInteraction(8, 0), "num_bilinear must be at least 1, got 0"),
        (lambda: nn.DimeNetInteraction(8, angle="foo"), "angle must be one of .* got 'foo'"),
        (
            lambda: nn.DimeNetInteraction(8, num_after_skip=-1),
            "num_after_skip must not be negative, got -1",
        ),
        (lambda: nn.DimeNetPlusPlusInteraction(8, 0), "int_emb_size must be at least 1, got 0"),
        (lambda: nn.DimeNetPlusPlusInteraction(8, angle=""), "angle must be one of .* got ''"),
        (lambda: nn.DimeNetOutput(6, 8, 0), "at least 1, got 8 inputs and 0 outputs"),
        (lambda: nn.DimeNetOutput(6, 8, 1, -1), "num_layers must not be negative, got -1"),
        (lambda: nn.DimeNetOutput(6, 8, output_init="foo"), "output_init must be .* got 'foo'"),
        (lambda: nn.DimeNetPlusPlusOutput(6, 8, 0), "at least 1, got 0 inputs"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
