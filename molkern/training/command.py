"""What ``molkern train``, ``test``, ``predict``, ``plot`` and ``configs`` do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..md.extras import require

Say = Callable[[str], None]
PACKAGES = ("pytorch_lightning", "yaml", "pydantic", "matplotlib", "tqdm", "ase")


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

    if threads is not None:
        torch.set_num_threads(threads)
    folder, source = _places(config, out, resume)
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


def _places(config: str, out: Path | None, resume: bool) -> tuple[Path, str]:
    """The run's folder, and what its configuration is read from."""
    from .run import CONFIG

    if (Path(config) / CONFIG).is_file():  # a run's folder, to go on with
        if out is not None and out.resolve() != Path(config).resolve():
            raise ValueError(f"{config} is a run: go on with it without --out, or give its YAML")
        return Path(config), str(Path(config) / CONFIG)
    return Path(Path(config).stem) if out is None else out, config


def score(run: Path, part: str, device: str, say: Say) -> None:
    """Errors of a run on a part of its data."""
    require("train", *PACKAGES)
    from . import results

    results.score(run, part, _device(device), say=say)


def predict(run: Path, structures: Path, out: Path, device: str, batch_size: int, say: Say) -> None:
    """Predictions of a run for the structures of a file."""
    require("train", *PACKAGES)
    from .predict import predict as predicted

    count = predicted(run, structures, out, device=_device(device), batch_size=batch_size)
    say(f"{count:,} structures: {out}")


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


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
