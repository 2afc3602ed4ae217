"""Losses: from what a model predicts and the labels to one number, and errors to report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import Dataset, Sample
from ..data.conditions import CONDITIONS
from ..data.dataset import PER_ATOM
from ..data.labels import listed
from ..models import Potential
from .config import Config
from .split import Indices

#: How a kind of loss grows with the error.
POWERS = {"mse": 2, "mae": 1}

#: One Debye in e·Å.
DEBYE = 0.20819433
#: Labels that are outputs of their own, not the model's main prediction.
OUTPUTS = ("forces", "stress", "charges", "dipole")


@dataclass(frozen=True)
class Labels:
    """How labels of the data meet what a model predicts.

    Attributes:
        main: labels of the model's main prediction, one for each of its targets.
        beside: labels that are outputs of their own.
        output: name of the main prediction, ``[B]`` (``[B, T]`` for ``"property"``).
        scaled: whether the main prediction has a scale, mean and references.
    """

    main: tuple[str, ...]
    beside: tuple[str, ...]
    output: str
    scaled: bool

    def predicted(self, out: dict[str, Tensor], name: str) -> Tensor:
        """The prediction for a label, in its shape and unit."""
        if name in self.main:
            found = out[self.output]
            return found[:, self.main.index(name)] if found.dim() == 2 else found
        if name == "mu":  # beside an energy: the length of PhysNet's dipole, in Debye
            return (out["dipole"].square().sum(1) + 1e-12).sqrt() / DEBYE
        return out[name]


def match_labels(config: Config) -> Labels:
    """Finds out which label is which prediction.

    Raises:
        ValueError: a label that the model does not predict, or more than it has predictions for.
    """
    model = config.model["name"]
    prediction = config.model.get("prediction", "energy")
    names = list(config.objective)
    beside = [name for name in names if name in OUTPUTS]
    charges = model == "PhysNet" and prediction == "energy"
    if charges and "mu" in names and len(names) - len(beside) > 1:
        beside.append("mu")
    main = [name for name in names if name not in beside]
    several = model.startswith("DimeNet")
    for name in beside:
        if name in ("charges", "dipole", "mu") and not charges:
            raise ValueError(f"objective.{name}: {model} does not predict {name}, PhysNet does")
    if not main:
        raise ValueError(
            f"objective: {', '.join(beside)} need a label of the model's own beside them, such as "
            "the energy"
        )
    if len(main) > 1 and not several:
        raise ValueError(
            f"objective: {model} predicts one property, not {', '.join(main)}: train DimeNet or "
            "DimeNetPlusPlus on several, or one model for each"
        )
    output = "property" if several else prediction
    return Labels(tuple(main), tuple(beside), output, output in ("property", "energy"))


def needed(labels: Labels, data: Dataset) -> list[str]:
    """Names of all that a batch is to carry: labels, and what predictions depend on."""
    return [*labels.main, *labels.beside, *(name for name in CONDITIONS if name in data.properties)]


def evaluate(model: Potential, labels: Labels, sample: Sample) -> dict[str, Tensor]:
    """What a model predicts of all that the labels are about."""
    given = sample.targets
    conditions = {n: given[n] for n in CONDITIONS if n in model.conditions and n in given}
    return model(
        sample.batch,
        forces="forces" in labels.beside,
        stress="stress" in labels.beside,
        **conditions,
    )


def check_labels(config: Config, labels: Labels, data: Dataset) -> None:
    """Refuses labels that the data lacks or that have another shape than the prediction.

    Raises:
        ValueError: naming the label and what the data have.
    """
    for name in config.objective:
        if name not in data.properties:
            raise ValueError(f"objective.{name}: {data.name} {_lacks(name, data)}")
    shapes = {name: () for name in (*labels.main, "mu", "charges")}
    for name, shape in {**shapes, "forces": (3,), "dipole": (3,), "stress": (3, 3)}.items():
        if name in config.objective and data.properties[name].shape[1:] != shape:
            found = list(data.properties[name].shape[1:])
            raise ValueError(f"objective.{name}: has shape {found} a row, needs {list(shape)}")
    _check_units(config, labels, data)


def _lacks(name: str, data: Dataset) -> str:
    """What data have in place of a label, and how it may be given."""
    text = f"has no such label, it has {', '.join(data.properties)}"
    for label, source in data.sources.items():
        if source == name:
            return f"{text}; its {name} is {label} here"
    if name in data.unused:
        return f"{text}; {name} in its file is nothing that a frame has one number or vector of"
    if data.unused:
        text += f" (and what data.labels may name: {listed(data.unused)})"
    return text


def _check_units(config: Config, labels: Labels, data: Dataset) -> None:
    """Refuses forces and stress in another unit of energy than the label they derive from."""
    name = labels.main[0]
    derived = [part for part in ("forces", "stress") if part in config.objective]
    unit = data.units.get(name)
    same = unit == "eV" or (unit is None and config.data.energy_unit.lower() == "ev")
    if derived and not same:
        raise ValueError(
            f"objective.{name}: {derived[0]} are in {data.units.get(derived[0], 'eV/Å')}, but "
            f"{name} is in {unit or 'the unit of its file'}: name it as the energy, data.labels: "
            f"{{energy: {data.sources.get(name, name)}}}"
        )


@dataclass(frozen=True)
class Part:
    """One label's part of the loss, see :class:`molkern.training.config.Term`."""

    name: str
    weight: float
    squared: bool

    @property
    def per_atom(self) -> bool:
        return self.name in PER_ATOM

    def summed(self, predicted: Tensor, wanted: Tensor) -> Tensor:
        """Sum over systems (or atoms) of what is averaged, float64."""
        error = (predicted.double() - wanted).reshape(len(wanted), -1)
        if self.squared:
            return error.square().sum()
        return error.abs().sum() / error.shape[1]


class Objective:
    """The loss of a configuration.

    Args:
        config: the run's.
        labels: of :func:`match_labels`.
        data, train: what weights of ``1/std`` come from.
    """

    def __init__(self, config: Config, labels: Labels, data: Dataset, train: Indices):
        self.labels, self.config = labels, config
        self.parts = []
        for name, term in config.objective.items():
            weight = term.weight
            if isinstance(weight, str):
                weight = 1 / _deviation(data.rows(name, train), name) ** POWERS[term.loss]
            self.parts.append(Part(name, weight, term.loss == "mse"))

    def loss(self, out: dict[str, Tensor], sample: Sample, systems: int, atoms: int) -> Tensor:
        """This process's part of the loss of a batch of that many systems and atoms, float64.

        The parts of all processes add up to the loss of the whole batch.
        """
        total = torch.zeros((), dtype=torch.float64, device=sample.batch.positions.device)
        for part in self.parts:
            predicted = self.labels.predicted(out, part.name)
            count = atoms if part.per_atom else systems
            summed = part.summed(predicted, sample.targets[part.name])
            total = total + part.weight / count * summed
        if self.config.nonhierarchicality:
            share = sample.batch.num_atoms / atoms
            penalty = out["nonhierarchicality"].double() * share
            total = total + self.config.nonhierarchicality * penalty
        if self.config.charge_error:
            error = out["charge_error"].double().abs().sum() / systems
            total = total + self.config.charge_error * error
        return total

    def errors(self, out: dict[str, Tensor], sample: Sample) -> Tensor:
        """Sums of absolute and squared errors and counts of numbers, ``[labels, 3]``, float64."""
        rows = []
        for part in self.parts:
            wanted = sample.targets[part.name]
            error = self.labels.predicted(out, part.name).detach().double() - wanted
            count = torch.tensor(float(error.numel()), dtype=torch.float64, device=error.device)
            rows.append(torch.stack([error.abs().sum(), error.square().sum(), count]))
        return torch.stack(rows)

    def report(self, sums: Tensor) -> dict[str, float]:
        """Mean absolute and root mean square errors by label, from sums of :meth:`errors`."""
        found = {}
        for part, (absolute, squared, count) in zip(self.parts, sums.tolist(), strict=True):
            found[f"{part.name}_mae"] = absolute / count
            found[f"{part.name}_rmse"] = (squared / count) ** 0.5
        return found


def _deviation(values: NDArray[Any], name: str) -> float:
    found = float(values.std(dtype=np.float64))
    if not found > 0:
        raise ValueError(f"objective.{name}: a weight of 1/std, but all labels are the same")
    return found
