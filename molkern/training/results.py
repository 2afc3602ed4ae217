"""What a trained model is worth: errors on a part of the data, plots, and predictions."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data import Dataset
from ..files import require_not_inputs, writable_name, write_whole
from ..models import Potential, load
from ..nn.precision import network_tensor
from ..progress import progress_over
from .config import Config, read_config
from .folder import CONFIG, SPLIT, inputs_of, settings_digest
from .objective import Labels, evaluate, match_labels, needed
from .records import BEST, FACTS, METRICS, gone, read_facts, read_metrics, require_recorded
from .run import load_data
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
        facts = read_facts(folder)
        if not (folder / BEST).is_file():
            if BEST in facts.get("files_sha256", {}):
                raise ValueError(gone(folder / BEST))
            raise ValueError(
                f"{folder} has no model yet: go on with `molkern train {folder} --resume`"
            )
        config = read_config(folder / CONFIG)
        if facts.get("settings_sha256") not in (None, settings_digest(config)):
            raise ValueError(
                f"{folder / CONFIG} was changed after the run or is of another one, as {FACTS} "
                "says: bring it back"
            )
        return cls(folder, config, facts)

    def files(self) -> dict[str, str | Path | None]:
        """What must not be overwritten: the files of the run and its inputs, by what they are."""
        own = {f"the run's {path.name}": path for path in self.folder.iterdir() if path.is_file()}
        return {**own, **inputs_of(self.config)}

    def path(self, name: str) -> Path:
        """A file of the run, as it was when the run ended.

        Raises:
            ValueError: it was changed.
        """
        require_recorded(self.folder / name, self.facts)
        return self.folder / name

    def model(self, device: torch.device | str = "cpu") -> Potential:
        """The best model of the run.

        Raises:
            ValueError: a file that is damaged or of another run.
        """
        path = self.path(BEST)
        model = load(path, device)
        settings = {k: v for k, v in self.config.model.items() if k != "name"}
        there = {k: model.config.get(k) for k in settings}
        if type(model).__name__ != self.config.model["name"] or there != settings:
            raise ValueError(f"{path} is of another run: {CONFIG} describes another model")
        return model

    def metrics(self) -> dict[str, Array]:
        """The table of metrics by column."""
        return {k: np.array(v) for k, v in read_metrics(self.path(METRICS)).items()}


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
    starts = range(0, len(members), size)
    for first in progress_over(starts, "evaluating", "batch", progress):
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
    split = load_split(run.path(SPLIT), data.digest, len(data))
    if part not in split:
        raise ValueError(f"part must be one of {', '.join(split)}, got {part!r}")
    members = np.sort(split[part])
    if not len(members):
        raise ValueError(f"the run's {part} part is empty: choose another with --part")
    labels = match_labels(run.config)
    names = list(run.config.objective)
    table = run.metrics()
    require_not_inputs(_outputs(folder, part, names), inputs_of(run.config))
    model = run.model(device)
    model.allow_unknown_elements = True  # the data are the run's own; it noted them
    found = predictions(model, labels, data, members, names, progress=progress)
    for name, (predicted, _) in found.items():
        if not np.isfinite(predicted).all():
            raise ValueError(
                f"{folder / BEST} predicts {name} that is not finite: its weights are damaged"
            )
    errors = {name: errors_of(*pair) for name, pair in found.items()}
    units = {name: data.units.get(name, "") for name in names}
    for name, values in errors.items():
        say(
            f"{part} {name}: MAE {values['mae']:.4g}, RMSE {values['rmse']:.4g} {units[name]} "
            f"({len(members):,} systems)"
        )
    report = dict(part=part, systems=len(members), units=units, errors=errors)
    write_whole(folder / f"{part}.json", (json.dumps(report, indent=1) + "\n").encode())
    arrays: dict[str, Any] = {"ids": members if data.ids is None else data.ids[members]}
    for name, (predicted, true) in found.items():
        arrays |= {f"{name}_predicted": predicted, f"{name}_true": true}
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_whole(folder / f"{part}.npz", content.getvalue())
    draw(folder, table, found, units, part)
    return errors


CURVES = "learning_curve.png"


def _pictures(folder: Path, part: str, name: str) -> tuple[Path, Path]:
    """Of a label: its parity and its errors."""
    end = f"{writable_name(name)}.png"
    return folder / f"{part}_parity_{end}", folder / f"{part}_errors_{end}"


def _outputs(folder: Path, part: str, names: list[str]) -> list[Path]:
    pictures = [place for name in names for place in _pictures(folder, part, name)]
    return [folder / f"{part}.json", folder / f"{part}.npz", folder / CURVES, *pictures]


def draw(
    folder: Path,
    table: dict[str, Array],
    found: dict[str, tuple[Array, Array]],
    units: dict[str, str],
    part: str,
) -> None:
    """The run's pictures: learning curves, and for each label its parity and its errors."""
    from ..plots import training as plots
    from ..plots.figures import as_it_is

    columns = {
        as_it_is(f"val_{name}_{kind}"): as_it_is(unit)
        for name, unit in units.items()
        for kind in ("mae", "rmse")
    }
    shown = {as_it_is(name): values for name, values in table.items()}
    title = as_it_is(folder.name)
    plots.learning_curves(folder / CURVES, shown, title=title, units=columns)
    for name, (predicted, true) in found.items():
        parity, errors = _pictures(folder, part, name)
        what = dict(name=as_it_is(name), unit=as_it_is(units[name]))
        plots.parity(parity, predicted, true, split=part, **what)
        plots.error_histogram(errors, predicted - true, **what)
