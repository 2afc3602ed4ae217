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
from numpy.typing import NDArray

from ..data import Dataset
from ..models import Potential, load
from ..nn.precision import network_tensor
from .config import Config, read_config
from .objective import Labels, evaluate, match_labels, needed
from .records import BEST, METRICS
from .run import CONFIG, FACTS, SPLIT, load_data
from .split import load_split

Array = NDArray[Any]
Say = Callable[[str], None]


@dataclass
class Run:
    """A folder that :func:`molkern.training.run.train` filled."""

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
        config = read_config(folder / CONFIG)
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
    parameter = network_tensor(model)
    found: dict[str, list[tuple[Array, Array]]] = {name: [] for name in names}
    columns = needed(labels, data)
    for chosen in _portions(members, batch_size, progress):
        sample = data.collate(chosen, columns, parameter.dtype).to(parameter.device)
        with torch.no_grad():
            out = evaluate(model, labels, sample)
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
    progress: bool = True,
    say: Say = print,
) -> dict[str, dict[str, float]]:
    """Errors of a run's best model on a part of its data; writes them, predictions and plots.

    Args:
        folder: of the run.
        part: ``"train"``, ``"validation"`` or ``"test"``.
        device: where the model is evaluated.
        progress: whether a progress bar is shown.
        say: takes sentences for the user.

    Returns:
        ``{"mae": ..., "rmse": ...}`` by label.

    Raises:
        ValueError: no finished run, or data that are not those of the run.
    """
    run = Run.open(folder)
    data = load_data(run.config)
    split = load_split(folder / SPLIT, data.digest)
    if part not in split:
        raise ValueError(f"part must be one of {', '.join(split)}, got {part!r}")
    members = np.sort(split[part])
    if not len(members):
        raise ValueError(f"the run's {part} part is empty: choose another with --part")
    labels = match_labels(run.config)
    names = list(run.config.objective)
    model = run.model(device)
    model.allow_unknown_elements = True  # the data are the run's own; it noted them
    found = predictions(model, labels, data, members, names, progress=progress)
    errors = {name: errors_of(*pair) for name, pair in found.items()}
    units = {name: data.units.get(name, "") for name in names}
    for name, values in errors.items():
        say(
            f"{part} {name}: MAE {values['mae']:.4g}, RMSE {values['rmse']:.4g} {units[name]} "
            f"({len(members):,} systems)"
        )
    report = dict(part=part, systems=len(members), units=units, errors=errors)
    (folder / f"{part}.json").write_text(json.dumps(report, indent=1) + "\n")
    arrays: dict[str, Any] = {"ids": members if data.ids is None else data.ids[members]}
    for name, (predicted, true) in found.items():
        arrays |= {f"{name}_predicted": predicted, f"{name}_true": true}
    np.savez(folder / f"{part}.npz", **arrays)
    draw(run, found, units, part)
    return errors


def draw(run: Run, found: dict[str, tuple[Array, Array]], units: dict[str, str], part: str) -> None:
    """The run's pictures: learning curves, and for each label its parity and its errors."""
    from ..plots import training as plots

    columns = {
        f"val_{name}_{kind}": unit for name, unit in units.items() for kind in ("mae", "rmse")
    }
    plots.learning_curves(
        run.folder / "learning_curve.png", run.metrics(), title=run.folder.name, units=columns
    )
    for name, (predicted, true) in found.items():
        place, what = run.folder / f"{part}_parity_{name}.png", dict(name=name, unit=units[name])
        plots.parity(place, predicted, true, split=part, **what)
        place = run.folder / f"{part}_errors_{name}.png"
        plots.error_histogram(place, predicted - true, **what)
