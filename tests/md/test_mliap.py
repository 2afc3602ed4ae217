import pickle

import numpy as np
import pytest
import torch

import molkern
from molkern.md import MLIAPMolkern
from molkern.models import DTNN, DimeNet, DimeNetPlusPlus, PhysNet, SchNet

# The engine is what is tested; other tests launch the same kernels
pytestmark = pytest.mark.unemulated

ELEMENTS = ["H", "C", "N", "O"]
NUMBERS = np.array([1, 6, 7, 8])
KCAL = 23.0605478


def filled(model):
    """With weights everywhere: some models start with energies of zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


MODELS = {
    "schnet": lambda: SchNet(12, 12, 2, num_basis=10, cutoff=4.0),
    "schnet splines": lambda: SchNet(12, 12, 2, num_basis=10, cutoff=4.0, filters="spline"),
    "physnet": lambda: PhysNet(16, 8, 2, cutoff=3.5, lr_cut=4.5),
    "dtnn": lambda: DTNN(cutoff=3.5),
    "dimenet": lambda: DimeNet(16, cutoff=3.5, num_blocks=1),
    "dimenet++": lambda: DimeNetPlusPlus(16, cutoff=3.5, num_blocks=1),
}


class Data:
    """What LAMMPS hands to a unified model: pairs of atoms and ghosts, each from both ends.

    ``pair_i`` are local atoms, ``pair_j`` atoms or ghosts, ``rij`` their vectors from i to j within
    the cutoff; ``update_pair_forces`` adds to the force on i what it takes from j, ghosts included,
    whose forces go to their atoms.
    """

    def __init__(self, elements, positions, cell, cutoff, exchange=True, other_process=()):
        count = len(positions)
        repeats = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), -1).reshape(-1, 3)
        repeats = repeats[(repeats != 0).any(1)] if cell is not None else repeats[:0]
        owners, places = [np.arange(count)], [positions]
        for shift in repeats:
            ghosts = positions + shift @ cell
            distances = np.linalg.norm(ghosts[:, None] - positions[None], axis=2).min(1)
            owners.append(np.flatnonzero(distances < cutoff + 0.5))
            places.append(ghosts[owners[-1]])
        self.owners, places = np.concatenate(owners), np.concatenate(places)
        vectors = places[None] - positions[:, None]
        distances = np.linalg.norm(vectors, axis=2)
        near = (distances < cutoff) & (np.arange(len(places)) != np.arange(count)[:, None])
        pair_i, pair_j = np.nonzero(near)
        self.pair_i, self.pair_j = pair_i.astype(np.int32), pair_j.astype(np.int32)
        self.rij = vectors[near]
        self.npairs, self.nlistatoms, self.ntotal = len(pair_i), count, len(places)
        self.elems = elements[self.owners].astype(np.int32)
        self.f = np.zeros((len(places), 3))
        self.virial = np.zeros((3, 3))
        self.energy = 0.0
        self.eatoms = np.zeros(count)
        self.other_process = list(other_process)
        if exchange:
            self.forward_exchange = self._exchange

    def _exchange(self, given, into, width):
        assert given.shape == into.shape == (self.ntotal, width)
        into.copy_(given[self.owners])
        into[self.other_process] = -2.0

    def update_pair_forces(self, pair_forces):
        assert pair_forces.dtype == np.float64
        assert pair_forces.flags["C_CONTIGUOUS"]
        np.add.at(self.f, self.pair_i, pair_forces)
        np.subtract.at(self.f, self.pair_j, pair_forces)
        self.virial -= self.rij.T @ pair_forces

    @property
    def forces(self):
        total = np.zeros((self.nlistatoms, 3))
        np.add.at(total, self.owners, self.f)
        return total


def system(periodic=True):
    """Ten atoms, in a triclinic cell that is shorter than twice the cutoff."""
    rng = np.random.default_rng(0)
    cell = np.array([[4.0, 0.3, 0.0], [-0.8, 4.4, 0.5], [0.6, -0.2, 5.0]])
    positions = np.array([[x, y, z] for x in (0, 0.5) for y in (0, 0.5) for z in (0.1, 0.6)]) @ cell
    positions += rng.normal(scale=0.1, size=positions.shape)
    return rng.integers(0, 4, len(positions)), positions, cell if periodic else None


def plain(model, elements, positions, cell):
    """Energy, forces and virial of the same atoms by the model itself."""
    weight = next(model.parameters())
    batch = molkern.AtomicBatch(
        torch.from_numpy(NUMBERS[elements]),
        torch.from_numpy(positions).to(weight),
        cell=None if cell is None else torch.from_numpy(cell).to(weight),
    )
    out = model.eval()(batch, forces=True, stress=cell is not None)
    virial = None if cell is None else -abs(np.linalg.det(cell)) * out["stress"][0].double().numpy()
    return float(out["energy"]), out["forces"].double().numpy(), virial


@pytest.mark.parametrize("name", MODELS)
def test_crystal_against_the_model(name):
    model = filled(MODELS[name]()).double()
    unified = MLIAPMolkern(model, ELEMENTS)
    data = Data(*system(), 2 * unified.rcutfac)
    unified.compute_descriptors(data)
    unified.compute_gradients(data)
    unified.compute_forces(data)
    energy, forces, virial = plain(model, *system())
    assert abs(forces).max() > 1e-4
    assert data.energy == pytest.approx(energy, rel=1e-9, abs=1e-9)
    assert abs(data.eatoms).min() > 0
    assert data.eatoms.sum() == pytest.approx(energy, rel=1e-9, abs=1e-9)
    np.testing.assert_allclose(data.forces, forces, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(0.5 * (data.virial + data.virial.T), virial, rtol=1e-6, atol=1e-9)


def test_molecule_needs_no_exchange():
    model = MODELS["schnet"]().double()
    data = Data(*system(periodic=False), 4.0, exchange=False)
    MLIAPMolkern(model, ELEMENTS).compute_forces(data)
    energy, forces, _ = plain(model, *system(periodic=False))
    assert data.energy == pytest.approx(energy, rel=1e-9)
    np.testing.assert_allclose(data.forces, forces, atol=1e-9)


def test_perfect_crystal():
    """Vectors whose components are round numbers, and images of the same atom."""
    model = filled(MODELS["dimenet++"]()).double()
    unified = MLIAPMolkern(model, ELEMENTS)
    crystal = np.array([1, 3]), np.array([[0.0, 0, 0], [1.5, 1.5, 1.5]]), 3.0 * np.eye(3)
    data = Data(*crystal, 2 * unified.rcutfac)
    unified.compute_forces(data)
    energy, _, virial = plain(model, *crystal)
    assert data.energy == pytest.approx(energy, rel=1e-9)
    np.testing.assert_allclose(data.virial, virial, atol=1e-8)


def test_float32_and_units():
    model = MODELS["schnet"]()
    data = Data(*system(), 4.0)
    MLIAPMolkern(model, ELEMENTS, units="real", energy_unit=0.5).compute_forces(data)
    energy, forces, _ = plain(model, *system())
    assert data.energy == pytest.approx(0.5 * KCAL * energy, rel=1e-6)
    np.testing.assert_allclose(data.forces, 0.5 * KCAL * forces, atol=1e-4 * abs(forces).max())


def test_conditions():
    energies = []
    for charge in (0.0, 1.0):
        torch.manual_seed(0)
        model = MODELS["physnet"]().double()
        unified = MLIAPMolkern(model, ELEMENTS, conditions={"total_charge": charge})
        data = Data(*system(), 2 * unified.rcutfac)
        unified.compute_forces(data)
        energies.append(data.energy)
    assert energies[0] != energies[1]


def test_a_file_that_lammps_reads(tmp_path):
    unified = MLIAPMolkern(MODELS["schnet splines"]().double(), ELEMENTS)
    first, second = Data(*system(), 4.0), Data(*system(), 4.0)
    unified.compute_forces(first)
    unified.interface = object  # what LAMMPS sets does not go into files
    unified.save(tmp_path / "model.pickle")
    with open(tmp_path / "model.pickle", "rb") as file:
        again = pickle.load(file)
    assert again.interface is None
    assert (again.element_types, again.rcutfac) == (ELEMENTS, 2.0)
    assert again.ndescriptors == again.nparams == 1
    again.compute_forces(second)
    assert second.energy == first.energy
    np.testing.assert_array_equal(first.f, second.f)
    with pytest.raises(ValueError, match=r"name it .*model\.pickle"):
        unified.save(tmp_path / "model.pt")


def test_lone_atoms():
    model = MODELS["schnet"]().double()
    lone = np.array([0, 2]), np.array([[0.0, 0, 0], [9.0, 0, 0]]), None
    data = Data(*lone, 4.0)
    MLIAPMolkern(model, ELEMENTS).compute_forces(data)
    assert data.energy == pytest.approx(plain(model, *lone)[0], rel=1e-9)


def test_models_that_do_more_when_they_are_called():
    """ML-IAP takes the predicted energy: what a call adds is refused, not left out."""
    model = filled(SchNet(8, 8, 1, 8, cutoff=4.0))
    wrapped = MLIAPMolkern(model, ["O"])
    handle = model.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="this SchNet has hooks or its own forward"):
        MLIAPMolkern(model, ["O"])
    with pytest.raises(ValueError, match=r"use molkern\.md\.LAMMPSFix"):
        wrapped.compute_forces(Data(*system(), 4.0))
    handle.remove()
    MLIAPMolkern(model, ["O"])
    model.compute = lambda *_: {}
    with pytest.raises(ValueError, match="this SchNet has hooks or its own forward"):
        MLIAPMolkern(model, ["O"])


def test_refusals():
    unified = MLIAPMolkern(MODELS["schnet"]().double(), ELEMENTS)
    with pytest.raises(RuntimeError, match="only with KOKKOS"):
        unified.compute_forces(Data(*system(), 4.0, exchange=False))
    with pytest.raises(RuntimeError, match=r"another process.*mpirun -n 1"):
        unified.compute_forces(Data(*system(), 4.0, other_process=[20]))
    data = Data(*system(), 4.0)
    data.pair_i, data.pair_j, data.rij = data.pair_i[1:], data.pair_j[1:], data.rij[1:]
    with pytest.raises(RuntimeError, match="from one end only"):
        unified.compute_forces(data)
    data = Data(*system(), 4.0)
    data.pair_i = data.pair_i + 1
    with pytest.raises(RuntimeError, match=r"lists 8 atoms .* a pair has atom 8"):
        unified.compute_forces(data)
    with pytest.raises(ValueError, match="they are 'lj'"):
        MLIAPMolkern(unified.model, ELEMENTS, units="lj")
    with pytest.raises(ValueError, match="set its lr_cut"):
        MLIAPMolkern(PhysNet(16, 8, 2, cutoff=3.5), ELEMENTS)
    with pytest.raises(ValueError, match="has number 8"):
        MLIAPMolkern(SchNet(4, 4, 1, num_basis=4, cutoff=3.0, num_elements=8), ELEMENTS)
