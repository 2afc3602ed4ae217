"""A model as the command line takes it: its file, its unit of energy, the elements it knows."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data.conditions import ConditionReader
from ..elements import referenced, symbols
from ..models import Potential
from ..models.saved import load_content, read_model
from ..nn.precision import network_tensor

if TYPE_CHECKING:
    from ase import Atoms

#: The model that is shipped with the package.
SHIPPED = "ethanol"


@dataclass(frozen=True)
class ModelSource:
    """A model's file as bytes, so that it travels to other processes and machines.

    Attributes:
        name: as it was given.
        content: of the file that :meth:`molkern.models.Potential.save` wrote.
        filters: ``"exact"`` or ``"spline"``; None: as saved.
        conditions: what else the prediction depends on, with names (``total_charge``, say).
        allow_unknown_elements: whether elements that it was not trained on are computed too.
    """

    name: str
    content: bytes
    filters: str | None = "spline"
    conditions: tuple[tuple[str, float], ...] = ()
    allow_unknown_elements: bool = False

    @classmethod
    def open(
        cls,
        name: str,
        filters: str | None = "spline",
        allow_unknown_elements: bool = False,
        **conditions: float,
    ) -> ModelSource:
        """From a path, or ``"ethanol"`` for the shipped model.

        Raises:
            ValueError: a file that is not there or cannot be read.
        """
        if name == SHIPPED:
            content = (files("molkern.data") / "ethanol_schnet.safetensors").read_bytes()
        else:
            try:
                content = read_model(name)
            except ValueError as error:
                raise ValueError(f"model {error}") from error
            except OSError as error:
                raise ValueError(
                    f"model {name} cannot be read ({error.strerror}): give a file written by "
                    f"model.save(), or {SHIPPED!r} for the shipped model"
                ) from error
        given = tuple(sorted(conditions.items()))
        return cls(name, content, filters, given, allow_unknown_elements)

    @property
    def path(self) -> Path | None:
        """The file, where it is not the shipped model's."""
        return None if self.name == SHIPPED else Path(self.name)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.content).hexdigest()

    def load(self, device: torch.device | str = "cpu") -> Potential:
        """The model, in evaluation mode.

        One whose file does not say which elements it was trained on takes those of its reference
        energies, where it has any.

        Raises:
            ValueError: not a molkern model, one that predicts no energy, or one that does not take
                the conditions.
        """
        model = load_content(self.content, f"model {self.name}", device)
        weight = network_tensor(model).dtype
        if weight not in (torch.float32, torch.float64):
            raise ValueError(
                f"model {self.name} has weights of {weight}, for which there are no kernels: load "
                "it, call model.float() and save it again"
            )
        if self._prediction(model) != "energy":
            raise ValueError(
                f"model {self.name} predicts {self._prediction(model)}, not an energy, so there "
                "are no forces: give a model of energies"
            )
        for name, value in self.conditions:
            if name not in model.conditions:
                raise ValueError(f"model {self.name} takes no {name}, got {value}: leave it out")
            if not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value}")
        if self.filters is not None:
            model.filters = self.filters
        if model.elements is None:
            found = referenced(model.config.get("reference")) or ()
            model.elements = [z for z in found if z < model.num_elements] or None
        model.allow_unknown_elements = self.allow_unknown_elements
        return model

    def for_structure(self, atoms: Atoms, name: str) -> ModelSource:
        """With the conditions that a structure states, where the model takes some and none are
        given.

        Raises:
            ValueError: conditions of the structure (``name``) that are no numbers, or contradict.
        """
        wanted = [key for key in self.load().conditions if key not in dict(self.conditions)]
        found = ConditionReader(wanted).read(atoms, name)
        own = {key: value for key, value in found.items() if value}  # 0 is what models take anyway
        conditions = {**dict(self.conditions), **own}
        return replace(self, conditions=tuple(sorted(conditions.items())))

    @staticmethod
    def _prediction(model: Potential) -> str:
        targets = model.config.get("num_targets", 1)
        if targets > 1:  # DimeNet's, whose one target is an energy
            return f"{targets} properties"
        return str(model.config.get("prediction", "energy"))


def model_description(source: ModelSource, model: Potential) -> dict[str, Any]:
    """What a model is, for people: class, sizes, type, cutoff, elements and splines."""
    lines: dict[str, Any] = {
        "class": type(model).__name__,
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "type": str(network_tensor(model).dtype).removeprefix("torch."),
        "cutoff": f"{model.cutoff} Å",
        "elements": _elements(model),
        "filters as saved": model.filters,
    }
    try:
        lines["splines"] = str(model.spline_report())
    except (ValueError, NotImplementedError) as error:
        lines["splines"] = f"none: {error}"
    hidden = {"reference", "filters"}
    settings = {k: v for k, v in model.config.items() if k not in hidden and v is not None}
    lines["settings"] = ", ".join(f"{key}={value}" for key, value in settings.items())
    return lines


def _elements(model: Potential) -> str:
    if model.elements is None:
        return f"{symbols(range(1, model.num_elements))} (its table; it does not say more)"
    return symbols([z for z in model.elements if z])
