"""A potential for LAMMPS's ML-IAP package, through its unified Python interface."""

from __future__ import annotations

import pickle
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..elements import atomic_numbers
from ..files import write_whole
from ..graph import AtomicBatch, NeighborList
from ..models import Potential
from ..models.potential import is_called_plainly
from ..nn.precision import network_tensor
from ..ops._arguments import checked
from ..ops._library import as_tensor
from .kept import finite_energy, require_energy
from .lammps_units import energy_per_ev
from .per_atom import EdgeDerivatives, GivenVectors, edge_derivatives

#: Å. Edges are told apart by their vectors on a grid; one that lies on a boundary of one grid up to
#: rounding does not on the next, as no ratio of them is rational.
_GRIDS = (2.0**-11.5, 3.0**-7.25, 5.0**-4.75)


class MLIAPMolkern:
    """A molkern model as ``pair_style mliap unified`` of LAMMPS, on one process.

    For LAMMPS built with ML-IAP and its Python side, and with KOKKOS where boxes are periodic:
    messages need the neighbors of ghost atoms too, which LAMMPS does not list. On one process every
    ghost is an image of an atom, and KOKKOS's exchange tells which. Pairs are LAMMPS's own, so all
    models are cut off as in periodic systems. LAMMPS gets energies of the atoms and their sum,
    forces, and the virial.

    Args:
        model: the potential, of lengths in Å; put in evaluation mode.
        elements: chemical symbols that ``pair_coeff`` may name.
        units: LAMMPS's unit style, ``"metal"`` or ``"real"``.
        energy_unit: the model's unit of energy in eV (0.0433641 for kcal/mol).
        conditions: what else the model's prediction depends on (``total_charge``, say).

    Raises:
        ValueError: another unit style, a string that is no chemical symbol, an element that the
            model does not know, a model that sums over all pairs (PhysNet without ``lr_cut``) or
            of something other than energies.

    Save it, and let LAMMPS read it with ``pair_style mliap unified model.pickle 0`` and
    ``pair_coeff * * C H O``:

    >>> import molkern
    >>> model = molkern.models.SchNet(16, 16, 2, cutoff=5.0)
    >>> unified = molkern.md.MLIAPMolkern(model, ["H", "C", "O"])
    >>> unified.save("model.pickle")  # doctest: +SKIP
    >>> unified.rcutfac
    2.5
    """

    #: What LAMMPS asks of a unified model; there are no descriptors.
    ndescriptors = 1
    nparams = 1

    @checked
    def __init__(
        self,
        model: Potential,
        elements: Iterable[str],
        *,
        units: str = "metal",
        energy_unit: float = 1.0,
        conditions: dict[str, Any] | None = None,
    ):
        require_energy(model)
        _require_own_call(model)
        self.interface: Any = None  # LAMMPS sets it
        self.model, self.conditions = model.eval(), conditions or {}
        self.element_types = list(elements)
        self.scale = energy_unit * energy_per_ev(units)
        self.numbers = torch.tensor(atomic_numbers(self.element_types), device="cpu")
        # LAMMPS takes the cutoff as a factor of twice an element's radius of 1
        positions = self._weight.new_zeros(len(self.numbers), 3)
        batch = _boxed(self.numbers.to(self._weight.device), positions)
        self.model.check(batch)
        self.rcutfac = 0.5 * self.model.list_cutoff(batch)

    @property
    def _weight(self) -> Tensor:
        return network_tensor(self.model)

    def save(self, path: str | Path) -> None:
        """Writes the file that ``pair_style mliap unified`` reads: a pickle with the weights.

        LAMMPS runs whatever code such a file holds: take them from people you trust. molkern
        itself reads none.

        Raises:
            ValueError: a name that ends in .pt or .pth, which LAMMPS reads in another way.
            OSError: naming a file that cannot be written; an old one is as it was.
        """
        if Path(path).suffix in (".pt", ".pth"):
            raise ValueError(
                f"LAMMPS reads {path} with torch.load, which refuses objects: name it "
                f"{Path(path).with_suffix('.pickle')}"
            )
        write_whole(Path(path), pickle.dumps(self))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "interface": None}

    def compute_descriptors(self, data: Any) -> None:
        """Nothing: called by LAMMPS."""

    def compute_gradients(self, data: Any) -> None:
        """Nothing: called by LAMMPS."""

    def compute_forces(self, data: Any) -> None:
        """Energy and pair forces of LAMMPS's present pairs: called by LAMMPS.

        Raises:
            RuntimeError: ghosts of another process, ghosts where LAMMPS runs without KOKKOS, atoms
                that belong to another pair style, pairs that are not listed from both ends, an
                energy that is not finite.
        """
        if data.npairs == 0 and data.nlistatoms == 0:
            return
        _require_own_call(self.model)
        vectors = torch.as_tensor(data.rij, device=self._weight.device).double().reshape(-1, 3)
        graph = _with_vectors(self._edges(data), vectors, self._weight.dtype, data.nlistatoms)
        found = self._evaluate(graph, data)
        gradient = found.gradient
        # Of a pair j, i LAMMPS adds this to the force on i and takes it from that on j
        pair_forces = torch.empty_like(gradient, dtype=torch.float64)
        pair_forces[graph.permutation] = self.scale * gradient.double()
        # Waits for a GPU, which LAMMPS does not
        data.energy = self.scale * finite_energy(found.energy.sum())
        self._set_energies(data, found.atomic)
        if data.npairs:
            data.update_pair_forces(pair_forces if pair_forces.is_cuda else pair_forces.numpy())

    def _evaluate(self, graph: GivenVectors, data: Any) -> EdgeDerivatives:
        """Energies and their gradient by the vectors of the edges, in the model's unit."""
        count = data.nlistatoms
        elements = torch.as_tensor(data.elems, device=self._weight.device)[:count].long()
        numbers = self.numbers.to(elements.device)[elements]
        batch = _boxed(numbers, self._weight.new_zeros(count, 3))
        return edge_derivatives(self.model, batch, graph, self.conditions)

    def _set_energies(self, data: Any, energies: Tensor | None) -> None:
        """Energies of the atoms, for ``compute pe/atom``: not a number where there are none."""
        with suppress(AttributeError, ValueError):  # not asked for
            given = as_tensor(data.eatoms)[: data.nlistatoms]
            if energies is None:
                given.fill_(torch.nan)
            else:
                given.copy_(self.scale * energies)

    def _edges(self, data: Any) -> Tensor:
        """Atoms j and i of each pair, ``[2, E]``, with a ghost's atom in its place."""
        count, device = data.nlistatoms, self._weight.device
        receivers = torch.as_tensor(data.pair_i, device=device).long()
        senders = torch.as_tensor(data.pair_j, device=device).long()
        if data.ntotal > count:
            senders = self._owners(data).to(device)[senders]
        edge_index = torch.stack([senders, receivers])
        if edge_index.numel() and int(edge_index.max()) >= count:
            raise RuntimeError(
                f"LAMMPS lists {count} atoms of this pair style, but a pair has atom "
                f"{int(edge_index.max())}: all atoms must belong to it, without pair_style hybrid"
            )
        return edge_index

    def _owners(self, data: Any) -> Tensor:
        """The atom that each atom or ghost is an image of, ``[ntotal]``."""
        if not hasattr(data, "forward_exchange"):
            raise RuntimeError(
                f"there are {data.ntotal - data.nlistatoms} ghost atoms, whose atoms LAMMPS tells "
                "only with KOKKOS: start it with -k on -sf kk, of July 2025 or newer, or use "
                "molkern.md.LAMMPSFix"
            )
        token = float(secrets.randbits(50))
        sent = torch.full((data.ntotal, 2), -1.0, dtype=torch.float64, device=self._weight.device)
        sent[:, 0] = torch.arange(data.ntotal, device=sent.device)
        sent[: data.nlistatoms, 1] = token
        received = sent.clone()
        data.forward_exchange(sent, received, 2)
        if bool((received[:, 1] != token).any()):
            raise RuntimeError(
                "there are ghosts of atoms on another process, but molkern's models pass messages "
                "within one: start LAMMPS on one process (mpirun -n 1)"
            )
        return received[:, 0].long()


def _require_own_call(model: Potential) -> None:
    """Refuses, with a ValueError, models that do more in a call than to predict an energy."""
    computes = type(model).compute is Potential.compute and "compute" not in model.__dict__
    if not computes or not is_called_plainly(model):
        raise ValueError(
            f"this {type(model).__name__} has hooks or its own forward or compute, which "
            "pair_style mliap does not call: take them away, or use molkern.md.LAMMPSFix"
        )


def _with_vectors(
    edge_index: Tensor, vectors: Tensor, dtype: torch.dtype, count: int
) -> GivenVectors:
    """A symmetric graph of such edges, whose vectors, float64, it holds in a model's type.

    Raises:
        RuntimeError: an edge without its reverse.
    """
    for size in _GRIDS:
        # Images are told apart by these numbers, as they are by whole cells elsewhere
        labels = (vectors / size).round().int()
        graph = NeighborList.from_edge_index(edge_index, count, labels)
        if graph.reverse is not None:
            return GivenVectors.of(graph, vectors[graph.permutation].to(dtype))
    raise RuntimeError(
        "LAMMPS lists a pair from one end only: molkern's models need all pairs from both, with "
        "one cutoff for all elements"
    )


def _boxed(numbers: Tensor, positions: Tensor) -> AtomicBatch:
    """Atoms of a periodic system, whose box does not matter."""
    return AtomicBatch(
        numbers, positions, cell=torch.eye(3, dtype=positions.dtype, device=positions.device)
    )
