"""What ``molkern train``, ``test``, ``predict``, ``plot`` and ``configs`` do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..data import ethanol_model
from ..extras import require
from ..files import require_not_inputs
from ..host import everything_kept
from ..md.command import chosen_device
from ..md.source import SHIPPED
from ..models import Potential, load

Say = Callable[[str], None]
PACKAGES = ("pytorch_lightning", "yaml", "pydantic", "matplotlib", "tqdm", "ase")


@everything_kept()
def train(
    config: str,
    out: Path | None,
    changes: Sequence[str],
    *,
    resume: bool,
    restart: bool,
    device: str,
    devices: int,
    nodes: int,
    threads: int | None,
    say: Say,
) -> None:
    """Trains, then tests on the test part and draws; see :func:`molkern.training.run.train`."""
    require("train", *PACKAGES)
    from . import results, run
    from .config import read_config

    if threads is None and devices > 1:
        threads = max(1, torch.get_num_threads() // devices)
    if threads is not None:
        torch.set_num_threads(threads)
    if device != "auto":
        chosen_device(device)  # says what is wrong with it
    folder, source = _places(config, out)
    found = read_config(source, changes)
    try:
        run.train(
            found,
            folder,
            resume=resume,
            restart=restart,
            device=device,
            devices=devices,
            nodes=nodes,
            say=say,
        )
    except KeyboardInterrupt:
        say(f"interrupted; go on with: molkern train {folder} --resume")
        raise SystemExit(130) from None
    if run.rank() > 0:
        return
    say(f"the best model is {folder / 'best.safetensors'}")
    if len(run.load_split(folder / run.SPLIT, None)["test"]):
        results.score(folder, "test", say=say)


def _places(config: str, out: Path | None) -> tuple[Path, str]:
    """The run's folder, and what its configuration is read from."""
    from .folder import CONFIG

    if (Path(config) / CONFIG).is_file():  # a run's folder, to go on with
        if out is not None and out.resolve() != Path(config).resolve():
            raise ValueError(f"{config} is a run: go on with it without --out, or give its YAML")
        return Path(config), str(Path(config) / CONFIG)
    return Path(Path(config).stem) if out is None else out, config


@everything_kept()
def score(run: Path, part: str, device: str, say: Say) -> None:
    """Errors of a run on a part of its data."""
    require("train", *PACKAGES)
    from . import results

    results.score(run, part, chosen_device(device), say=say)


@everything_kept()
def predict(
    run: Path,
    structures: Path,
    out: Path,
    device: str,
    batch_size: int,
    say: Say,
    restart: bool = False,
    allow_unknown_elements: bool = False,
) -> None:
    """Predictions of a run for the structures of a file."""
    require("train", *PACKAGES)
    from .predict import predict as predicted

    count = predicted(
        run,
        structures,
        out,
        device=chosen_device(device),
        batch_size=batch_size,
        say=say,
        restart=restart,
        allow_unknown_elements=allow_unknown_elements,
    )
    say(f"{count:,} structures: {out}")


@everything_kept()
def configs(show: str | None, say: Say) -> None:
    """Names and first lines of the shipped configurations, or one of them in full."""
    require("train", *PACKAGES)
    from .config import find_config, shipped_configs

    if show is not None:
        say(find_config(show).read_text().rstrip())
        return
    for name, path in shipped_configs().items():
        first = path.read_text().splitlines()[0].removeprefix("#").strip()
        say(f"{name:28} {first}")


@everything_kept()
def draw_filters(
    source: str, out: Path, cell: float | None, block: int | None, count: int | None, say: Say
) -> None:
    """A picture of a model's filters."""
    from ..plots import draw_filters as draw
    from ..plots.figures import picture_path

    out = picture_path(out)
    require_not_inputs([out], _files_of(source))
    draw(_model(source), out, periodic_cell=cell, block=block, count=count)
    say(str(out))


@everything_kept()
def draw_basis(source: str | None, out: Path, cutoff: float, say: Say) -> None:
    """A picture of a model's bases, or of those of all models."""
    from ..plots import draw_basis as draw
    from ..plots.figures import picture_path

    out = picture_path(out)
    if source is None:
        draw(out, cutoff=cutoff)
    else:
        require_not_inputs([out], _files_of(source))
        draw(out, _model(source))
    say(str(out))


def _files_of(source: str) -> dict[str, str | Path | None]:
    """What a picture must not take the place of."""
    if Path(source).is_dir():
        require("train", *PACKAGES)
        from .results import Run

        return Run.open(Path(source)).files()
    return {"the model": source}


def _model(source: str) -> Potential:
    """A run's best model, a file, or the shipped one."""
    folder = Path(source)
    if folder.is_dir():
        require("train", *PACKAGES)
        from .results import Run

        return Run.open(folder).model()
    if source == SHIPPED:
        return ethanol_model()
    if not folder.is_file():
        raise ValueError(
            f"{source} is not there: give a run's folder, a model's file, or 'ethanol'"
        )
    return load(folder)
