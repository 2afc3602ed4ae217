"""What a model starts from: references of atoms, and the scale and mean of its labels."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data import Dataset
from ..models import MODELS, Potential
from .config import Config
from .objective import Labels
from .split import Indices

Array = NDArray[np.float64]


@dataclass
class Standard:
    """Of one label: ``t = Σ_i (scale · y_i + mean + reference[Z_i])``, or the mean over atoms.

    Attributes:
        scale, mean: in the label's unit.
        reference: by atomic number, ``[Z]``; None for zero.
    """

    scale: float = 1.0
    mean: float = 0.0
    reference: Array | None = None


def standards(config: Config, labels: Labels, data: Dataset, train: Indices) -> list[Standard]:
    """One for each of the model's main labels, from the training data.

    Raises:
        ValueError: a way of standardising that does not fit the labels, the readout or the data.
    """
    if not labels.scaled:
        return [Standard() for _ in labels.main]
    used = data.subset(train)
    kinds = _readouts(config, len(labels.main))
    return [
        _standard(config, used, name, averaged)
        for name, averaged in zip(labels.main, kinds, strict=True)
    ]


def _readouts(config: Config, count: int) -> list[bool]:
    """Whether each main label is a mean over atoms."""
    kinds = config.model.get("readout", "sum")
    kinds = [kinds] * count if isinstance(kinds, str) else list(kinds)
    if len(kinds) != count:
        raise ValueError(f"model.readout has {len(kinds)} entries for {count} label(s)")
    return [kind == "mean" for kind in kinds]


def _standard(config: Config, used: Dataset, name: str, averaged: bool) -> Standard:
    values = np.asarray(used.properties[name], dtype=np.float64)
    reference = _reference(config, used, name, values, averaged)
    if reference is not None:
        values = values - _sum_atoms(used, reference, averaged)
    way = config.standardize
    if way == "auto":
        way = "forces" if config.forces else "per_molecule" if averaged else "per_atom"
    if way == "none":
        return Standard(reference=reference)
    if way == "per_molecule" and not averaged:
        raise ValueError(
            f"standardize: per_molecule needs model.readout: mean, but {name} is a sum over atoms"
        )
    if way == "forces" and not config.forces:
        raise ValueError("standardize: forces needs forces in the objective")
    parts = values if averaged else values / used.sizes
    scale = float(parts.std())
    if way == "forces":
        scale = float(np.sqrt(np.square(used.properties["forces"], dtype=np.float64).mean()))
    return Standard(scale if scale > 0 else 1.0, float(parts.mean()), reference)


def _reference(
    config: Config, used: Dataset, name: str, values: Array, averaged: bool
) -> Array | None:
    if config.references == "none":
        return None
    if isinstance(config.references, dict):
        return _given(config.references, used, name)
    counts = composition(used)
    if averaged:
        counts = counts / used.sizes[:, None]
    present = np.flatnonzero(counts.any(0))
    fitted, *_ = np.linalg.lstsq(counts[:, present], values, rcond=None)
    reference = np.zeros(counts.shape[1])
    reference[present] = fitted
    return reference


def _given(energies: dict[str, float], used: Dataset, name: str) -> Array:
    from ase.data import chemical_symbols

    reference = np.zeros(int(used.numbers.max()) + 1)
    for number in np.unique(used.numbers):
        symbol = chemical_symbols[number]
        if symbol not in energies:
            raise ValueError(f"references: {name} needs the energy of a free {symbol} too")
        reference[number] = energies[symbol]
    return reference


def composition(data: Dataset) -> Array:
    """Atoms of each element in each system, ``[M, Z]``."""
    size = int(data.numbers.max()) + 1
    owners = np.repeat(np.arange(len(data)), data.sizes)
    keys = owners * size + data.numbers.astype(np.int64)
    counts = np.bincount(keys, minlength=len(data) * size)
    return counts.reshape(len(data), size).astype(np.float64)


def _sum_atoms(data: Dataset, reference: Array, averaged: bool) -> Array:
    totals = np.add.reduceat(reference[data.numbers.astype(np.int64)], data.ptr[:-1])
    return np.asarray(totals / data.sizes if averaged else totals)


def build_model(config: Config, labels: Labels, found: list[Standard]) -> Potential:
    """The model of a configuration, with its scales, means and references put in.

    Raises:
        ValueError: arguments that the model refuses.
    """
    arguments = dict(config.model)
    name = arguments.pop("name")
    if labels.scaled:
        arguments |= _arguments(name, arguments, found)
    if labels.output == "dipole_moment" or "mu" in labels.beside:
        arguments = _with_charges(name, arguments)
    if name.startswith("DimeNet"):
        arguments["num_targets"] = len(labels.main)
    try:
        model = MODELS[name](**arguments)
    except (ValueError, TypeError) as error:
        raise ValueError(f"model: {error}") from error
    return model.double() if config.training.precision == "64" else model


def _arguments(name: str, arguments: dict[str, Any], found: list[Standard]) -> dict[str, Any]:
    """The arguments of the model's class that say the same."""
    size = arguments.get("num_elements") or _default_size(name)
    references = [_padded(item.reference, size) for item in found]
    if name == "PhysNet":
        (item,), (reference,) = found, references
        shift = np.full(size, item.mean) + (0.0 if reference is None else np.array(reference))
        return dict(energy_scale=item.scale, energy_shift=shift.tolist())
    if name.startswith("DimeNet") and len(found) > 1:
        zeros = [0.0] * size
        filled = [zeros if reference is None else reference for reference in references]
        return dict(
            scale=[item.scale for item in found],
            mean=[item.mean for item in found],
            reference=None if all(r is None for r in references) else np.array(filled).T.tolist(),
        )
    return dict(scale=found[0].scale, mean=found[0].mean, reference=references[0])


def _with_charges(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Charges that do not start at zero, where the length of the dipole has no gradient."""
    if name == "DTNN" and arguments.get("zero_start", True):
        raise ValueError(
            "model.zero_start: charges that are zero give the length of a dipole no gradient to "
            "begin with: set it to false"
        )
    if name == "PhysNet" and "charge_shift" not in arguments:
        size = arguments.get("num_elements") or _default_size(name)
        return {**arguments, "charge_shift": (0.1 * torch.randn(size, device="cpu")).tolist()}
    return arguments


def _default_size(name: str) -> int:
    return int(inspect.signature(MODELS[name]).parameters["num_elements"].default)


def _padded(reference: Array | None, size: int) -> list[float] | None:
    if reference is None:
        return None
    if reference[size:].any():
        raise ValueError(
            f"model.num_elements is {size}, but the data have element {len(reference) - 1}"
        )
    padded = np.zeros(size)
    padded[: min(size, len(reference))] = reference[:size]
    return [float(value) for value in padded]
