"""Whether the graph of PyTorch Geometric's SchNet is that of all neighbors within the cutoff."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..graph import neighbor_list
from ..host import random_states_kept
from .audit import check_untouched
from .modules import is_one_of, kind

#: From positions ``[N, 3]`` and systems ``[N]`` to edges ``[2, E]`` and their lengths ``[E]``.
Graph = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

_REMEDY = (
    "convert the module with torch_geometric's own RadiusInteractionGraph in its place, and give "
    "the converted model the graph of each batch: model(batch, neighbors="
    "NeighborList.from_edge_index(edge_index, num_atoms))"
)


def check_most_neighbors(most: int, module: Any) -> None:
    """Refuses fewer neighbors of an atom than are the default: molkern takes all of them."""
    arguments = inspect.signature(type(module).__init__).parameters
    default = getattr(arguments.get("max_num_neighbors"), "default", 32)
    if most < default:
        raise ValueError(
            f"max_num_neighbors={most} has no counterpart: molkern takes all neighbors within the "
            f"cutoff. Set it to {default} or more first, if no atom has more than {most}"
        )


def check_graph(graph: Any, cutoff: float, like: Tensor) -> None:
    """Refuses an ``interaction_graph`` other than all neighbors within the cutoff.

    A function of one's own is tried out: on dense and on far-reaching sets of atoms, alone and
    side by side, it must give every pair within the cutoff once each way, and its distance.

    Raises:
        ValueError: naming the graph, and how it differs.
    """
    if is_one_of(graph, "torch_geometric", "RadiusInteractionGraph"):
        check_untouched(graph, "interaction_graph")
        if float(graph.cutoff) != cutoff:
            raise ValueError(
                f"the cutoff of interaction_graph is {graph.cutoff}, that of the filters {cutoff}"
            )
        check_most_neighbors(graph.max_num_neighbors, graph)
        return
    if not callable(graph):
        raise ValueError(f"interaction_graph is {graph!r}, which is no function")
    for name, positions, system in _structures(cutoff, like):
        try:
            with torch.no_grad(), random_states_kept():
                pairs, lengths = graph(positions, system)
        except Exception as error:
            raise ValueError(
                f"interaction_graph ({kind(graph)}) is not one of all neighbors within the cutoff: "
                f"{name} it fails ({type(error).__name__}: {error}); {_REMEDY}"
            ) from error
        if wrong := _difference(pairs, lengths, positions, system, cutoff):
            raise ValueError(
                f"interaction_graph ({kind(graph)}) is not one of all neighbors within the cutoff "
                f"{cutoff}: {name} {wrong}; {_REMEDY}"
            )


def _structures(cutoff: float, like: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Sets of atoms that tell graphs apart, with what they are in words."""
    random = torch.Generator().manual_seed(0)

    def cloud(count: int, size: float) -> Tensor:
        return size * cutoff * torch.rand(count, 3, generator=random, dtype=torch.float64)

    line = torch.arange(60, dtype=torch.float64).unsqueeze(1) * (1.07 * cutoff)
    sets = {
        "for 40 atoms close together": [cloud(40, 0.5)],
        "for a molecule larger than the cutoff": [cloud(30, 2.0)],
        "for one atom": [cloud(1, 1.0)],
        "for molecules side by side": [cloud(9, 1.2), cloud(1, 1.0), cloud(14, 1.5)],
        "for atoms in a line along x, far from each other": [line * torch.eye(3)[0].double()],
        "for atoms in a line along y, far from each other": [line * torch.eye(3)[1].double()],
        "for atoms in a line along z, far from each other": [line * torch.eye(3)[2].double()],
    }
    for name, systems in sets.items():
        owners = torch.arange(len(systems)).repeat_interleave(
            torch.tensor([len(positions) for positions in systems])
        )
        yield name, torch.cat(systems).to(like), owners.to(like.device)


def _difference(
    pairs: Any, lengths: Any, positions: Tensor, system: Tensor, cutoff: float
) -> str | None:
    """In which way edges differ from those of a neighbor list."""
    if not (isinstance(pairs, Tensor) and isinstance(lengths, Tensor)):
        return f"it gives a {kind(pairs)} and a {kind(lengths)}"
    if pairs.dim() != 2 or len(pairs) != 2 or lengths.shape != pairs.shape[1:]:
        return f"it gives edges {list(pairs.shape)} and lengths {list(lengths.shape)}"
    expected = neighbor_list(positions, cutoff, batch=system)
    wanted = expected.edge_index.tolist()
    given = pairs.tolist()
    ours = dict(zip(zip(*wanted, strict=True), expected.distances(positions).tolist(), strict=True))
    theirs = list(zip(*given, strict=True))
    if set(theirs) != set(ours) or len(theirs) != len(ours):
        extra, missing = len(set(theirs) - set(ours)), len(set(ours) - set(theirs))
        return (
            f"it gives {len(theirs)} edges where there are {len(ours)} ({extra} others, "
            f"{missing} missing)"
        )
    for pair, length in zip(theirs, lengths.tolist(), strict=True):
        if not abs(length - ours[pair]) <= 1e-5 * cutoff:
            return f"the distance of atoms {pair} is {length}, not {ours[pair]}"
    return None
