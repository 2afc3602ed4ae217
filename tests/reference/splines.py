"""B-splines by the recursion of Cox and de Boor, knot by knot, and a convolution by index_add."""

import torch


def basis(d, start, stop, intervals, degree):
    """All B-splines ``[E, intervals + degree]`` at ``[E]`` distances within the knots."""
    h = (stop - start) / intervals
    t = (d - start) / h
    knots = torch.arange(-degree, intervals + degree + 1, dtype=torch.float64)
    # The last interval is closed, so that the end is in one
    inside = (t[:, None] >= knots[:-1]) & (t[:, None] < knots[1:])
    at_end = t >= intervals
    inside[at_end] = knots[:-1] == intervals - 1
    b = inside.to(d.dtype)
    for p in range(1, degree + 1):
        left = (t[:, None] - knots[: -p - 1]) / p * b[:, :-1]
        right = (knots[p + 1 :] - t[:, None]) / p * b[:, 1:]
        b = left + right
    return b


def splines(table, d, grid):
    """Values ``[E, F]`` of the splines with coefficients ``table``, also outside the knots."""
    held = d.clamp(grid.start, grid.stop)
    values = basis(held, grid.start, grid.stop, grid.intervals, grid.degree) @ table
    if grid.zero_beyond:
        values = values * (d < grid.stop)[:, None]
    return values


def cfconv(x, table, d, edge_index, num_atoms, grid):
    senders, receivers = edge_index
    messages = x[senders] * splines(table, d, grid)
    return torch.zeros(num_atoms, x.shape[1], dtype=x.dtype).index_add(0, receivers, messages)


def dtnn_message(x, table, d, weight, edge_index, num_atoms, grid):
    """DTNN's sum of messages, each of them in memory."""
    senders, receivers = edge_index
    messages = torch.tanh((x[senders] * splines(table, d, grid)) @ weight.T)
    return torch.zeros(num_atoms, len(weight), dtype=x.dtype).index_add(0, receivers, messages)
