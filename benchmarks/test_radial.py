"""Gaussians with a cosine cutoff beside the same in plain torch, at 162,000 edges.

    pytest benchmarks/test_radial.py --benchmark-enable

`[write]` is the floor of the forward pass, filling the output; `[copy]` that of its gradient,
reading as much.
"""

import math

import pytest
import torch
from compare import compare
from directions import DIRECTIONS, runs_of
from peers import agree, size

from molkern.ops import radial_basis

CUTOFF = 5.0


def torch_basis(d, p, q):
    envelope = 0.5 * (torch.cos(math.pi / CUTOFF * d) + 1) * (d < CUTOFF)
    return torch.exp(-q * (d.unsqueeze(1) - p) ** 2) * envelope.unsqueeze(1)


def molkern_basis(d, p, q):
    return radial_basis(d, p, q, cutoff_function="cosine", cutoff=CUTOFF)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("functions", [50, 128])
def test_radial(benchmark, threads, functions, direction):
    torch.manual_seed(0)
    edges = size(162_000, 2_000)
    d = (0.8 + 4.5 * torch.rand(edges)).requires_grad_()
    p = torch.linspace(0, CUTOFF, functions)
    q = torch.full_like(p, 0.5 / float(p[1] - p[0]) ** 2)
    both = {"molkern": molkern_basis, "eager torch": torch_basis}
    runs = runs_of(both, (d, p, q), direction)
    agree(runs)
    floor = torch.randn(edges, functions)
    if direction == "forward":
        runs["[write]"] = lambda: torch.empty_like(floor).fill_(1.0)
    elif direction == "forward and backward":
        runs["[copy]"] = lambda: torch.empty_like(floor).copy_(floor)
    case = f"{edges:,} edges, {functions} Gaussians, {direction}"
    compare(benchmark, "radial basis", case, runs, per={"edges": edges, "functions": functions})
