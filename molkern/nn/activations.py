"""Activation functions by name."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class ShiftedSoftplus(nn.Module):
    """``ssp(x) = ln(½ eˣ + ½)``, zero at zero (Schütt et al., J. Chem. Phys. 148, 241722 (2018)).

    Args:
        threshold: beyond it ``x − shift`` is taken. PyTorch Geometric and SchNetPack have 20 (off
            by 2e-9), the authors' 2018 code has 14 (off by 8e-7, visible in forces in float64).
        shift: ln 2; PyTorch Geometric has it rounded to float32, also in float64.

    >>> import torch, molkern
    >>> molkern.nn.ShiftedSoftplus()(torch.zeros(2))
    tensor([0., 0.])
    """

    def __init__(self, threshold: float = 20.0, shift: float = math.log(2.0)):
        super().__init__()
        self.threshold, self.shift = threshold, shift

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.softplus(x, threshold=self.threshold) - self.shift


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ssp": ShiftedSoftplus,
    "ssp_exact": lambda: ShiftedSoftplus(threshold=35.0),
    "ssp_official": lambda: ShiftedSoftplus(threshold=14.0),
    "ssp_pyg": lambda: ShiftedSoftplus(shift=float(torch.tensor(2.0).log())),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def activation(name: str) -> nn.Module:
    """The activation of that name.

    ``"ssp"`` (shifted softplus), ``"silu"`` (swish) or ``"tanh"``; ``"ssp_exact"`` is
    the first without a visible threshold (TensorFlow's, PhysNet's code), ``"ssp_official"`` and
    ``"ssp_pyg"`` as SchNet's 2018 code and PyTorch Geometric round it.

    Raises:
        ValueError: another name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]()


def dense(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer with Glorot-uniform weights and zero bias, as in SchNet's published code.

    Raises:
        ValueError: no inputs or no outputs.
    """
    if inputs < 1 or outputs < 1:
        raise ValueError(
            f"widths of a layer must be at least 1, got {inputs} inputs and {outputs} outputs"
        )
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        with torch.no_grad():
            layer.bias.zero_()
    return layer
