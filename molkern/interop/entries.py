"""What the converters of all models share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


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


def copy(target: Tensor, value: Tensor, name: str) -> None:
    """Copies a value that must have the target's shape."""
    if target.shape != value.shape:
        raise ValueError(f"{name} has shape {list(value.shape)}, expected {list(target.shape)}")
    with torch.no_grad():
        target.copy_(value)


def count(source: Mapping[str, Tensor], pattern: str) -> int:
    """How many of the names ``pattern`` with ``{i}`` = 0, 1, … there are."""
    number = 0
    while pattern.format(i=number) in source:
        number += 1
    return number
