"""A TorchSim model around a potential."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch_sim import SimState
from torch_sim.models.interface import ModelInterface

from ..models import Potential
from ..nn.precision import network_tensor
from ..ops._arguments import checked
from .exclusive import Exclusive
from .kept import KeptEvaluators


class TorchSimModel(ModelInterface):
    """Energies, forces and stress of a molkern model for TorchSim, in eV and Å.

    Evaluators are kept for the batches that were seen last, so that neighbor lists are reused
    where an autobatcher changes the batch.

    Args:
        model: the potential, on its device and of its type; put in evaluation mode.
        stress: whether stress is computed. States that are not periodic have a stress of zero.
        skin: how much farther than the model's cutoff neighbor lists reach, in Å, see
            :class:`molkern.md.Evaluator`.
        energy_unit: the model's unit of energy in eV (0.0433641 for kcal/mol).
        conditions: what else the model's prediction depends on (``total_charge``, say), the same
            for every batch.
        dtype: the type of states and results; by default the model's. With float64 a float32
            model is integrated in float64, which is as good at any distance from the origin; a
            state of float32 is rounded by its distance before molkern sees it.
        memory_scales_with: what TorchSim's autobatchers count: ``"n_atoms"``, which serves every
            state, or ``"n_atoms_x_density"``, nearer to the memory of crystals of different
            densities; states without a volume have no density (TorchSim divides by zero). TorchSim
            itself asks for it in ``optimize(autobatcher=True)`` only: other autobatchers are to be
            made with ``memory_scales_with=model.memory_scales_with``.
        kept: evaluators to keep.

    Raises:
        ValueError: an unknown ``memory_scales_with``, a negative skin, ``kept`` below 1, a model of
            something other than energies.

    >>> import ase.build, molkern
    >>> import torch_sim as ts
    >>> model = molkern.models.SchNet(16, 16, 2, cutoff=5.0)
    >>> wrapped = molkern.md.TorchSimModel(model)
    >>> molecules = [ase.build.molecule(name) for name in ("H2O", "CH3CH2OH")]
    >>> state = ts.initialize_state(molecules, wrapped.device, wrapped.dtype)
    >>> out = wrapped(state)
    >>> out["energy"].shape, out["forces"].shape
    (torch.Size([2]), torch.Size([12, 3]))
    """

    @checked
    def __init__(
        self,
        model: Potential,
        *,
        stress: bool = True,
        skin: float = 0.5,
        energy_unit: float = 1.0,
        conditions: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        memory_scales_with: str = "n_atoms",
        kept: int = 8,
    ):
        super().__init__()
        if memory_scales_with not in ("n_atoms_x_density", "n_atoms"):
            raise ValueError(
                "memory_scales_with must be 'n_atoms_x_density' or 'n_atoms', got "
                f"{memory_scales_with!r}"
            )
        self.model = model.eval()
        self.energy_unit = energy_unit
        self._own_dtype = dtype
        self._compute_forces, self._compute_stress = True, stress
        self._memory_scales_with = memory_scales_with
        #: The evaluators that are kept, the last used first.
        self.kept = KeptEvaluators(self.model, kept, skin=skin, **(conditions or {}))
        self._exclusive = Exclusive("threads that run at the same time need a TorchSimModel each")

    def __getstate__(self) -> dict[str, Any]:
        # Copies share no evaluators
        own = {"kept": copy.copy(self.kept), "_exclusive": copy.copy(self._exclusive)}
        return {**self.__dict__, **own}

    @property
    def device(self) -> torch.device:
        """Where the potential is now."""
        return network_tensor(self.model).device

    @property
    def dtype(self) -> torch.dtype:
        """Of states: as it was given, or the potential's now."""
        return self._own_dtype or network_tensor(self.model).dtype

    @property
    def compute_stress(self) -> bool:
        """Whether stress is computed; can be set."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, compute_stress: bool) -> None:
        self._compute_stress = compute_stress

    def forward(self, state: SimState | dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        """Energy ``[B]`` in eV, forces ``[N, 3]`` in eV/Å and stress ``[B, 3, 3]`` in eV/Å³.

        Args:
            state: positions ``[N, 3]``, cells ``[B, 3, 3]`` with lattice vectors as columns,
                numbers and system indices ``[N]``, in Å; a dictionary works too.
            kwargs: refused by name.

        Returns:
            Detached tensors of the state's type, which later calls leave alone.

        Raises:
            ValueError: positions or cells that are not finite, atomic numbers that the model has
                no table for, a stress of cells without a volume.
            TypeError: arguments beyond the state.
            RuntimeError: another thread is using this model.
        """
        if kwargs:
            raise TypeError(f"TorchSimModel takes a state only, got also {sorted(kwargs)}")
        with self._exclusive:
            return self._evaluate(state)

    def _evaluate(self, state: SimState | dict[str, Any]) -> dict[str, Tensor]:
        if isinstance(state, dict):
            masses = state.get("masses", torch.ones_like(state["positions"][:, 0]))
            state = SimState(**{**state, "masses": masses})
        count = state.cell.shape[0]
        pbc = torch.as_tensor(state.pbc, device=state.positions.device).bool().expand(count, 3)
        periodic = bool(pbc.any())
        # Columns there, rows here
        cell = state.cell.transpose(1, 2) if periodic else None
        evaluator = self.kept.find(
            state.atomic_numbers,
            state.positions,
            cell,
            pbc if periodic else None,
            state.system_idx,
            count,
        )
        stress = self._compute_stress and periodic
        out = evaluator(state.positions, cell, stress=stress)
        names = ["energy", "forces", "stress"] if stress else ["energy", "forces"]
        results = {name: self._own(out[name], state.positions) for name in names}
        if self._compute_stress and not stress:
            results["stress"] = torch.zeros_like(state.cell)
        return results

    def _own(self, value: Tensor, like: Tensor) -> Tensor:
        """In eV, of the state's type: a copy, as the evaluator writes over its own."""
        return (value * self.energy_unit).to(like.device, like.dtype)
