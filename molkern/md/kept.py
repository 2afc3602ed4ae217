"""Evaluators of the batches that were seen last."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor

from ..graph import AtomicBatch
from ..models import Potential
from ..nn.precision import network_tensor
from .evaluator import Evaluator


class KeptEvaluators:
    """Makes an evaluator for a batch that is new and finds it again when the batch comes back.

    Batches are the same if their atomic numbers, systems and periodicity are.

    Args:
        model: the potential, on whose device and of whose type evaluators are.
        most: evaluators kept; beyond that the one that was used longest ago is dropped.
        skin: of their neighbor lists, in the unit of the positions.
        options: of :class:`molkern.md.Evaluator`, conditions among them.

    Raises:
        ValueError: ``most`` below 1, a negative or infinite skin, a model of something other than
            energies.
    """

    def __init__(self, model: Potential, most: int = 1, skin: float = 0.5, **options: Any):
        if most < 1:
            raise ValueError(f"at least 1 evaluator must be kept, got {most}")
        if not 0 <= skin < float("inf"):
            raise ValueError(f"skin must not be negative and must be finite, got {skin}")
        require_energy(model)
        self.model, self.most, self.options = model, most, {"skin": skin, **options}
        self._known: list[tuple[int, list[Tensor | None], Evaluator]] = []

    def __getstate__(self) -> dict[str, Any]:
        # Copies make evaluators of their own, whose memory is no data
        return {**self.__dict__, "_known": []}

    def check(self, numbers: Tensor) -> None:
        """Refuses atoms that the model does not know, and conditions, before any positions.

        Raises:
            ValueError, TypeError: as the model does.
        """
        weight = network_tensor(self.model)
        numbers = numbers.to(weight.device)
        positions = torch.zeros(len(numbers), 3, dtype=weight.dtype, device=weight.device)
        self.model.check(AtomicBatch(numbers, positions))
        known = inspect.signature(Evaluator).parameters
        self.model.check_conditions({k: v for k, v in self.options.items() if k not in known})

    @property
    def evaluators(self) -> list[Evaluator]:
        """Those that are kept, the last used first."""
        return [evaluator for _, _, evaluator in self._known]

    def find(
        self,
        numbers: Tensor,
        positions: Tensor,
        cell: Tensor | None = None,
        pbc: Tensor | None = None,
        system: Tensor | None = None,
        num_systems: int = 1,
    ) -> Evaluator:
        """The evaluator for such atoms; all arguments may be on another device.

        Args:
            numbers: ``[N]``.
            positions: ``[N, 3]``, of any floating type, which are to be evaluated next.
            cell: ``[B, 3, 3]``, lattice vectors as rows, and
            pbc: ``[B, 3]``; both None without cells.
            system: system of each atom, ``[N]``; None for a single system.
            num_systems: B.

        Raises:
            ValueError: as the model does for numbers that it has no table for.
        """
        key = [numbers, pbc, system]
        for place, (systems, known, evaluator) in enumerate(self._known):
            fits = systems == num_systems and evaluator.serves(self.model)
            if fits and all(map(_same, known, key)):
                self._known.insert(0, self._known.pop(place))
                return evaluator
        weight = network_tensor(self.model)
        wide: dict[str, Any] = {"device": weight.device, "dtype": torch.float64}
        batch = AtomicBatch(
            numbers.to(weight.device),
            positions.detach().to(**wide),
            None if system is None else system.to(weight.device),
            None if cell is None else cell.detach().to(**wide),
            None if pbc is None else pbc.to(weight.device),
            num_systems,
        ).to(dtype=weight.dtype)
        evaluator = Evaluator(self.model, batch, **self.options)
        # Engines write into their own memory
        copies = [None if value is None else value.clone() for value in key]
        self._known = [(num_systems, copies, evaluator), *self._known[: self.most - 1]]
        return evaluator


def require_energy(model: Potential) -> None:
    """Refuses, with a ValueError, models whose forces are not derivatives of an energy."""
    # DimeNet's property is an energy where it is one number
    if model.differentiated != "energy" and model.config.get("num_targets") != 1:
        raise ValueError(
            f"molecular dynamics needs a model of energies, but this {type(model).__name__} "
            f"predicts {model.differentiated!r}"
        )


def finite_energy(energy: Tensor) -> float:
    """A single system's energy, for engines that would go on with anything.

    Raises:
        RuntimeError: one that is NaN or infinite.
    """
    value = float(energy)
    if not math.isfinite(value):
        raise RuntimeError(
            f"the energy is {value}: look at the model's weights, and at atoms that lie upon each "
            "other or fly apart"
        )
    return value


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and torch.equal(a, b.to(a))
