"""Loads the extension, which registers the operators, and the types they share."""

from typing import Protocol

import torch
from torch import Tensor

import molkern._C

build_info = molkern._C.build_info
operators = torch.ops.molkern

#: One direction of a graph: row pointers, the atom at the other end of each entry, and the place of
#: each entry in edge tensors (None: entry k is edge k).
Adjacency = tuple[Tensor, Tensor, Tensor | None]


class Graph(Protocol):
    """What an operation needs to know of a graph; :class:`molkern.NeighborList` is one."""

    @property
    def by_receiver(self) -> Adjacency: ...

    @property
    def by_sender(self) -> Adjacency: ...

    @property
    def receivers(self) -> Tensor: ...

    @property
    def padded(self) -> bool: ...

    def reverse_edges(self) -> Tensor: ...


def describe(tensor: Tensor) -> str:
    """Shape, type and device of a tensor, for error messages."""
    return f"{list(tensor.shape)} {tensor.dtype} on {tensor.device}"


def full_precision(*names: str) -> None:
    """Lets operators run in float32 under ``torch.autocast``, whose 16-bit types no kernel takes.

    Tensors of float64 stay as they are.
    """
    for name in names:
        for device in ("cpu", "cuda"):
            torch.library.register_autocast(f"molkern::{name}", device, torch.float32)


def no_third_derivative(name: str) -> None:
    """Refuses to differentiate a second derivative instead of returning a wrong gradient."""
    raise RuntimeError(f"molkern: {name} has no third derivative")
