"""What a run writes while it goes on: a table of metrics, its best model, its last checkpoint."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities import rank_zero_only

from ..appended import AppendedText, require_length
from ..files import in_one_line, write_whole
from .checkpoint import RunFileError
from .module import TrainingModule

METRICS, BEST, LAST = "metrics.csv", "best.safetensors", "last.ckpt"
#: What a run was, written at its end.
FACTS = "run.json"


class Records(Checkpoint):
    """After each interval: a row in the table, the best model, and a checkpoint, in this order.

    A kind of Lightning's checkpoints, which have their turn after all other callbacks, so that the
    state of these is that of the interval's end.

    A run that is killed goes on from its checkpoint; rows written after it are taken away then, and
    a better model that was already kept is found again. Files are replaced at a stroke.

    Args:
        folder: of the run.
        systems: of the training part, that steps are counted in passes of.
        identity: tells the run from others, whose checkpoints it does not go on from.

    Attributes:
        begun: whether training goes on: a checkpoint, if there was one, fitted.
    """

    def __init__(self, folder: Path, systems: int, identity: str):
        self.folder, self.systems, self.identity = folder, systems, identity
        self.begun = False
        self.best = math.inf
        self.best_step = 0
        self.seconds = 0.0  # of training and validation, in all sessions of the run
        self.table = AppendedText(folder / METRICS)
        self._columns: list[str] = []
        self._mark = 0
        self._table_digest = ""  # of the table up to there
        self._since = 0.0

    def state_dict(self) -> dict[str, Any]:
        return dict(
            best=self.best,
            best_step=self.best_step,
            seconds=self.seconds,
            columns=self._columns,
            mark=self._mark,
            table=self._table_digest,
            identity=self.identity,
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("identity", self.identity) != self.identity:
            raise ValueError("it is of a run of other data or another configuration")
        self.best, self.best_step = state["best"], state["best_step"]
        self.seconds, self._columns = state["seconds"], state["columns"]
        self._mark = state["mark"]
        # Checkpoints of before had none
        self._table_digest = state.get("table") or self._digest(self._mark)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self._check_table()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Goes on with the table; a checkpoint that did not fit has changed nothing until here."""
        self.begun = True
        if trainer.is_global_zero:  # to nothing, if it was killed before the first checkpoint
            self.table.cut(self._mark)
            (self.folder / FACTS).unlink(missing_ok=True)  # of the run as it was before
        self._since = time.monotonic()

    def _check_table(self) -> None:
        """Refuses to go on with a table that is not the checkpoint's.

        Raises:
            RunFileError: naming it.
        """
        if not self._mark:
            return
        path = self.folder / METRICS
        size = path.stat().st_size if path.exists() else 0
        try:
            require_length(path, size, self._mark, "bytes")
            table = read_metrics(path, self._mark)
        except ValueError as error:
            raise RunFileError(str(error)) from error
        if list(table) != self._columns or self._digest(self._mark) != self._table_digest:
            raise RunFileError(
                f"{path} is damaged or of another run than {LAST}: bring back a copy, or start "
                "anew with --restart"
            )

    def _digest(self, length: int) -> str:
        return hashlib.sha256((self.folder / METRICS).read_bytes()[:length]).hexdigest()

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
        trainer.save_checkpoint(self.folder / LAST, weights_only=False)

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
            self.table.add(_line(self._columns))
        self.table.add(_line(repr(row[name]) for name in self._columns))
        self.table.flush(sync=True)
        self._mark = self.table.mark()
        self._table_digest = self._digest(self._mark)

    @rank_zero_only
    def _keep_best(self, module: TrainingModule) -> None:
        write_whole(self.folder / BEST, module.best.to_bytes())


def _line(values: Iterable[str]) -> str:
    """Comma-separated; names of labels may have commas too."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def read_metrics(path: Path, length: int | None = None) -> dict[str, list[float]]:
    """The table of metrics by column, of all or of its first bytes.

    Raises:
        ValueError: naming a file that is not there, is empty or damaged.
    """
    try:
        text = path.read_bytes()[:length].decode()
        names, *rows = csv.reader(io.StringIO(text, newline=""))
        if "step" not in names or not rows or any(len(row) != len(names) for row in rows):
            raise ValueError("rows and columns are missing")
        return {name: [float(row[k]) for row in rows] for k, name in enumerate(names)}
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} is empty, damaged or no table: {in_one_line(error)}") from error
