"""The sum over triplets in plain torch: every triplet in a list, every array in memory."""

import torch


def triplet_list(graph):
    """Pairs of edges (k→j, j→i) but for the reverse of j→i, as two index vectors."""
    senders, receivers = graph.edge_index
    shifts = graph.shifts
    if shifts is None:
        shifts = torch.zeros(len(senders), 3, dtype=torch.int32, device=senders.device)
    shifts = shifts[: len(senders)]
    meets = receivers.unsqueeze(1) == senders.unsqueeze(0)  # [kj, ji]
    returns = meets & (senders.unsqueeze(1) == receivers.unsqueeze(0))
    returns &= (shifts.unsqueeze(1) == -shifts.unsqueeze(0)).all(-1)
    return (meets & ~returns).nonzero(as_tuple=True)


def cosines(vectors, kj, ji, angle):
    """Cosine of the angle of each triplet, by the convention's name."""
    to_k = vectors[kj]  # R_k - R_j
    to_j = vectors[ji]  # R_j - R_i
    first, second = {
        "kji": (-to_j, to_k),
        "plusplus": (to_j, to_k),
        "at_i": (to_j, to_j + to_k),
    }[angle]
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))


def legendre(x, orders):
    """P_0(x) ... P_{orders-1}(x), in a new last dimension."""
    values = [torch.ones_like(x), x]
    for order in range(2, orders):
        values.append(((2 * order - 1) * x * values[-1] - (order - 1) * values[-2]) / order)
    return torch.stack(values[:orders], -1)


def triplet_sum(x, radial, vectors, graph, weight=None, angle="kji"):
    kj, ji = triplet_list(graph)
    polynomials = legendre(cosines(vectors, kj, ji, angle), radial.shape[1])
    coefficients = (radial[kj] * polynomials.unsqueeze(-1)).sum(1)  # [T, P]
    terms = coefficients.unsqueeze(2) * x[kj].unsqueeze(1)  # [T, P, F]
    y = x.new_zeros(x.shape[0], *terms.shape[1:]).index_add(0, ji, terms)
    return y if weight is None else (y * weight.T).sum(1)
