"""SchNet over a list of pairs in plain torch, from functions and matrices."""

import math

import torch


def linear(x, weight, bias=None):
    y = x @ weight.T
    return y if bias is None else y + bias


def ssp(x):
    return torch.logaddexp(x, torch.zeros_like(x)) - math.log(2.0)  # eˣ alone would overflow


def cosine(d, cutoff):
    return torch.where(d < cutoff, 0.5 * torch.cos(torch.pi * d / cutoff) + 0.5, 0.0)


def atomic_energies(
    x, distances, pairs, *, blocks, head, basis, envelope, activation, head_activation,
    last_filter_activation=None, mean=False,
):  # fmt: skip
    """Energies ``[N]`` of atoms with embeddings ``x`` ``[N, C]``; pairs ``[2, E]``, senders first.

    ``blocks`` are dicts of (weight, bias): filter_1, filter_2, in, out_1, out_2; ``head`` is a list
    of them.
    """
    senders, receivers = pairs
    functions = basis(distances)
    for block in blocks:
        filters = linear(activation(linear(functions, *block["filter_1"])), *block["filter_2"])
        if last_filter_activation is not None:
            filters = last_filter_activation(filters)
        messages = linear(x, *block["in"])[senders] * filters * envelope(distances)[:, None]
        total = torch.zeros(len(x), messages.shape[1], dtype=x.dtype)
        total = total.index_add(0, receivers, messages)
        if mean:
            total = total / torch.bincount(receivers, minlength=len(x)).clamp(min=1)[:, None]
        x = x + linear(activation(linear(total, *block["out_1"])), *block["out_2"])
    for layer in head[:-1]:
        x = head_activation(linear(x, *layer))
    return linear(x, *head[-1]).squeeze(1)
