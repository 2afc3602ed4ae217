"""PhysNet's layers (Unke & Meuwly, JCTC 15, 3678 (2019)), as its published code has them."""

import math
import numbers
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import ops
from ..graph import NeighborList
from ..ops._arguments import checked, explained
from ..ops._library import as_tensor
from .activations import activation, dense, orthogonal_
from .precision import Float64Module
from .splines import SplineFilter, convolve


def orthogonal_dense(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer with (semi-)orthogonal weights of Glorot's variance, and zero bias.

    The weights' variance is 2 / (inputs + outputs), as in PhysNet's published code.

    Raises:
        ValueError: no inputs or no outputs.
    """
    layer = dense(inputs, outputs, bias=bias)
    orthogonal_(layer.weight)
    if layer.weight.is_meta:  # without values
        return layer
    with torch.no_grad():
        variance = layer.weight.var(correction=0)
        # A single weight has none
        scale = (2.0 / ((inputs + outputs) * variance)).sqrt()
        layer.weight.mul_(torch.where(variance > 0, scale, 1.0))
    return layer


def zero_dense(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer without bias whose weights start at zero."""
    layer = dense(inputs, outputs, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


class PreActivatedResidual(nn.Module):
    """Two dense layers beside a skip: ``x + W₂ a(W₁ a(x) + b₁) + b₂``, ``[N, C]`` → ``[N, C]``.

    Unke & Meuwly, JCTC 15, 3678 (2019), Fig. 1, and its published code.

    Args:
        channels: width of the features C.
        activation_name: activation a, see :class:`molkern.nn.ShiftedSoftplus`.

    Raises:
        ValueError: a width below 1, or an unknown activation.

    >>> import torch, molkern
    >>> molkern.nn.PreActivatedResidual(16)(torch.rand(5, 16)).shape
    torch.Size([5, 16])
    """

    @checked
    def __init__(self, channels: int, *, activation_name: str = "ssp"):
        super().__init__()
        self.lin1 = orthogonal_dense(channels, channels)
        self.lin2 = orthogonal_dense(channels, channels)
        self.activation = activation(activation_name)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.lin2(self.activation(self.lin1(self.activation(x))))


def residuals(number: int, channels: int, activation_name: str) -> nn.Sequential:
    """That many residual blocks, one after the other.

    Raises:
        ValueError: a negative number, a width below 1, or an unknown activation.
    """
    if number < 0:
        raise ValueError(f"the number of residual blocks must not be negative, got {number}")
    blocks = (
        PreActivatedResidual(channels, activation_name=activation_name) for _ in range(number)
    )
    return nn.Sequential(*blocks)


class PhysNetInteraction(nn.Module):
    """PhysNet's module between embedding and output: interaction and atomic residual blocks.

    With ``h = a(x)``, the message ``m_i = a(W_I h_i + b_I) + Σ_j (G g_ij) ∘ a(W_J h_j + b_J)`` goes
    through residual blocks, then ``x ← u ∘ x + W a(m) + b`` through more of them. Unke & Meuwly,
    JCTC 15, 3678 (2019), Fig. 1, and its published code. G has no bias and starts at zero, u starts
    at one. Edges on which the basis is zero add nothing: a list may reach farther than the basis.

    Args:
        hidden_channels: width of the atoms' features C.
        num_basis: number of radial functions K.
        num_residual_interaction: residual blocks on the message.
        num_residual_atomic: residual blocks on the features after it.
        activation_name: activation a, see :class:`molkern.nn.ShiftedSoftplus`.
        activated_skip: whether the skip is ``u ∘ a(x)``, as in Asparagus.

    Raises:
        ValueError: a width below 1, a negative number of blocks, or an unknown activation.

    >>> import torch, molkern
    >>> positions = torch.rand(3, 3)
    >>> neighbors = molkern.neighbor_list(positions, cutoff=10.0)
    >>> basis = molkern.nn.ExponentialBasis(8, cutoff=10.0)(neighbors.distances(positions))
    >>> block = molkern.nn.PhysNetInteraction(16, 8)
    >>> block(torch.rand(3, 16), basis, neighbors).shape
    torch.Size([3, 16])
    """

    @checked
    def __init__(
        self,
        hidden_channels: int,
        num_basis: int,
        *,
        num_residual_interaction: int = 3,
        num_residual_atomic: int = 2,
        activation_name: str = "ssp",
        activated_skip: bool = False,
    ):
        super().__init__()
        self.filters = zero_dense(num_basis, hidden_channels)
        self.lin_receiver = orthogonal_dense(hidden_channels, hidden_channels)
        self.lin_sender = orthogonal_dense(hidden_channels, hidden_channels)
        self.message_residuals = residuals(
            num_residual_interaction, hidden_channels, activation_name
        )
        self.lin_out = orthogonal_dense(hidden_channels, hidden_channels)
        self.gate = nn.Parameter(torch.ones(hidden_channels))
        self.atomic_residuals = residuals(num_residual_atomic, hidden_channels, activation_name)
        self.activation = activation(activation_name)
        self.activated_skip = activated_skip

    @explained
    def forward(self, x: Tensor, basis: Tensor | SplineFilter, neighbors: NeighborList) -> Tensor:
        """x ``[N, C]``, basis ``[E, K]`` in the order of ``neighbors`` → ``[N, C]``.

        The masks ``G g_ij`` as splines may take the place of the basis.
        """
        masks = basis if isinstance(basis, SplineFilter) else self.filters(basis)
        activated = self.activation(x)
        senders = self.activation(self.lin_sender(activated))
        summed = convolve(senders, masks, neighbors)
        message = self.activation(self.lin_receiver(activated)) + summed
        message = self.activation(self.message_residuals(message))
        skip = activated if self.activated_skip else x
        return self.atomic_residuals(self.gate * skip + self.lin_out(message))

    def extra_repr(self) -> str:
        return f"activated_skip={self.activated_skip}"


class PhysNetOutput(nn.Module):
    """PhysNet's output block: residual blocks, activation, a linear layer that starts at zero.

    Unke & Meuwly, JCTC 15, 3678 (2019), Fig. 1; ``[N, C]`` → ``[N, T]``, without bias. In
    PhysNet the two targets are an atom's energy and charge, before their scales and shifts.

    Args:
        hidden_channels: width of the atoms' features C.
        num_targets: number of targets T.
        num_residual: number of residual blocks.
        activation_name: see :class:`molkern.nn.ShiftedSoftplus`.
        activated: whether the last layer is activated too, as in Asparagus.

    Raises:
        ValueError: a width below 1, a negative number of blocks, or an unknown activation.

    >>> import torch, molkern
    >>> molkern.nn.PhysNetOutput(16)(torch.rand(5, 16))
    tensor([[0., 0.],
            [0., 0.],
            [0., 0.],
            [0., 0.],
            [0., 0.]], grad_fn=<MmBackward0>)
    """

    @checked
    def __init__(
        self,
        hidden_channels: int,
        num_targets: int = 2,
        *,
        num_residual: int = 1,
        activation_name: str = "ssp",
        activated: bool = False,
    ):
        super().__init__()
        self.residuals = residuals(num_residual, hidden_channels, activation_name)
        self.lin = zero_dense(hidden_channels, num_targets)
        self.activation = activation(activation_name)
        self.activated = activated

    def forward(self, x: Tensor) -> Tensor:
        y = self.lin(self.activation(self.residuals(x)))
        return self.activation(y) if self.activated else y

    def extra_repr(self) -> str:
        return f"activated={self.activated}"


class ElementScaling(Float64Module):
    """A scale and a shift of every target for every element: ``scale[Z_i] · y_i + shift[Z_i]``.

    Unke & Meuwly, JCTC 15, 3678 (2019). Works and stays in float64, also in a model of
    float32: shifts are energies of atoms.

    Args:
        num_elements: atomic numbers are 0 to ``num_elements − 1``, which is not checked: it would
            wait for the device.
        num_targets: number of targets T.
        trainable: whether scales and shifts are parameters.

    Raises:
        ValueError: a size below 1.

    >>> import torch, molkern
    >>> scaling = molkern.nn.ElementScaling(10, trainable=False)
    >>> scaling.shift[8] = torch.tensor([-2.0, 0.5])
    >>> scaling(torch.zeros(2, 2), torch.tensor([1, 8]))
    tensor([[ 0.0000,  0.0000],
            [-2.0000,  0.5000]], dtype=torch.float64)
    """

    scale: Tensor
    shift: Tensor

    @checked
    def __init__(self, num_elements: int, num_targets: int = 2, *, trainable: bool = True):
        super().__init__()
        if num_elements < 1 or num_targets < 1:
            raise ValueError(
                f"there must be at least 1 element and 1 target, got {num_elements} and "
                f"{num_targets}"
            )
        for name, value in (("scale", 1.0), ("shift", 0.0)):
            table = torch.full((num_elements, num_targets), value, dtype=torch.float64)
            if trainable:
                self.register_parameter(name, nn.Parameter(table))
            else:
                self.register_buffer(name, table)

    def forward(self, y: Tensor, numbers: Tensor) -> Tensor:
        """y ``[N, T]``, numbers ``[N]`` → ``[N, T]``, float64."""
        table = torch.cat([self.scale, self.shift], 1)
        # Not by indexing, whose backward pass has no fixed order on a GPU
        scale, shift = nn.functional.embedding(numbers, table).chunk(2, 1)
        return scale * y.double() + shift


class ChargeCorrection(nn.Module):
    """Charges that add up to the total charge: ``q_i − (Σ_j q_j − Q) / n``.

    Unke & Meuwly, JCTC 15, 3678 (2019): what is missing is spread evenly over the n atoms
    of a system.

    >>> import torch, molkern
    >>> molkern.nn.ChargeCorrection()(torch.tensor([0.5, 0.0, 0.25]), total_charge=0.0)
    tensor([ 0.2500, -0.2500,  0.0000])
    """

    @explained
    def forward(
        self,
        charges: Tensor,
        total_charge: Tensor | float = 0.0,
        system_ptr: Tensor | None = None,
    ) -> Tensor:
        """Corrected charges ``[N]``.

        Args:
            charges: ``[N]``, float32 or float64.
            total_charge: Q of every system, ``[B]``, or one number for all.
            system_ptr: first atom of each system, then N, ``[B + 1]``, int32, as in
                :class:`molkern.AtomicBatch`; None for a single system.

        Raises:
            ValueError: a total charge of another shape or on another device.
        """
        count = charges.shape[0]
        if system_ptr is None:
            system_ptr = torch.tensor([0, count], dtype=torch.int32, device=charges.device)
        total = checked_total_charge(total_charge, system_ptr.shape[0] - 1, charges)
        summed = ops.segment_sum(charges.unsqueeze(1), system_ptr).squeeze(1)
        atoms = (system_ptr[1:] - system_ptr[:-1]).clamp(min=1)
        missing = (total - summed) / atoms
        return charges + ops.segment_expand(missing.unsqueeze(1), system_ptr, count).squeeze(1)


def checked_total_charge(total_charge: Tensor | float, num_systems: int, like: Tensor) -> Tensor:
    """The total charges as ``[B]``, of the type and on the device of another tensor.

    Raises:
        ValueError: another shape, another device, or a number that is not finite.
    """
    if isinstance(total_charge, (list, tuple, np.ndarray)):
        total_charge = as_tensor(total_charge, device=like.device)
    if not isinstance(total_charge, Tensor):
        # A compiled function has the number as a symbol, to serve any
        if not torch.compiler.is_compiling():
            _check_charge(total_charge)
        return like.new_zeros(num_systems) + total_charge  # a sum, which keeps it a symbol
    if total_charge.shape not in ((), (num_systems,)):
        raise ValueError(
            f"total_charge must be a number or have shape [{num_systems}], one for each system, "
            f"got {list(total_charge.shape)}"
        )
    if total_charge.device != like.device:
        raise ValueError(
            f"total_charge is on {total_charge.device} but the charges are on {like.device}; move "
            "one of them with .to()"
        )
    return total_charge.to(like.dtype).expand(num_systems)


def _check_charge(total_charge: Any) -> None:
    if not isinstance(total_charge, numbers.Real):
        raise TypeError(
            f"total_charge must be a number, or a tensor or list of one for each system, got "
            f"{total_charge!r}"
        )
    if not math.isfinite(total_charge):
        raise ValueError(f"total_charge must be finite, got {total_charge}")


def nonhierarchicality(outputs: list[Tensor]) -> Tensor:
    """Penalty on modules that contribute more than the one before them, a scalar.

    ``Σ_{m ≥ 2} mean(y_m² / (y_m² + y_{m−1}² + 10⁻⁷))`` over atoms and targets, of outputs
    ``[N, T]`` before scales and shifts; Unke & Meuwly, JCTC 15, 3678 (2019), as its
    published code has it. It is weighted by 0.01 there.

    >>> import torch
    >>> from molkern.nn.physnet import nonhierarchicality
    >>> y = torch.ones(5, 2)
    >>> nonhierarchicality([y, y, 0 * y])
    tensor(0.5000)
    """
    squares = [output.square() for output in outputs]
    penalty = outputs[0].new_zeros(())
    for before, now in pairwise(squares):
        share = now / (now + before + 1e-7)
        penalty = penalty + share.sum() / max(share.numel(), 1)
    return penalty
