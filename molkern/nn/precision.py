"""Constants that stay in float64."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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
