"""From features of atoms to energies."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..ops._arguments import checked, explained
from ..ops._library import as_tensor
from .activations import activation, dense
from .precision import Float64Module


class AtomwiseHead(nn.Module):
    """A dense network per atom with one output, ``[N, C]`` → ``[N]``.

    Args:
        in_channels: width of the features.
        hidden: widths of the activated layers; by default one of half the width.
        activation_name: their activation.
        final_bias: whether the last, linear layer has a bias.

    Raises:
        ValueError: a width below 1, or an unknown activation.

    >>> import torch, molkern
    >>> molkern.nn.AtomwiseHead(128)(torch.rand(5, 128)).shape
    torch.Size([5])
    """

    @checked
    def __init__(
        self,
        in_channels: int,
        hidden: Sequence[int] | None = None,
        *,
        activation_name: str = "ssp",
        final_bias: bool = True,
    ):
        super().__init__()
        widths = [in_channels, *([max(1, in_channels // 2)] if hidden is None else hidden)]
        self.layers = nn.Sequential()
        for inputs, outputs in pairwise(widths):
            self.layers.append(dense(inputs, outputs))
            self.layers.append(activation(activation_name))
        self.layers.append(dense(widths[-1], 1, bias=final_bias))

    @explained
    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)


def per_atom(values: Tensor, numbers: Tensor) -> Tensor:
    """What a model's head gives, one number for each atom: ``[N]`` or ``[N, 1]`` → ``[N]``.

    Args:
        values: of the head, :class:`AtomwiseHead` or a module of the user's own in its place that
            takes features ``[N, C]``.
        numbers: atomic numbers, ``[N]``.

    Raises:
        ValueError: another shape.
    """
    count = numbers.shape[0]
    if values.dim() == 2 and values.shape[1] == 1:
        values = values.squeeze(1)
    if values.shape != (count,):
        raise ValueError(
            f"the head must give one number for each atom, [{count}] or [{count}, 1], got "
            f"{list(values.shape)}"
        )
    return values


class AtomicReference(Float64Module):
    """Energies of atoms from a network's output: ``scale · y_i + mean + reference[Z_i]``.

    Works and stays in float64, also in a model of float32: total energies are many orders larger
    than their differences.

    Args:
        scale, mean: in the unit of the energy, per atom.
        reference: energy of each free atom by atomic number, ``[Z]``; None for zero. Numbers must
            lie in [0, Z), which is checked on the CPU (a GPU would have to be waited for).
        trainable: whether the references are parameters (as in PyTorch Geometric).
        num_targets: None for one number per atom; T for T of them side by side, each with its own
            scale and mean ``[T]``, or the same for all, and references ``[Z, T]`` (also ``[Z]``
            for T = 1).

    Raises:
        ValueError: a scale, mean or reference of another shape.

    >>> import torch, molkern
    >>> shift = molkern.nn.AtomicReference(mean=-1.0)
    >>> shift(torch.zeros(2), torch.tensor([1, 8]))
    tensor([-1., -1.], dtype=torch.float64)
    """

    scale: Tensor
    mean: Tensor
    reference: Tensor | None

    @checked
    def __init__(
        self,
        scale: float | Sequence[float] = 1.0,
        mean: float | Sequence[float] = 0.0,
        reference: Tensor | Sequence[float] | Sequence[Sequence[float]] | None = None,
        *,
        trainable: bool = False,
        num_targets: int | None = None,
    ):
        super().__init__()
        for name, number in (("scale", scale), ("mean", mean)):
            self.register_buffer(name, _per_target(name, number, num_targets))
        value = None if reference is None else _reference(reference, num_targets)
        if trainable and value is not None:
            self.reference = nn.Parameter(value)
        else:
            self.register_buffer("reference", value)

    @explained
    def forward(self, y: Tensor, numbers: Tensor) -> Tensor:
        """y ``[N]`` or ``[N, T]``, numbers ``[N]`` → energies of y's shape, float64.

        Raises:
            ValueError: on the CPU, a number that the references do not reach.
            TypeError: numbers that are no integers.
        """
        energies = y.double() * self.scale + self.mean
        if self.reference is None:
            return energies
        if numbers.is_cpu and numbers.numel() and not torch.compiler.is_compiling():
            _check_range(numbers, self.reference.shape[0])
        if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
            raise TypeError(f"numbers must be integers, got {numbers.dtype}")
        return energies + self.reference[numbers.long()]  # uint8 would be a mask

    def extra_repr(self) -> str:
        found = self.reference
        return (
            f"scale={_shown(self.scale)}, mean={_shown(self.mean)}, "
            f"reference={'none' if found is None else list(found.shape)}"
        )


def _check_range(numbers: Tensor, size: int) -> None:
    low, high = (int(value) for value in numbers.aminmax())
    if low < 0 or high >= size:
        raise ValueError(
            f"references are of atomic numbers from 0 to {size - 1}, got {low if low < 0 else high}"
        )


def _per_target(name: str, value: float | Sequence[float], num_targets: int | None) -> Tensor:
    """A scale or mean, ``[]`` or ``[T]``, float64."""
    made = as_tensor(value, dtype=torch.float64).clone()
    if made.dim() and (num_targets is None or made.shape != (num_targets,)):
        needed = "be a number" if num_targets is None else f"be a number or [{num_targets}]"
        raise ValueError(f"{name} must {needed}, got shape {list(made.shape)}")
    return made


def _reference(value: Tensor | Sequence[Any], num_targets: int | None) -> Tensor:
    """References ``[Z]`` or ``[Z, T]``, float64."""
    made = as_tensor(value, dtype=torch.float64).clone()
    if num_targets == 1 and made.dim() == 1:
        made = made.unsqueeze(1)
    fits = made.dim() == 1 if num_targets is None else made.shape[1:] == (num_targets,)
    if not fits:
        needed = "[Z]" if num_targets is None else f"[Z, {num_targets}]"
        raise ValueError(f"reference must have shape {needed}, got {list(made.shape)}")
    return made


def _shown(value: Tensor) -> str:
    return f"{float(value):g}" if value.dim() == 0 else str(list(value.shape))
