import copy
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import ase.build
import numpy as np
import pytest
import torch

pytest.importorskip("openmm")
import openmm
from openmm import app, unit

from molkern.data import ethanol_frames, ethanol_model
from molkern.md import ASECalculator, Evaluator, openmm_force
from molkern.models import SchNet

# The engine is what is tested; other tests launch the same kernels
pytestmark = pytest.mark.unemulated

#: eV in kJ/mol.
KJ = 96.4853321


@pytest.fixture
def model():
    return SchNet(12, 12, 2, num_basis=10, cutoff=4.0, mean=-3.0).double()


def context_of(system, atoms, step=0.0005):
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(step), platform)
    context.setPositions(0.1 * atoms.positions)
    return context


def system_of(atoms, force):
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    if atoms.pbc.any():
        system.setDefaultPeriodicBoxVectors(*0.1 * atoms.cell.array)
    system.addForce(force)
    return system


def energy_and_forces(context):
    """In kJ/mol and kJ/mol/nm."""
    state = context.getState(energy=True, forces=True)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    forces = state.getForces(asNumpy=True)
    return energy, forces.value_in_unit(unit.kilojoule_per_mole / unit.nanometer)


def topology_of(atoms, residue="MOL"):
    topology = app.Topology()
    place = topology.addResidue(residue, topology.addChain())
    for k, symbol in enumerate(atoms.get_chemical_symbols()):
        topology.addAtom(f"{symbol}{k}", app.Element.getBySymbol(symbol), place)
    if atoms.pbc.any():
        topology.setPeriodicBoxVectors(0.1 * atoms.cell.array * unit.nanometer)
    return topology


def crystal():
    """A triclinic box in the reduced form that OpenMM asks for, with atoms beyond its faces."""
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    cell = np.array([[5.8, 0.0, 0.0], [0.9, 5.5, 0.0], [-0.7, 0.6, 5.7]])
    atoms.set_cell(cell, scale_atoms=True)
    atoms.rattle(0.15, seed=0)
    return atoms


@pytest.mark.parametrize("make", [crystal, lambda: ase.build.molecule("CH3CH2OH")])
@pytest.mark.parametrize("energy_unit", [1.0, 0.5])
def test_against_ase(model, make, energy_unit):
    atoms = make()
    force = openmm_force(model, topology_of(atoms), energy_unit=energy_unit)
    assert force.usesPeriodicBoundaryConditions() == atoms.pbc.any()
    energy, forces = energy_and_forces(context_of(system_of(atoms, force), atoms))
    atoms.calc = ASECalculator(model, energy_unit=energy_unit)
    assert energy == pytest.approx(KJ * atoms.get_potential_energy(), rel=1e-9)
    np.testing.assert_allclose(forces, 10 * KJ * atoms.get_forces(), rtol=1e-7, atol=1e-6)


def test_units():
    """Two atoms at 1.5 Å with E = 2 eV times a mean per atom: what stands here is by hand."""
    constant = SchNet(4, 4, 1, num_basis=4, cutoff=4.0, mean=2.0).double()
    for parameter in constant.head.parameters():
        parameter.data.zero_()
    pair = ase.Atoms("O2", [[0, 0, 0], [1.5, 0, 0]])
    energy, forces = energy_and_forces(
        context_of(system_of(pair, openmm_force(constant, [8, 8], periodic=False)), pair)
    )
    assert energy == pytest.approx(385.941328493, abs=1e-6)  # 4 eV in kJ/mol
    assert not forces.any()


def test_box_changes(model):
    atoms = crystal()
    context = context_of(system_of(atoms, openmm_force(model, topology_of(atoms))), atoms)
    energy_and_forces(context)
    atoms.set_cell(1.05 * atoms.cell.array, scale_atoms=True)
    context.setPeriodicBoxVectors(*0.1 * atoms.cell.array)
    context.setPositions(0.1 * atoms.positions)
    atoms.calc = ASECalculator(model)
    assert energy_and_forces(context)[0] == pytest.approx(
        KJ * atoms.get_potential_energy(), rel=1e-9
    )


@pytest.mark.parametrize("filters", ["exact", "spline"])
def test_a_system_outlives_xml(model, filters):
    atoms = crystal()
    model.filters = filters
    conditions = {"energy_unit": 0.5, "skin": 0.2}
    system = system_of(atoms, openmm_force(model, topology_of(atoms), **conditions))
    expected = energy_and_forces(context_of(system, atoms))
    text = openmm.XmlSerializer.serialize(system)  # after use, with an evaluator at work
    again = openmm.XmlSerializer.deserialize(text)
    found = energy_and_forces(context_of(again, atoms))
    assert found[0] == expected[0]
    np.testing.assert_array_equal(found[1], expected[1])
    assert again.usesPeriodicBoundaryConditions()


def test_float32_model_is_pickled():
    from molkern.md.openmm import OpenMMCompute

    compute = pickle.loads(pickle.dumps(OpenMMCompute(ethanol_model(), [6, 1])))
    assert compute.numbers.tolist() == [6, 1]
    assert next(compute.model.parameters()).dtype == torch.float32
    assert compute.kept.evaluators == []


def test_a_box_with_atomic_numbers(model):
    """Which says nothing of a box, so that it is asked for."""
    atoms = crystal()
    for periodic in (True, False):
        force = openmm_force(model, atoms.numbers, periodic=periodic)
        assert force.usesPeriodicBoundaryConditions() == periodic
        found, forces = energy_and_forces(context_of(system_of(atoms, force), atoms))
        alike = atoms.copy()
        alike.pbc = periodic
        alike.calc = ASECalculator(model)
        assert found == pytest.approx(KJ * alike.get_potential_energy(), rel=1e-9)
        np.testing.assert_allclose(forces, 10 * KJ * alike.get_forces(), rtol=1e-7, atol=1e-6)


def test_copies_of_a_force(model):
    atoms = crystal()
    force = openmm_force(model, topology_of(atoms))
    expected, _ = energy_and_forces(context_of(system_of(atoms, copy.deepcopy(force)), atoms))
    again, _ = energy_and_forces(context_of(system_of(atoms, force), atoms))
    assert again == pytest.approx(expected, rel=1e-12)


def test_some_particles(model):
    """The rest of the system feels nothing."""
    atoms = ase.build.molecule("CH3CH2OH")
    chosen = [8, 1, 2, 7]
    force = openmm_force(model, topology_of(atoms), particles=chosen)
    energy, forces = energy_and_forces(context_of(system_of(atoms, force), atoms))
    part = atoms[chosen]
    part.calc = ASECalculator(model)
    assert energy == pytest.approx(KJ * part.get_potential_energy(), rel=1e-9)
    np.testing.assert_allclose(forces[chosen], 10 * KJ * part.get_forces(), rtol=1e-7, atol=1e-6)
    assert not np.delete(forces, chosen, axis=0).any()
    force = openmm_force(model, topology_of(atoms), particles=iter(chosen))
    assert energy_and_forces(context_of(system_of(atoms, force), atoms))[0] == energy


def test_conditions():
    from molkern.models import PhysNet

    water = ase.build.molecule("H2O")
    model = PhysNet(16, 8, 2, cutoff=4.0).double()
    energies = []
    for charge in (0.0, 1.0):
        force = openmm_force(model, [8, 1, 1], periodic=False, conditions={"total_charge": charge})
        energies.append(energy_and_forces(context_of(system_of(water, force), water))[0])
    assert energies[0] != energies[1]


def test_contexts_in_threads(model, monkeypatch):
    """Those of one system share a force, and with it an evaluator."""
    plain = Evaluator._take

    def slow(self, *arguments):
        plain(self, *arguments)
        time.sleep(0.002)  # another thread goes on

    monkeypatch.setattr(Evaluator, "_take", slow)
    molecules = [ase.build.molecule("CH3CH2OH") for _ in range(2)]
    molecules[1].rattle(0.1, seed=0)
    system = system_of(molecules[0], openmm_force(model, molecules[0].numbers, periodic=False))
    contexts = [context_of(system, atoms) for atoms in molecules]
    expected = [energy_and_forces(context)[0] for context in contexts]
    found = [[], []]

    def run(k):
        for _ in range(10):
            contexts[k].setPositions(0.1 * molecules[k].positions)
            found[k].append(energy_and_forces(contexts[k])[0])

    workers = [threading.Thread(target=run, args=(k,)) for k in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [[energy] * 10 for energy in expected]


def test_errors(model):
    atoms = ase.build.molecule("H2O")
    topology = topology_of(atoms)
    with pytest.raises(ValueError, match=r"atomic numbers do not tell .* give periodic=True"):
        openmm_force(model, [8, 1, 1])
    with pytest.raises(ValueError, match=r"atom 1 is \? \(200\)"):
        openmm_force(model, [8, 200, 1], periodic=False)
    with pytest.raises(TypeError, match="does not know 'total_charge'"):
        openmm_force(model, topology, conditions={"total_charge": 1.0})
    with pytest.raises(ValueError, match="particle 5 is not among the 3 atoms"):
        openmm_force(model, topology, particles=[0, 5])
    topology.addAtom("M", None, next(topology.residues()))
    with pytest.raises(ValueError, match=r"atom 3 \(M\) has no element"):
        openmm_force(model, topology)
    openmm_force(model, topology, particles=[0, 1, 2])
    system = system_of(atoms, openmm_force(model, [8, 1], periodic=False))
    with pytest.raises(Exception, match="for 2 particles, the state has 3"):
        energy_and_forces(context_of(system, atoms))


def test_energy_is_conserved():
    """Leapfrog's velocities are half a step late; OpenMM corrects them for kinetic energies.

    The error is of second order: half the step makes a quarter of it.
    """
    frame = ethanol_frames()["test"][:1]
    atoms = ase.Atoms(frame.numbers.numpy(), frame.positions[0].numpy())
    model, errors = ethanol_model().double(), []
    for step, every in ((0.0002, 4), (0.0001, 8)):
        force = openmm_force(model, frame.numbers.tolist(), periodic=False)
        context = context_of(system_of(atoms, force), atoms, step)
        context.setVelocitiesToTemperature(300, 1)
        totals = []
        for _ in range(25):
            context.getIntegrator().step(every)
            state = context.getState(energy=True)
            total = state.getPotentialEnergy() + state.getKineticEnergy()
            totals.append(total.value_in_unit(unit.kilojoule_per_mole) / KJ)
        errors.append(np.ptp(totals))
    assert errors[0] < 4e-3, errors
    assert 2.5 < errors[0] / errors[1] < 6.0, errors


class TestOpenMMML:
    @pytest.fixture(autouse=True)
    def factory(self):
        """As OpenMM-ML does with the entry point that pyproject.toml declares."""
        ml = pytest.importorskip("openmmml.mlpotential")
        tomllib = pytest.importorskip("tomllib")
        project = Path(__file__).parents[2] / "pyproject.toml"
        declared = tomllib.loads(project.read_text())["project"]["entry-points"]
        [(name, value)] = declared["openmmml.potentials"].items()
        self.entry = name, value
        factory = EntryPoint(name, value, "openmmml.potentials").load()
        ml.MLPotential.registerImplFactory(name, factory())
        self.potential = ml.MLPotential

    def test_a_file(self, model, tmp_path):
        atoms = crystal()
        model.save(tmp_path / "model.safetensors")
        potential = self.potential("molkern", model_path=tmp_path / "model.safetensors")
        system = potential.createSystem(topology_of(atoms))
        energy, _ = energy_and_forces(context_of(system, atoms))
        atoms.calc = ASECalculator(model)
        assert energy == pytest.approx(KJ * atoms.get_potential_energy(), rel=1e-9)

    def test_a_molecule_in_a_force_field(self, model):
        """Only what lies within the molecule is the model's; argon stays with Lennard-Jones."""
        atoms = ase.build.molecule("H2O") + ase.Atoms("Ar", [[3.0, 0, 0]])
        classical = openmm.System()
        pairs = openmm.NonbondedForce()
        for mass in atoms.get_masses():
            classical.addParticle(mass)
            pairs.addParticle(0.0, 0.3, 0.5)
        classical.addForce(pairs)
        potential = self.potential("molkern", model=model, energy_unit=0.5, skin=0.1)
        mixed = potential.createMixedSystem(topology_of(atoms), classical, [0, 1, 2])
        energy, _ = energy_and_forces(context_of(mixed, atoms))
        water = atoms[:3]
        water.calc = ASECalculator(model, energy_unit=0.5)
        ratios = (3.0 / atoms.get_distances(3, [0, 1, 2])) ** 6
        outside = 4 * 0.5 * np.sum(ratios**2 - ratios)
        assert energy == pytest.approx(KJ * water.get_potential_energy() + outside, rel=1e-7)

    def test_a_box_that_is_seen_or_not(self, model):
        atoms = crystal()
        energies = []
        for periodic in (None, True, False):
            potential = self.potential("molkern", model=model, periodic=periodic)
            system = potential.createSystem(topology_of(atoms))
            assert system.usesPeriodicBoundaryConditions() == (periodic is not False)
            energies.append(energy_and_forces(context_of(system, atoms))[0])
        assert energies[0] == energies[1] != energies[2]

    def test_a_model_or_a_file(self, model):
        for given in ({}, {"model": model, "model_path": "model.safetensors"}):
            with pytest.raises(ValueError, match="one of them"):
                self.potential("molkern", **given)

    @pytest.mark.parametrize("first", ["openmmml", "molkern.md.openmmml"])
    def test_imported_in_any_order(self, first):
        """OpenMM-ML loads molkern's entry point while it is imported, by molkern perhaps."""
        code = f"""
            import importlib.metadata as metadata
            entry = metadata.EntryPoint({self.entry[0]!r}, {self.entry[1]!r}, "openmmml.potentials")
            found = metadata.entry_points
            metadata.entry_points = lambda group: (
                [entry] if group == "openmmml.potentials" else found(group=group)
            )
            import {first}
            import molkern, openmmml
            model = molkern.models.SchNet(16, 16, 2, cutoff=5.0)
            print(type(openmmml.MLPotential("molkern", model=model)._impl).__name__)
        """
        code = textwrap.dedent(code)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == "MolkernPotential", done.stderr


@pytest.mark.parametrize("known", ["numbers", "topology"])
def test_what_chooses_particles(model, known):
    atoms = ase.build.molecule("H2O")
    given = topology_of(atoms) if known == "topology" else [8, 1, 1]
    kind = {"periodic": False}

    def forces(particles):
        force = openmm_force(model, given, particles=particles, **kind)
        return energy_and_forces(context_of(system_of(atoms, force), atoms))[1]

    expected = forces([0, 2])
    assert np.abs(expected).max() > 0
    for same in ([True, False, True], np.array([True, False, True]), range(0, 3, 2), iter([0, 2])):
        np.testing.assert_array_equal(forces(same), expected)
    for wrong, error, message in (
        ([0, 0, 1], ValueError, "particle 0 is given twice"),
        ([], ValueError, "particles= chooses none"),
        ([0.7, 1.2], TypeError, "particles are chosen by integers"),
        ([True, False], IndexError, "a mask must have one bool for each of 3 particles"),
        ([-1], ValueError, "particle -1 is not among"),
    ):
        with pytest.raises(error, match=message):
            openmm_force(model, given, particles=wrong, **kind)


def test_numbers_that_are_none(model):
    """A number that is not whole is no element, nor is a mask a list of them."""
    for wrong in ([6.5, 1, 1], [None, 1, 1], [True, True, False]):
        with pytest.raises(TypeError, match="is neither a chemical symbol nor an integer"):
            openmm_force(model, wrong, periodic=False)
    atoms = ase.build.molecule("H2O")
    found = []
    for numbers in (["O", "H", "H"], np.array([8, 1, 1]), torch.tensor([8, 1, 1])):
        system = system_of(atoms, openmm_force(model, numbers, periodic=False))
        found.append(energy_and_forces(context_of(system, atoms))[0])
    assert len(set(found)) == 1
