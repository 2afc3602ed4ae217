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
