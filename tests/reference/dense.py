"""Dense layers in plain torch, after the equations in csrc/dense/dense.h."""

import math

import torch
from torch import Tensor


def activate(z: Tensor, name: str) -> Tensor:
    if name == "silu":
        return z * torch.sigmoid(z)
    if name == "ssp":
        return torch.nn.functional.softplus(z, threshold=20) - math.log(2)
    return torch.tanh(z) if name == "tanh" else z


def dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    residual: Tensor | None = None,
    gate: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    z = x @ weight.T
    if bias is not None:
        z = z + bias
    y = activate(z, activation)
    if gate is not None:
        y = y * (gate[0] @ gate[1].T)
    return y if residual is None else residual + y
