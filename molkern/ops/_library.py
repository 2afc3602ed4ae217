"""Loads the extension, which registers the operators, and the types they share."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

import molkern._C

from ._modes import Switch, is_hidden

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


_first_only, _constant_weights = Switch(), Switch()


def first_derivatives_only() -> AbstractContextManager[None]:
    """Within it operators keep what first derivatives by their data need, and no more.

    For a function that differentiates what it has computed, once and by its own inputs, and gives
    nothing out that could be differentiated again or by parameters: energies and forces without
    training. It halves what dense layers keep.
    """
    return _first_only.on()


def constant_weights() -> AbstractContextManager[None]:
    """Within it no derivative by parameters is taken, so that splines need not follow them."""
    return _constant_weights.on()


def keeps_weights_constant() -> bool:
    """Whether nothing is differentiated by parameters in this thread."""
    return keeps_first_only() or _constant_weights.is_on


def keeps_first_only() -> bool:
    """Whether :func:`first_derivatives_only` holds in this thread; never in compiled code."""
    return not torch.compiler.is_compiling() and _first_only.is_on


def is_recorded(tensor: Tensor) -> bool:
    """Whether what is done to a tensor is compiled, captured or mapped: no value can be read."""
    if torch.compiler.is_compiling() or is_hidden(tensor):
        return True
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def contiguous(*tensors: Any) -> list[Any]:
    """The same numbers in row order, for torch's own products, whose bits depend on the layout.

    molkern's own operators take any layout (csrc/common/any_layout.h).
    """
    return [None if t is None else t.contiguous() for t in tensors]


def as_tensor(
    value: Any, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Numbers of any kind as a tensor, as :func:`torch.as_tensor`, which refuses some arrays.

    Those are arrays of NumPy's with negative strides (``a[::-1]``) or of foreign byte order: they
    are copied. What is no tensor is put on the CPU, whatever the default device.
    """
    if device is None and not isinstance(value, Tensor):
        device = "cpu"
    if isinstance(value, np.ndarray):
        native = value.dtype.newbyteorder("=")
        if native != value.dtype or any(step < 0 for step in value.strides):
            value = value.astype(native, order="C")
    return torch.as_tensor(value, dtype=dtype, device=device)


def full_precision(*names: str) -> None:
    """Lets operators run in float32 under ``torch.autocast``, whose 16-bit types no kernel takes.

    Tensors of float64 stay as they are.
    """
    for name in names:
        for device in ("cpu", "cuda"):
            torch.library.register_autocast(f"molkern::{name}", device, torch.float32)


def gradient_wanted(ctx: Any, argument: int) -> bool:
    """Whether a backward pass that is running will use the gradient of an operator's argument.

    ``ctx.needs_input_grad`` says only whether one may be taken: true for the parameters of a model
    whose forces are computed, whose gradients nobody wants then. Arguments are counted without
    those that are no tensors, for which it is false; lists of tensors are not foreseen.
    """
    needs = ctx.needs_input_grad
    if not needs[argument]:
        return False
    if torch.compiler.is_compiling():
        return True
    # Nodes are kept for tensors only, so they are looked up by those that need a gradient.
    nodes = [node for node, _ in ctx.next_functions if node is not None]
    if len(nodes) != sum(needs):
        return True
    node = nodes[sum(needs[:argument])]
    leaf = getattr(node, "variable", None)
    if leaf is not None and not isinstance(leaf, torch.nn.Parameter):
        return True  # asking would raise an error if it is wanted, which takes long
    try:
        return torch._C._will_engine_execute_node(node)
    except (AttributeError, RuntimeError):  # RuntimeError: a leaf whose gradient is asked for
        return True
