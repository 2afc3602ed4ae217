import numpy as np
import pytest
import torch

pytest.importorskip("ase")
import ase.build
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.md.verlet import VelocityVerlet
from ase.units import fs

from molkern import AtomicBatch
from molkern.md import ASECalculator
from molkern.md.verlet import VerletList
from molkern.models import SchNet


@pytest.fixture
def model():
    return SchNet(12, 12, 2, num_basis=10, cutoff=4.0, mean=-3.0).double()


def test_forces_and_stress(model):
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.6).repeat((2, 1, 1))
    atoms.rattle(0.1, seed=0)
    atoms.calc = ASECalculator(model)
    np.testing.assert_allclose(
        atoms.get_forces(), calculate_numerical_forces(atoms, eps=1e-4), atol=1e-6
    )
    np.testing.assert_allclose(
        atoms.get_stress(), calculate_numerical_stress(atoms, eps=1e-5), atol=1e-7
    )
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()


def test_units(model):
    atoms = ase.build.molecule("CH3CH2OH")
    results = []
    for unit in (1.0, 0.5):
        atoms.calc = ASECalculator(model, energy_unit=unit)
        results.append((atoms.get_potential_energy(), atoms.get_forces()))
    assert results[1][0] == pytest.approx(0.5 * results[0][0])
    np.testing.assert_allclose(results[1][1], 0.5 * results[0][1])


def test_list_is_reused_while_valid(model):
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.calc = ASECalculator(model, skin=0.4)
    plain = ASECalculator(model, skin=0.0)
    rng = np.random.default_rng(0)
    for _ in range(30):
        atoms.positions += rng.normal(scale=0.03, size=(9, 3))
        expected = atoms.copy()
        expected.calc = plain
        np.testing.assert_allclose(atoms.get_forces(), expected.get_forces(), atol=1e-12)
    assert 1 < atoms.calc.neighbors.builds < 25
    assert plain.neighbors.builds == 30


def test_list_is_made_again_when_it_must_be():
    cell = 8 * torch.eye(3)
    positions = torch.rand(5, 3) * 8
    numbers = torch.ones(5, dtype=torch.int64)
    verlet = VerletList(3.0, 1.0)

    def builds(positions, cell, pbc):
        verlet(AtomicBatch(numbers[: len(positions)], positions, cell=cell, pbc=pbc))
        return verlet.builds

    assert builds(positions, cell, True) == 1
    moved = positions.clone()
    moved[2, 0] += 0.49
    assert builds(moved, cell, True) == 1
    moved[2, 0] += 0.02
    assert builds(moved, cell, True) == 2
    assert builds(moved, cell * 1.001, True) == 3
    assert builds(moved, cell * 1.001, [True, True, False]) == 4
    assert builds(moved, None, None) == 5
    assert builds(moved[:4], None, None) == 6
    with pytest.raises(ValueError, match="skin must not be negative, got -1"):
        VerletList(3.0, -1)


def test_energy_is_conserved(model):
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.calc = ASECalculator(model)
    atoms.set_velocities(np.random.default_rng(0).normal(scale=0.005, size=(9, 3)))
    totals = []
    dynamics = VelocityVerlet(atoms, 0.1 * fs)
    dynamics.attach(lambda: totals.append(atoms.get_total_energy()))
    dynamics.run(100)
    assert np.ptp(totals) < 1e-3 * abs(atoms.get_kinetic_energy()) + 1e-5


def test_positions_changed_in_place_are_noticed():
    positions = torch.tensor([[0.0, 0, 0], [2.8, 0, 0]])
    batch = AtomicBatch(torch.tensor([1, 1]), positions)
    neighbors = VerletList(cutoff=2.0, skin=0.5)
    assert neighbors(batch).num_edges == 0
    positions[1, 0] = 1.0
    assert neighbors(batch).num_edges == 2
