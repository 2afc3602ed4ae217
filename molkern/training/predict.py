"""Predictions of a run's model for structures in files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data import Sample
from ..data.conditions import CONDITIONS, ConditionReader
from ..data.dataset import PER_ATOM
from ..data.frames import frames_for
from ..files import new_output, require_folder, require_not_inputs, write_whole
from ..graph import AtomicBatch
from ..models import Potential
from ..nn.precision import network_tensor
from ..progress import progress_over
from ..structures import write_frame
from .objective import evaluate, match_labels
from .results import Run

if TYPE_CHECKING:
    from ase import Atoms

#: What is given beside the labels, where a model predicts it.
_BESIDE = ("charges", "dipole")
ENDINGS = (".csv", ".npz", ".extxyz")


def predict(
    folder: Path,
    structures: Path,
    out: Path,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    progress: bool = True,
    restart: bool = False,
    allow_unknown_elements: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> int:
    """Predicts what a run's model was trained on for every structure of a file.

    Args:
        folder: of the run.
        structures: any file that ASE reads; for models that take a total charge it is what
            :func:`molkern.data.conditions.stated` finds in a frame, or 0, and is written beside the
            predictions.
        out: ``.csv`` (one number per structure and label), ``.npz`` (everything, atoms side by
            side) or ``.extxyz``.
        device: where the model is evaluated.
        batch_size: structures at once.
        progress: whether a progress bar is shown.
        restart: whether a file that is there already is written anew.
        allow_unknown_elements: whether elements that the model was not trained on are predicted.
        say: takes sentences for the user.

    Returns:
        The number of structures.

    Raises:
        ValueError: no finished run, a file that cannot be read, a frame that cannot be computed or
            has an element that the model was not trained on, or another ending of ``out``; an
            output that is there already, that is the file of structures or one of the run's, or
            that another process is at.
    """
    if out.suffix not in ENDINGS:
        raise ValueError(f"{out} ends in {out.suffix!r}: choose one of {', '.join(ENDINGS)}")
    require_folder(out)
    run = Run.open(folder)
    require_not_inputs([out], {"the file of structures": structures, **run.files()})
    model = run.model(device)
    if model.elements is None and "elements" in run.facts:  # a run of an earlier version
        model.elements = run.facts["elements"]
    model.allow_unknown_elements = allow_unknown_elements
    conditions = ConditionReader(model.conditions, names=run.config.data.labels)
    with new_output(out, restart):
        frames = frames_for(model, structures, str(run.folder), conditions)
        chunks = _chunks(frames, batch_size, progress)
        count = _write(run, model, chunks, out, f"{structures}, frame")
    for note in conditions.notes():
        say(note)
    return count


def _write(run: Run, model: Potential, chunks: Iterable[list[Atoms]], out: Path, where: str) -> int:
    frames: list[Atoms] = []
    found: list[dict[str, Any]] = []
    for chunk in chunks:
        results = _predict(model, chunk, run)
        _require_finite(results, where, len(frames))
        frames += chunk
        found += results
    writers = dict(zip(ENDINGS, (_csv, _npz, _extxyz), strict=True))
    write_whole(out, writers[out.suffix](frames, found))
    return len(frames)


def _require_finite(results: list[dict[str, Any]], where: str, first: int) -> None:
    """Refuses predictions that are no numbers.

    Raises:
        ValueError: naming the frame and the label.
    """
    for k, values in enumerate(results):
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise ValueError(
                    f"{where} {first + k}: the predicted {name} is not finite: the model's weights "
                    "are damaged, or its atoms are too close"
                )


def _chunks(frames: Iterable[Atoms], size: int, progress: bool) -> Iterator[list[Atoms]]:
    chunk: list[Atoms] = []
    for atoms in progress_over(frames, "predicting", "structure", progress):
        chunk.append(atoms)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _predict(model: Potential, chunk: list[Atoms], run: Run) -> list[dict[str, Any]]:
    """What the model predicts for each structure, by label or name of the output."""
    parameter = network_tensor(model)
    batch = AtomicBatch.from_ase(chunk, parameter.dtype, parameter.device)
    kind: dict[str, Any] = {"dtype": torch.float64, "device": batch.positions.device}
    given = {
        name: torch.tensor([atoms.info[name] for atoms in chunk], **kind)
        for name in model.conditions
    }
    labels = match_labels(run.config)
    out = evaluate(model, labels, Sample(batch, given, torch.arange(len(chunk), device="cpu")))
    found = {name: labels.predicted(out, name) for name in run.config.objective}
    found |= {name: out[name] for name in _BESIDE if name in out}
    found |= given
    values = {name: value.detach().cpu().double().numpy() for name, value in found.items()}
    ends = np.cumsum([0, *(len(atoms) for atoms in chunk)])
    return [
        {k: v[ends[i] : ends[i + 1]] if k in PER_ATOM else v[i] for k, v in values.items()}
        for i in range(len(chunk))
    ]


def _csv(frames: list[Atoms], found: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    columns = [name for name, value in found[0].items() if np.ndim(value) == 0]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["structure", "formula", *columns])
    for number, (atoms, values) in enumerate(zip(frames, found, strict=True)):
        formula = atoms.get_chemical_formula()
        writer.writerow([number, formula, *(repr(float(values[k])) for k in columns)])
    return text.getvalue().encode()


def _npz(frames: list[Atoms], found: list[dict[str, Any]]) -> bytes:
    arrays: dict[str, Any] = {
        "N": np.array([len(atoms) for atoms in frames]),
        "Z": np.concatenate([atoms.numbers for atoms in frames]),
        "R": np.concatenate([atoms.positions for atoms in frames]),
    }
    for key in found[0]:
        join = np.concatenate if key in PER_ATOM else np.stack
        arrays[key] = join([values[key] for values in found])
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _extxyz(frames: list[Atoms], found: list[dict[str, Any]]) -> bytes:
    from ase.calculators.singlepoint import SinglePointCalculator

    text = io.StringIO()
    for atoms, values in zip(frames, found, strict=True):
        atoms = atoms.copy()
        known = {k: values[k] for k in ("energy", "forces", "stress") if k in values}
        for key, value in values.items():
            if key in known or key in CONDITIONS:  # these are in info already
                continue
            if key in PER_ATOM:
                atoms.set_array(f"predicted_{key}", value)
            else:
                atoms.info[f"predicted_{key}"] = value if np.ndim(value) else float(value)
        for name in known:  # write_xyz refuses what is there already
            atoms.info.pop(name, None)
            atoms.arrays.pop(name, None)
        if known:
            atoms.calc = SinglePointCalculator(atoms, **known)
        write_frame(text, atoms)
    return text.getvalue().encode()
