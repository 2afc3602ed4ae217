"""Energies and forces of the same atoms again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..graph import AtomicBatch, NeighborList
from ..models import Potential
from ..models.potential import is_called_plainly
from ..nn.precision import network_tensor
from ..ops._arguments import checked, explained
from .exclusive import Exclusive
from .fixed import FixedList
from .near import NearPositions
from .order import spatial_order
from .per_atom import GivenVectors, atomic_virials, edge_derivatives
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
    an atom has moved half of that (Verlet, Phys. Rev. 159, 98 (1967)). On a GPU the step is
    captured as a CUDA graph and replayed; a step whose list turns out not to be valid, or too
    small, is done again before anything is given back.

    Results are those of ``model(batch, forces=True, neighbors=evaluator.neighbors)`` to the bit,
    but for large systems, whose atoms are reordered, and those far from the origin: then up to
    rounding. Positions of float64 are moved near the origin before a float32 model sees them, as
    :meth:`molkern.AtomicBatch.to` does, so errors are the same at any distance.

    Copies and pickles make an evaluator of their own for the same batch, in its present place: a
    pickle and a deep copy with a model of their own, too.

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
        self.forces, self.stress, self.conditions = bool(forces), bool(stress), conditions
        self._options = {"skin": skin, "capacity": capacity, "graph": graph, "reorder": reorder}
        self._exclusive = Exclusive("threads that run at the same time need an evaluator each")
        self._thread: int | None = None
        self._shared = False
        self._weight = network_tensor(model)
        self._admitted = model.elements, model.allow_unknown_elements
        with torch.inference_mode(False), torch.no_grad():
            self._order = _chosen_order(batch, model.cutoff, reorder)
            self.batch = _copy(batch, self._order)
            self._near = NearPositions(self.batch, self._order)
            self._sorted: dict[str, Tensor] = {}
            self._steps = self._make_steps(skin, capacity, graph)

    def _make_steps(
        self, skin: float, capacity: int | None, graph: bool | None
    ) -> HostSteps | GraphSteps:
        model, reach = self.model, self.model.list_cutoff
        if not self.batch.positions.is_cuda:
            return HostSteps(VerletList(self.batch, reach, skin, self._near), self._compute)
        constant = type(model).list_cutoff is Potential.list_cutoff
        fixed = FixedList(self.batch, reach, skin, capacity, constant, self._near)
        capture = _run_again if graph is False else capture_graph
        return GraphSteps(fixed, self._compute, model, capture, insist=bool(graph))

    @property
    def neighbors(self) -> NeighborList | None:
        """The list that the last step used, of reordered atoms where ``reorder`` holds.

        Its shifts are relative to the positions of ``evaluator.batch``, which lie near the origin.
        """
        return self._steps.list.neighbors

    @property
    def builds(self) -> int:
        """How often a neighbor list was made."""
        return self._steps.list.builds

    @explained
    def __call__(
        self,
        positions: Tensor | None = None,
        cell: Tensor | None = None,
        *,
        stress: bool | None = None,
    ) -> dict[str, Tensor]:
        """What the model predicts at these positions, as :class:`molkern.models.Potential` does.

        The tensors given back are the evaluator's own: the next call overwrites them; the
        dictionary is the caller's. Threads that run at the same time need an evaluator each; those
        that take turns get copies.

        Args:
            positions: ``[N, 3]``, of any floating type and device; None: as before.
            cell: ``[B, 3, 3]`` (or ``[3, 3]`` for all), the same; for batches that have cells.
            stress: whether stress is wanted this time; None: as given to the constructor.

        Raises:
            ValueError: shapes that are not the batch's, positions or cells that are not finite, a
                stress without cells, elements that the model is no longer to know.
            TypeError: positions or cells that are not dense tensors of a floating type.
            RuntimeError: another thread is using this evaluator, or the model was moved to another
                device or type since it was made.
        """
        stress = self.stress if stress is None else bool(stress)
        with self._exclusive, torch.inference_mode(False), torch.no_grad():
            self._check_model()
            self._take(positions, cell)
            if stress:
                self._check_stress()
            shared = self._note_thread()
            out = self._steps(stress)
            if self._order is not None:
                out = self._in_given_order(out, self._order)
            # In a dictionary of the caller's, who may change or empty it
            return {name: value.clone() if shared else value for name, value in out.items()}

    def per_atom(self) -> dict[str, Tensor]:
        """Energies and virials of the atoms at the present positions, one more evaluation.

        Returns:
            ``"virials"`` ``[N, 3, 3]`` float64, symmetric, whose sum over a system is minus its
            volume times its stress, half of each edge's for each of its atoms; and
            ``"atomic_energies"`` ``[N]``, whose sum is its energy, where the model sums over atoms.

        Raises:
            ValueError: a model without an energy.
        """
        with self._exclusive, torch.inference_mode(False), torch.no_grad():
            self._check_model()
            neighbors, batch = self.neighbors, self.batch
            if neighbors is None or neighbors.padded:
                neighbors = self.model.neighbors(batch)
            graph = GivenVectors.of(neighbors, neighbors.vectors(batch.positions, batch.cell))
            found = edge_derivatives(self.model, batch, graph, self.conditions)
            parts = {"virials": atomic_virials(graph, found.gradient)}
            if found.atomic is not None:
                parts["atomic_energies"] = found.atomic
            if self._order is None:
                return parts
            back = torch.argsort(self._order)
            return {name: value[back] for name, value in parts.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        # Lists, graphs and memory are no data: a copy makes its own
        return _made_again, (type(self), self.model, self._given_batch(), self._keywords())

    def _keywords(self) -> dict[str, Any]:
        return {
            "forces": self.forces,
            "stress": self.stress,
            **self._options,
            **self.conditions,
        }

    def _given_batch(self) -> AtomicBatch:
        """The batch, its atoms in the order in which they were given."""
        back = None if self._order is None else torch.argsort(self._order)
        return _copy(self.batch, back)

    def serves(self, model: Potential) -> bool:
        """Whether this is an evaluator for the model as it is, of its type and on its device."""
        weight, place = self._weight, self.batch.positions
        same = weight.dtype == place.dtype and weight.device == place.device
        return model is self.model and same

    def _check_model(self) -> None:
        weight, place = self._weight, self.batch.positions
        if not self.serves(self.model):
            raise RuntimeError(
                f"this evaluator is for a model of {place.dtype} on {place.device}, but the model "
                f"is now {weight.dtype} on {weight.device}: make a new one after model.to(...)"
            )
        admitted = self.model.elements, self.model.allow_unknown_elements
        if admitted != self._admitted:
            self.model.check_elements(self._given_batch().numbers)
            self._admitted = admitted

    def _note_thread(self) -> bool:
        """Whether threads take turns: what one was given must outlive the next one's call."""
        thread = threading.get_ident()
        if self._thread is not None and thread != self._thread and not self._shared:
            self._shared, self._sorted = True, {}
            self._steps.let_go()
        self._thread = thread
        return self._shared

    def _take(self, positions: Tensor | None, cell: Tensor | None) -> None:
        batch = self.batch
        if positions is not None:
            _check_floating("positions", positions)
            if positions.shape != batch.positions.shape:
                raise ValueError(
                    f"positions must have shape {list(batch.positions.shape)}, the atoms of this "
                    f"evaluator, got {list(positions.shape)}: make another one for other atoms"
                )
        if cell is not None:
            _check_floating("cell", cell)
            if batch.cell is None:
                raise ValueError("this evaluator's batch has no cell: give it one when it is made")
            if cell.shape not in ((3, 3), batch.cell.shape):
                raise ValueError(
                    f"cell must have shape [3, 3] or {list(batch.cell.shape)}, got "
                    f"{list(cell.shape)}"
                )
        self._near.write(positions, cell)

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


def _check_floating(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a tensor, got {type(value).__name__}: torch.as_tensor(...)"
        )
    if not value.is_floating_point():
        raise TypeError(f"{name} must be of a floating type, got {value.dtype}")
    if value.layout is not torch.strided or value.is_meta:
        kind = "on the meta device" if value.is_meta else str(value.layout)
        raise TypeError(f"{name} must be a dense tensor with values, got one {kind}")


def _made_again(
    kind: type[Evaluator], model: Potential, batch: AtomicBatch, keywords: dict[str, Any]
) -> Evaluator:
    return kind(model, batch, **keywords)


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
    copied = AtomicBatch(
        numbers.clone(),
        positions.clone(),
        None if batch.batch is None else batch.batch.clone(),
        None if batch.cell is None else batch.cell.detach().clone(),
        None if batch.pbc is None else batch.pbc.clone(),
        batch.num_systems,
    )
    if batch.offsets is not None:
        copied.offsets = batch.offsets.clone() if order is None else batch.offsets[order]
    exact = batch.exact_cell
    if exact is not None and copied.cell is not None and torch.equal(exact.float(), copied.cell):
        copied.exact_cell = exact.clone()
    return copied
