"""Plain torch in the place of kernels that are on their way; deleted when they are merged."""

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

ACTIVATIONS = {
    "none": lambda x: x,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
    "ssp": lambda x: nn.functional.softplus(x) - math.log(2.0),
}


def dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
) -> Tensor:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
    y = ACTIVATIONS[activation](nn.functional.linear(x, weight, bias))
    return y if residual is None else residual + y


class Dense(nn.Linear):
    def __init__(self, inputs: int, outputs: int, bias: bool = True, activation: str = "none"):
        if inputs < 1 or outputs < 1:
            raise ValueError(
                f"widths of a layer must be at least 1, got {inputs} inputs and {outputs} outputs"
            )
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
        super().__init__(inputs, outputs, bias=bias)
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return dense(x, self.weight, self.bias, activation=self.activation, residual=residual)


def triplet_sum(
    x: Tensor,
    radial: Tensor,
    vectors: Tensor,
    graph: Any,
    weight: Tensor | None = None,
    *,
    angle: str = "kji",
    method: str = "auto",
) -> Tensor:
    incoming, counted = _incoming(graph)
    to_j = torch.where(counted.any(1, keepdim=True), vectors, torch.ones_like(vectors))
    to_j = to_j.unsqueeze(1)
    to_k = torch.where(counted.unsqueeze(2), vectors[incoming], to_j)
    first, second = {
        "kji": (-to_j, to_k),
        "plusplus": (to_j, to_k),
        "at_i": (to_j, to_j + to_k),
    }[angle]
    cosines = (first * second).sum(2) / (first.norm(dim=2) * second.norm(dim=2))
    polynomials = [torch.ones_like(cosines), cosines]
    for order in range(2, radial.shape[1]):
        last, before = polynomials[-1], polynomials[-2]
        polynomials.append(((2 * order - 1) * cosines * last - (order - 1) * before) / order)
    angular = torch.stack(polynomials[: radial.shape[1]], 2) * counted.unsqueeze(2)
    factors = torch.einsum("edlp,edl->epd", radial[incoming], angular)
    y = factors @ x[incoming]
    return y if weight is None else torch.einsum("epf,fp->ef", y, weight)


def _incoming(graph: Any) -> tuple[Tensor, Tensor]:
    """The edges k→j for every edge j→i, and which of them count, both ``[E, D]``."""
    row_ptr, senders = graph.row_ptr.long(), graph.senders.long()
    lengths = row_ptr[1:] - row_ptr[:-1]
    place = torch.arange(int(lengths.max()) if len(lengths) else 0, device=row_ptr.device)
    real = (senders >= 0).unsqueeze(1)
    counted = (place < lengths[senders].unsqueeze(1)) & real
    incoming = torch.where(counted, row_ptr[senders].unsqueeze(1) + place, 0)
    returns = senders[incoming] == graph.receivers.long().unsqueeze(1)
    if graph.shifts is not None:
        returns &= (graph.shifts[incoming] == -graph.shifts.unsqueeze(1)).all(2)
    return incoming, counted & ~returns


class SphericalRadialBasis(nn.Module):
    zeros: Tensor
    norms: Tensor

    def __init__(
        self,
        num_spherical: int,
        num_radial: int,
        cutoff: float,
        *,
        exponent: int = 6,
        zeros_dtype: torch.dtype = torch.float64,
    ):
        from scipy.optimize import brentq
        from scipy.special import spherical_jn

        super().__init__()
        for name, count in (("num_spherical", num_spherical), ("num_radial", num_radial)):
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        row = [math.pi * n for n in range(1, num_spherical + num_radial)]
        rows = [row[:num_radial]]
        for order in range(1, num_spherical):
            row = [
                brentq(lambda a, order=order: spherical_jn(order, a), low, high, xtol=1e-15)
                for low, high in itertools.pairwise(row)
            ]
            rows.append(row[:num_radial])
        zeros = torch.tensor(rows, dtype=torch.float64).to(zeros_dtype).double()
        orders = torch.arange(num_spherical, dtype=torch.float64).unsqueeze(1)
        after = torch.from_numpy(spherical_jn(orders.int().numpy() + 1, zeros.numpy()))
        self.register_buffer("zeros", zeros)
        self.register_buffer("norms", ((2 * orders + 1) / (2 * math.pi)).sqrt() / after.abs())
        self.cutoff, self.exponent = float(cutoff), exponent

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return super()._apply(lambda tensor: tensor.to(fn(tensor.detach()).device), recurse)

    def forward(self, distances: Tensor) -> Tensor:
        x = distances.double() / self.cutoff
        inside = (x > 1e-10) & (x < 1)
        x = torch.where(inside, x, 0.5)
        p = self.exponent
        u = 1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1)
        u = u - p * (p + 1) / 2 * x ** (p + 2)
        envelope = torch.where(inside, u / x, 0.0)
        rows = [
            _spherical_bessel(order, self.zeros[order] * x.unsqueeze(1))
            for order in range(len(self.zeros))
        ]
        y = envelope[:, None, None] * self.norms * torch.stack(rows, 1)
        return y.to(distances.dtype)


def _spherical_bessel(order: int, a: Tensor) -> Tensor:
    """A power series below 2.5, the recurrence upwards from there on."""
    large = a.clamp(min=2.5)
    before, value = large.cos() / large, large.sin() / large
    for k in range(order):
        before, value = value, (2 * k + 1) / large * value - before
    term, series = torch.ones_like(a), torch.ones_like(a)
    for k in range(1, 14):
        term = term * (-0.5 * a * a / (k * (2 * order + 2 * k + 1)))
        series = series + term
    scale = math.prod(range(1, 2 * order + 2, 2))
    return torch.where(a < 2.5, series * a**order / scale, value)
