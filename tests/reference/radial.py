"""Radial basis functions in plain torch, after the equations in csrc/radial/radial.h."""

import math

import torch
from torch import Tensor


def cutoff_value(d: Tensor, name: str, cutoff: float, exponent: int) -> Tensor:
    x = d / cutoff
    if name == "none":
        return torch.ones_like(d)
    if name == "cosine":
        value = (torch.cos(math.pi * x) + 1) / 2
    elif name == "physnet":
        value = 1 - 6 * x**5 + 15 * x**4 - 10 * x**3
    else:
        n = exponent
        value = 1 - (n + 1) * (n + 2) / 2 * x**n + n * (n + 2) * x ** (n + 1)
        value = value - n * (n + 1) / 2 * x ** (n + 2)
    return torch.where(d < cutoff, value, torch.zeros_like(value))


def radial_basis(
    distances: Tensor,
    centers: Tensor,
    widths: Tensor | None,
    *,
    basis: str,
    cutoff_function: str,
    cutoff: float,
    alpha: float = 1.0,
    exponent: int = 6,
) -> Tensor:
    d = distances.unsqueeze(1)
    if basis == "gaussian":
        b = torch.exp(-widths * (d - centers) ** 2)
    elif basis == "exponential":
        b = torch.exp(-widths * (torch.exp(-alpha * d) - centers) ** 2)
    else:
        b = torch.sin(centers * d / cutoff) / (d / cutoff)
    return cutoff_value(d, cutoff_function, cutoff, exponent) * b
