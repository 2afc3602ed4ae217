"""Functions of distances that splines may replace, with what their comparisons share.

A case is a sum over edges whose factors a network computes of the distance: in molkern from a
table, in molkern from the network, and in plain torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from peers import Run, compiled
from torch import Tensor

import molkern
from molkern.nn import GaussianBasis, choose_grid, spline_tables
from molkern.ops import SplineGrid

DIRECTIONS = ["forward", "forward and backward", "training on forces"]
#: Of features, distances and factors (a table, or a tensor for each edge) the sum, ``[N, C]``.
Sum = Callable[[Tensor, Tensor, Tensor], Tensor]


class Gaussians(torch.nn.Module):
    """``exp(−γ (d − μ)²)``, ``[E]`` → ``[E, K]``, in plain torch, as a module of molkern has it."""

    def __init__(self, basis: GaussianBasis):
        super().__init__()
        centers, widths = basis.functions(torch.float32)
        self.register_buffer("centers", centers)
        self.register_buffer("widths", widths)

    def forward(self, d: Tensor) -> Tensor:
        return torch.exp(-self.widths.to(d) * (d.unsqueeze(1) - self.centers.to(d)) ** 2)


class Case(NamedTuple):
    """``network`` is molkern's, of distances, with ``parameters``; ``plain`` the same in torch."""

    x: Tensor
    distances: Tensor
    parameters: list[Tensor]
    network: Callable[[Tensor], Tensor]
    double: Callable[[Tensor], Tensor]
    plain: Callable[[Tensor], Tensor]
    reach: float
    splined: Callable[[Tensor, Tensor, Tensor, SplineGrid, Tensor | None], Tensor]
    exact: Sum
    eager: Sum

    def runs(self, direction: str, neighbors: molkern.NeighborList) -> dict[str, Run]:
        """For ``"training on forces"``, gradients by the weights of a product with those by the
        distances, tables are made anew each time; else they are there."""
        grid = choose_grid(
            lambda d: [self.double(d)], 0.0, self.reach, tolerance=1e-7, degree=5
        ).grid

        def table() -> Tensor:
            return spline_tables(lambda d: [self.network(d)], grid, self.x)[0]

        training = direction == DIRECTIONS[2]
        with torch.no_grad():
            constant = table()

        def ours(x: Tensor, d: Tensor) -> Tensor:
            bins = grid.bins(d, neighbors) if training else None
            return self.splined(x, table() if training else constant, d, grid, bins)

        def theirs(x: Tensor, d: Tensor) -> Tensor:
            return self.eager(x, d, self.plain(d))

        functions = {
            "molkern": ours,
            "molkern, exact filters": lambda x, d: self.exact(x, d, self.network(d)),
            "eager torch": theirs,
        }
        fast = compiled(theirs) if not training else None
        if fast is not None:
            functions["torch.compile"] = fast
        return {name: self._run(f, direction) for name, f in functions.items()}

    def _run(self, function: Callable[[Tensor, Tensor], Tensor], direction: str) -> Run:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            shape = function(self.x, self.distances).shape
        g = torch.randn(shape, generator=generator)
        h = torch.randn(self.distances.shape, generator=generator)
        leaves = [self.x, self.distances]

        def forward() -> Tensor:
            with torch.no_grad():
                return function(*leaves)

        def backward() -> tuple[Tensor, ...]:
            for parameter in self.parameters:
                parameter.requires_grad_(False)
            return torch.autograd.grad(function(*leaves), leaves, g)

        def train() -> tuple[Tensor, ...]:
            for parameter in self.parameters:
                parameter.requires_grad_(True)
            y = function(*leaves)
            (slope,) = torch.autograd.grad(y, self.distances, g, create_graph=True)
            return torch.autograd.grad(slope, [self.x, *self.parameters], h)

        return dict(zip(DIRECTIONS, (forward, backward, train), strict=True))[direction]
