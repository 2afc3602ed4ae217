"""Energies and forces of the same atoms again and again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..graph import AtomicBatch, NeighborList
from ..models import Potential
from .verlet import VerletList


class Evaluator:
    """Energies, forces and stress of one system or thousands, step after step.

    Made once for a batch, whose atoms, cells' periodicity and systems stay; positions and cells
    change from call to call. Buffers are made once and the neighbor list is kept while it is valid.

    Args:
        model: put in evaluation mode.
        batch: the systems, of the model's type and on its device; copied.
        forces: whether forces are wanted.
        stress: whether stress is wanted, by default and of every call.
        skin: how much farther than the model's cutoff the neighbor list reaches, in the unit of the
            positions. The list is reused until an atom has moved half of it.
        conditions: what else the model's prediction depends on (``total_charge``, say).

    Raises:
        ValueError, TypeError: as the model does for the batch; a negative skin.

    >>> import torch, molkern
    >>> model = molkern.models.SchNet(16, 16, 2, cutoff=5.0, filters="spline")
    >>> positions = torch.tensor([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    >>> water = molkern.AtomicBatch(torch.tensor([8, 1, 1]), positions)
    >>> evaluate = molkern.md.Evaluator(model, water)
    >>> out = evaluate(positions + 0.01)
    >>> out["energy"].shape, out["forces"].shape
    (torch.Size([1]), torch.Size([3, 3]))
    """

    def __init__(
        self,
        model: Potential,
        batch: AtomicBatch,
        *,
        forces: bool = True,
        stress: bool = False,
        skin: float = 0.5,
        **conditions: Any,
    ):
        self.model = model.eval()
        self.forces, self.stress = forces, stress
        self.conditions = conditions
        self.batch = AtomicBatch(
            batch.numbers.clone(),
            batch.positions.detach().clone(),
            batch.batch,
            None if batch.cell is None else batch.cell.detach().clone(),
            batch.pbc,
            batch.num_systems,
        )
        self._list = VerletList(model.list_cutoff, skin)

    @property
    def neighbors(self) -> NeighborList:
        """The list for the present positions."""
        return self._list(self.batch)

    @property
    def builds(self) -> int:
        """How often a neighbor list was made."""
        return self._list.builds

    def __call__(
        self,
        positions: Tensor | None = None,
        cell: Tensor | None = None,
        *,
        stress: bool | None = None,
    ) -> dict[str, Tensor]:
        """What the model predicts at these positions, as :class:`molkern.models.Potential` does.

        The tensors given back are the evaluator's own: the next call overwrites them.

        Args:
            positions: ``[N, 3]``, of any floating type and device; None: as before.
            cell: ``[B, 3, 3]`` (or ``[3, 3]``), the same; for batches that have cells.
            stress: whether stress is wanted this time; None: as given to the constructor.

        Raises:
            ValueError: shapes that are not the batch's, or positions that are not finite.
        """
        with torch.no_grad():
            if positions is not None:
                self.batch.positions.copy_(positions)
            if cell is not None:
                self.batch.cell.copy_(cell)
            stress = self.stress if stress is None else stress
            return self.model(
                self.batch,
                forces=self.forces,
                stress=stress,
                neighbors=self.neighbors,
                **self.conditions,
            )
