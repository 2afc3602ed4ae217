"""What the converters of all models share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn


class Entries(dict[str, Any]):
    """Values by name that says which one is missing, and knows which were read."""

    def __init__(self, values: Mapping[str, Any], where: str):
        super().__init__(values)
        self.where = where
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        if name not in self:
            raise ValueError(f"no {name!r} in {self.where}")
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401


def copy(target: Tensor, value: Tensor, name: str) -> None:
    """Copies a value that must have the target's shape; a frozen parameter stays frozen."""
    if target.shape != value.shape:
        raise ValueError(f"{name} has shape {list(value.shape)}, expected {list(target.shape)}")
    with torch.no_grad():
        target.copy_(value)
    if isinstance(value, nn.Parameter):
        target.requires_grad_(value.requires_grad and isinstance(target, nn.Parameter))


def scalar(value: Any, name: str) -> float:
    """A number, also as a tensor of one element."""
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return float(value.detach())
    shown = f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise ValueError(f"{name} must be a number, got {shown}")


def shape_of(value: Tensor, dims: int, name: str) -> tuple[int, ...]:
    """The shape of a tensor that must have so many dimensions, none of them empty."""
    shape = tuple(value.shape)
    if len(shape) != dims or 0 in shape:
        raise ValueError(f"{name} must have {dims} dimension(s), none empty, got {list(shape)}")
    return shape


def references(value: Tensor, name: str) -> list[float]:
    """Energies by atomic number, ``[Z]`` or ``[Z, 1]``."""
    if value.dim() not in (1, 2) or value.shape[1:] not in ((), (1,)) or not len(value):
        raise ValueError(f"{name} must have shape [Z] or [Z, 1], got {list(value.shape)}")
    return [float(energy) for energy in value.detach().double().flatten()]


def transposed(value: Tensor, name: str) -> Tensor:
    """A matrix (in, out) as (out, in)."""
    shape_of(value, 2, name)
    return value.T


def network_type(value: Tensor, name: str) -> torch.dtype:
    """The type of a network by that of its embedding."""
    if value.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} is {value.dtype}, but models are float32 or float64")
    return value.dtype


def check_options(meta: Mapping[str, Any], described: Collection[str] = (), **found: Any) -> None:
    """Refuses options that a recipe does not know, and sizes that the tensors contradict.

    Args:
        meta: the options, those among them that the recipe has read left alone.
        described: names of what is there for people only.
        found: what the tensors say, or what an option must be, by the option's name.
    """
    read: set[str] = getattr(meta, "read", set())
    for name, value in meta.items():
        if name in found:
            if value != found[name]:
                raise ValueError(f"{name} is {value!r}, but {found[name]!r} is what is converted")
        elif name not in read and name not in described:
            raise ValueError(
                f"{name}={value!r} is an option that the conversion does not know: take it out if "
                "it changes no prediction"
            )


def count(source: Mapping[str, Tensor], pattern: str) -> int:
    """How many of the names ``pattern`` with ``{i}`` = 0, 1, … there are."""
    number = 0
    while pattern.format(i=number) in source:
        number += 1
    return number
