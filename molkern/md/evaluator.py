"""Energies and forces of the same atoms again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..graph import AtomicBatch, NeighborList
from ..models import Potential
from ..models.potential import is_called_plainly
from ..ops._arguments import checked, explained
from .fixed import FixedList
from .order import spatial_order
from .steps import GraphSteps, HostSteps, capture_graph
from .verlet import VerletList

#: What models predict for each atom.
_PER_ATOM = ("forces", "charges", "atomic_energies")
#: Atoms of a system from which on their order is worth a copy of positions and forces.
_REORDER_FROM = 4096


class Evaluator:
    """Energies, forces and stress of one system or thousands, step after step.

    Made once for a batch, whose atoms, systems and periodicity stay; positions and cells change
    from call to call. The neighbor list reaches ``skin`` farther than the model and is reused until
    an atom has moved half of that (Verlet, Phys. Rev. 159, 98 (1967)). After the first steps none
    allocates memory. On a GPU the step is captured as a CUDA graph and replayed; a step whose
    list turns out not to be valid, or too small, is done again before anything is given back.

    Results are those of ``model(batch, forces=True, neighbors=evaluator.neighbors)`` to the bit,
    but for large systems, whose atoms are reordered: then up to rounding.

    Args:
        model: the potential, put in evaluation mode. Its weights may change between calls, but not
            through ``weight.data``, of which torch leaves no trace: splines would be the old ones
            until ``model.forget_splines()``.
        batch: the systems, of the model's type and on its device; copied.
        forces: whether forces are wanted.
        stress: whether stress is wanted where a call does not say.
        skin: in the unit of the positions; 0 makes a list for every step.
        capacity: on a GPU: edges to make room for at first. By default, and when that is not
            enough, a fifth more than are needed.
        graph: whether steps are captured as a CUDA graph; by default on a GPU, where a model that
            cannot be captured runs without, with a warning.
        reorder: whether atoms are sorted in space for the computation, which is faster for large
            systems; by default where a system has 4,096 atoms or more.
        conditions: what else the model's prediction depends on (``total_charge``, say).

    Raises:
        ValueError, TypeError: as the model does for the batch; a negative skin or capacity; a graph
            on the CPU.

    >>> import torch, molkern
    >>> model = molkern.models.SchNet(16, 16, 2, cutoff=5.0, filters="spline")
    >>> positions = torch.tensor([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    >>> water = molkern.AtomicBatch(torch.tensor([8, 1, 1]), positions)
    >>> evaluate = molkern.md.Evaluator(model, water)
    >>> out = evaluate(positions + 0.01)
    >>> out["energy"].shape, out["forces"].shape
    (torch.Size([1]), torch.Size([3, 3]))
    >>> evaluate.builds
    1
    """

    @checked
    def __init__(
        self,
        model: Potential,
        batch: AtomicBatch,
        *,
        forces: bool = True,
        stress: bool = False,
        skin: float = 0.5,
        capacity: int | None = None,
        graph: bool | None = None,
        reorder: bool | None = None,
        **conditions: Any,
    ):
        if graph and not batch.positions.is_cuda:
            raise ValueError("graph=True needs a batch on a GPU: leave it out, or move the batch")
        if capacity is not None and capacity < 0:
            raise ValueError(f"capacity must not be negative, got {capacity}")
        self.model = model.eval()
        self.model.check(batch)
        self.model.check_conditions(conditions)
        self.forces, self.stress, self.conditions = forces, stress, conditions
        with torch.inference_mode(False), torch.no_grad():
            self._order = _chosen_order(batch, model.cutoff, reorder)
            self.batch = _copy(batch, self._order)
            self._given = torch.empty_like(self.batch.positions)
            self._sorted: dict[str, Tensor] = {}
            self._steps = self._make_steps(skin, capacity, graph)

    def _make_steps(
        self, skin: float, capacity: int | None, graph: bool | None
    ) -> HostSteps | GraphSteps:
        model, reach = self.model, self.model.list_cutoff
        if not self.batch.positions.is_cuda:
            return HostSteps(VerletList(self.batch, reach, skin), self._compute)
        constant = type(model).list_cutoff is Potential.list_cutoff
        fixed = FixedList(self.batch, reach, skin, capacity, constant)
        capture = _run_again if graph is False else capture_graph
        return GraphSteps(fixed, self._compute, model, capture, insist=bool(graph))

    @property
    def neighbors(self) -> NeighborList | None:
        """The list that the last step used; of reordered atoms where ``reorder`` holds."""
        return self._steps.list.neighbors

    @property
    def builds(self) -> int:
        """How often a neighbor list was made."""
        return self._steps.list.builds

    @property
    def memory(self) -> tuple[int, int] | None:
        """On the CPU: bytes held for steps, and how often the system was asked for memory."""
        return self._steps.memory if isinstance(self._steps, HostSteps) else None

    @explained
    def __call__(
        self,
        positions: Tensor | None = None,
        cell: Tensor | None = None,
        *,
        stress: bool | None = None,
    ) -> dict[str, Tensor]:
        """What the model predicts at these positions, as :class:`molkern.models.Potential` does.

        The tensors given back are the evaluator's own: the next call overwrites them. Threads that
        run at the same time need an evaluator each.

        Args:
            positions: ``[N, 3]``, of any floating type and device; None: as before.
            cell: ``[B, 3, 3]`` (or ``[3, 3]`` for all), the same; for batches that have cells.
            stress: whether stress is wanted this time; None: as given to the constructor.

        Raises:
            ValueError: shapes that are not the batch's, positions or cells that are not finite, a
                stress without cells.
        """
        stress = self.stress if stress is None else stress
        with torch.inference_mode(False), torch.no_grad():
            self._take(positions, cell)
            if stress:
                self._check_stress()
            out = self._steps(stress)
            return out if self._order is None else self._in_given_order(out, self._order)

    def _take(self, positions: Tensor | None, cell: Tensor | None) -> None:
        batch = self.batch
        if positions is not None:
            if positions.shape != batch.positions.shape:
                raise ValueError(
                    f"positions must have shape {list(batch.positions.shape)}, the atoms of this "
                    f"evaluator, got {list(positions.shape)}: make another one for other atoms"
                )
            if self._order is None:
                batch.positions.copy_(positions)
            else:
                self._given.copy_(positions)
                torch.index_select(self._given, 0, self._order, out=batch.positions)
        if cell is not None:
            if batch.cell is None:
                raise ValueError("this evaluator's batch has no cell: give it one when it is made")
            if cell.shape not in ((3, 3), batch.cell.shape):
                raise ValueError(
                    f"cell must have shape [3, 3] or {list(batch.cell.shape)}, got "
                    f"{list(cell.shape)}"
                )
            batch.cell.copy_(cell)

    def _check_stress(self) -> None:
        cell = self.batch.cell
        if cell is None:
            raise ValueError("stress needs a cell: give the batch its lattice vectors")

    def _compute(self, neighbors: NeighborList, stress: bool) -> dict[str, Tensor]:
        model, batch = self.model, self.batch
        # Without the checks, where a call would run nothing else
        if is_called_plainly(model):
            return model.compute(batch, neighbors, self.forces, stress, **self.conditions)
        return model(
            batch, forces=self.forces, stress=stress, neighbors=neighbors, **self.conditions
        )

    def _in_given_order(self, out: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
        given = dict(out)
        for name in _PER_ATOM:
            if name in out:
                if name not in self._sorted:
                    self._sorted[name] = torch.empty_like(out[name])
                given[name] = self._sorted[name].index_copy_(0, order, out[name])
        return given


def _run_again(step: Callable[[], Any]) -> Callable[[], Any]:
    """In place of a capture."""
    return step


def _chosen_order(batch: AtomicBatch, cutoff: float, wanted: bool | None) -> Tensor | None:
    if wanted is None:
        wanted = batch.num_atoms > 0 and int(batch.system_ptr.diff().max()) >= _REORDER_FROM
    # Half the cutoff: a few dozen atoms, whose neighbors are much the same
    return spatial_order(batch, 0.5 * cutoff) if wanted and batch.num_atoms else None


def _copy(batch: AtomicBatch, order: Tensor | None) -> AtomicBatch:
    """The batch with memory of its own, its atoms in another order within systems."""
    numbers, positions = batch.numbers, batch.positions.detach()
    if order is not None:
        numbers, positions = numbers[order], positions[order]
    return AtomicBatch(
        numbers.clone(),
        positions.clone(),
        None if batch.batch is None else batch.batch.clone(),
        None if batch.cell is None else batch.cell.detach().clone(),
        None if batch.pbc is None else batch.pbc.clone(),
        batch.num_systems,
    )
