"""Neighbor search (csrc/neighbors)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._derivatives import by_slices, mapped
from ._library import operators

_ALGORITHMS = {"auto": 0, "direct": 1, "cell_list": 2}


def neighbor_arrays(
    positions: Tensor,
    cutoff: float,
    cell: Tensor | None = None,
    pbc: Tensor | Sequence[bool] | bool | None = None,
    batch: Tensor | None = None,
    num_systems: int | None = None,
    capacity: int | None = None,
    algorithm: str = "auto",
) -> dict[str, Any]:
    """All pairs closer than ``cutoff``, as the fields of :class:`molkern.NeighborList`.

    An edge j→i with shift s exists where ``|x_j + s · cell − x_i| < cutoff``, except for an atom
    with itself in the same image. The decision is made in float64 for both types of positions, in
    one way everywhere, so the result has the same bits for every algorithm, thread count,
    instruction set and device. Not differentiable.

    Args:
        positions: ``[N, 3]``, float32 or float64, any unit of length.
        cutoff: in the unit of the positions, positive.
        cell: lattice vectors as rows, ``[3, 3]`` (for every system) or ``[B, 3, 3]``, in the type
            of the positions; None: not periodic. Rows of axes that are not periodic are not used.
        pbc: periodicity per axis, a bool, ``[3]`` or ``[B, 3]``; None: all, with a cell.
        batch: system of each atom, ``[N]``, int32 or int64, not decreasing; None: one system.
        num_systems: by default from ``cell`` or ``batch``; the latter waits for the device.
        capacity: length of the edge arrays, which are then padded (indices −1, shifts 0), and
            nothing waits for the device; by default as many as there are edges.
        algorithm: ``"auto"``, ``"direct"`` (all pairs) or ``"cell_list"``.

    Returns:
        ``row_ptr`` [N + 1], ``senders``, ``receivers``, ``reverse`` [E], ``shifts`` [E, 3] (None
        without a cell), ``system`` [N] (None without a batch), all int32, sorted by (receiver,
        sender, shift); ``num_systems``, ``cutoff``, ``padded``, and with a capacity ``status``,
        for :func:`check_status`.

    Raises:
        ValueError: a position that is NaN, infinite or more than 2^20 cells away, a singular cell,
            ``cutoff ≤ 0``, wrong shapes or devices, a batch that decreases, more than 2^31 − 1
            edges, and on the CPU more edges than the capacity.
        TypeError: types other than those above.
    """
    if algorithm not in _ALGORITHMS:
        raise ValueError(f"algorithm must be one of {', '.join(_ALGORITHMS)}, got {algorithm!r}")
    if isinstance(cutoff, bool):
        raise TypeError(f"cutoff must be a number, got {cutoff}")
    if cell is None and pbc is not None and not any_axis(pbc):
        pbc = None
    if pbc is not None and cell is not None and not (isinstance(pbc, Tensor) and pbc.dim()):
        flags = torch.as_tensor(pbc, dtype=torch.bool, device=positions.device)
        pbc = flags.expand(3) if flags.dim() == 0 else flags
    if positions.requires_grad:
        positions = positions.detach()
    if cell is not None and cell.requires_grad:
        cell = cell.detach()
    row_ptr, senders, receivers, shifts, reverse, system, status = operators.neighbor_list(
        positions, cell, pbc, batch, cutoff, num_systems, capacity, _ALGORITHMS[algorithm]
    )
    if num_systems is None:
        num_systems = count_systems(cell, batch)
    return {
        "row_ptr": row_ptr,
        "senders": senders,
        "receivers": receivers,
        "shifts": None if cell is None else shifts,
        "reverse": reverse,
        "system": None if batch is None else system,
        "num_systems": num_systems,
        "cutoff": cutoff,
        "status": None if capacity is None else status,
        "padded": capacity is not None,
    }


def any_axis(pbc: Tensor | Sequence[bool] | bool) -> bool:
    """Whether any axis is periodic."""
    return bool(pbc.any() if isinstance(pbc, Tensor) else np.any(pbc))


def count_systems(cell: Tensor | None, batch: Tensor | None) -> int:
    """Number of systems as told by the cells or else the batch; the latter waits for the device."""
    if cell is not None and cell.dim() == 3:
        return cell.shape[0]
    if batch is None:
        return 1
    return int(batch[-1]) + 1 if batch.numel() else 0


def check_status(status: Tensor, capacity: int) -> None:
    """Raises what a search with a capacity found wrong; waits for the device."""
    operators.check_neighbor_status(status, capacity)


@torch.library.register_fake("molkern::neighbor_list")
def _(
    positions: Tensor,
    cell: Any,
    pbc: Any,
    batch: Any,
    cutoff: float,
    num_systems: Any,
    capacity: Any,
    algorithm: int,
) -> tuple[Tensor, ...]:
    atoms = positions.shape[0]
    edges = torch.library.get_ctx().new_dynamic_size() if capacity is None else capacity
    index = positions.new_empty(0, dtype=torch.int32)
    return (
        index.new_empty(atoms + 1),
        index.new_empty(edges),
        index.new_empty(edges),
        index.new_empty(0 if cell is None else edges, 3),
        index.new_empty(edges),
        index.new_empty(0 if batch is None else atoms),
        positions.new_empty(2, dtype=torch.int64),
    )


@torch.library.register_fake("molkern::check_neighbor_status")
def _(status: Tensor, capacity: int) -> None:
    return None


def _mapped(info: Any, in_dims: Any, *arguments: Any) -> Any:
    """Under :func:`torch.vmap`: one search after the other, each with room for as many edges."""
    if arguments[6] is None:
        raise RuntimeError(
            "neighbor_list under torch.vmap: the numbers of edges differ; give capacity=, the most "
            "edges that there may be, or make the list outside of it"
        )
    return by_slices(operators.neighbor_list.default, info, in_dims, arguments)


mapped("neighbor_list", _mapped)
