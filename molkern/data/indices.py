"""Indices of systems as NumPy takes them: numbers from either end, slices, ranges and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: What chooses systems of a data set.
Index = int | slice | range | Sequence[int] | Sequence[bool] | NDArray[Any] | Tensor


def as_indices(chosen: Any, count: int, what: str = "systems") -> NDArray[np.int64]:
    """The places, from 0, of what an index chooses among so many, ``[K]``, int64.

    Args:
        chosen: an integer (one place), a slice, a range, integers (negative ones count from the
            end), or a mask of ``count`` bools: sequences, arrays or tensors.
        count: how many there are.
        what: they are, for messages.

    Raises:
        IndexError: a place that is not there, a mask of another length, more than one axis.
        TypeError: something else, floating-point numbers above all; a tensor of uint8, which is a
            mask to torch and indices to NumPy.

    >>> as_indices([-1, 0], 5).tolist()
    [4, 0]
    """
    if isinstance(chosen, slice):
        return np.arange(count, dtype=np.int64)[chosen].copy()  # torch wants no negative strides
    if isinstance(chosen, Tensor):
        if chosen.dtype == torch.uint8:
            raise TypeError(
                "a tensor of uint8 may mean a mask or indices: use .bool() for the one, .long() "
                "for the other"
            )
        chosen = chosen.detach().cpu().numpy()
    found = np.asarray(_plain(chosen))
    if found.size == 0 and found.ndim == 1 and not isinstance(chosen, np.ndarray):
        return np.empty(0, dtype=np.int64)  # of an empty list, which NumPy takes for floats
    if found.dtype.kind not in "biu":
        raise TypeError(
            f"{what} are chosen by integers, a slice or a mask of bools, got {_kind(chosen, found)}"
        )
    if found.ndim > 1:
        raise IndexError(f"{what} lie along one axis, got an index of shape {list(found.shape)}")
    if found.dtype.kind == "b":
        if found.shape != (count,):
            raise IndexError(
                f"a mask must have one bool for each of {count:,} {what}, got shape "
                f"{list(found.shape)}"
            )
        return np.flatnonzero(found).astype(np.int64)
    return _from_start(found.reshape(-1), count, what)


def _plain(chosen: Any) -> Any:
    """The index, where it is none that NumPy would take for something else."""
    if isinstance(chosen, list | tuple):
        bools = sum(isinstance(item, bool | np.bool_) for item in chosen)
        if 0 < bools < len(chosen):
            raise TypeError("an index mixes bools with numbers: give a mask or indices")
    return chosen


def _from_start(places: NDArray[Any], count: int, what: str) -> NDArray[np.int64]:
    if places.size:
        low, high = int(places.min()), int(places.max())
        if low < -count or high >= count:
            wrong = low if low < -count else high
            raise IndexError(f"there are {count:,} {what}, numbered from 0: there is no {wrong}")
        places = places.astype(np.int64)
        if low < 0:
            places = np.where(places < 0, places + count, places)
    return np.ascontiguousarray(places, dtype=np.int64)


def _kind(chosen: Any, found: NDArray[Any]) -> str:
    if isinstance(chosen, np.ndarray | list | tuple):
        return f"numbers of type {found.dtype}"
    return type(chosen).__name__
