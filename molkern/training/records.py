"""What a run writes while it goes on: a table of metrics, its best model, its last checkpoint."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities import rank_zero_only

from ..appended import AppendedText, require_length
from ..data.reading import sha256_of
from ..files import in_one_line, read_json, write_whole
from ..models import Potential, load
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
        assert isinstance(pl_module, TrainingModule)
        if trainer.is_global_zero:
            self._check_table()
            self._check_best(pl_module.best)

    def _check_best(self, model: Potential) -> None:
        """Refuses to go on beside a best model that is damaged or another's.

        Raises:
            RunFileError: naming it.
        """
        if not math.isfinite(self.best):
            return
        path = self.folder / BEST
        if not path.is_file():
            raise RunFileError(gone(path))
        try:
            require_recorded(path, read_facts(self.folder))
            found = load(path)
        except (OSError, ValueError) as error:
            raise RunFileError(f"{path} cannot be gone on with: {in_one_line(error)}") from error
        if type(found) is not type(model) or _plain(found) != _plain(model):
            raise RunFileError(
                f"{path} is of another run: bring back a copy, or start anew with --restart"
            )

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


def read_facts(folder: Path) -> dict[str, Any]:
    """What a run wrote at its end, empty before.

    Raises:
        ValueError: a file that is damaged.
    """
    path = folder / FACTS
    facts = read_json(path) if path.is_file() else {}
    elements, sums = facts.get("elements", []), facts.get("files_sha256", {})
    if not isinstance(elements, list) or any(type(number) is not int for number in elements):
        raise ValueError(f"{path} is damaged: elements are no atomic numbers")
    if not isinstance(sums, dict):
        raise ValueError(f"{path} is damaged: files_sha256 names no files")
    return facts


def require_recorded(path: Path, facts: dict[str, Any]) -> None:
    """Refuses a file of a run that is not as it was when the run ended.

    Raises:
        ValueError: naming it.
    """
    wanted = facts.get("files_sha256", {}).get(path.name)
    if wanted is not None and path.is_file() and sha256_of(path) != wanted:
        raise ValueError(
            f"{path} is damaged or of another run: its checksum is not that in {FACTS}; bring it "
            f"back, or take its name out of {FACTS}"
        )


def gone(path: Path) -> str:
    """What is said of a run's file that somebody took away."""
    return f"{path} is gone: bring back a copy, or start anew with --restart"


def _plain(model: Potential) -> Any:
    """A model's arguments as they are in its file."""
    return json.loads(json.dumps(model.config))


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
