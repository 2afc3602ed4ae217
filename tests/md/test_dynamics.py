"""Integrators: against ASE's, and by what the equations conserve."""

import contextlib

import numpy as np
import pytest
import torch

pytest.importorskip("ase")
import ase.build
from ase import units
from ase.md.verlet import VelocityVerlet as AseVerlet

from molkern.data import ethanol_model
from molkern.graph import AtomicBatch
from molkern.md import ASECalculator, Evaluator
from molkern.md.dynamics import (
    BOLTZMANN,
    FEMTOSECOND,
    Langevin,
    ReplicaNoise,
    VelocityVerlet,
    degrees_of_freedom,
    initial_velocities,
    stationary,
)

# Thousands of steps of kernels that other tests launch
pytestmark = pytest.mark.unemulated


@pytest.fixture
def ethanol():
    return ase.build.molecule("CH3CH2OH")


def model(dtype=torch.float64, filters="spline"):
    model = ethanol_model().to(dtype)
    model.filters = filters
    return model


def parts(atoms, replicas, dtype=torch.float64, filters="spline", temperature=300.0):
    """Arguments of an integrator for some replicas of a molecule."""
    batch = AtomicBatch.from_ase([atoms] * len(replicas), dtype)
    masses = atoms.get_masses()
    drawn = [initial_velocities(7, r, atoms.positions, masses, temperature, True) for r in replicas]
    positions = np.tile(atoms.positions, (len(replicas), 1))
    arrays = positions, np.concatenate(drawn), np.tile(masses, len(replicas))
    return Evaluator(model(dtype, filters), batch), *map(torch.from_numpy, arrays)


def thermostat(atoms, replicas, friction, dtype=torch.float64, filters="spline"):
    noise = ReplicaNoise(7, replicas, len(atoms))
    options = {"temperature": 300.0, "friction": friction / (1000 * FEMTOSECOND), "noise": noise}
    return Langevin(*parts(atoms, replicas, dtype, filters), 0.5 * FEMTOSECOND, **options)


def advance(dynamics, steps):
    if dynamics.step == 0:
        dynamics.compute()
    for _ in range(steps):
        dynamics.advance()
    return dynamics


def test_units():
    assert pytest.approx(units.kB, rel=1e-15) == BOLTZMANN
    assert pytest.approx(units.fs, rel=1e-15) == FEMTOSECOND


def test_against_ase(ethanol):
    dynamics = VelocityVerlet(*parts(ethanol, [0]), 0.5 * FEMTOSECOND)
    ethanol.set_velocities(dynamics.velocities.numpy())
    ethanol.calc = ASECalculator(model())
    AseVerlet(ethanol, 0.5 * units.fs).run(50)
    advance(dynamics, 50)
    assert np.abs(ethanol.positions - dynamics.positions.numpy()).max() < 1e-6
    assert np.abs(ethanol.get_velocities() - dynamics.velocities.numpy()).max() < 1e-6
    assert float(dynamics.kinetic()) == pytest.approx(ethanol.get_kinetic_energy())
    assert float(dynamics.potential) == pytest.approx(ethanol.get_potential_energy())


def test_energy_is_conserved(ethanol):
    """Of the float32 model: the slope is within what a picosecond can tell from none."""
    dynamics = advance(VelocityVerlet(*parts(ethanol, [0, 1], torch.float32), 0.5 * FEMTOSECOND), 0)
    energies = []
    for _ in range(200):
        advance(dynamics, 10)
        energies.append(dynamics.conserved().numpy())
    slopes = np.polyfit(np.arange(200) * 5e-3, np.array(energies), 1)[0] / 9  # eV/atom/ps
    assert np.abs(slopes).max() < 2e-5
    assert np.std(energies, axis=0).max() / 9 < 5e-4
    assert dynamics.positions.dtype == torch.float64
    assert float(dynamics.heat.abs().max()) == 0
    momentum = (dynamics.masses * dynamics.velocities).reshape(2, 9, 3).sum(1)
    assert float(momentum.abs().max()) < 1e-4


def test_time_is_reversible(ethanol):
    dynamics = VelocityVerlet(*parts(ethanol, [0]), 0.5 * FEMTOSECOND)
    before = dynamics.positions.clone()
    advance(dynamics, 100)
    assert float((dynamics.positions - before).abs().max()) > 0.05
    dynamics.velocities.neg_()
    advance(dynamics, 100)
    torch.testing.assert_close(dynamics.positions, before, rtol=0, atol=1e-8)


def test_temperature_of_the_thermostat(ethanol):
    """The mean over replicas, within four standard errors and the known error of the step."""
    replicas = range(32)
    dynamics = advance(thermostat(ethanol, replicas, 50.0, torch.float32), 300)
    start = dynamics.conserved()
    temperatures = []
    for _ in range(60):
        advance(dynamics, 5)
        temperatures.append((2 * dynamics.kinetic() / (27 * BOLTZMANN)).numpy())
    means = np.mean(temperatures, axis=0)
    error = means.std() / np.sqrt(len(replicas))
    assert 1 < error < 10
    assert abs(means.mean() - 300) < 4 * error + 3
    # Heat is what energies change by: much more than the conserved energy does
    assert float((dynamics.conserved() - start).abs().max()) < 0.02
    assert float(dynamics.heat.mean()) > 0.1


@pytest.mark.parametrize(
    ("filters", "dtype", "tolerance"),
    [("spline", torch.float32, 0), ("spline", torch.float64, 0), ("exact", torch.float64, 1e-9)],
)
def test_replicas_do_not_depend_on_those_beside_them(ethanol, filters, dtype, tolerance):
    """To the bit with splines; networks on edges round differently in products of other sizes."""
    together = advance(thermostat(ethanol, range(5), 5.0, dtype, filters), 40)
    for replicas in ([3], [1, 2]):
        some = advance(thermostat(ethanol, replicas, 5.0, dtype, filters), 40)
        for k, replica in enumerate(replicas):
            expected = together.positions[9 * replica : 9 * replica + 9]
            found = some.positions[9 * k : 9 * k + 9]
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert not torch.equal(together.positions[:9], together.positions[9:18])


def test_noise():
    noise = ReplicaNoise(1, [4, 2], 50)
    numbers = torch.stack([noise(step) for step in range(40)])
    assert abs(float(numbers.mean())) < 0.03
    assert abs(float(numbers.var()) - 1) < 0.04
    alone = ReplicaNoise(1, [2], 50)
    assert torch.equal(alone(33), numbers[33, 50:])  # in any order of steps
    assert torch.equal(alone(5), numbers[5, 50:])
    assert not torch.equal(ReplicaNoise(2, [2], 50)(5), numbers[5, 50:])
    assert not torch.equal(numbers[0], numbers[1])


@pytest.mark.parametrize("name", ["CH3CH2OH", "CO2", "H"])
def test_initial_velocities(name):
    atoms = ase.build.molecule(name)
    masses, positions = atoms.get_masses(), atoms.positions
    freedom = degrees_of_freedom(positions, masses, True, False)
    assert freedom == {"CH3CH2OH": 21, "CO2": 4, "H": 0}[name]
    assert degrees_of_freedom(positions, masses, False, False) == 3 * len(atoms) - 3
    assert degrees_of_freedom(positions, masses, True, True) == 3 * len(atoms)
    kinetic = []
    for replica in range(400):
        velocities = initial_velocities(0, replica, positions, masses, 500.0, True)
        momenta = masses[:, None] * velocities
        assert np.abs(momenta.sum(0)).max() < 1e-12
        assert np.abs(np.cross(positions, momenta).sum(0)).max() < 1e-10
        kinetic.append(0.5 * (momenta * velocities).sum())
    expected = 0.5 * freedom * BOLTZMANN * 500
    assert np.mean(kinetic) == pytest.approx(expected, rel=0.12, abs=1e-12)


def test_unit_of_energy(ethanol):
    whole = advance(VelocityVerlet(*parts(ethanol, [0]), 0.5 * FEMTOSECOND), 0)
    half = advance(VelocityVerlet(*parts(ethanol, [0]), 0.5 * FEMTOSECOND, 0.5), 0)
    torch.testing.assert_close(half.forces, 0.5 * whole.forces)
    torch.testing.assert_close(half.potential, 0.5 * whole.potential)


def test_what_makes_no_dynamics(ethanol):
    evaluator, positions, velocities, masses = parts(ethanol, [0])
    step = 0.5 * FEMTOSECOND

    def refuses(kind, match, positions=positions, velocities=velocities, masses=masses, **options):
        options = {"time_step": step, **options}
        with pytest.raises(kind, match=match):
            VelocityVerlet(evaluator, positions, velocities, masses, **options)

    for value in (-1.0, 0.0, float("nan"), float("inf")):
        wrong = masses.clone()
        wrong[4] = value
        refuses(ValueError, "masses must be positive and finite, that of atom 4 is", masses=wrong)
        refuses(ValueError, "time_step must be positive and finite, got", time_step=value)
        refuses(ValueError, "energy_unit must be positive and finite, got", energy_unit=value)
    refuses(ValueError, r"masses must have shape \[9\], got \[1\]", masses=masses[:1])
    refuses(ValueError, r"masses must have shape \[9\], got \[9, 1\]", masses=masses[:, None])
    refuses(ValueError, r"velocities must have shape \[9, 3\]", velocities=velocities[:1])
    refuses(ValueError, r"positions must have shape \[9, 3\]", positions=positions[0])
    refuses(TypeError, "positions must be real", positions=positions.to(torch.complex128))
    refuses(TypeError, "masses must be real numbers, got torch.bool", masses=masses > 0)
    refuses(TypeError, "masses must be a tensor, got ndarray", masses=masses.numpy())
    wrong = velocities.clone()
    wrong[2, 0] = float("nan")
    refuses(ValueError, r"velocity of atom 2 is \[nan", velocities=wrong)
    noise = ReplicaNoise(7, [0], 9)
    for name in ("temperature", "friction"):
        for value in (-1.0, float("nan"), float("inf")):
            options = {"temperature": 300.0, "friction": 1.0, "noise": noise, name: value}
            with pytest.raises(ValueError, match=f"{name} must not be negative"):
                Langevin(evaluator, positions, velocities, masses, step, **options)
    with pytest.raises(ValueError, match="temperature must not be negative"):
        initial_velocities(0, 0, ethanol.positions, ethanol.get_masses(), -1.0, True)


@pytest.mark.parametrize(
    ("name", "whole", "still", "turning"),
    [("CH3CH2OH", 27, 21, 24), ("CO2", 9, 4, 6), ("H2", 6, 1, 3), ("H", 3, 0, 0)],
)
@pytest.mark.parametrize("distance", [0.0, 1e5])
def test_degrees_of_freedom_of_kept_velocities(name, whole, still, turning, distance):
    """By what really drifts and rotates."""
    atoms = ase.build.molecule(name)
    masses, positions = atoms.get_masses(), atoms.positions + distance

    def freedom(velocities, rotates=True, thermostat=False):
        return degrees_of_freedom(positions, masses, rotates, thermostat, velocities)

    thermal = np.random.default_rng(1).normal(scale=0.01, size=positions.shape)
    assert freedom(thermal) == whole
    assert freedom(thermal, rotates=False) == whole
    removed = stationary(thermal, positions, masses, True)
    assert freedom(removed) == still
    assert freedom(np.round(removed, 9)) == still
    assert freedom(removed, rotates=False) == 3 * len(atoms) - 3
    assert freedom(removed, thermostat=True) == whole
    spinning = stationary(thermal, positions, masses, False)
    assert freedom(spinning) == turning
    if name != "H":
        assert freedom(removed + 0.01) == still + 3
    assert freedom(np.zeros_like(thermal)) == still


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_starts_that_are_recorded_or_made_for_inference(ethanol, ensemble):
    """Steps record nothing, which would fill memory, and may follow in any mode."""

    def walk(mode, recorded):
        evaluator, positions, velocities, masses = parts(ethanol, [0])
        with mode():
            if recorded:
                for value in (positions, velocities, masses):
                    value.requires_grad_(True)
            arguments = evaluator, positions, velocities, masses, 0.5 * FEMTOSECOND
            if ensemble == "nve":
                dynamics = VelocityVerlet(*arguments)
            else:
                noise = ReplicaNoise(0, [0], len(masses))
                dynamics = Langevin(*arguments, temperature=300.0, friction=0.01, noise=noise)
            dynamics.compute()
        for _ in range(3):
            dynamics.advance()
        state = dynamics.positions, dynamics.velocities, dynamics.conserved()
        assert not any(value.requires_grad for value in state)
        return state

    expected = walk(contextlib.nullcontext, False)
    for mode, recorded in ((contextlib.nullcontext, True), (torch.inference_mode, False)):
        for found, value in zip(walk(mode, recorded), expected, strict=True):
            assert torch.equal(found, value)
