"""What the command line does with its arguments: devices, threads, files, messages."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..extras import require
from ..files import read_frame, require_not_inputs
from ..host import usual_torch
from ..ops._library import build_info
from ..units import energy_unit as unit_of_energy
from .evaluate import evaluate
from .plan import Plan, Settings, default_group, output_path
from .report import lines
from .run import run
from .source import ModelSource, model_description

Say = Callable[[str], Any]
_ATOMS_PER_THREAD = 512


def model_source(
    name: str, filters: str, charge: float | None, allow_unknown_elements: bool = False
) -> ModelSource:
    """The model that was named, with a charge if one was given."""
    conditions = {} if charge is None else {"total_charge": charge}
    return ModelSource.open(name, filters, allow_unknown_elements, **conditions)


def chosen_device(name: str) -> str:
    """A device that is there; ``"auto"``: a GPU where there is one that molkern is built for.

    Raises:
        ValueError: another one, saying why.
    """
    usable = torch.cuda.is_available() and bool(build_info()["cuda"])
    if name == "auto":
        return "cuda" if usable else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is unknown: use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} has no kernels: use cpu, cuda or cuda:N")
    if device.type == "cuda" and not usable:
        why = "torch finds no GPU" if build_info()["cuda"] else "molkern is built without CUDA"
        raise ValueError(f"device {name!r} cannot be used: {why}; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"there is no {name}: this machine has {torch.cuda.device_count()} GPU(s)")
    return name


def chosen_threads(threads: int | None, workers: int, atoms: int | None = None) -> int:
    """As many as were asked for, or a worker's share of the cores.

    In one process no more than there is work for, where the number of atoms that are computed at
    once is known: threads that wait for each other make small steps slower.
    """
    if threads is not None:
        return threads
    if workers:
        return max(1, _cores() // workers)
    most = torch.get_num_threads()
    return most if atoms is None else min(most, max(1, atoms // _ATOMS_PER_THREAD))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@usual_torch()
def dynamics(
    structure: Path,
    source: ModelSource,
    out: Path,
    settings: dict[str, Any],
    *,
    energy_unit: str,
    frame: int,
    device: str,
    threads: int | None,
    group: int | None,
    resume: bool,
    restart: bool,
    plot: Path | None,
    workers: int,
    ray_address: str | None,
    say: Say,
) -> int:
    """``molkern md``; the exit code, that of a signal if one stopped the run."""
    require("md", "ase", "tqdm", "matplotlib")
    from ..plots.figures import picture_path

    atoms = read_frame(structure, frame)
    device = chosen_device(device)
    size = default_group(len(atoms), device) if group is None else group
    together = len(atoms) * min(size, settings["replicas"])
    plan = Plan(
        source.for_structure(atoms, str(structure)),
        atoms,
        Settings(**settings, energy_unit=unit_of_energy(energy_unit)),
        output_path(out),
        size,
        device,
        chosen_threads(threads, workers, together),
    )
    if plot is not None:
        plot = picture_path(plot, "--plot")
    require_not_inputs(plan.outputs(plot), {"the structure": structure})
    _check_address(ray_address, workers)
    summary, signal = run(
        plan,
        resume=resume,
        restart=restart,
        plot=plot,
        workers=workers,
        ray_address=ray_address,
        name=str(structure),
    )
    if summary is None:
        say(
            f"stopped by signal {signal} after a checkpoint: the same command with --resume goes on"
        )
        return 128 + (signal or 0)
    for line in [*lines(summary), f"trajectory: {_trajectories(plan)}", f"summary: {plan.summary}"]:
        say(line)
    return 0


def _check_address(address: str | None, workers: int) -> None:
    if address is not None and not workers:
        raise ValueError(f"--ray-address {address} needs --workers: say how many there are to be")


def _trajectories(plan: Plan) -> str:
    last = plan.settings.replicas - 1
    first = plan.trajectory(0)
    return str(first) if last == 0 else f"{first} to {plan.trajectory(last).name}"


@usual_torch()
def energies(
    structures: Path,
    source: ModelSource,
    out: Path,
    *,
    energy_unit: str,
    stress: bool,
    batch_size: int,
    max_edges: int,
    device: str,
    threads: int | None,
    workers: int,
    ray_address: str | None,
    say: Say,
    restart: bool = False,
    reference_unit: str = "eV",
) -> None:
    """``molkern evaluate``."""
    require("md", "ase", "tqdm")
    _check_address(ray_address, workers)
    count, errors = evaluate(
        structures,
        source,
        out,
        device=chosen_device(device),
        threads=chosen_threads(threads, workers),
        energy_unit=unit_of_energy(energy_unit),
        max_atoms=batch_size,
        max_edges=max_edges,
        stress=stress,
        workers=workers,
        ray_address=ray_address,
        restart=restart,
        reference_unit=reference_unit,
    )
    for line in [*errors, f"{count} structure(s): {out}"]:
        say(line)


def description(model: str | None) -> Iterator[str]:
    """``molkern info``, line by line."""
    from .. import __version__

    yield f"molkern {__version__}"
    for key, value in build_info().items():
        yield f"  {key}: {', '.join(value) if isinstance(value, list) else value}"
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    yield f"  GPUs: {', '.join(gpus) or 'none'}"
    yield f"  threads: {torch.get_num_threads()} of {_cores()} cores"
    if model is not None:
        require("md", "ase")
        source = ModelSource.open(model, filters=None)
        loaded = source.load()
        yield f"model {model}"
        for key, value in model_description(source, loaded).items():
            yield f"  {key}: {value}"
