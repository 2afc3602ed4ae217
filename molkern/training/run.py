"""A training run: from a configuration to a folder with a trained model."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor, Timer, TQDMProgressBar

from ..data import Dataset, load_dataset
from ..data.labels import listed
from ..data.reading import sha256_of
from ..elements import symbols
from ..files import write_whole
from ..host import everything_kept, random_states_kept
from ..models import Potential
from ..nn.precision import network_tensor
from .checkpoint import Checkpoints, RunFileError, does_not_fit
from .config import Config, data_path
from .folder import SPLIT, holding, open_folder, rank, settings_digest
from .module import TrainingData, TrainingModule
from .objective import Labels, Objective, check_labels, evaluate, match_labels, needed
from .records import BEST, FACTS, LAST, METRICS, Records
from .split import (
    Indices,
    check_conditions,
    check_systems,
    load_split,
    make_split,
    save_split,
    usable,
)
from .standardize import build_model, standards

Say = Callable[[str], None]


@dataclass
class Prepared:
    """All that training needs, checked.

    Attributes:
        config: as it was read.
        data: the data set.
        labels: how labels meet predictions.
        split: systems for training, validation and test.
        module: the model with its objective.
        notes: sentences for the user.
    """

    config: Config
    data: Dataset
    labels: Labels
    split: dict[str, Indices]
    module: TrainingModule
    notes: list[str]

    @property
    def model(self) -> Potential:
        return self.module.model


def load_data(config: Config) -> Dataset:
    """The data set of a configuration.

    Raises:
        ValueError: data that are missing or corrupt.
    """
    options = config.data
    return load_dataset(
        data_path(config),
        format=options.format,
        energy_unit=options.energy_unit,
        sha256=options.sha256,
        labels=options.labels,
    )


@random_states_kept()
def prepare(
    config: Config, split: Path | None = None, build: Callable[..., Potential] = build_model
) -> Prepared:
    """Reads the data, chooses the split and builds the model.

    Args:
        config: the run's.
        split: file of the split, where the run has one already.
        build: makes the model of configuration, labels and standards.

    Raises:
        ValueError: data that are missing or corrupt, labels or sizes that do not fit.
    """
    labels = match_labels(config)
    data = load_data(config)
    check_labels(config, labels, data)
    keep, notes = usable(data, list(config.objective))
    notes = [*(f"{data.name}: {note}" for note in data.notes), *notes]
    if split is not None:
        parts = load_split(split, data.digest, len(data))
    else:
        parts = make_split(config.data.split, keep, data.digest, len(data))
    check_systems(data, np.concatenate([*parts.values()]))
    train = parts["train"]
    if config.training.batch_size > len(train):
        raise ValueError(
            f"training.batch_size: {config.training.batch_size} are more than the {len(train)} "
            "systems of the training set"
        )
    torch.manual_seed(config.training.seed)
    model = build(config, labels, standards(config, labels, data, train))
    notes = [*notes, *_set_elements(model, data, parts)]
    objective = Objective(config, labels, data, train)
    check_conditions(data, np.concatenate([*parts.values()]), model.conditions)
    notes += _unused(config, data, model)
    _try_out(model, labels, data, train)
    return Prepared(config, data, labels, parts, TrainingModule(model, objective, config), notes)


def _set_elements(model: Potential, data: Dataset, parts: dict[str, Indices]) -> Iterator[str]:
    """Tells the model which elements it learns; notes on those that only other parts have.

    Elements that a model knows already, which is trained further, it goes on knowing.
    """
    _check_table(model, data)
    known = set(getattr(model, "elements", None) or ()) | set(_elements(data, parts["train"]))
    model.elements = sorted(known)
    for part, members in parts.items():
        if unknown := set(_elements(data, members)) - known:
            # Their errors are reported: the data are the run's own
            model.allow_unknown_elements = True
            yield (
                f"no system of the training part has {symbols(unknown)}, which the {part} part "
                "has: the model does not learn them"
            )


def _elements(data: Dataset, members: Indices) -> list[int]:
    return [int(z) for z in np.unique(data.numbers[data.atoms_of(members)])]


def _check_table(model: Potential, data: Dataset) -> None:
    highest = int(data.numbers.max())
    if highest >= model.num_elements:
        raise ValueError(
            f"model.num_elements: {model.num_elements} leaves out element {highest} of the data: "
            f"give {highest + 1} or more"
        )


def _unused(config: Config, data: Dataset, model: Potential) -> list[str]:
    """A sentence about what the data hold and training does not use, or none."""
    used = {*config.objective, *model.conditions}
    names = [*(name for name in data.properties if name not in used), *data.unused]
    return [f"{data.name} has more than is used: {listed(names)}"] if names else []


def _try_out(model: Potential, labels: Labels, data: Dataset, train: Indices) -> None:
    """One system through the model, so that what does not fit is found before any training."""
    largest = train[np.argmax(data.sizes[train])]
    sample = data.collate([int(largest)], dtype=network_tensor(model).dtype)
    model.eval()
    try:
        out = evaluate(model, labels, sample)
        for name in (*labels.main, *labels.beside):
            labels.predicted(out, name)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"the model does not fit the data: {error}") from error
    finally:
        model.train()


@everything_kept()
def train(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    restart: bool = False,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    progress: bool = True,
    say: Say = print,
    build: Callable[..., Potential] = build_model,
) -> None:
    """Trains a model; everything that comes of it is in the folder.

    Args:
        config: the run's.
        folder: to be made.
        resume: go on from the folder's checkpoint, if there is one.
        restart: start anew over an earlier run.
        device: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        devices, nodes: processes of a machine, and machines.
        progress: whether a progress bar is shown.
        say: takes sentences for the user.
        build: see :func:`prepare`.

    Raises:
        ValueError: see :func:`prepare` and :func:`open_folder`.
        KeyboardInterrupt: on SIGINT; the run can go on.
    """
    processes = devices * nodes
    if config.training.batch_size % processes:
        raise ValueError(
            f"training.batch_size: {config.training.batch_size} is not a multiple of the "
            f"{processes} processes"
        )
    old = folder / SPLIT
    with_split = old if resume and not restart and old.exists() else None
    prepared = prepare(config, with_split, build)
    torch.manual_seed(config.training.seed)  # for models that draw in training
    with holding(folder):
        goes_on = open_folder(folder, config, resume, restart)
        if rank() == 0:
            for note in prepared.notes:
                say(note)
            if not (folder / SPLIT).exists():
                save_split(folder / SPLIT, prepared.split, prepared.data.digest)
            say(_summary(prepared))
        records = Records(folder, len(prepared.split["train"]), _identity(prepared))
        with _quiet():
            trainer = _trainer(config, records, device, devices, nodes, progress)
            _fit(trainer, prepared, records, folder / LAST if goes_on else None)
        if trainer.is_global_zero:
            facts = _facts(prepared, records, trainer)
            write_whole(folder / FACTS, (json.dumps(facts, indent=1) + "\n").encode())


def _identity(prepared: Prepared) -> str:
    """Tells a run from others, by its configuration, its data and their split."""
    found = hashlib.sha256(settings_digest(prepared.config).encode())
    found.update(prepared.data.digest.encode())
    for members in prepared.split.values():
        found.update(np.sort(members).tobytes())
    return found.hexdigest()


def _fit(
    trainer: pl.Trainer, prepared: Prepared, records: Records, checkpoint: Path | None
) -> None:
    """Trains, from a checkpoint if there is one.

    Raises:
        ValueError: a checkpoint that cannot be read or is of another run.
        KeyboardInterrupt: on SIGINT.
    """
    names = needed(prepared.labels, prepared.data)
    data = TrainingData(prepared.data, prepared.split, prepared.config, names)
    try:
        trainer.fit(
            prepared.module, datamodule=data, ckpt_path=None if not checkpoint else str(checkpoint)
        )
    except SystemExit as error:  # Lightning's answer to SIGINT
        if trainer.interrupted:
            raise KeyboardInterrupt from error
        raise
    except (RunFileError, MemoryError, OSError):
        raise
    except Exception as error:
        if checkpoint is None or records.begun:
            raise
        raise does_not_fit(checkpoint, error) from error


def _summary(prepared: Prepared) -> str:
    model, split = prepared.model, prepared.split
    count = sum(p.numel() for p in model.parameters())
    sizes = ", ".join(f"{len(members):,} for {part}" for part, members in split.items())
    return f"{type(model).__name__} with {count:,} parameters; {prepared.data.name}: {sizes}"


def _trainer(
    config: Config, records: Records, device: str, devices: int, nodes: int, progress: bool
) -> pl.Trainer:
    options, folder = config.training, records.folder
    callbacks: list[pl.Callback] = []
    if progress:
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    if options.early_stopping is not None:
        callbacks.append(EarlyStopping("val_loss", patience=options.early_stopping))
    if options.minutes is not None:
        callbacks.append(Timer(duration=timedelta(minutes=options.minutes), interval="epoch"))
    logger: Any = False
    if options.tensorboard:
        from pytorch_lightning.loggers import TensorBoardLogger

        logger = TensorBoardLogger(folder, name="tensorboard", version="")
        callbacks.append(LearningRateMonitor())
    callbacks.append(records)
    precision: Any = {"32": "32-true", "64": "64-true"}.get(options.precision, options.precision)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    distributed = devices * nodes > 1
    return pl.Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp_find_unused_parameters_true" if distributed else "auto",
        use_distributed_sampler=False,
        max_epochs=options.steps // options.validate_every,
        num_sanity_val_steps=0,
        gradient_clip_val=options.clip,
        precision=precision,
        callbacks=callbacks,
        plugins=[Checkpoints()],
        logger=logger,
        inference_mode=False,
        enable_progress_bar=progress,
        enable_model_summary=False,
        log_every_n_steps=min(50, options.validate_every),
        default_root_dir=str(folder),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's remarks: on hardware, and on worker processes, which are not needed."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            # Errors are the same in all processes: they are sums over all of them
            warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
            yield
    finally:
        logger.setLevel(level)


def _facts(prepared: Prepared, records: Records, trainer: pl.Trainer) -> dict[str, Any]:
    """What a run was, for people and for :class:`molkern.training.results.Run`."""
    from .. import __version__

    return dict(
        steps=trainer.global_step,
        minutes=records.seconds / 60,
        best_step=records.best_step,
        best_val_loss=records.best,
        settings_sha256=settings_digest(prepared.config),
        files_sha256=_checksums(records.folder, BEST, SPLIT, METRICS),
        parameters=sum(p.numel() for p in prepared.model.parameters()),
        elements=sorted({int(z) for z in np.unique(prepared.data.numbers)}),
        units={name: prepared.data.units.get(name, "") for name in prepared.config.objective},
        data=prepared.data.name,
        data_sha256=prepared.data.digest,
        processes=trainer.world_size,
        threads=torch.get_num_threads(),
        device=_device_name(trainer),
        torch=torch.__version__,
        molkern=__version__,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    )


def _checksums(folder: Path, *names: str) -> dict[str, str]:
    """Of the files that nothing changes any more."""
    return {name: sha256_of(folder / name) for name in names if (folder / name).exists()}


def _device_name(trainer: pl.Trainer) -> str:
    if trainer.strategy.root_device.type == "cuda":
        return torch.cuda.get_device_name(trainer.strategy.root_device)
    return platform.processor() or platform.machine()
