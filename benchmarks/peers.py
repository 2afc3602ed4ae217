"""What comparisons have in common beside timing: peers that may be missing, and equal results."""

from __future__ import annotations

import importlib
import typing
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import molkern

Run = Callable[[], object]


class Mode:
    """How the suites run: with ``--benchmark-disable`` small, once and uncompiled, as a check."""

    smoke = False


def size(full: Any, smoke: Any) -> Any:
    """The size of a case, and the one that only shows that it runs."""
    return smoke if Mode.smoke else full


def peer(name: str) -> ModuleType | None:
    """A module of a peer, or None, with a note, where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # some fail with errors of their own
        print(f"\nnote: without {name}: {type(error).__name__}: {error}")
        return None


def schnetpack() -> ModuleType | None:
    """SchNetPack, which asks torch's data loader for a name that newer ones no longer have."""
    loader = importlib.import_module("torch.utils.data.dataloader")
    if not hasattr(loader, "T_co"):
        loader.T_co = typing.TypeVar("T_co", covariant=True)
    return peer("schnetpack.representation")


def compiled(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """By torch.compile for the shapes at hand; None where runs are but a check."""
    if Mode.smoke:
        return None
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def flat(result: Any) -> list[Tensor]:
    """The tensors of a result."""
    if isinstance(result, Tensor):
        return [result.detach()]
    if isinstance(result, Mapping):
        result = result.values()
    return [tensor for part in result for tensor in flat(part)]


def agree(
    runs: Mapping[str, Run], *, tolerance: float | Sequence[float] = 1e-4
) -> dict[str, float]:
    """Fails unless all implementations give molkern's results.

    Args:
        runs: as for :func:`compare.compare`; floors are left out.
        tolerance: how far a tensor may be from molkern's, in units of its largest element; a
            number, or one for each tensor of a result.

    Returns:
        The largest of these differences by implementation.
    """
    expected = flat(runs["molkern"]())
    allowed = [tolerance] * len(expected) if isinstance(tolerance, float) else list(tolerance)
    found = {}
    for name, run in runs.items():
        if name == "molkern" or name.startswith("["):
            continue
        results = flat(run())
        assert len(results) == len(expected), name
        found[name] = 0.0
        for a, b, limit in zip(results, expected, allowed, strict=True):
            apart = difference(a, b)
            assert apart <= limit, f"{name} differs by {apart:.1e} of the largest, not {limit:.1e}"
            found[name] = max(found[name], apart)
    return found


def difference(a: Tensor, b: Tensor) -> float:
    """Largest difference, in units of the largest element of ``b``; infinite for other shapes."""
    if a.shape != b.shape:
        return float("inf")
    if a.numel() == 0:
        return 0.0
    unit = max(float(b.abs().max()), 1e-30)
    return float((a.double() - b.double()).abs().max()) / unit


def batch_of(structure: Any, dtype: torch.dtype = torch.float32) -> molkern.AtomicBatch:
    """A structure of ``systems`` as molkern's models take it."""
    return molkern.AtomicBatch(
        torch.tensor(structure.numbers),
        torch.tensor(structure.positions, dtype=dtype),
        None if structure.batch is None else torch.tensor(structure.batch),
        None if structure.cell is None else torch.tensor(structure.cell, dtype=dtype),
    )
