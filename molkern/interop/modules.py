"""What modules of other packages are, told without importing those packages."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def kind(thing: Any) -> str:
    """Full name of a module's class, or of a function."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def is_one_of(thing: Any, package: str, *names: str) -> bool:
    """Whether the class (or the function) is the package's own of one of these names.

    A class derived from it is not: it may compute something else.
    """
    full = kind(thing)
    return full.startswith(f"{package}.") and full.rsplit(".", 1)[1] in names


def require(thing: Any, package: str, names: Iterable[str], role: str) -> None:
    """Refuses what is not one of the package's classes that have a counterpart."""
    names = tuple(names)
    if not is_one_of(thing, package, *names):
        raise ValueError(
            f"{role} is a {kind(thing)}, which has no counterpart; converted are {', '.join(names)}"
        )


def activation_name(function: Any, role: str) -> str | None:
    """molkern's name of an activation, given as a function or a module; None for the identity."""
    if function is None or type(function) is nn.Identity:
        return None
    if function is torch.tanh or type(function) is nn.Tanh:
        return "tanh"
    if function is nn.functional.silu or type(function) is nn.SiLU:
        return "silu"
    if is_one_of(function, "torch_geometric", "swish"):
        return "silu"
    if is_one_of(function, "schnetpack", "shifted_softplus"):
        return "ssp"
    if is_one_of(function, "torch_geometric", "ShiftedSoftplus"):
        if abs(function.shift - math.log(2.0)) > 1e-6:
            raise ValueError(f"the activation of {role} has shift={function.shift}, not ln 2")
        return "ssp_pyg"
    raise ValueError(
        f"the activation of {role} is {kind(function)}, which has no counterpart; converted are "
        "tanh, SiLU and the shifted softplus of schnetpack and torch_geometric"
    )


def common_activation(functions: dict[str, Any]) -> str:
    """The one activation that all of these, by their roles, have."""
    names = {role: activation_name(function, role) for role, function in functions.items()}
    first = next(iter(names.values()))
    if first is None or set(names.values()) != {first}:
        raise ValueError(f"these layers need one and the same activation, but have {names}")
    return first
