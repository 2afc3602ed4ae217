"""From predictions to forces and stress; saving and loading of models."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..graph import AtomicBatch, NeighborList
from ..ops._library import first_derivatives_only
from .structure import Structure

FORMAT = 1


class Potential(nn.Module):
    """Base of all models: differentiates what a model predicts for each system.

    A model derives from it, sets ``cutoff`` and ``num_elements``, and defines :meth:`predict`. Its
    constructor arguments are kept by :meth:`remember`, so that :meth:`save` writes a file that
    :func:`load` can rebuild the model from.
    """

    cutoff: float
    num_elements: int
    config: dict[str, Any]
    #: The prediction, ``[B]`` or ``[B, T]``, whose sum forces and stress are derivatives of.
    differentiated = "energy"

    def remember(self, **config: Any) -> None:
        """Keeps the constructor's arguments, which must be plain JSON values."""
        self.config = config

    def predict(self, structure: Structure, **conditions: Any) -> dict[str, Tensor]:
        """What the model predicts, by name; ``"energy"`` ``[B]``, summed in float64, for most."""
        raise NotImplementedError(f"{type(self).__name__} does not define predict")

    def list_cutoff(self, batch: AtomicBatch) -> float:
        """How far a neighbor list must reach for this batch; for most models their cutoff."""
        return self.cutoff

    def neighbors(self, batch: AtomicBatch) -> NeighborList:
        """The neighbor list that the model needs of a batch."""
        return batch.neighbors(self.list_cutoff(batch))

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
            TypeError: the batch's type is not the model's.
            ValueError: atomic numbers outside the model's table, positions that are not finite
                (with a list given, on the CPU only), another device, a neighbor list of a shorter
                cutoff, of other atoms or beyond its capacity, or a stress without cells.
            RuntimeError: forces or stress under ``torch.inference_mode()``.
        """
        differentiate = forces or stress
        if not torch.compiler.is_compiling():
            self._check(batch, neighbors)
            if differentiate and torch.is_inference_mode_enabled():
                raise RuntimeError(
                    "forces and stress are derivatives, which torch.inference_mode() forbids: "
                    "use torch.no_grad(), they are computed all the same"
                )
        if neighbors is None:
            neighbors = self.neighbors(batch)
        positions, cell = batch.positions, batch.cell
        keep = self.training and torch.is_grad_enabled()
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
        target = out[self.differentiated]
        inputs = [unstrained] if strain is None else [unstrained, strain]
        grads = torch.autograd.grad(
            target, inputs, torch.ones_like(target), create_graph=keep, materialize_grads=True
        )
        if not keep:
            out = {name: value.detach() for name, value in out.items()}
        if forces:
            out["forces"] = -grads[0]
        if strain is not None and batch.cell is not None:
            volume = torch.linalg.det(batch.cell).abs().reshape(-1, 1, 1)
            symmetric = 0.5 * (grads[1] + grads[1].transpose(1, 2))
            out["stress"] = symmetric / volume
        return out

    def _check(self, batch: AtomicBatch, neighbors: NeighborList | None) -> None:
        weight = next(self.parameters())
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
        low, high = batch.number_range
        if low < 0 or high >= self.num_elements:
            wrong = low if low < 0 else high
            atom = int((batch.numbers == wrong).nonzero()[0])
            raise ValueError(
                f"atom {atom} has number {wrong}, but the model's table goes from 0 to "
                f"{self.num_elements - 1}"
            )
        if neighbors is not None:
            self._check_list(batch, neighbors)

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
        if batch.positions.is_cpu and not bool(batch.positions.isfinite().all()):
            atom = int((~batch.positions.isfinite()).any(1).nonzero()[0])
            raise ValueError(
                f"the position {batch.positions[atom].tolist()} of atom {atom} is NaN or infinite"
            )
        if not (batch.positions.is_cuda and torch.cuda.is_current_stream_capturing()):
            neighbors.check()  # a list that overflowed has no edges
        self._check_reach(batch, neighbors)

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

    def save(self, path: str | Path) -> None:
        """Writes weights and configuration to one safetensors file, for :func:`load`."""
        description = {"format": FORMAT, "model": type(self).__name__, "config": self.config}
        tensors = {key: value.contiguous() for key, value in self.state_dict().items()}
        metadata = {"molkern": json.dumps(description)}
        safetensors.torch.save_file(tensors, str(path), metadata=metadata)


def _strained(batch: AtomicBatch, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positions and cells under a strain of zero, and the strain."""
    if batch.cell is None:
        raise ValueError("stress needs a cell: give the batch its lattice vectors")
    volumes = torch.linalg.det(batch.cell.detach()).abs()
    if not torch.compiler.is_compiling() and bool((volumes == 0).any()):
        system = int((volumes == 0).nonzero()[0])
        raise ValueError(f"stress needs cells with a volume; that of system {system} is 0")
    identity = torch.eye(3, dtype=positions.dtype, device=positions.device)
    strain = torch.zeros_like(batch.cell).requires_grad_(True)
    deformation = identity + strain
    if batch.batch is None:
        moved = positions @ deformation[0]
    else:
        moved = torch.einsum("na,nab->nb", positions, deformation[batch.batch])
    return moved, batch.cell @ deformation, strain


def load(path: str | Path, device: torch.device | str = "cpu") -> Potential:
    """The model that :meth:`Potential.save` wrote, in evaluation mode.

    Raises:
        ValueError: not a file of molkern's, or one of a newer format.
    """
    from . import MODELS

    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    if "molkern" not in metadata:
        raise ValueError(
            f"{path} holds no molkern model; for other packages' weights see molkern.interop"
        )
    description = json.loads(metadata["molkern"])
    if description["format"] > FORMAT or description["model"] not in MODELS:
        raise ValueError(
            f"{path} holds a {description['model']} in format {description['format']}; this "
            f"version of molkern reads {sorted(MODELS)} up to format {FORMAT}: update molkern"
        )
    tensors = safetensors.torch.load_file(str(path), device=str(device))
    model = MODELS[description["model"]](**description["config"])
    model.to(device=device, dtype=_network_type(tensors))
    model.load_state_dict(tensors)
    return model.eval()


def _network_type(tensors: dict[str, Tensor]) -> torch.dtype:
    """The type of the embedding: references are float64 in every model."""
    return next(value.dtype for key, value in tensors.items() if key.startswith("embedding"))
