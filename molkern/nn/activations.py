"""Activation functions by name, and dense layers."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor, nn

from .. import ops
from ..ops._arguments import checked
from ..ops._modes import Switch
from .fixed import FixedModule
from .plain import TAKEN_TENSORS, is_plain

_smooth = Switch()


def smooth_activations() -> AbstractContextManager[None]:
    """Within it shifted softpluses have no step at their threshold, in this thread.

    For splines, which cannot follow it: it is 2e-9 high, 8e-7 in the authors' 2018 code.
    """
    return _smooth.on()


class ShiftedSoftplus(FixedModule):
    """``ssp(x) = ln(½ eˣ + ½)``, zero at zero (Schütt et al., J. Chem. Phys. 148, 241722 (2018)).

    Args:
        threshold: beyond it ``x − shift`` is taken. PyTorch Geometric and SchNetPack have 20 (off
            by 2e-9), the authors' 2018 code has 14 (off by 8e-7, visible in forces in float64).
        shift: ln 2; PyTorch Geometric has it rounded to float32, also in float64.

    >>> import torch, molkern
    >>> molkern.nn.ShiftedSoftplus()(torch.zeros(2))
    tensor([0., 0.])
    """

    fixed = frozenset({"threshold", "shift"})

    @checked
    def __init__(self, threshold: float = 20.0, shift: float = math.log(2.0)):
        super().__init__()
        self.threshold, self.shift = threshold, shift

    def forward(self, x: Tensor) -> Tensor:
        threshold = 35.0 if _smooth.is_on else self.threshold
        return nn.functional.softplus(x, threshold=threshold) - self.shift


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ssp": ShiftedSoftplus,
    "ssp_exact": lambda: ShiftedSoftplus(threshold=35.0),
    "ssp_official": lambda: ShiftedSoftplus(threshold=14.0),
    "ssp_pyg": lambda: ShiftedSoftplus(shift=float(np.log(np.float32(2.0)))),
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


def fused_activation(module: nn.Module) -> str | None:
    """The name by which operators know what a module does, ``"none"`` for nothing, if they do."""
    kind = type(module)
    if kind is ShiftedSoftplus:
        name = "ssp" if (module.threshold, module.shift) == (20.0, math.log(2.0)) else None
    else:
        name = {nn.Identity: "none", nn.SiLU: "silu", nn.Tanh: "tanh"}.get(kind)
    return name if is_plain(module, kind) else None


def product_weight(layer: nn.Module) -> Tensor | None:
    """The matrix of a layer that is nothing but a product with one; None of all others."""
    if is_plain(layer, nn.Linear):
        return layer.weight if layer.bias is None else None
    if is_plain(layer, Dense) and layer.bias is None and fused_activation(layer.unfused) == "none":
        return layer.weight
    return None


class Dense(FixedModule, nn.Linear):
    """A linear layer with its activation and a residual: ``residual + a(W x + b)``, fused.

    A call can give a gate, by which the activated product is multiplied.

    Glorot-uniform weights and zero bias, as in SchNet's published code; names and shapes of the
    parameters are those of :class:`torch.nn.Linear`. See :func:`molkern.ops.dense`. Tensors of
    other shapes than ``[M, K]`` and of other types than float32 and float64 are taken too, by
    torch's operators, and so are the activations that have no fused form (``"ssp_official"`` and
    ``"ssp_pyg"``).

    Args:
        inputs, outputs: widths K and N.
        bias: whether there is one.
        activation: ``"none"``, or a name for :func:`activation`.

    Raises:
        ValueError: no inputs or no outputs, or an unknown activation.

    >>> import torch, molkern
    >>> layer = molkern.nn.Dense(4, 4, activation="silu")
    >>> x = torch.rand(3, 4)
    >>> layer(x, residual=x).shape
    torch.Size([3, 4])
    """

    fixed = frozenset({"activation"})

    @checked
    def __init__(self, inputs: int, outputs: int, bias: bool = True, activation: str = "none"):
        _check_widths(inputs, outputs)
        super().__init__(inputs, outputs, bias=bias)
        self.activation = activation
        self.unfused = _activation_or_none(activation)

    def reset_parameters(self) -> None:
        _initialize(self)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        gate: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """x ``[M, K]``, residual ``[M, N]``, gate ``[M, R]`` and ``[N, R]`` → ``[M, N]``.

        With a gate ``(e, V)`` the activated product is multiplied by ``e Vᵀ``.
        """
        weight, bias = self.weight, self.bias
        own = is_matrix(x) and type(weight) in TAKEN_TENSORS and type(bias) in TAKEN_TENSORS
        fused = fused_activation(self.unfused) if own else None
        if fused is not None:
            return ops.dense(x, weight, bias, activation=fused, residual=residual, gate=gate)
        y = ops.dense(x, weight, bias) if own else nn.functional.linear(x, weight, bias)
        y = self.unfused(y)
        if gate is not None:
            y = y * nn.functional.linear(*gate)
        return y if residual is None else residual + y

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation!r}"


def apply_dense(layer: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """``residual + layer(x)``, in one for a :class:`Dense` layer that is nothing else."""
    if is_plain(layer, Dense):
        return layer(x, residual)
    y = layer(x)
    return y if residual is None else residual + y


def is_matrix(x: Tensor) -> bool:
    """Whether a tensor is what the operators of dense layers take."""
    return x.dim() == 2 and x.dtype in (torch.float32, torch.float64)


def _activation_or_none(name: str) -> nn.Module:
    return nn.Identity() if name == "none" else activation(name)


def _check_widths(inputs: int, outputs: int) -> None:
    if inputs < 1 or outputs < 1:
        raise ValueError(
            f"widths of a layer must be at least 1, got {inputs} inputs and {outputs} outputs"
        )


def _initialize(layer: nn.Linear) -> None:
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def dense(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer with Glorot-uniform weights and zero bias, as in SchNet's published code.

    Raises:
        ValueError: no inputs or no outputs.
    """
    _check_widths(inputs, outputs)
    layer = nn.Linear(inputs, outputs, bias=bias)
    _initialize(layer)
    return layer


@torch.no_grad()
def orthogonal_(weight: Tensor, gain: float = 1.0) -> None:
    """:func:`torch.nn.init.orthogonal_` for 16-bit weights too, which torch cannot factorise."""
    if weight.is_meta:  # without values; torch would load all of its compiler
        return
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    weight.copy_(nn.init.orthogonal_(wide, gain))
