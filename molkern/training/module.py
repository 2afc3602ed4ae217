"""The Lightning modules: a model with its objective, and its data."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..data import Dataset, Sample
from ..models import Potential
from .config import Config
from .objective import Objective, evaluate
from .schedules import make_optimizer, make_schedule
from .split import BatchStream, Indices, Portions, Share


class TrainingModule(pl.LightningModule):
    """Trains a potential on an objective.

    With ``training.ema`` a second model follows the first, ``w̄ ← w̄ + (1 − d) (w − w̄)`` after
    every step, with ``d = min(ema, (1 + n) / (10 + n))`` at step n, and is what is validated,
    tested and kept. (Lightning's own averages swap weights through ``.data``, which leaves no trace
    for tables that were made of them.)

    Args:
        model: what is trained.
        objective: its loss.
        config: the run's.
    """

    def __init__(self, model: Potential, objective: Objective, config: Config):
        super().__init__()
        self.model, self.objective, self.config = model, objective, config
        self.averaged: Potential | None = None
        if config.training.ema:
            self.averaged = copy.deepcopy(model).requires_grad_(False)
        self.plateau: ReduceLROnPlateau | None = None
        self._plateau_state: dict[str, Any] | None = None
        self._losses: list[Tensor] = []
        self._sums: Tensor | None = None
        self._systems = 0
        #: Errors of the last validation, by name.
        self.errors: dict[str, float] = {}

    @property
    def best(self) -> Potential:
        """The model that is validated: the average where there is one."""
        return self.model if self.averaged is None else self.averaged

    def training_step(self, batch: tuple[Sample, Share], _index: int) -> Tensor:
        sample, share = batch
        out = evaluate(self.model, self.objective.labels, sample)
        loss = self.objective.loss(out, sample, share.systems, share.atoms)
        self._losses.append(loss.detach())
        # Gradients of the processes are averaged, but parts of the loss are to be added
        return loss * self.trainer.world_size

    def on_train_epoch_start(self) -> None:
        self._losses.clear()
        _measure_anew(self.model)

    def on_train_batch_end(self, *_args: Any) -> None:
        self.follow(self.trainer.global_step)

    def follow(self, step: int) -> None:
        """Moves the average towards the weights after a step."""
        if self.averaged is None:
            return
        decay = min(self.config.training.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay
            )

    def on_validation_epoch_start(self) -> None:
        self._sums, self._systems = None, 0
        _measure_anew(self.best)

    def validation_step(self, batch: tuple[Sample, Share], _index: int) -> None:
        sample, share = batch
        self._systems += share.systems
        if len(share.indices) == 0:  # fewer systems than processes
            return
        out = evaluate(self.best, self.objective.labels, sample)
        sums = self.objective.errors(out, sample)
        loss = self.objective.loss(out, sample, share.systems, share.atoms) * share.systems
        entry = torch.cat([sums.flatten(), loss.detach().reshape(1)])
        self._sums = entry if self._sums is None else self._sums + entry

    def on_validation_epoch_end(self) -> None:
        parts = len(self.objective.parts)
        sums = torch.zeros(3 * parts + 1, dtype=torch.float64, device=self.device)
        if self._sums is not None:
            sums = sums + self._sums
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        found = self.objective.report(sums[:-1].reshape(parts, 3))
        found["loss"] = float(sums[-1]) / max(1, self._systems)
        self.errors = found
        if self.plateau is not None:
            self.plateau.step(found["loss"])
        shown = ("loss", f"{self.objective.parts[-1].name}_mae")
        for name, value in found.items():
            on_bar = name in shown
            self.log(f"val_{name}", value, prog_bar=on_bar, rank_zero_only=False)

    def interval_loss(self) -> float:
        """Mean training loss since the last validation, over all processes."""
        if not self._losses:
            return float("nan")
        total = torch.stack(self._losses).mean()
        return float(self.trainer.strategy.reduce(total, reduce_op="sum"))

    def configure_optimizers(self) -> Any:
        options = self.config.training
        optimizer = make_optimizer(
            self.config.optimizer, [p for p in self.model.parameters() if p.requires_grad]
        )
        schedule = make_schedule(self.config.schedule, optimizer, options.steps)
        if isinstance(schedule, ReduceLROnPlateau):
            # Lightning would step it after the checkpoint of an interval was written
            self.plateau = schedule
            return optimizer
        settings = {"scheduler": schedule, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": settings}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.plateau is not None:
            checkpoint["plateau"] = self.plateau.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._plateau_state = checkpoint.get("plateau")

    def on_fit_start(self) -> None:
        if self.plateau is not None and self._plateau_state is not None:
            self.plateau.load_state_dict(self._plateau_state)


def _measure_anew(model: Potential) -> None:
    """The grid of splines depends on what was before, which a run that goes on does not know."""
    if model.filters == "spline":
        model.forget_splines()


class _Systems(TorchDataset[tuple[Sample, Share]]):
    """Shares as samples: what a data loader asks for."""

    def __init__(self, data: Dataset, names: list[str], dtype: torch.dtype):
        self.data, self.names, self.dtype = data, names, dtype

    def __getitem__(self, share: Share) -> tuple[Sample, Share]:
        return self.data.collate(share.indices, self.names, self.dtype), share


class TrainingData(pl.LightningDataModule):
    """Batches of a data set: neighbor lists are made of whole batches, where the model runs.

    A batch is gathered in a fraction of a millisecond, so there are no worker processes.

    Args:
        data: all systems.
        split: which are for what.
        config: the run's.
        names: what batches carry.
    """

    def __init__(self, data: Dataset, split: dict[str, Indices], config: Config, names: list[str]):
        super().__init__()
        self.split, self.options = split, config.training
        dtype = torch.float64 if config.training.precision == "64" else torch.float32
        self.systems = _Systems(data, names, dtype)

    def _place(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _loader(self, shares: Any) -> DataLoader[Any]:
        pin = torch.cuda.is_available()
        return DataLoader(self.systems, sampler=shares, batch_size=None, pin_memory=pin)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, _index: int) -> Any:
        sample, share = batch
        return sample.to(device), share

    def train_dataloader(self) -> DataLoader[Any]:
        rank, world = self._place()
        stream = BatchStream(
            self.split["train"],
            self.systems.data.sizes,
            self.options.batch_size,
            self.options.validate_every,
            self.options.seed,
            rank,
            world,
        )
        return self._loader(stream)

    def val_dataloader(self) -> DataLoader[Any]:
        rank, world = self._place()
        size = self.options.validation_batch_size or max(self.options.batch_size, 100)
        members = np.sort(self.split["validation"])
        return self._loader(Portions(members, self.systems.data.sizes, size, rank, world))
