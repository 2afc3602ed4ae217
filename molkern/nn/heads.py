"""From features of atoms to energies."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

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

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(1)


class AtomicReference(Float64Module):
    """Energies of atoms from a network's output: ``scale · y_i + mean + reference[Z_i]``.

    Works and stays in float64, also in a model of float32: total energies are many orders larger
    than their differences.

    Args:
        scale, mean: in the unit of the energy, per atom.
        reference: energy of each free atom by atomic number, ``[Z]``; None for zero. Numbers must
            be below Z, which is not checked: it would wait for the device.
        trainable: whether the references are parameters (as in PyTorch Geometric).

    Raises:
        ValueError: a reference of another shape.

    >>> import torch, molkern
    >>> shift = molkern.nn.AtomicReference(mean=-1.0)
    >>> shift(torch.zeros(2), torch.tensor([1, 8]))
    tensor([-1., -1.], dtype=torch.float64)
    """

    scale: Tensor
    mean: Tensor
    reference: Tensor | None

    def __init__(
        self,
        scale: float = 1.0,
        mean: float = 0.0,
        reference: Tensor | Sequence[float] | None = None,
        *,
        trainable: bool = False,
    ):
        super().__init__()
        self.register_buffer("scale", torch.tensor(float(scale), dtype=torch.float64))
        self.register_buffer("mean", torch.tensor(float(mean), dtype=torch.float64))
        value = None if reference is None else torch.as_tensor(reference, dtype=torch.float64)
        if value is not None and value.dim() != 1:
            raise ValueError(f"reference must have shape [Z], got {list(value.shape)}")
        if trainable and value is not None:
            self.reference = nn.Parameter(value.clone())
        else:
            self.register_buffer("reference", None if value is None else value.clone())

    def forward(self, y: Tensor, numbers: Tensor) -> Tensor:
        """y ``[N]``, numbers ``[N]`` → energies ``[N]``, float64."""
        energies = y.double() * self.scale + self.mean
        return energies if self.reference is None else energies + self.reference[numbers]

    def extra_repr(self) -> str:
        found = self.reference
        return (
            f"scale={float(self.scale):g}, mean={float(self.mean):g}, "
            f"reference={'none' if found is None else list(found.shape)}"
        )
