"""A neighbor list whose tensors stay where they are, for steps that are captured."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..graph import AtomicBatch, NeighborList
from .near import NearPositions
from .verlet import VerletList, largest_step


class FixedList(VerletList):
    """A :class:`VerletList` of fixed capacity, padded, which grows outside of captured steps.

    With a skin the list is made outside of the steps, which find out whether it was still valid.
    Without one it is made within every step, and the step finds out whether it had room.

    Args:
        batch, cutoff, skin: as of :class:`VerletList`.
        capacity: edges to make room for at first; by default a fifth more than there are.
        within_steps: whether a list without a skin can be made within steps: not where the cutoff
            follows from the positions.
        near: as of :class:`VerletList`.

    Attributes:
        generation: changes where tensors are no longer where they were.
    """

    #: How much more room is made than is needed at the time.
    slack = 1.2

    def __init__(
        self,
        batch: AtomicBatch,
        cutoff: Callable[[AtomicBatch], float],
        skin: float,
        capacity: int | None = None,
        within_steps: bool = True,
        near: NearPositions | None = None,
    ):
        super().__init__(batch, cutoff, skin, near)
        self.capacity = capacity
        self.generation = 0
        self.within_steps = within_steps and skin == 0

    def prepare(self) -> None:
        """What must be done before a step; may wait for the device."""
        if self.within_steps:
            if self.near is not None:
                self.near.settle()
            if self.capacity is None:
                self.capacity = self._room(self.batch.neighbors(self.cutoff(self.batch)).num_edges)
        elif self.neighbors is None or self.skin == 0:
            self.build()

    def renew(self) -> tuple[NeighborList, Tensor]:
        """Within a step: the list to use, and what :meth:`accept` needs to judge it."""
        if self.within_steps:
            found = self.batch.neighbors(self.cutoff(self.batch), capacity=self.capacity)
            assert found.status is not None
            return found, found.status
        assert self.neighbors is not None
        moved = largest_step(self.batch.positions, self._positions)
        if self._cell is not None and self.batch.cell is not None:
            # A change of the cells counts as infinitely far
            moved = torch.where(self._cell.eq(self.batch.cell).all(), moved, torch.inf)
        return self.neighbors, moved

    def accept(self, verdict: Tensor) -> bool:
        """After a step: whether its list was valid; else the next one will be.

        Raises:
            ValueError: what a search found wrong: positions that are not finite, singular cells.
        """
        if not self.within_steps:
            if self.skin == 0 or bool(verdict < 0.25 * self.skin**2):
                return True
            self.build()
            return False
        needed, error = verdict.tolist()
        assert self.capacity is not None
        if error == 0 and needed > self.capacity:
            self.capacity = self._room(needed)
            self.generation += 1
            return False
        if error:
            self.batch.neighbors(self.cutoff(self.batch))  # which says what is wrong
        self.builds += 1
        return True

    def build(self) -> None:
        kept = self.neighbors
        super().build()
        found = self.neighbors
        assert found is not None
        count = found.num_edges
        if kept is None or self.capacity is None or count > self.capacity:
            if self.capacity is None or count > self.capacity:
                self.capacity = self._room(count)
            kept = _padded(found, self.capacity)
            self.generation += 1
        _copy(found, kept)
        self.neighbors = kept

    def _room(self, edges: int) -> int:
        return int(self.slack * edges) + 64


def _padded(found: NeighborList, capacity: int) -> NeighborList:
    """A list of the same atoms with room for so many edges."""
    index = found.row_ptr
    return NeighborList._made(
        row_ptr=torch.empty_like(index),
        senders=index.new_empty(capacity),
        receivers=index.new_empty(capacity),
        shifts=None if found.shifts is None else index.new_empty(capacity, 3),
        reverse=index.new_empty(capacity),
        system=found.system,
        num_systems=found.num_systems,
        padded=True,
    )


def _copy(found: NeighborList, kept: NeighborList) -> None:
    """Writes the edges that were found into a padded list."""
    count = found.num_edges
    kept.row_ptr.copy_(found.row_ptr)
    kept.cutoff = found.cutoff
    for name, padding in (("senders", -1), ("receivers", -1), ("reverse", -1), ("shifts", 0)):
        source, target = getattr(found, name), getattr(kept, name)
        if target is not None:
            target[:count].copy_(source)
            target[count:].fill_(padding)
