"""Whether a module is nothing but what its class says: what fused paths ask before they skip it."""

from __future__ import annotations

import itertools
from typing import Any

import torch.nn.modules.module as _module
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

#: Where torch keeps the hooks of all modules, and a module those of its own.
_GLOBAL_HOOKS: tuple[dict[int, Any], ...] = (
    _module._global_forward_hooks,
    _module._global_forward_pre_hooks,
    _module._global_backward_hooks,
    _module._global_backward_pre_hooks,
)
OWN_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")

#: Types of a parameter, or of none, that the operators take.
PLAIN_TENSORS = (nn.Parameter, Tensor, type(None))
#: The same, and what stands for them while torch.export follows a model.
TAKEN_TENSORS = (*PLAIN_TENSORS, FakeTensor)


def is_plain(module: Any, *types: type) -> bool:
    """Whether calling a module runs the ``forward`` of one of these classes and nothing else.

    A fused path takes a layer's tensors and does not call it. It may do so only where a call could
    do nothing else: the class is one of these, not derived from one and not a wrapper in its place
    (adapters, parametrisations, :func:`torch.compile`); there are no hooks, the module's own or
    those of all modules; nobody has replaced its ``forward``; and its parameters are tensors of
    torch's own kinds, held as parameters. Where it is not so, the path has to call the module.
    """
    if type(module) not in types:
        return False
    own = module.__dict__
    if (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or "_compiled_call_impl" in own
        or "weight" in own
        or "bias" in own
    ):
        return False
    for parameter in own["_parameters"].values():
        if type(parameter) not in TAKEN_TENSORS:
            return False
    return not has_global_hooks()


def is_known(module: Any) -> bool:
    """Whether a module is of molkern's or torch's own classes, and plain."""
    kind = type(module)
    return kind.__module__.startswith(("molkern.", "torch.nn.modules.")) and is_plain(module, kind)


def has_global_hooks() -> bool:
    """Whether there are hooks that run for every module."""
    forward, forward_pre, backward, backward_pre = _GLOBAL_HOOKS
    return bool(forward or forward_pre or backward or backward_pre)


def has_hooks(module: nn.Module, names: tuple[str, ...] = OWN_HOOKS) -> bool:
    """Whether a call of the module, or of one within it, runs hooks."""
    return has_global_hooks() or any(
        getattr(part, name) for part, name in itertools.product(module.modules(), names)
    )


def has_backward_hooks(module: nn.Module) -> bool:
    """Whether there are hooks that see gradients on their way through the module or its parts."""
    return has_hooks(module, _BACKWARD_HOOKS)
