"""Checks that the models' constructors share."""

from collections.abc import Sequence
from typing import Any

import torch


def check_sizes(config: dict[str, Any], *names: str) -> None:
    """Refuses sizes below 1, and a list of references too short for the table of elements.

    Raises:
        ValueError: saying which one.
    """
    for name in names:
        if config[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {config[name]}")
    check_reference(config)


def check_reference(config: dict[str, Any]) -> None:
    """Refuses, with a ValueError, a list of references too short for the table of elements."""
    energies, count = config["reference"], config["num_elements"]
    if energies is not None and len(energies) < count:
        raise ValueError(
            f"reference has {len(energies)} energies, but num_elements is {count}: pass one for "
            f"each atomic number (0 to {count - 1}), or a smaller num_elements"
        )


def plain(value: float | Sequence[Any]) -> Any:
    """A number, or (nested) lists of numbers, as JSON has them."""
    return torch.as_tensor(value, dtype=torch.float64, device="cpu").tolist()
