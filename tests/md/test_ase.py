import copy
import pickle
import threading

import numpy as np
import pytest
import torch

pytest.importorskip("ase")
import ase.build
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.md.verlet import VelocityVerlet
from ase.units import fs

import molkern
from molkern.md import ASECalculator
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
    assert 1 < atoms.calc.evaluator.builds < 25
    assert plain.evaluator.builds == 30


def test_energy_is_conserved(model):
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.calc = ASECalculator(model)
    atoms.set_velocities(np.random.default_rng(0).normal(scale=0.005, size=(9, 3)))
    totals = []
    dynamics = VelocityVerlet(atoms, 0.1 * fs)
    dynamics.attach(lambda: totals.append(atoms.get_total_energy()))
    dynamics.run(100)
    assert np.ptp(totals) < 1e-3 * abs(atoms.get_kinetic_energy()) + 1e-5


def test_other_atoms_and_boxes(model):
    """One calculator for one structure after the other."""
    shared = ASECalculator(model)
    water = ase.build.molecule("H2O")
    salt = ase.build.bulk("NaCl", "rocksalt", a=5.6)
    slab = salt.copy()
    slab.pbc = [True, True, False]
    wide = salt.copy()
    wide.set_cell(1.1 * salt.cell.array, scale_atoms=True)
    for atoms in (water, salt, wide, slab, water, ase.build.molecule("CH4")):
        atoms.calc = shared
        forces, energy = atoms.get_forces(), atoms.get_potential_energy()
        atoms.calc = ASECalculator(model)
        np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-12)
        assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-12)


def test_conditions():
    atoms = ase.build.molecule("H2O")
    model = molkern.models.PhysNet(16, 8, 2, cutoff=4.0).double()
    energies = []
    for charge in (0.0, 1.0):
        atoms.calc = ASECalculator(model, conditions={"total_charge": charge})
        energies.append(atoms.get_potential_energy())
    assert energies[0] != energies[1]


def test_copies(model):
    """Atoms are copied with their calculator, and sent to other processes."""
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.calc = ASECalculator(model)
    atoms.get_forces()
    for twin in (copy.deepcopy(atoms), pickle.loads(pickle.dumps(atoms))):
        assert twin.calc.model is not model
        for each in (atoms, twin):
            each.positions[0] = 0.1
        np.testing.assert_array_equal(twin.get_forces(), atoms.get_forces())


def test_dimenet():
    atoms = ase.build.molecule("H2O")
    atoms.calc = ASECalculator(molkern.models.DimeNetPlusPlus(16, 1, 2, 8, 4, 8, 5, 4, cutoff=3.0))
    assert atoms.get_forces().shape == (3, 3)
    with pytest.raises(ValueError, match="this DimeNetPlusPlus predicts 'property'"):
        ASECalculator(molkern.models.DimeNetPlusPlus(16, 2, 2, 8, 4, 8, 5, 4, cutoff=3.0))


def test_models_of_other_things_are_refused():
    with pytest.raises(ValueError, match="this SchNet predicts 'dipole_moment'"):
        ASECalculator(SchNet(4, 4, 1, num_basis=4, cutoff=3.0, prediction="dipole_moment"))


def test_what_has_changed(model):
    """Results are kept for the same atoms, to the bit, and for no others."""
    atoms = ase.build.molecule("CH3CH2OH")
    calculator = ASECalculator(model)
    assert calculator.check_state(atoms) == all_changes
    atoms.calc = calculator
    atoms.get_forces()
    assert calculator.check_state(atoms) == []
    changes = {
        "positions": lambda x: x.positions.__setitem__((3, 1), np.nextafter(x.positions[3, 1], 9)),
        "numbers": lambda x: x.numbers.__setitem__(0, 9),
        "cell": lambda x: x.set_cell([9, 9, 9]),
        "pbc": lambda x: x.set_pbc([True, False, False]),
        "initial_charges": lambda x: x.set_initial_charges(np.ones(9)),
        "initial_magmoms": lambda x: x.set_initial_magnetic_moments(np.ones(9)),
    }
    assert list(changes) == all_changes
    for name, change in changes.items():
        changed = atoms.copy()
        change(changed)
        assert calculator.check_state(changed) == [name]
    calculator.ignored_changes = {"initial_magmoms"}
    assert calculator.check_state(changed) == []


def test_no_stress_without_a_cell(model):
    atoms = ase.build.molecule("H2O")
    atoms.calc = ASECalculator(model)
    for cell in (0, 9):  # one that is there and does not repeat is none
        atoms.set_cell([cell] * 3)
        with pytest.raises(PropertyNotImplementedError, match=r"stress needs a cell .* atoms\.pbc"):
            atoms.get_stress()


def test_threads_need_a_calculator_each(model, monkeypatch):
    """A second thread gets an error, not another's results."""
    within, go_on = threading.Event(), threading.Event()
    plain = molkern.md.Evaluator.__call__

    def slow(self, *arguments, **options):
        within.set()
        assert go_on.wait(60)
        return plain(self, *arguments, **options)

    monkeypatch.setattr(molkern.md.Evaluator, "__call__", slow)
    calculator = ASECalculator(model)
    here, there = (ase.build.molecule("CH3CH2OH") for _ in range(2))
    here.calc = there.calc = calculator
    worker = threading.Thread(target=there.get_forces)
    worker.start()
    assert within.wait(60)
    with pytest.raises(RuntimeError, match="need an ASECalculator each, but another thread"):
        here.get_potential_energy()
    twin = copy.copy(calculator)
    go_on.set()
    assert twin.get_potential_energy(here) < 0
    worker.join()
    here.get_potential_energy()


def test_a_model_of_another_type_gets_a_new_evaluator(model):
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.calc = ASECalculator(model)
    before = atoms.get_forces()
    model.float()
    atoms.positions[0, 0] += 1e-9
    np.testing.assert_allclose(atoms.get_forces(), before, atol=1e-4)


def test_energies_that_are_not_finite(model):
    atoms = ase.build.molecule("H2O")
    model.embedding.weight.data[8] = np.nan
    atoms.calc = ASECalculator(model)
    with pytest.raises(RuntimeError, match="the energy is nan: look at the model's weights"):
        atoms.get_potential_energy()


def _scale(calculator):
    with torch.no_grad():
        for weight in calculator.model.parameters():
            weight.mul_(1.1)


def physnet(seed=4):
    """One whose readout is not zero, as it is at first."""
    model = molkern.models.PhysNet(12, 8, 2, cutoff=4.0).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return model.eval()


CHANGES = {
    "weights": _scale,
    "type": lambda calculator: calculator.model.float(),
    "unit of energy": lambda calculator: setattr(calculator, "energy_unit", 0.5),
    "conditions": lambda calculator: calculator.conditions.update(total_charge=1.0),
    "other conditions": lambda calculator: setattr(calculator, "conditions", {"total_charge": 2}),
    "model": lambda calculator: setattr(calculator, "model", physnet(5)),
}


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_results_of_a_model_as_it_was_are_not_given_back(change, moved):
    """A calculator that is trained further, or set otherwise, computes the same atoms again."""
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.calc = ASECalculator(physnet())
    before = atoms.get_potential_energy(), atoms.get_forces()
    CHANGES[change](atoms.calc)
    atoms.positions[0, 0] += 1e-9 * moved
    fresh = atoms.copy()
    calculator = atoms.calc
    fresh.calc = ASECalculator(
        calculator.model,
        energy_unit=calculator.energy_unit,
        conditions=dict(calculator.conditions),
    )
    expected = fresh.get_potential_energy(), fresh.get_forces()
    assert abs(expected[0] - before[0]) > 1e-9
    assert atoms.get_potential_energy() == pytest.approx(expected[0], rel=1e-7)
    np.testing.assert_allclose(atoms.get_forces(), expected[1], rtol=1e-5, atol=1e-8)


def test_elements_that_a_model_is_no_longer_to_know(model):
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.calc = ASECalculator(model)
    atoms.get_forces()
    model.elements = [1, 6]
    with pytest.raises(ValueError, match=r"is O \(8\), which this SchNet does not know"):
        atoms.get_forces()


def test_copies_keep_results(model):
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.calc = ASECalculator(model)
    forces = atoms.get_forces()
    for twin in (copy.deepcopy(atoms), pickle.loads(pickle.dumps(atoms))):
        found = twin.calc.get_property("forces", twin, allow_calculation=False)
        np.testing.assert_array_equal(found, forces)
