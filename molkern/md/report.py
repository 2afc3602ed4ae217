"""What came out of a run: figures, as text and JSON, and a plot."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..files import in_one_line, write_whole
from .plan import Plan

Array = NDArray[np.float64]
_SECONDS_PER_DAY = 86_400
#: Columns of the tables of energies.
_STEP, _TIME, _REPLICA, _POTENTIAL, _KINETIC, _CONSERVED, _TEMPERATURE = range(7)


def energies(plan: Plan) -> Array:
    """The tables of all groups: ``[replicas, frames, 7]``, columns as in the files.

    Raises:
        ValueError: naming a table that is damaged.
    """
    tables = [_table(plan.energies(group), len(r)) for group, r in enumerate(plan.groups)]
    frames = min(len(table) for table in tables)
    return np.concatenate([table[:frames] for table in tables], axis=1).transpose(1, 0, 2)


def _table(path: Path, replicas: int) -> Array:
    try:
        rows = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
        return rows.reshape(-1, replicas, 7)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {in_one_line(error)}") from error


def drifts(table: Array) -> Array:
    """Slopes of the conserved energies, ``[replicas]``, eV/ps; NaN from fewer than two frames."""
    times = table[0, :, _TIME] * 1e-3
    if len(times) < 2:
        return np.full(len(table), np.nan)
    return np.asarray(np.polyfit(times, table[:, :, _CONSERVED].T, 1)[0])


def summarise(
    plan: Plan, table: Array, steps: int, seconds: float, builds: int, memory: tuple[int, int]
) -> dict[str, Any]:
    """Figures of a run by name; units are in the names.

    Args:
        plan: the run.
        table: of :func:`energies`.
        steps: that all replicas together did this time, in ``seconds``.
        builds: neighbor lists made for all groups.
        memory: largest use on the host and on the device, bytes, of a process.
    """
    settings, atoms = plan.settings, len(plan.atoms)
    rate = steps / seconds if seconds > 0 and steps else None
    together = None if rate is None else rate * settings.time_step * 1e-6 * _SECONDS_PER_DAY
    slopes = drifts(table) / atoms
    later = table[:, min(1, table.shape[1] - 1) :, _TEMPERATURE]
    return {
        "steps": int(table[0, -1, _STEP]),
        "replicas": settings.replicas,
        "atoms_per_replica": atoms,
        "ensemble": settings.ensemble,
        "time_step_fs": settings.time_step,
        "simulated_ps": float(table[0, -1, _TIME]) * 1e-3,
        "steps_this_time": steps,
        "seconds_this_time": seconds,
        "steps_per_second": None if rate is None else rate / settings.replicas,
        "replica_steps_per_second": rate,
        "ns_per_day": None if together is None else together / settings.replicas,
        "ns_per_day_together": together,
        "drift_eV_per_atom_per_ps": _number(slopes.mean()),
        "largest_drift_eV_per_atom_per_ps": _number(np.abs(slopes).max()),
        "mean_temperature_K": float(later.mean()),
        "neighbor_lists": builds,
        "peak_memory_MB": memory[0] / 1e6,
        "peak_device_memory_MB": memory[1] / 1e6,
        **surroundings(plan),
    }


def surroundings(plan: Plan) -> dict[str, Any]:
    """What a run was computed with."""
    from .. import __version__

    return {
        "model": plan.source.name,
        "model_sha256": plan.source.digest,
        "filters": plan.source.filters,
        "seed": plan.settings.seed,
        "group_size": plan.group_size,
        "device": device_name(plan.device),
        "threads": plan.threads,
        "versions": {
            "molkern": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def device_name(device: str) -> str:
    """The device, a GPU with its model."""
    if device.startswith("cuda") and torch.cuda.is_available():
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({platform.machine()})"


def _number(value: Any) -> float | None:
    """Not a number is nothing in JSON."""
    return float(value) if np.isfinite(value) else None


def save_json(summary: dict[str, Any], path: Path) -> None:
    """Writes a summary, at a stroke."""
    write_whole(path, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())


def lines(summary: dict[str, Any]) -> list[str]:
    """A summary for people."""
    text = [
        f"{summary['replicas']} replica(s) of {summary['atoms_per_replica']} atoms, "
        f"{summary['ensemble']}, {summary['simulated_ps']:g} ps each"
    ]
    if summary["steps_per_second"] is not None:
        text.append(
            f"{summary['steps_per_second']:.1f} steps/s, {summary['ns_per_day']:.3g} ns/day per "
            f"replica, {summary['ns_per_day_together']:.3g} ns/day together"
        )
    drift = summary["drift_eV_per_atom_per_ps"]
    if drift is not None:
        largest = summary["largest_drift_eV_per_atom_per_ps"]
        text.append(
            f"drift of the conserved energy {drift * 1e6:+.3g} µeV/atom/ps (largest of a replica "
            f"{largest * 1e6:.3g})"
        )
    text.append(
        f"mean temperature {summary['mean_temperature_K']:.1f} K, "
        f"{summary['neighbor_lists']} neighbor list(s), {summary['peak_memory_MB']:.0f} MB"
    )
    return text


def plot(table: Array, path: Path, names: Sequence[str] = ("energy", "temperature")) -> None:
    """Energies and temperature against time, of up to eight replicas.

    Raises:
        OSError: naming a file that cannot be written.
        ValueError: an ending that matplotlib has no format for.
    """
    from ..plots.figures import new_figure, save

    figure = new_figure(8, 6)
    above, below = figure.subplots(2, 1, sharex=True)
    for k, rows in enumerate(table[:8]):
        times = rows[:, _TIME] * 1e-3
        potential, conserved = rows[:, _POTENTIAL], rows[:, _CONSERVED]
        label = ["potential energy", "conserved energy"] if k == 0 else [None, None]
        above.plot(times, (potential - potential[0]) * 1e3, lw=0.6, c="0.65", label=label[0])
        above.plot(times, (conserved - conserved[0]) * 1e3, lw=1.2, c=f"C{k}", label=label[1])
        below.plot(times, rows[:, _TEMPERATURE], lw=0.5, c=f"C{k}", alpha=0.5)
    mean = table[:, :, _TEMPERATURE].mean(0)
    below.plot(table[0, :, _TIME] * 1e-3, mean, c="k", lw=1.2, label="mean of replicas")
    above.set(ylabel="change, meV", title=names[0])
    below.set(ylabel="K", xlabel="time, ps", title=names[1])
    above.legend(loc="upper right")
    below.legend(loc="upper right")
    save(figure, path)
