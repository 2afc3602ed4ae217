"""From predictions to forces and stress."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..files import write_whole
from ..graph import AtomicBatch, NeighborList
from ..nn.plain import is_plain
from ..nn.precision import network_tensor
from ..nn.splines import SplineFilter, SplineReport, spline_tables
from ..nn.tables import TOLERANCES, SplineTables
from ..ops import segment_sum
from ..ops._arguments import checked, explained
from ..ops._derivatives import in_forward_mode, refuse_forward_mode
from ..ops._library import (
    constant_weights,
    first_derivatives_only,
    is_recorded,
    keeps_weights_constant,
)
from ..ops._modes import is_hidden, is_transformed
from ..ops.splines import SplineGrid
from .arguments import KeepsArguments
from .known import KnowsElements
from .structure import Structure

FORMAT = 1


class Potential(KnowsElements, KeepsArguments):
    """Base of all models: differentiates what a model predicts for each system.

    A model derives from it, sets ``cutoff`` and ``num_elements``, and defines :meth:`predict`. Its
    constructor arguments are kept by :meth:`remember`, so that :meth:`save` writes a file that
    :func:`molkern.models.load` can rebuild the model from.

    Filters depend on a distance alone. With ``filters="spline"`` they are splines through what the
    network gives for distances up to the cutoff, so that an edge costs a few hundred operations
    and no memory. Without gradients by parameters the splines are made once for a set of weights;
    otherwise with every evaluation, and gradients flow through them to the weights. The number of
    knots follows from ``spline_tolerance``: the largest error of a filter relative to the largest
    filter, by default 1e-7 in float32 and 1e-9 in float64; :meth:`spline_report` measures it.
    Forces are exactly minus the derivative of the energy with either kind of filters. Beyond the
    cutoff a spline is zero, below the first knot (0 for most models) it is constant.

    Layers may be wrapped, replaced, hooked or parametrised as those of any module: energies, forces
    and stress are those of calling them, whatever faster way there is for the layers as they were
    made. Splines take part in that as long as what makes the filters can be copied and computed in
    float64, and depends on distances alone; a block that takes the filters has to be the model's
    own. Else filters are exact, and :meth:`spline_report` says why. What takes a layer's place is
    called with what the layer was called with: a ``head`` with features ``[N, C]``, of which it
    makes one number for each atom, ``[N]`` or ``[N, 1]``.

    Threads may share a model that is evaluated, and change its ``filters`` meanwhile.

    A model keeps the elements that it was trained on in :attr:`elements`, and refuses others.
    """

    cutoff: float
    #: Names of what else a prediction depends on, which calls may give.
    conditions: tuple[str, ...] = ()
    #: The prediction, ``[B]`` or ``[B, T]``, whose sum forces and stress are derivatives of.
    differentiated = "energy"

    def remember(self, **config: Any) -> None:
        """Keeps the constructor's arguments, which must be plain JSON values."""
        self._config = {name: _plain(value) for name, value in config.items()}
        self._splines = SplineTables(config.get("spline_tolerance"))
        self.filters = config.get("filters", "exact")

    @property
    def filters(self) -> str:
        """How filters are evaluated, ``"exact"`` by the network or as ``"spline"``."""
        return str(self._config["filters"])

    @filters.setter
    def filters(self, value: str) -> None:
        if value not in ("exact", "spline"):
            raise ValueError(f"filters must be 'exact' or 'spline', got {value!r}")
        self._config["filters"] = value

    @property
    def spline_tolerance(self) -> float | None:
        """The largest relative error of splines, None for that of the type. Can be set."""
        return self._splines.tolerance

    @spline_tolerance.setter
    def spline_tolerance(self, value: float | None) -> None:
        self._splines.set_tolerance(value)
        self._config["spline_tolerance"] = value

    @property
    def num_targets(self) -> int:
        """How many numbers are predicted for each system, 1 for most models."""
        return int(self._config.get("num_targets", 1))

    def filter_values(self, distances: Tensor) -> list[Tensor]:
        """All filters of the model at distances ``[P]``, float64: a list of ``[P, F]``."""
        raise NotImplementedError(f"{type(self).__name__} has no filters that can be splines")

    def filter_modules(self) -> list[nn.Module]:
        """The modules that :meth:`filter_values` calls; all, where a model does not say."""
        return [self]

    def spline_obstacle(self) -> str:
        """Why splines cannot take the place of the filters in the layers as they are, or nothing.

        Where a module that would be given splines is not the model's own any more, above all.
        """
        return ""

    def filter_span(self) -> tuple[float, float, bool]:
        """First and last knot of splines, and whether filters are zero beyond the last."""
        return 0.0, self.cutoff, True

    def spline_report(self) -> SplineReport:
        """Knots, size and errors of the splines for the present weights, measured if need be.

        Raises:
            ValueError: where no splines hold the tolerance, or none can stand for the filters.
        """
        made = self._splines.constant(self)
        if made.report is None:
            raise ValueError(f"the model's filters cannot be splines: {made.obstacle}")
        return made.report

    def forget_splines(self) -> None:
        """Drops the splines' tables and grid, which the next use makes from nothing.

        The grid then depends on the present weights alone, not on those before: a training run
        that does this where it is saved goes on from there to the bit. It is also what to do after
        a change that torch does not tell of, through ``weight.data`` or NumPy.
        """
        self._splines.forget()

    def spline_filters(
        self, distances: Tensor, neighbors: NeighborList | None = None
    ) -> list[SplineFilter] | None:
        """The model's filters as splines at the distances of edges, ``[E]``; None for exact ones.

        Exact as :attr:`filters` says, or because splines cannot stand for them. Constant tables
        where nothing can be differentiated by the weights, else trainable ones. The list whose
        edges they are is for convolutions.
        """
        differentiable = torch.is_grad_enabled() and not keeps_weights_constant()
        if differentiable and not torch.compiler.is_exporting():
            self._splines.trained = True
        if self.filters != "spline":
            return None
        trainable = differentiable and any(p.requires_grad for p in self.parameters())
        made = (self._splines.measured if trainable else self._splines.constant)(self)
        if made.report is None or not made.serves:
            return None
        grid, tables, bins = made.report.grid, made.tables, None
        if trainable:
            tables = spline_tables(self.filter_values, grid, network_tensor(self))
            bins = None if neighbors is None else grid.bins(distances, neighbors)
        elif in_forward_mode():
            refuse_forward_mode(f"{type(self).__name__}'s splines", *self.parameters())
        assert tables is not None  # those of the same moment as the grid
        return [SplineFilter(table, grid, distances, bins) for table in tables]

    def predict(self, structure: Structure, **conditions: Any) -> dict[str, Tensor]:
        """What the model predicts, by name; ``"energy"`` ``[B]``, summed in float64, for most."""
        raise NotImplementedError(f"{type(self).__name__} does not define predict")

    def list_cutoff(self, batch: AtomicBatch) -> float:
        """How far a neighbor list must reach for this batch; for most models their cutoff."""
        return self.cutoff

    @explained
    def neighbors(self, batch: AtomicBatch) -> NeighborList:
        """The neighbor list that the model needs of a batch."""
        return batch.neighbors(self.list_cutoff(batch))

    @explained
    def forward(
        self,
        batch: AtomicBatch,
        forces: bool = False,
        stress: bool = False,
        neighbors: NeighborList | None = None,
        **conditions: Any,
    ) -> dict[str, Tensor]:
        """Energies, and if wanted forces and stress, in the units the model was trained in.

        Args:
            batch: systems of the model's type and on its device.
            forces: adds ``"forces"`` = −dE/dR, ``[N, 3]``.
            stress: adds ``"stress"`` = (dE/dε) / V, symmetric, ``[B, 3, 3]``; needs cells.
            neighbors: a list made elsewhere, with at least the model's cutoff.
            conditions: what else the model's prediction depends on, see its documentation.

        Returns:
            What the model predicts, for most ``"energy"`` ``[B]``, summed in float64 also for a
            float32 model, and what was asked for. In training mode forces and stress can be
            differentiated further.

        Raises:
            TypeError: the batch's type is not the model's, or conditions that it does not know.
            ValueError: atomic numbers outside the model's table, elements that it was not trained
                on (see :attr:`elements`; not in training), positions that are not finite
                (with a list given, on the CPU only), another device, a neighbor list of a shorter
                cutoff, of other atoms or beyond its capacity, or a stress without cells.
            RuntimeError: forces or stress under ``torch.inference_mode()``.
        """
        if not torch.compiler.is_compiling():
            if not (isinstance(forces, bool) and isinstance(stress, bool)):
                _check_flags(forces, stress)
                forces, stress = bool(forces), bool(stress)  # of NumPy's
            if in_forward_mode() and isinstance(batch, AtomicBatch):
                # Before the checks: values of tangents cannot always be read
                if forces or stress:
                    self._refuse_modes("forces and stress", batch)
                refuse_forward_mode(type(self).__name__, batch.positions, batch.cell)
            self.check(batch, neighbors)
            self.check_conditions(conditions)
            if forces or stress:
                self._refuse_modes("forces and stress", batch)
            if forces or stress or torch.is_grad_enabled():
                batch, neighbors = _ordinary(batch), _ordinary(neighbors)
        if neighbors is None:
            neighbors = self.neighbors(batch)
        return self.compute(batch, neighbors, forces, stress, **conditions)

    def compute(
        self,
        batch: AtomicBatch,
        neighbors: NeighborList,
        forces: bool = False,
        stress: bool = False,
        **conditions: Any,
    ) -> dict[str, Tensor]:
        """What :meth:`forward` gives, without its checks: for arguments that passed them once."""
        differentiate = forces or stress
        keep = torch.is_grad_enabled() and (self.training or _differentiable(batch, conditions))
        if differentiate and not keep and not torch.compiler.is_compiling():
            lean = self.lean()
            if lean is not None:
                return self._run_lean(lean, batch, neighbors, forces, stress)
        positions, cell = batch.positions, batch.cell
        if differentiate and not positions.requires_grad:
            positions = positions.detach().requires_grad_(True)
        strain, unstrained = None, positions
        once = differentiate and not keep and not torch.compiler.is_compiling()
        with (
            torch.set_grad_enabled(differentiate or torch.is_grad_enabled()),
            first_derivatives_only() if once else nullcontext(),
        ):
            if stress:
                positions, cell, strain = _strained(batch, positions)
            out = self.predict(Structure(batch, neighbors, positions, cell), **conditions)
            if not differentiate:
                return out
            # Summed: for gradients of several values torch loads sympy, which filters warnings
            target = out[self.differentiated].sum()
        inputs = [unstrained] if strain is None else [unstrained, strain]
        grads = torch.autograd.grad(target, inputs, create_graph=keep, materialize_grads=True)
        if not keep:
            out = {name: value.detach() for name, value in out.items()}
        if forces:
            out["forces"] = -grads[0]
        if strain is not None and batch.cell is not None:
            volume = torch.linalg.det(batch.cell).abs().reshape(-1, 1, 1)
            symmetric = 0.5 * (grads[1] + grads[1].transpose(1, 2))
            out["stress"] = symmetric / volume
        return out

    @explained
    def hessian(
        self, batch: AtomicBatch, neighbors: NeighborList | None = None, **conditions: Any
    ) -> Tensor | list[Tensor]:
        """The Hessian of the energy by positions, ``d²E / dR_ia dR_jb``, ``[N, 3, N, 3]``.

        Row by row, by 3N backward passes through the gradient, so that memory is that of one; the
        mean of it and its transpose, which differ by rounding. For a model of something else than
        energies it is the Hessian of the sum that forces are derivatives of. It works in training
        and evaluation, under ``torch.no_grad()`` too, and cannot be differentiated further.

        Args:
            batch: systems of the model's type and on its device.
            neighbors: a list made elsewhere, with at least the model's cutoff.
            conditions: what else the model's prediction depends on.

        Returns:
            The Hessian of one system, ``[N, 3, N, 3]``, in the type of the positions; for a batch
            of several systems a list of theirs, ``[n, 3, n, 3]`` each.

        Raises:
            TypeError, ValueError: as :meth:`forward`.
            RuntimeError: under ``torch.inference_mode()`` or a transform of ``torch.func``.

        >>> import torch, molkern
        >>> model = molkern.models.SchNet(16, 16, 2).double()
        >>> water = molkern.AtomicBatch(
        ...     torch.tensor([8, 1, 1]),
        ...     torch.tensor([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]).double(),
        ... )
        >>> model.hessian(water).shape
        torch.Size([3, 3, 3, 3])
        """
        self._refuse_modes("Hessians", batch)
        self.check(batch, neighbors)
        self.check_conditions(conditions)
        batch, neighbors = _ordinary(batch), _ordinary(neighbors)
        if neighbors is None:
            neighbors = self.neighbors(batch)
        positions = batch.positions.detach().requires_grad_(True)
        with torch.enable_grad(), constant_weights():
            structure = Structure(batch, neighbors, positions, batch.cell)
            energy = self.predict(structure, **conditions)[self.differentiated].sum()
            (gradient,) = torch.autograd.grad(
                energy, positions, create_graph=True, materialize_grads=True
            )
        made = _hessians(gradient, positions, batch.system_ptr.tolist())
        return made[0] if batch.batch is None else made

    def lean(self) -> Any | None:
        """The same energy and forces without a tape, where the model has that as it is set."""
        return None

    def make_lean(self, grid: SplineGrid, tables: list[Tensor]) -> Any | None:
        """What :meth:`lean` gives for splines' tables, or None; made once for them."""
        return None

    def _run_lean(
        self, lean: Any, batch: AtomicBatch, neighbors: NeighborList, forces: bool, stress: bool
    ) -> dict[str, Tensor]:
        if stress:
            volumes = _volumes(batch)
        # No operator records a graph: asking each whether to takes time
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd():
            energy, grad, grad_cell = lean.evaluate(
                *lean.inputs(batch, neighbors), need_cell=stress, padded=neighbors.padded
            )
            out = {"energy": energy}
            if forces:
                out["forces"] = -grad
            if stress:
                # By a strain x → x (1 + ε) of positions and cells
                strain = _outer(batch, _arms(batch, batch.positions), grad)
                if neighbors.shifts is not None and batch.cell is not None:
                    # Not a matrix product, which autocast would round
                    strain = strain + (batch.cell.unsqueeze(3) * grad_cell.unsqueeze(2)).sum(1)
                symmetric = 0.5 * (strain + strain.transpose(1, 2))
                out["stress"] = symmetric / volumes.reshape(-1, 1, 1)
        return out

    def _refuse_modes(self, what: str, batch: AtomicBatch) -> None:
        """Refuses derivatives where torch computes none, or only by other means.

        Raises:
            RuntimeError: naming what to use instead.
        """
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                f"{what} are derivatives, which torch.inference_mode() forbids: use "
                "torch.no_grad(), they are computed all the same"
            )
        if is_transformed():
            raise RuntimeError(
                f"{what} are derivatives by torch.autograd, which torch.func's transforms do not "
                "let in: there, take torch.func.grad or jacrev of the model's energy; or leave "
                "torch.func: torch.autograd.grad(..., is_grads_batched=True), "
                "torch.autograd.functional.hessian and vhp work, and model.hessian(batch) is the "
                "Hessian of the energy"
            )
        if in_forward_mode():
            name = f"{type(self).__name__} with forces or stress"
            refuse_forward_mode(name, batch.positions, batch.cell, *self.parameters())

    @explained
    def check(self, batch: AtomicBatch, neighbors: NeighborList | None = None) -> None:
        """Refuses a batch or list that the model cannot take, with :meth:`forward`'s errors."""
        weight = network_tensor(self)
        if not isinstance(batch, AtomicBatch):
            raise TypeError("batch must be a molkern.AtomicBatch")  # explained by its kind
        if weight.dtype not in TOLERANCES:
            raise TypeError(
                f"the model's weights are {weight.dtype}, for which there are no kernels: use "
                "model.float() or model.double()"
            )
        if batch.positions.dtype != weight.dtype:
            raise TypeError(
                f"positions are {batch.positions.dtype} but the model is {weight.dtype}: use "
                f"batch.to(dtype={weight.dtype}) or model.to({batch.positions.dtype})"
            )
        if batch.positions.device != weight.device:
            raise ValueError(
                f"the batch is on {batch.positions.device} but the model is on {weight.device}: "
                f"use batch.to({str(weight.device)!r}) or model.to(...)"
            )
        self._check_numbers(batch)
        if neighbors is not None:
            self._check_list(batch, neighbors)

    def check_conditions(self, conditions: Mapping[str, Any]) -> None:
        """Refuses conditions by names that the prediction does not depend on."""
        for name in conditions:
            if name not in self.conditions:
                known = ", ".join(self.conditions) or "nothing else"
                raise TypeError(
                    f"{type(self).__name__} does not know {name!r}: besides atoms it depends on "
                    f"{known}"
                )

    def _check_list(self, batch: AtomicBatch, neighbors: NeighborList) -> None:
        if neighbors.num_atoms != batch.num_atoms:
            raise ValueError(
                f"the neighbor list is for {neighbors.num_atoms} atoms, the batch has "
                f"{batch.num_atoms}"
            )
        if neighbors.num_systems != batch.num_systems:
            raise ValueError(
                f"the neighbor list is for {neighbors.num_systems} system(s), the batch has "
                f"{batch.num_systems}: pass `batch` to neighbor_list or from_edge_index"
            )
        periodic = batch.pbc is not None and bool(batch.pbc.any())
        if neighbors.shifts is None and periodic:
            raise ValueError(
                "the batch is periodic but the neighbor list has no shifts: make the list with the "
                "cell, or leave the cell out of the batch"
            )
        # A search would have refused these; on a GPU looking would wait for it.
        if is_hidden(batch.positions):
            pass  # by vmap: nothing can depend on their values
        elif batch.positions.is_cpu and not bool(batch.positions.isfinite().all()):
            atom = int((~batch.positions.isfinite()).any(1).nonzero()[0])
            raise ValueError(
                f"the position {batch.positions[atom].tolist()} of atom {atom} is NaN or infinite"
            )
        if not is_recorded(batch.positions):
            neighbors._check_search()  # a list that overflowed has no edges
        if batch.moved_by_cells and batch.positions.is_cpu:
            self._check_moved(batch, neighbors)
        self._check_reach(batch, neighbors)

    @staticmethod
    def _check_moved(batch: AtomicBatch, neighbors: NeighborList) -> None:
        """Refuses a list of the positions as they were, whose edges would be longer than it."""
        if neighbors.cutoff is None or neighbors.padded or neighbors.num_edges == 0:
            return
        with torch.no_grad():
            longest = float(neighbors.distances(batch.positions, batch.cell).max())
        if longest > 1.01 * neighbors.cutoff:
            raise ValueError(
                f"the neighbor list of cutoff {neighbors.cutoff} has an edge of {longest:.4g} in "
                "this batch, whose atoms were moved by whole cells when it became float32: make "
                "the list of this batch, or give positions within their cells"
            )

    def _check_reach(self, batch: AtomicBatch, neighbors: NeighborList) -> None:
        """Refuses a list that leaves out edges that the model needs."""
        self._require_cutoff(neighbors, self.list_cutoff(batch))

    @staticmethod
    def _require_cutoff(neighbors: NeighborList, needed: float) -> None:
        if neighbors.cutoff is not None and neighbors.cutoff < needed:
            raise ValueError(
                f"the neighbor list's cutoff {neighbors.cutoff} is shorter than the model's "
                f"{needed}: make it with neighbor_list(positions, {needed}, ...)"
            )

    @checked
    def save(self, path: str | Path) -> None:
        """Writes weights and configuration to a safetensors file for :func:`molkern.models.load`.

        Raises:
            OSError: naming a file that cannot be written; an old one is as it was.
        """
        write_whole(Path(path), self.to_bytes())

    def to_bytes(self) -> bytes:
        """What :meth:`save` writes.

        Raises:
            ValueError: a class that does not remember its arguments, or others than JSON has.
        """
        kind = type(self).__name__
        try:
            description: dict[str, Any] = {"format": FORMAT, "model": kind, "config": self._config}
        except AttributeError as error:
            raise ValueError(
                f"{kind} does not keep its arguments, so that nothing could be made of a file: "
                "call self.remember(...) with them in its constructor"
            ) from error
        if self.elements is not None:
            description["elements"] = list(self.elements)
        try:
            text = json.dumps(description)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{kind} was made with arguments other than plain JSON values: {error}"
            ) from error
        # Copies: weights that are shared are written for each of their names
        plain = torch.contiguous_format
        tensors = {k: v.detach().clone(memory_format=plain) for k, v in self.state_dict().items()}
        metadata = {"molkern": text}
        return safetensors.torch.save(tensors, metadata=metadata)


def _plain(value: Any) -> Any:
    """NumPy's numbers and those in lists as Python's, which files take."""
    if isinstance(value, np.generic):
        return value.item()
    return [_plain(item) for item in value] if type(value) is list else value


def is_called_plainly(model: nn.Module) -> bool:
    """Whether calling a model checks its arguments and computes, and nothing else happens.

    Not where a subclass or an instance has a ``forward`` of its own, nor where there are hooks on
    the model: then :meth:`Potential.compute` alone would leave something out.
    """
    return type(model).forward is Potential.forward and is_plain(model, type(model))


def _hessians(gradient: Tensor, positions: Tensor, first_atoms: list[int]) -> list[Tensor]:
    """For each system the derivatives of its gradient, symmetrised: ``[n, 3, n, 3]``.

    A backward pass gives one row of every system: they do not depend on each other.
    """
    spans = list(pairwise(first_atoms))
    made = [positions.new_zeros(stop - start, 3, stop - start, 3) for start, stop in spans]
    if not gradient.requires_grad:  # of what does not depend on the positions
        return made
    for atom in range(max((stop - start for start, stop in spans), default=0)):
        rows = [(k, start, stop) for k, (start, stop) in enumerate(spans) if atom < stop - start]
        for axis in range(3):
            direction = torch.zeros_like(positions)
            direction[[start + atom for _, start, _ in rows], axis] = 1.0
            with torch.enable_grad():  # as one number, see Potential.compute
                along = (gradient * direction).sum()
            (row,) = torch.autograd.grad(
                along, positions, retain_graph=True, materialize_grads=True
            )
            for k, start, stop in rows:
                made[k][atom, axis] = row[start:stop]
    return [0.5 * (h + h.permute(2, 3, 0, 1)) for h in made]


def _ordinary(value: Any) -> Any:
    """A batch or list whose tensors can be kept for a backward pass, unlike inference tensors."""
    if value is None or torch.is_inference_mode_enabled():
        return value
    kept = vars(value)
    if not any(isinstance(v, Tensor) and v.is_inference() for v in kept.values()):
        return value
    if isinstance(value, AtomicBatch):
        return value._mapped(torch.clone)
    return value._with(**tree_map_only(Tensor, torch.clone, dict(kept)))


@checked
def _check_flags(forces: bool, stress: bool) -> None:
    """Refuses what would count as True."""


def _differentiable(batch: AtomicBatch, conditions: Mapping[str, Any]) -> bool:
    """Whether a gradient by positions, cells or conditions may be asked for, of forces too."""
    given = batch.positions, batch.cell, *conditions.values()
    return any(isinstance(value, Tensor) and value.requires_grad for value in given)


def _volumes(batch: AtomicBatch) -> Tensor:
    """Volumes of the cells, ``[B]``, none of which is zero."""
    if batch.cell is None:
        raise ValueError("stress needs a cell: give the batch its lattice vectors")
    volumes = torch.linalg.det(batch.cell.detach()).abs()
    if not is_recorded(volumes) and bool((volumes == 0).any()):
        system = int((volumes == 0).nonzero()[0])
        raise ValueError(f"stress needs cells with a volume; that of system {system} is 0")
    return volumes


def _outer(batch: AtomicBatch, a: Tensor, b: Tensor) -> Tensor:
    """``Σ_i a_i ⊗ b_i`` over the atoms of each system, ``[B, 3, 3]``."""
    products = a.unsqueeze(2) * b.unsqueeze(1)
    return segment_sum(products.reshape(-1, 9), batch.system_ptr).reshape(-1, 3, 3)


def _arms(batch: AtomicBatch, positions: Tensor) -> Tensor:
    """Positions from the first atom of each system, about which the system is strained.

    About any point the stress is the same; far from it rounded forces, whose sum is not quite zero,
    would count.
    """
    fixed = positions.detach()
    if batch.batch is None:
        return positions - fixed[:1]
    if batch.num_atoms == 0:
        return positions
    first = batch.system_ptr[:-1].long().clamp(max=batch.num_atoms - 1)
    return positions - fixed[first][batch.batch]


def _strained(batch: AtomicBatch, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positions and cells under a strain of zero, and the strain."""
    _volumes(batch)
    assert batch.cell is not None
    identity = torch.eye(3, dtype=positions.dtype, device=positions.device)
    strain = torch.zeros_like(batch.cell).requires_grad_(True)
    deformation = identity + strain
    with torch.autocast(positions.device.type, enabled=False):  # places are not to be rounded
        arms = _arms(batch, positions)
        if batch.batch is None:
            moved = positions + arms @ strain[0]
        else:
            moved = positions + torch.einsum("na,nab->nb", arms, strain[batch.batch])
        return moved, batch.cell @ deformation, strain
