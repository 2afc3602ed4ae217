"""What a run writes while it goes on: a table of metrics, its best model, its last checkpoint."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities import rank_zero_only

from ..appended import AppendedText
from ..files import write_whole
from .module import TrainingModule

METRICS, BEST, LAST = "metrics.csv", "best.safetensors", "last.ckpt"


class Records(Checkpoint):
    """After each interval: a row in the table, the best model, and a checkpoint, in this order.

    A kind of Lightning's checkpoints, which have their turn after all other callbacks, so that the
    state of these is that of the interval's end.

    A run that is killed goes on from its checkpoint; rows written after it are taken away then, and
    a better model that was already kept is found again. Files are replaced at a stroke.

    Args:
        folder: of the run.
        systems: of the training part, that steps are counted in passes of.
    """

    def __init__(self, folder: Path, systems: int):
        self.folder, self.systems = folder, systems
        self.best = math.inf
        self.best_step = 0
        self.seconds = 0.0  # of training and validation, in all sessions of the run
        self.table = AppendedText(folder / METRICS)
        self._columns: list[str] = []
        self._mark = 0
        self._since = 0.0

    def state_dict(self) -> dict[str, Any]:
        return dict(
            best=self.best,
            best_step=self.best_step,
            seconds=self.seconds,
            columns=self._columns,
            mark=self._mark,
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.best_step = state["best"], state["best_step"]
        self.seconds, self._columns = state["seconds"], state["columns"]
        self._mark = state["mark"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:  # to nothing, if it was killed before the first checkpoint
            self.table.cut(self._mark)
        self._since = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        now = time.monotonic()
        self.seconds += now - self._since
        self._since = now
        loss = pl_module.interval_loss()  # all processes take part
        errors = pl_module.errors
        self._add_row(trainer, pl_module, loss, errors)
        if not (math.isfinite(loss) and math.isfinite(errors["loss"])):
            raise ValueError(
                f"the loss is {loss:g} at step {trainer.global_step:,}, {errors['loss']:g} in "
                "validation: lower optimizer.learning_rate, or set training.clip"
            )
        if errors["loss"] < self.best:
            self.best, self.best_step = errors["loss"], trainer.global_step
            self._keep_best(pl_module)
        trainer.save_checkpoint(self.folder / (LAST + ".part"), weights_only=False)
        if trainer.is_global_zero:
            os.replace(self.folder / (LAST + ".part"), self.folder / LAST)

    @rank_zero_only
    def _add_row(
        self,
        trainer: pl.Trainer,
        module: TrainingModule,
        loss: float,
        errors: dict[str, float],
    ) -> None:
        options, step = module.config.training, trainer.global_step
        row = dict(
            step=step,
            minutes=round(self.seconds / 60, 4),
            passes=round(step * options.batch_size / self.systems, 4),
            learning_rate=trainer.optimizers[0].param_groups[0]["lr"],
            train_loss=loss,
            **{f"val_{name}": value for name, value in errors.items()},
        )
        if not self._columns:
            self._columns = list(row)
            self.table.add(",".join(self._columns) + "\n")
        self.table.add(",".join(repr(row[name]) for name in self._columns) + "\n")
        self.table.flush(sync=True)
        self._mark = self.table.mark()

    @rank_zero_only
    def _keep_best(self, module: TrainingModule) -> None:
        write_whole(self.folder / BEST, module.best.to_bytes())
