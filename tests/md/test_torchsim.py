import copy
import pickle
import threading

import numpy as np
import pytest
import torch

pytest.importorskip("ase")
pytest.importorskip("torch_sim")
import ase.build
import torch_sim as ts
from torch_sim.integrators import nve, nvt_langevin
from torch_sim.models.interface import validate_model_outputs
from torch_sim.units import MetalUnits

from molkern.data import ethanol_frames, ethanol_model
from molkern.md import ASECalculator, Evaluator, TorchSimModel
from molkern.models import SchNet

# The engine is what is tested; other tests launch the same kernels
pytestmark = pytest.mark.unemulated

FEMTOSECOND = 1e-3 * float(MetalUnits.time)
KELVIN = float(MetalUnits.temperature)


@pytest.fixture
def potential():
    return SchNet(12, 12, 2, num_basis=10, cutoff=4.0, mean=-3.0).double()


def crystals():
    """Two sheared boxes, of different sizes."""
    salt = ase.build.bulk("NaCl", "rocksalt", a=5.6).repeat((2, 1, 1))
    silicon = ase.build.bulk("Si", "diamond", a=5.43)
    for seed, atoms in enumerate((salt, silicon)):
        shear = np.array([[1.0, 0.1, -0.2], [0.0, 1.0, 0.3], [0.0, 0.0, 1.0]])
        atoms.set_cell(atoms.cell.array @ shear, scale_atoms=True)
        atoms.rattle(0.1, seed=seed)
    return [salt, silicon]


def molecules():
    return [ase.build.molecule(name) for name in ("CH3CH2OH", "H2O", "CH3OH")]


def state_of(systems, model):
    return ts.initialize_state(systems, model.device, model.dtype)


def test_torchsim_validates_it(potential):
    model = TorchSimModel(potential)
    validate_model_outputs(model, model.device, model.dtype)
    assert model.memory_scales_with == "n_atoms"


@pytest.mark.parametrize("unit", [1.0, 0.25])
def test_sheared_cells_against_ase(potential, unit):
    systems = crystals()
    model = TorchSimModel(potential, energy_unit=unit)
    out = model(state_of(systems, model))
    first = 0
    for k, atoms in enumerate(systems):
        atoms.calc = ASECalculator(potential, energy_unit=unit)
        last = first + len(atoms)
        assert float(out["energy"][k]) == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
        np.testing.assert_allclose(out["forces"][first:last], atoms.get_forces(), atol=1e-10)
        np.testing.assert_allclose(out["stress"][k], atoms.get_stress(voigt=False), atol=1e-10)
        first = last


def test_dictionary_and_other_arguments(potential):
    model = TorchSimModel(potential)
    state = state_of(crystals(), model)
    given = {
        name: getattr(state, name)
        for name in ("positions", "cell", "pbc", "atomic_numbers", "system_idx")
    }
    torch.testing.assert_close(model(given)["forces"], model(state)["forces"], atol=0, rtol=0)
    with pytest.raises(TypeError, match=r"a state only, got also .'charge'"):
        model(state, charge=1)
    with pytest.raises(ValueError, match="'n_atoms', got 'atoms'"):
        TorchSimModel(potential, memory_scales_with="atoms")
    with pytest.raises(ValueError, match="got 0"):
        TorchSimModel(potential, kept=0)


def test_results_are_copies(potential):
    model = TorchSimModel(potential)
    state = state_of(molecules(), model)
    before = model(state)
    kept = {name: value.clone() for name, value in before.items()}
    moved = state.clone()
    moved.positions += 0.1 * torch.rand_like(moved.positions)
    assert not torch.equal(model(moved)["forces"], kept["forces"])
    for name, value in before.items():
        assert torch.equal(value, kept[name])
        assert not value.requires_grad


def test_molecules_without_a_box(potential):
    model = TorchSimModel(potential)
    systems = molecules()
    out = model(state_of(systems, model))
    assert not out["stress"].any()
    for energy, atoms in zip(out["energy"], systems, strict=True):
        atoms.calc = ASECalculator(potential)
        assert float(energy) == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
    model.compute_stress = False
    assert set(model(state_of(systems, model))) == {"energy", "forces"}


def test_types(potential):
    """A network of float32 in states of float64, and the other way round."""
    single = SchNet(12, 12, 2, num_basis=10, cutoff=4.0, mean=-3.0)
    single.load_state_dict(potential.state_dict())
    exact = TorchSimModel(potential)
    expected = exact(state_of(crystals(), exact))
    wide = TorchSimModel(single, dtype=torch.float64)
    narrow = state_of(crystals(), TorchSimModel(single))
    assert narrow.dtype == torch.float32
    for model, state in ((wide, state_of(crystals(), wide)), (exact, narrow)):
        for name, value in model(state).items():
            assert value.dtype == state.dtype
            torch.testing.assert_close(value.double(), expected[name], atol=1e-4, rtol=1e-5)


def frames_of_ethanol():
    """Three geometries of ethanol, one with a water far away."""
    frames = ethanol_frames()["test"]
    systems = [ase.Atoms(frames.numbers.numpy(), frames.positions[k].numpy()) for k in range(3)]
    systems[1] += ase.Atoms("OH2", [[20.0, 0, 0], [20.96, 0, 0], [19.76, 0.93, 0]])
    return systems


@pytest.fixture(scope="module")
def nve_model():
    return TorchSimModel(ethanol_model().double(), memory_scales_with="n_atoms")


def started(model, femtoseconds):
    step = torch.tensor(femtoseconds * FEMTOSECOND, dtype=torch.float64)
    start, update = nve(model, dt=step, kT=torch.tensor(300 * KELVIN, dtype=torch.float64), seed=0)
    return start(state_of(frames_of_ethanol(), model)), update


def test_batched_nve_conserves_energy(nve_model):
    """Velocity Verlet's error is of second order, so half the step makes a quarter of it."""
    errors = []
    for femtoseconds, steps in ((0.2, 60), (0.1, 120)):
        state, update = started(nve_model, femtoseconds)
        totals = [state.energy + kinetic(state)]
        for _ in range(steps):
            state = update(state)
            totals.append(state.energy + kinetic(state))
        errors.append((torch.stack(totals) - totals[0]).abs().amax(0))
    assert errors[0].max() < 3e-3
    ratios = errors[0] / errors[1]
    assert ratios.min() > 3.5, ratios
    assert ratios.max() < 4.5, ratios


def test_batched_nve_is_that_of_each_system(nve_model):
    batch, update = started(nve_model, 0.25)
    singles = [batch[[k]] for k in range(3)]
    for _ in range(60):
        batch = update(batch)
    for k, single in enumerate(singles):
        for _ in range(60):
            single = update(single)
        positions = batch.positions[batch.system_idx == k]
        torch.testing.assert_close(single.positions, positions, atol=1e-9, rtol=0)
        torch.testing.assert_close(single.energy, batch.energy[[k]], atol=1e-8, rtol=0)


def kinetic(state):
    energies = 0.5 * state.momenta.square().sum(1) / state.masses
    return energies.new_zeros(state.n_systems).index_add_(0, state.system_idx, energies)


def test_langevin_heats():
    model = TorchSimModel(ethanol_model(), memory_scales_with="n_atoms")
    step, kT = torch.tensor(0.5 * FEMTOSECOND), torch.tensor(300 * KELVIN)
    start, update = nvt_langevin(model, dt=step, kT=kT, gamma=torch.tensor(0.1 / FEMTOSECOND))
    ethanol = ase.build.molecule("CH3CH2OH")
    state = start(state_of([ethanol] * 8, model), seed=0)
    state.momenta = torch.zeros_like(state.momenta)
    for _ in range(100):
        state = update(state)
    assert state.forces.isfinite().all()
    # A fluctuation of 3 N B / 2 degrees of freedom: 10 % of the mean
    degrees = 3 * state.n_atoms
    assert 0.5 < 2 * float(kinetic(state).sum()) / (degrees * float(kT)) < 1.5


@pytest.mark.parametrize("autobatch", [False, True])
def test_relaxation(autobatch):
    """With an autobatcher systems come and go, so that the batch changes."""
    model = TorchSimModel(ethanol_model().double(), memory_scales_with="n_atoms")
    systems = []
    for seed in range(4):
        systems.append(ase.build.molecule("CH3CH2OH"))
        systems[-1].rattle(0.05, seed=seed)
    before = model(state_of(systems, model))["forces"].norm(dim=1).max()
    batcher = False
    if autobatch:
        batcher = ts.InFlightAutoBatcher(
            model, memory_scales_with="n_atoms", max_memory_scaler=20, max_iterations=100
        )
    relaxed = ts.optimize(
        systems,
        model,
        optimizer=ts.optimizers.fire,
        convergence_fn=ts.generate_force_convergence_fn(0.2, include_cell_forces=False),
        max_steps=100,
        autobatcher=batcher,
    )
    after = model(relaxed)["forces"].norm(dim=1).max()
    assert after < 0.25 < 2 < before
    assert len(model.kept.evaluators) <= 8


def test_autobatched_energies(potential):
    model = TorchSimModel(potential, memory_scales_with="n_atoms", kept=2)
    systems = molecules() + molecules()[:2]
    batcher = ts.BinningAutoBatcher(model, memory_scales_with="n_atoms", max_memory_scaler=12)
    expected = model(state_of(systems, model))["energy"]
    batcher.load_states(state_of(systems, model).split())
    done = []
    while (batch := batcher.next_batch()) is not None:
        assert batch.n_atoms <= 12
        energies = model(batch)["energy"]
        done.append([energies[[k]] for k in range(batch.n_systems)])
    assert len(done) > 2
    order = [index for indices in batcher.index_bins for index in indices]
    energies = torch.cat([energy for energies in done for energy in energies])
    torch.testing.assert_close(energies, expected[order], atol=1e-10, rtol=0)
    assert len(model.kept.evaluators) == 2


def test_a_batch_that_comes_back_finds_its_list(potential):
    model = TorchSimModel(potential)
    one, other = state_of(molecules(), model), state_of(crystals(), model)
    for _ in range(3):
        model(one)
        model(other)
    assert [evaluator.builds for evaluator in model.kept.evaluators] == [1, 1]


def test_molecules_in_an_autobatcher_by_default(potential):
    """Without a volume there is no density to count by."""
    model = TorchSimModel(potential)
    systems = molecules()
    batcher = ts.BinningAutoBatcher(
        model, memory_scales_with=model.memory_scales_with, max_memory_scaler=12
    )
    batcher.load_states(state_of(systems, model).split())
    sizes = []
    while (batch := batcher.next_batch()) is not None:
        sizes.append(batch.n_atoms)
    assert sum(sizes) == sum(map(len, systems))


def test_copies_and_threads(potential, monkeypatch):
    model = TorchSimModel(potential)
    state = state_of(molecules(), model)
    expected = model(state)["forces"]
    for twin in (copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.kept is not model.kept
        torch.testing.assert_close(twin(state)["forces"], expected, atol=1e-9, rtol=0)
    within, go_on = threading.Event(), threading.Event()
    plain = Evaluator.__call__

    def slow(self, *arguments, **options):
        within.set()
        assert go_on.wait(60)
        return plain(self, *arguments, **options)

    monkeypatch.setattr(Evaluator, "__call__", slow)
    worker = threading.Thread(target=model, args=(state,))
    worker.start()
    assert within.wait(60)
    with pytest.raises(RuntimeError, match="need a TorchSimModel each, but another thread"):
        model(state)
    go_on.set()
    worker.join()


def test_a_model_that_moves(potential):
    """What is told of the potential is told of it as it is; a type that was given stays."""
    model, given = TorchSimModel(potential.float()), TorchSimModel(potential, dtype=torch.float64)
    assert (model.dtype, given.dtype) == (torch.float32, torch.float64)
    model.double()
    assert model.dtype == torch.float64
    assert model(state_of(molecules(), model))["forces"].dtype == torch.float64
    model.to("meta")
    assert model.device.type == "meta"
    assert given.dtype == torch.float64
