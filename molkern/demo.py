"""The demonstration: a trained SchNet on frames it has not seen, and in molecular dynamics."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ase.units
import numpy as np
from ase import Atoms
from ase.md.velocitydistribution import Stationary
from ase.md.verlet import VelocityVerlet
from numpy.typing import NDArray

from .data import Frames, ethanol_frames, ethanol_model
from .host import threads_of_torch, usual_torch
from .md import ASECalculator
from .models import Potential
from .plots.figures import new_figure, save
from .progress import progress_bar

TIME_STEP = 0.5  # fs
RECORD_EVERY = 10  # steps


@dataclass
class Accuracy:
    """Forces on frames that were not trained on, eV/Å, and the mean error of energies, eV."""

    true_forces: NDArray[np.float64]
    predicted_forces: NDArray[np.float64]
    energy_error: float

    @property
    def force_error(self) -> float:
        return float(np.abs(self.predicted_forces - self.true_forces).mean())


@dataclass
class Trajectory:
    """Energies along a run at constant energy: times in fs, energies in eV."""

    times: NDArray[np.float64]
    potential: NDArray[np.float64]
    total: NDArray[np.float64]
    steps_per_second: float
    neighbor_lists: int

    @property
    def ns_per_day(self) -> float:
        return self.steps_per_second * TIME_STEP * 1e-6 * 86_400

    @property
    def drift(self) -> float:
        """Slope of the total energy, eV per ps."""
        return float(np.polyfit(self.times * 1e-3, self.total, 1)[0])


def evaluate(model: Potential, frames: Frames) -> Accuracy:
    out = model(frames.batch(), forces=True)
    energy_error = float((out["energy"] - frames.energies).abs().mean())
    predicted = out["forces"].double().numpy().ravel()
    return Accuracy(frames.forces.numpy().ravel(), predicted, energy_error)


def simulate(model: Potential, frame: Frames, steps: int, temperature: float) -> Trajectory:
    """Runs ASE's velocity Verlet at constant energy from a frame of the set."""
    atoms = Atoms(frame.numbers.numpy(), frame.positions[0].numpy())
    calculator = ASECalculator(model)
    atoms.calc = calculator
    rng = np.random.default_rng(0)
    masses = atoms.get_masses()[:, None]
    width = np.sqrt(masses * ase.units.kB * temperature)  # Maxwell-Boltzmann
    atoms.set_momenta(width * rng.standard_normal((len(atoms), 3)))
    Stationary(atoms)
    dynamics = VelocityVerlet(atoms, TIME_STEP * ase.units.fs)
    rows = []

    def record() -> None:
        potential = atoms.get_potential_energy()
        time_now = dynamics.get_number_of_steps() * TIME_STEP
        rows.append((time_now, potential, potential + atoms.get_kinetic_energy()))

    dynamics.attach(record, interval=RECORD_EVERY)
    dynamics.run(RECORD_EVERY)  # warm-up, not timed
    done = 0.0
    with progress_bar(total=steps, desc="NVE dynamics", unit="step") as progress:
        for first in range(0, steps, RECORD_EVERY):
            count = min(RECORD_EVERY, steps - first)
            start = time.perf_counter()
            dynamics.run(count)
            done += time.perf_counter() - start
            progress.update(count)
    if steps % RECORD_EVERY:  # the last state, too
        record()
    table = np.array(rows)
    builds = calculator.evaluator.builds
    return Trajectory(table[:, 0], table[:, 1], table[:, 2], steps / done, builds)


def plot(accuracy: Accuracy, trajectory: Trajectory, path: Path) -> None:
    """Energy conservation beside predicted against true forces, as a PNG."""
    figure = new_figure(11, 4.5)
    energies, forces = figure.subplots(1, 2)
    start = trajectory.total[0]
    times = trajectory.times * 1e-3
    energies.plot(times, (trajectory.potential - trajectory.potential[0]) * 1e3, lw=0.7, c="0.6")
    energies.plot(times, (trajectory.total - start) * 1e3, lw=1.5, c="tab:blue")
    energies.legend(["potential energy", "total energy"], loc="upper right")
    energies.set(xlabel="time, ps", ylabel="change, meV", title="Ethanol at constant energy")
    limits = [accuracy.true_forces.min(), accuracy.true_forces.max()]
    forces.plot(limits, limits, c="0.6", lw=1)
    forces.scatter(accuracy.true_forces, accuracy.predicted_forces, s=2, c="tab:blue", lw=0)
    forces.set(
        xlabel="GFN2-xTB force, eV/Å",
        ylabel="predicted force, eV/Å",
        title=f"Forces on unseen frames: mean error {accuracy.force_error * 1e3:.1f} meV/Å",
        aspect="equal",
    )
    save(figure, path)


@usual_torch()
@threads_of_torch(1)  # one molecule is too little work for more
def run(steps: int, path: Path, say: Callable[[str], None] = print) -> None:
    """The whole demonstration, on one thread: prints figures and writes the plot."""
    model = ethanol_model()
    model.filters = "spline"
    frames = ethanol_frames()["test"]
    say("SchNet for ethanol, trained on GFN2-xTB energies and forces; one CPU thread")
    say(f"filters as splines: {model.spline_report()}")
    accuracy = evaluate(model, frames)
    spread = float(np.abs(accuracy.true_forces).mean())
    say(
        f"{len(frames)} frames not trained on: force error {accuracy.force_error * 1e3:.1f} meV/Å "
        f"(mean force {spread * 1e3:.0f} meV/Å), energy error {accuracy.energy_error * 1e3:.1f} meV"
    )
    trajectory = simulate(model, frames[:1], steps, temperature=300)
    fluctuation = float(np.std(trajectory.total))
    say(
        f"{steps} steps of {TIME_STEP} fs: {trajectory.steps_per_second:.0f} steps/s, "
        f"{trajectory.ns_per_day:.1f} ns/day, {trajectory.neighbor_lists} neighbor list(s)"
    )
    say(
        f"total energy: drift {trajectory.drift * 1e3:+.3f} meV/ps, "
        f"fluctuation {fluctuation * 1e3:.2f} meV"
    )
    plot(accuracy, trajectory, path)
    say(f"plot: {path}")
