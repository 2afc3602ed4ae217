"""Constants that stay in float64, and the type of the network beside them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .fixed import FixedModule


class Float64Module(FixedModule):
    """A module whose tensors move with the model to another device, but not to another type.

    Reference energies and the centres of a radial basis are constants: rounded once to float32
    they would stay wrong in a model that is used in float64 later.
    """

    keeps_float64 = True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        if not self.keeps_float64:
            return super()._apply(fn, recurse)

        def moved(tensor: Tensor) -> Tensor:
            device = fn(tensor.detach()).device
            if tensor.is_meta:  # to_empty() gives it memory, to be loaded into
                return torch.empty_like(tensor, device=device)
            return tensor.to(device)

        return super()._apply(moved, recurse)


def network_tensor(module: nn.Module) -> Tensor:
    """A tensor of the type and on the device that a module's network computes with.

    Its first parameter of floating type, whatever layers a user has put in: not a constant that
    stays in float64, nor the integers of a quantised layer. Where nothing is a parameter, a buffer.

    Raises:
        ValueError: a module without such tensors.
    """
    for kind in ("_parameters", "_buffers"):
        for part in module.modules():
            if isinstance(part, Float64Module) and part.keeps_float64:
                continue
            for tensor in getattr(part, kind).values():
                if tensor is not None and tensor.is_floating_point():
                    return tensor
    raise ValueError(f"{type(module).__name__} has no parameters or buffers of floating type")
