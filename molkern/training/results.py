"""What a trained model is worth: errors on a part of the data, plots, and predictions."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from ..data import Dataset
from ..models import Potential, load
from .config import Config, check_config
from .objective import Labels, match_labels
from .records import BEST, METRICS
from .run import CONFIG, FACTS, SPLIT, load_data
from .split import labels_of, load_split

Array = NDArray[Any]
Say = Callable[[str], None]


@dataclass
class Run:
    """A folder that :func:`molkern.training.train` filled."""

    folder: Path
    config: Config
    facts: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Reads what a run is.

        Raises:
            ValueError: no run, or one that has no model yet.
        """
        if not (folder / CONFIG).is_file():
            raise ValueError(f"{folder} holds no run: give a folder that `molkern train` made")
        if not (folder / BEST).is_file():
            raise ValueError(f"{folder} has no model yet: go on with `molkern train --resume`")
        config = check_config(yaml.safe_load((folder / CONFIG).read_text()), str(folder / CONFIG))
        facts = {}
        if (folder / FACTS).is_file():
            facts = json.loads((folder / FACTS).read_text())
        return cls(folder, config, facts)

    def model(self, device: torch.device | str = "cpu") -> Potential:
        """The best model of the run."""
        return load(self.folder / BEST, device)

    def metrics(self) -> dict[str, Array]:
        """The table of metrics by column."""
        with (self.folder / METRICS).open() as file:
            rows = list(csv.DictReader(file))
        return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def predictions(
    model: Potential,
    labels: Labels,
    data: Dataset,
    members: Array,
    names: list[str],
    batch_size: int = 256,
    progress: bool = False,
) -> dict[str, tuple[Array, Array]]:
    """Predicted and true values of labels, ``[M]`` or of atoms ``[A, ...]``, by name."""
    parameter = next(model.parameters())
    found: dict[str, list[tuple[Array, Array]]] = {name: [] for name in names}
    extra = [n for n in ("total_charge",) if n in data.properties and n in model.conditions]
    forces, stress = "forces" in names, "stress" in names
    for chosen in _portions(members, batch_size, progress):
        sample = data.collate(chosen, [*names, *extra], parameter.dtype).to(parameter.device)
        conditions = {name: sample.targets[name] for name in extra}
        with torch.no_grad():
            out = model(sample.batch, forces=forces, stress=stress, **conditions)
        for name in names:
            predicted = labels.predicted(out, name).detach().cpu().double().numpy()
            found[name].append((predicted, sample.targets[name].cpu().numpy()))
    return {
        name: (np.concatenate([p for p, _ in parts]), np.concatenate([t for _, t in parts]))
        for name, parts in found.items()
    }


def _portions(members: Array, size: int, progress: bool) -> Iterator[Array]:
    starts: Any = range(0, len(members), size)
    if progress:
        from tqdm import tqdm

        starts = tqdm(starts, desc="evaluating", unit="batch", disable=None, leave=False)
    for first in starts:
        yield members[first : first + size]


def errors_of(predicted: Array, true: Array) -> dict[str, float]:
    """Mean absolute and root mean square error."""
    difference = predicted - true
    return dict(
        mae=float(np.abs(difference).mean()), rmse=float(np.sqrt(np.square(difference).mean()))
    )


def score(
    folder: Path,
    part: str = "test",
    device: torch.device | str = "cpu",
    data: Dataset | None = None,
    progress: bool = True,
    say: Say = print,
) -> dict[str, dict[str, float]]:
    """Errors of a run's best model on a part of its data; writes them, predictions and plots.

    Args:
        folder: of the run.
        part: ``"train"``, ``"validation"`` or ``"test"``.
        device: where the model is evaluated.
        data: the run's data, where they are in memory already.
        progress: whether a progress bar is shown.
        say: takes sentences for the user.

    Returns:
        ``{"mae": ..., "rmse": ...}`` by label.

    Raises:
        ValueError: no finished run, or data that are not those of the run.
    """
    run = Run.open(folder)
    data = load_data(run.config) if data is None else data
    split = load_split(folder / SPLIT, data.digest)
    if part not in split:
        raise ValueError(f"part must be one of {', '.join(split)}, got {part!r}")
    members = np.sort(split[part])
    if not len(members):
        raise ValueError(f"the run's {part} part is empty: choose another with --part")
    labels = match_labels(run.config)
    names = labels_of(run.config)
    found = predictions(run.model(device), labels, data, members, names, progress=progress)
    errors = {name: errors_of(*pair) for name, pair in found.items()}
    units = {name: data.units.get(name, "") for name in names}
    for name, values in errors.items():
        say(
            f"{part} {name}: MAE {values['mae']:.4g}, RMSE {values['rmse']:.4g} {units[name]} "
            f"({len(members):,} systems)"
        )
    report = dict(part=part, systems=len(members), units=units, errors=errors)
    (folder / f"{part}.json").write_text(json.dumps(report, indent=1) + "\n")
    arrays = {f"{name}_{kind}": pair[k] for name, pair in found.items() for k, kind in _KINDS}
    np.savez(folder / f"{part}.npz", ids=_ids(data, members), **arrays)  # type: ignore[arg-type]
    draw(run, found, units, part)
    return errors


_KINDS = ((0, "predicted"), (1, "true"))


def _ids(data: Dataset, members: Array) -> Array:
    return members if data.ids is None else data.ids[members]


def draw(run: Run, found: dict[str, tuple[Array, Array]], units: dict[str, str], part: str) -> None:
    """The run's pictures: learning curves, and for each label its parity and its errors."""
    from ..plots import training as plots

    columns = {f"val_{name}_{kind}": unit for name, unit in units.items() for kind in _ERRORS}
    plots.learning_curves(
        run.folder / "learning_curve.png", run.metrics(), title=run.folder.name, units=columns
    )
    for name, (predicted, true) in found.items():
        unit = units[name]
        plots.parity(
            run.folder / f"parity_{name}.png", predicted, true, name=name, unit=unit, split=part
        )
        plots.error_histogram(
            run.folder / f"errors_{name}.png", predicted - true, name=name, unit=unit
        )


_ERRORS = ("mae", "rmse")
