"""What a neighbor list made by hand is checked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .graph import NeighborList


def check_layout(graph: NeighborList) -> None:
    """Raises where shapes, types or devices of a list do not fit together; reads no index."""
    row_ptr, senders = graph.row_ptr, graph.senders
    if row_ptr.dim() != 1 or row_ptr.shape[0] == 0:
        raise ValueError(f"row_ptr must have shape [N + 1], got {list(row_ptr.shape)}")
    if senders.dim() != 1:
        raise ValueError(f"senders must have shape [E], got {list(senders.shape)}")
    atoms, edges = row_ptr.shape[0] - 1, senders.shape[0]
    if graph.reverse is None and graph.transposed is None and edges:
        raise ValueError(
            "a list needs reverse, or transposed where it is not symmetric: make it with "
            "NeighborList.from_edge_index, which finds them"
        )
    for name, tensor, shape in _parts(graph, atoms, edges):
        if tensor is None:
            continue
        if list(tensor.shape) != shape:
            raise ValueError(
                f"{name} must have shape {shape} beside row_ptr {list(row_ptr.shape)} and senders "
                f"{list(senders.shape)}, got {list(tensor.shape)}"
            )
        kinds = (torch.int64, torch.int32) if name == "permutation" else (torch.int32,)
        if tensor.dtype not in kinds:
            raise TypeError(f"{name} must be int32, got {tensor.dtype}; convert it with .int()")
        if tensor.device != row_ptr.device:
            raise ValueError(
                f"{name} is on {tensor.device} but row_ptr is on {row_ptr.device}; move one of "
                "them with .to()"
            )


def _parts(
    graph: NeighborList, atoms: int, edges: int
) -> list[tuple[str, Tensor | None, list[int]]]:
    parts: list[tuple[str, Tensor | None, list[int]]] = [
        ("row_ptr", graph.row_ptr, [atoms + 1]),
        ("senders", graph.senders, [edges]),
        ("receivers", graph.receivers, [edges]),
        ("shifts", graph.shifts, [edges, 3]),
        ("reverse", graph.reverse, [edges]),
        ("system", graph.system, [atoms]),
        ("permutation", graph.permutation, [edges]),
    ]
    if graph.transposed is not None:
        sizes = ("row pointers", [atoms + 1]), ("receivers", [edges]), ("edges", [edges])
        for (name, shape), tensor in zip(sizes, graph.transposed, strict=True):
            parts.append((f"transposed ({name})", tensor, shape))
    return parts


def check_indices(graph: NeighborList) -> None:
    """Raises where an index of a list is wrong, for one that :func:`check_layout` has passed."""
    atoms, edges = graph.row_ptr.shape[0] - 1, graph.senders.shape[0]
    _check_rows("row_ptr", graph.row_ptr, edges, graph.padded)
    count = int(graph.row_ptr[-1])
    senders, receivers = graph.senders[:count].long(), graph.receivers[:count].long()
    _check_range("senders", senders, atoms, "atoms")
    _check_range("receivers", receivers, atoms, "atoms")
    _check_equal("receivers", receivers, _owners(graph.row_ptr), "by row_ptr")
    if graph.system is not None:
        _check_range("system", graph.system, graph.num_systems, "systems")
    if graph.permutation is not None:
        _check_range("permutation", graph.permutation, edges, "edges")
    shifts = None if graph.shifts is None else graph.shifts[:count]
    if graph.transposed is not None:
        _check_transposed(graph.transposed, senders, receivers, edges, graph.padded)
    elif graph.reverse is not None:
        _check_reverse(graph.reverse[:count].long(), senders, receivers, shifts)


def _owners(row_ptr: Tensor) -> Tensor:
    """The row of each entry, int64."""
    lengths = (row_ptr[1:] - row_ptr[:-1]).long()
    return torch.repeat_interleave(torch.arange(len(lengths), device=row_ptr.device), lengths)


def _check_rows(name: str, row_ptr: Tensor, entries: int, padded: bool) -> None:
    first, last = int(row_ptr[0]), int(row_ptr[-1])
    if first != 0:
        raise ValueError(f"{name} must begin with 0, got {first}")
    falls = row_ptr[1:] < row_ptr[:-1]
    if bool(falls.any()):
        k = int(falls.nonzero()[0]) + 1
        raise ValueError(
            f"{name} must not decrease, but {name}[{k}] is {int(row_ptr[k])} after "
            f"{int(row_ptr[k - 1])}"
        )
    if last > entries or (last < entries and not padded):
        raise ValueError(
            f"{name} must end with {entries}, the number of edges, got {last}"
            + ("" if last > entries else "; a list with more room than edges is padded=True")
        )


def _check_range(name: str, values: Tensor, limit: int, of: str) -> None:
    wrong = (values < 0) | (values >= limit)
    if bool(wrong.any()):
        k = int(wrong.nonzero()[0])
        raise ValueError(
            f"{name}[{k}] is {int(values[k])}, but there are {limit} {of} (0 to {limit - 1})"
        )


def _check_equal(name: str, values: Tensor, right: Tensor, reason: str) -> None:
    wrong = values != right
    if bool(wrong.any()):
        k = int(wrong.nonzero()[0])
        raise ValueError(f"{name}[{k}] is {int(values[k])}, but {reason} it is {int(right[k])}")


def _check_reverse(
    reverse: Tensor, senders: Tensor, receivers: Tensor, shifts: Tensor | None
) -> None:
    _check_range("reverse", reverse, len(senders), "edges")
    wrong = (senders[reverse] != receivers) | (receivers[reverse] != senders)
    wrong |= reverse[reverse] != torch.arange(len(reverse), device=reverse.device)
    if shifts is not None:
        wrong |= (shifts[reverse] != -shifts).any(1)
    if bool(wrong.any()):
        k = int(wrong.nonzero()[0])
        back = int(reverse[k])
        raise ValueError(
            f"reverse[{k}] is {back}, but edge {back} joins atoms {int(senders[back])} and "
            f"{int(receivers[back])}{_image(shifts, back)} and is not the reverse of edge {k}, "
            f"which joins {int(senders[k])} and {int(receivers[k])}{_image(shifts, k)}"
        )


def _image(shifts: Tensor | None, edge: int) -> str:
    return "" if shifts is None else f" (shift {shifts[edge].tolist()})"


def _check_transposed(
    transposed: tuple[Tensor, Tensor, Tensor],
    senders: Tensor,
    receivers: Tensor,
    edges: int,
    padded: bool,
) -> None:
    row_ptr, ends, places = transposed
    _check_rows("transposed[0]", row_ptr, edges, padded)
    count = len(senders)
    ends, places = ends[:count].long(), places[:count].long()
    if int(row_ptr[-1]) != count:
        raise ValueError(f"transposed[0] must end with {count}, as row_ptr, got {int(row_ptr[-1])}")
    _check_range("transposed[2]", places, count, "edges")
    repeated = torch.bincount(places, minlength=count) != 1
    if bool(repeated.any()):
        edge = int(repeated.nonzero()[0])
        raise ValueError(f"transposed[2] must name every edge once, but edge {edge} it does not")
    _check_equal("transposed[1]", ends, receivers[places], "the receiver of its edge")
    _check_equal("senders (by transposed)", senders[places], _owners(row_ptr), "by its rows")
