import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import molkern
from molkern.ops import gather_receivers, gather_senders, sum_edges


def graph_of(kind, device):
    pairs = torch.randint(0, 6, (2, 12), device=device)
    if kind == "symmetric":
        pairs = torch.cat([pairs, pairs.flip(0)], 1)
    if kind == "padded":
        return molkern.neighbor_list(torch.rand(6, 3, device=device), 0.7, capacity=40)
    return molkern.NeighborList.from_edge_index(pairs, 6)


KINDS = ["symmetric", "directed", "padded"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_indexing(kind, dtype, device):
    graph = graph_of(kind, device)
    senders, receivers = graph.edge_index
    edges = len(senders)
    x = torch.randn(6, 5, dtype=dtype, device=device)
    assert torch.equal(gather_senders(x, graph)[:edges], x[senders])
    assert torch.equal(gather_receivers(x, graph)[:edges], x[receivers])
    values = torch.randn(len(graph.senders), 5, dtype=dtype, device=device)
    expected = torch.zeros(6, 5, dtype=dtype, device=device)
    expected.index_add_(0, receivers, values[:edges])
    torch.testing.assert_close(sum_edges(values, graph), expected)
    factors = torch.randn_like(values)
    expected = torch.zeros_like(expected).index_add_(0, receivers, (factors * values)[:edges])
    torch.testing.assert_close(sum_edges(values, graph, factors=factors), expected)


@pytest.mark.unemulated
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives(kind, device):
    graph = graph_of(kind, device)
    x = torch.randn(6, 3, dtype=torch.float64, device=device, requires_grad=True)
    values = torch.randn(len(graph.senders), 3, dtype=torch.float64, device=device)
    values.requires_grad_()
    for function, argument in (
        (gather_senders, x),
        (gather_receivers, x),
        (sum_edges, values),
    ):
        assert gradcheck(lambda t, f=function: f(t, graph), (argument,), fast_mode=True)
        assert gradgradcheck(lambda t, f=function: f(t, graph).sin(), (argument,), fast_mode=True)
    factors = torch.randn_like(values).requires_grad_()
    assert gradcheck(lambda v, f: sum_edges(v, graph, factors=f), (values, factors))
    assert gradgradcheck(lambda v, f: sum_edges(v, graph, factors=f), (values, factors))


def test_wrong_shapes():
    graph = graph_of("symmetric", "cpu")
    with pytest.raises(ValueError, match=r"x must have shape \[N, F\], got \[6\]"):
        gather_senders(torch.ones(6), graph)
    with pytest.raises(ValueError, match=r"values must have shape \[E, F\], got \[24\]"):
        sum_edges(torch.ones(24), graph)
    with pytest.raises(ValueError, match=r"factors must have shape \[E, F\], got \[24\]"):
        sum_edges(torch.ones(24, 2), graph, factors=torch.ones(24))
    for values, factors in (((23, 2), None), ((23, 2), (24, 2)), ((24, 2), (23, 2))):
        factors = None if factors is None else torch.ones(factors)
        with pytest.raises(ValueError, match="size 24 in dimension 0"):
            sum_edges(torch.ones(values), graph, factors=factors)
    with pytest.raises(ValueError, match="size 6 in dimension 0"):
        gather_receivers(torch.ones(7, 2), graph)
