"""Modes of a thread, and those of torch that tensors may be made under and what outlives them."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack


class Switch(threading.local):
    """A switch that each thread has for itself, off until it is put on within a context."""

    is_on = False

    @contextmanager
    def on(self) -> Iterator[None]:
        before, self.is_on = self.is_on, True
        try:
            yield
        finally:
            self.is_on = before


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Within it tensors are made that are kept: for any later use, on the CPU unless told.

    Neither :func:`torch.inference_mode`, which forbids derivatives of what is made under it, nor
    transforms of :mod:`torch.func` nor a default device are in force; gradients are not recorded.
    """
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        temporarily_clear_interpreter_stack(),
        torch.device("cpu"),
    ):
        yield


def without_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    """Within it nothing is rounded to the 16-bit types of :class:`torch.autocast`.

    For values whose differences matter, as those that splines are put through, whose slopes are
    forces. On the device of a tensor.
    """
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if _is_autocast(kind) else nullcontext()


def _is_autocast(kind: str) -> bool:
    return kind != "meta" and torch.is_autocast_enabled(kind)


def is_transformed() -> bool:
    """Whether a transform of :mod:`torch.func` is running, ``vmap`` of a backward pass too."""
    return torch._C._are_functorch_transforms_active()


def values_of(tensor: Tensor) -> Tensor | None:
    """What transforms of :mod:`torch.func` wrap; None where ``vmap`` hides it.

    >>> import torch
    >>> from molkern.ops._modes import values_of
    >>> values_of(torch.ones(2))
    tensor([1., 1.])
    """
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return None
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def read(tensor: Tensor) -> np.ndarray | None:
    """The values of a tensor on the CPU, shared where possible; None where ``vmap`` hides them."""
    if not is_transformed():
        return tensor.numpy()
    values = values_of(tensor)
    if values is None:
        return None
    with temporarily_clear_interpreter_stack():
        return values.numpy()


def is_hidden(tensor: Tensor) -> bool:
    """Whether ``vmap`` hides the values of a tensor, so that nothing can depend on them."""
    return is_transformed() and values_of(tensor) is None
