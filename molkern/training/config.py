"""What a training run is made of, read from YAML and checked before anything else."""

from __future__ import annotations

import difflib
import inspect
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..files import in_one_line
from ..models import MODELS

#: Arguments of models that a run sets itself, from its data.
STANDARDS = ("scale", "mean", "reference", "energy_scale", "energy_shift", "num_targets")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class Split(_Section):
    """How many systems are for what; fractions below 1 are of all, null takes what is left.

    Fractions are shared out by largest remainders, so that those that add up to 1 leave none out;
    of a fraction comes at least one system.
    """

    train: int | float = Field(gt=0)
    validation: int | float = Field(gt=0)
    test: int | float | None = Field(default=None, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    file: str | None = None

    @field_validator("train", "validation", "test")
    @classmethod
    def _count_or_fraction(cls, value: float | None) -> float | None:
        if value is None or isinstance(value, int):
            return value
        if not math.isfinite(value) or value == 1.0 or (value > 1 and not value.is_integer()):
            raise ValueError(f"must be a whole number of systems, or a fraction below 1: {value:g}")
        return value

    @model_validator(mode="after")
    def _no_more_than_all(self) -> Split:
        given = (self.train, self.validation, self.test)
        total = sum(value for value in given if value is not None and 0 < value < 1)
        if total > 1 + 1e-6:
            raise ValueError(f"fractions add up to {total:g}, more than 1")
        return self


class Data(_Section):
    """Where the data come from, see :func:`molkern.data.load_dataset`.

    ``labels`` names what the file calls labels, ``{energy: REF_energy, stress: virial}``.
    """

    format: Literal["auto", "qm9", "npz", "ase", "molkern", "ethanol"] = "auto"
    path: str | None = None
    energy_unit: str = "eV"
    sha256: str | None = None
    labels: dict[str, str] = {}
    split: Split


class Term(_Section):
    """One part of the loss: ``weight`` times the error of a label.

    ``mse`` is the squared error, of vectors the sum over components, averaged over systems (or
    atoms); ``mae`` the absolute one, averaged over components too. A weight of ``"1/std"`` divides
    by the standard deviation of the label in the training data (by its square for ``mse``).
    """

    weight: float | Literal["1/std"] = 1.0
    loss: Literal["mse", "mae"] = "mse"

    @field_validator("weight")
    @classmethod
    def _positive(cls, value: float | str) -> float | str:
        if not isinstance(value, str) and not value > 0:
            raise ValueError(f"must be positive, got {value:g}: leave the label out instead")
        return value


class Optimizer(_Section):
    """Adam, its AMSGrad variant, or Adam with decoupled weight decay."""

    name: Literal["adam", "amsgrad", "adamw"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


class Schedule(_Section):
    """The learning rate over steps, times that of the optimizer.

    ``exponential`` falls by ``rate`` every ``decay_steps`` (in one jump with ``staircase``),
    ``cosine`` to zero at the last step, ``plateau`` by ``rate`` after ``patience`` validations
    without improvement; all but that rise linearly over the first ``warmup`` steps.
    """

    name: Literal["constant", "exponential", "cosine", "plateau"] = "constant"
    rate: float = Field(default=0.5, gt=0, le=1)
    decay_steps: int = Field(default=100_000, gt=0)
    staircase: bool = False
    warmup: int = Field(default=0, ge=0)
    patience: int = Field(default=10, ge=0)


class Training(_Section):
    """Steps, batches and what watches over them."""

    steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    validate_every: int = Field(gt=0)
    validation_batch_size: int | None = Field(default=None, gt=0)
    ema: float = Field(default=0.0, ge=0, lt=1)
    clip: float | None = Field(default=None, gt=0)
    early_stopping: int | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    precision: Literal["32", "64", "bf16-mixed"] = "32"
    tensorboard: bool = False

    @field_validator("precision", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _whole_intervals(self) -> Training:
        if self.steps % self.validate_every:
            raise ValueError(
                f"steps ({self.steps}) must be a multiple of validate_every ({self.validate_every})"
            )
        return self


class Config(_Section):
    """A training run.

    Attributes:
        model: ``name``, of :data:`molkern.models.MODELS`, and arguments of its constructor.
        data: where the data come from and how they are split.
        objective: parts of the loss by label.
        standardize: how the model's scale and mean start, from the training data: ``per_atom``
            (mean and standard deviation of the label per atom), ``per_molecule`` (the same of the
            label itself; for the mean over atoms as readout), ``forces`` (mean per atom, and the
            root mean square of force components), ``none``, or ``auto``: forces if they are
            trained on, otherwise by the model's readout.
        references: ``fit``: a part for each element, by least squares over compositions, is
            taken off the label before; or energies of free atoms by symbol, ``{H: -13.6}``.
        nonhierarchicality: weight of PhysNet's penalty.
        charge_error: weight of the absolute error of PhysNet's total charge before correction.
    """

    model: dict[str, Any]
    data: Data
    objective: dict[str, Term] = Field(min_length=1)
    standardize: Literal["auto", "per_atom", "per_molecule", "forces", "none"] = "auto"
    references: Literal["none", "fit"] | dict[str, float] = "none"
    nonhierarchicality: float = Field(default=0.0, ge=0)
    charge_error: float = Field(default=0.0, ge=0)
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    training: Training

    @field_validator("model")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        name = value.get("name")
        if name not in MODELS:
            raise ValueError(f"name must be one of {', '.join(sorted(MODELS))}, got {name!r}")
        known = [key for key in inspect.signature(MODELS[name]).parameters if key not in STANDARDS]
        for key in value:
            if key in STANDARDS:
                raise ValueError(f"{key} is set from the data: see standardize and references")
            if key not in ("name", *known):
                raise ValueError(f"{name} has no argument {key!r}{_nearest(key, known)}")
        return {key: _number(argument) for key, argument in value.items()}

    @field_validator("references")
    @classmethod
    def _elements(cls, value: Any) -> Any:
        if isinstance(value, dict):
            from ase.data import atomic_numbers

            for symbol in value:
                if symbol not in atomic_numbers:
                    raise ValueError(f"{symbol!r} is no element: give symbols, {{H: -13.6}}")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.training.precision == "bf16-mixed" and self.forces:
            raise ValueError(
                "training.precision: bf16-mixed would spoil forces, which are derivatives: use 32"
            )
        physnet = self.model["name"] == "PhysNet"
        for name in ("nonhierarchicality", "charge_error"):
            if getattr(self, name) and not physnet:
                raise ValueError(f"{name} is PhysNet's, but model.name is {self.model['name']}")
        return self

    @property
    def forces(self) -> bool:
        """Whether forces are trained on."""
        return "forces" in self.objective

    def dump(self) -> str:
        """As YAML that :func:`read_config` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _number(value: Any) -> Any:
    """YAML takes 1e-3, without a point, for a text."""
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value


def _nearest(word: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(word, known, n=1)
    return f": did you mean {found[0]!r}?" if found else f" (it has {', '.join(known)})"


def shipped_configs() -> dict[str, Path]:
    """Configurations that are shipped with the package, by name."""
    folder = Path(str(files("molkern.training"))) / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(name: str | Path) -> Path:
    """A file, or a shipped configuration by its name.

    Raises:
        ValueError: neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_configs()
    if str(name) in shipped:
        return shipped[str(name)]
    raise ValueError(
        f"{name} is neither a file nor one of the shipped configurations ({', '.join(shipped)})"
    )


def read_config(path: str | Path, changes: Sequence[str] = ()) -> Config:
    """A configuration from YAML.

    Args:
        path: the file, or the name of a shipped configuration.
        changes: ``"key.key=value"`` each, with the value in YAML.

    Raises:
        ValueError: of one line, naming the file and the key: YAML that cannot be read, unknown
            keys, values out of range.
    """
    found = find_config(path)
    try:
        content = yaml.safe_load(found.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{found} cannot be read: {in_one_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{found} must hold keys and values: see `molkern configs`")
    for change in changes:
        _change(content, change)
    return check_config(content, str(found))


def check_config(content: Mapping[str, Any], where: str = "configuration") -> Config:
    """A configuration from keys and values.

    Raises:
        ValueError: of one line, naming the keys that are wrong.
    """
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_problem(item) for item in error.errors())
        raise ValueError(f"{where}: {problems}") from error


def _change(content: dict[str, Any], change: str) -> None:
    key, separator, value = change.partition("=")
    if not separator or not key:
        raise ValueError(f"--set takes key.key=value, got {change!r}")
    *parents, last = key.split(".")
    section = content
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ValueError(f"--set {change}: {parent} holds no keys")
    try:
        section[last] = yaml.safe_load(value)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"--set {change[:80]}: the value is no YAML") from error


def _problem(item: Any) -> str:
    """One error of pydantic's, with its key first."""
    place = [str(part) for part in item["loc"]]
    kind, given = item["type"], item.get("input")
    if kind == "extra_forbidden":
        return f"{'.'.join(place)}: unknown key{_nearest(place[-1], _known_keys(place[:-1]))}"
    if kind == "missing":
        return f"{'.'.join(place)}: missing"
    # Of a choice between types pydantic names the type too
    kinds = ("int", "float", "dict[str,float]")
    key = ".".join(part for part in place if part not in kinds and "[" not in part)
    message = item["msg"].removeprefix("Value error, ")
    shown = f", got {given!r}" if kind != "value_error" else ""
    return f"{key}: {message}{shown}" if key else f"{message}"


def _known_keys(section: Sequence[str]) -> list[str]:
    kinds: dict[str, type[BaseModel]] = dict(
        data=Data, split=Split, optimizer=Optimizer, schedule=Schedule, training=Training
    )
    kind: type[BaseModel] = Config
    if section:
        kind = Term if section[0] == "objective" else kinds[section[-1]]
    return list(kind.model_fields)


def data_path(config: Config) -> Path | None:
    """The path of the data, with ``~`` and variables of the environment put in.

    Raises:
        ValueError: a variable that is not set.
    """
    if not config.data.path:
        return None
    text = os.path.expandvars(config.data.path)
    if "$" in text:
        raise ValueError(
            f"data.path: {config.data.path} names a variable of the environment that is not set"
        )
    return Path(text).expanduser()
