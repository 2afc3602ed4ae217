"""Joins operators to torch's ways of differentiating, and refuses those that they do not have."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree  # torch.library maps by it too

from ._library import operators
from ._modes import is_transformed

#: Registrations last as long as this object.
_library = torch.library.Library("molkern", "FRAGMENT")


def differentiable(
    name: str,
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
) -> None:
    """Gives an operator its derivative, as :func:`torch.library.register_autograd` does, and more.

    Under :func:`torch.func.grad`, ``vjp`` and ``jacrev`` the derivative is taken too, under
    ``vmap`` one slice after the other. Forward mode is refused, where torch would drop tangents.

    Args:
        name: of the operator, without its namespace; its schema has no defaults.
        backward: from ``ctx`` and the cotangents of the outputs to those of the arguments.
        setup_context: keeps what ``backward`` needs, from ``ctx``, arguments and output.
    """
    operator = getattr(operators, name).default

    class Derivative(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            *inputs, keys = arguments
            nested = is_transformed()
            with (
                torch._C._AutoDispatchBelowAutograd(),
                _outer_levels() if nested else nullcontext(),
            ):
                output = operator.redispatch(keys, *inputs)
                if setup_context is not None:
                    setup_context(ctx, tuple(inputs), output)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            found = backward(ctx, *gradients)
            return (*found, None) if isinstance(found, tuple) else (found, None)

    # Not Function.apply, which under torch.func asks for more than one level at a time
    apply = torch._C._FunctionBase.__dict__["apply"].__get__(None, Derivative)
    below = torch._C._after_autograd_keyset

    def autograd(keys: Any, *arguments: Any) -> Any:
        if in_forward_mode():
            refuse_forward_mode(f"molkern::{name}", *arguments)
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            return _applied(name, apply, *arguments, keys & below)
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keys & below, *arguments)

    Derivative.__name__ = Derivative.__qualname__ = f"molkern_{name}"
    _library.impl(name, autograd, "Autograd", with_keyset=True)
    mapped(name)


@contextmanager
def _outer_levels() -> Iterator[None]:
    """Lets the outer ones of nested transforms record what happens in a forward function."""
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        yield


def _applied(name: str, apply: Callable[..., Any], *arguments: Any) -> Any:
    try:
        if not is_transformed():
            return apply(*arguments)
        with torch._functorch.autograd_function.enable_single_level_autograd_function():
            return apply(*arguments)
    except RuntimeError as error:
        if "Inference tensors" not in str(error):
            raise
        raise RuntimeError(
            f"molkern::{name}: an argument was made under torch.inference_mode(), which forbids "
            "derivatives of what is computed from it: pass argument.clone(), made outside of it, "
            "or use torch.no_grad() there"
        ) from error


def mapped(name: str, rule: Callable[..., Any] | None = None) -> None:
    """Lets :func:`torch.vmap` call an operator for one slice of its arguments after the other.

    Args:
        name: of the operator, without its namespace.
        rule: another one, see :func:`torch.library.register_vmap`.
    """
    operator = getattr(operators, name).default

    def one_by_one(info: Any, in_dims: Any, *arguments: Any) -> Any:
        return by_slices(operator, info, in_dims, arguments)

    torch.library.register_vmap(f"molkern::{name}", rule or one_by_one, lib=_library)


def by_slices(operator: Any, info: Any, in_dims: Any, arguments: Any) -> Any:
    """The results of an operator for each slice, side by side, and where they are."""
    values, spec = pytree.tree_flatten(arguments)
    dims = pytree.tree_flatten(in_dims, is_leaf=lambda d: d is None)[0]
    found = []
    for k in range(info.batch_size):
        one = [v if d is None else v.select(d, k) for v, d in zip(values, dims, strict=True)]
        found.append(operator(*pytree.tree_unflatten(one, spec)))
    if isinstance(found[0], Tensor):
        return torch.stack(found), 0
    return tuple(torch.stack(parts) for parts in zip(*found, strict=True)), (0,) * len(found[0])


def in_forward_mode() -> bool:
    """Whether tensors may have tangents at present."""
    return forward_ad._current_level >= 0  # type: ignore[attr-defined]


def refuse_forward_mode(name: str, *arguments: Any) -> None:
    """Refuses tensors with tangents, which would be dropped: no operator has a forward mode.

    Raises:
        RuntimeError: saying what to use instead.
    """
    for value in pytree.tree_leaves(arguments):
        if isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None:
            raise RuntimeError(
                f"{name} has no forward-mode derivative, which torch.func.jvp, jacfwd, hessian and "
                "linearize and torch.autograd.forward_ad take: use torch.func.vjp or jacrev, "
                "torch.autograd.functional.jvp, vhp or hessian, which are reverse mode, or "
                "model.hessian(batch) for the Hessian of an energy"
            )


def no_third_derivative(name: str) -> None:
    """Refuses to differentiate a second derivative instead of returning a wrong gradient."""
    raise RuntimeError(
        f"molkern: {name} has no third derivative, which torch.autograd.functional.hvp takes too: "
        "use torch.autograd.functional.vhp or hessian, which give the same with two"
    )
