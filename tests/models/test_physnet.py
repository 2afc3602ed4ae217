"""PhysNet as a potential: what it must be invariant to, its derivatives, its input."""

import math
from importlib.util import find_spec
from itertools import pairwise

import ase.build
import numpy as np
import pytest
import torch
from reference.physnet import coulomb_energy

from molkern import AtomicBatch, NeighborList
from molkern.models import PhysNet, Structure, load
from molkern.nn.electrostatics import COULOMB_CONSTANT

has_dispersion = pytest.mark.skipif(not find_spec("tad_dftd3"), reason="needs tad-dftd3")

#: Models by what they add to the energies of the atoms.
KINDS = {
    "plain": {"use_electrostatics": False},
    "all pairs": {},
    "cutoff": {"lr_cut": 6.0},
    "asparagus": {"variant": "asparagus", "lr_cut": 6.0},
    "dispersion": {"lr_cut": 6.0, "use_dispersion": True},
}
KIND = [pytest.param(k, marks=has_dispersion if k == "dispersion" else ()) for k in KINDS]
PERIODIC = [kind for kind in KIND if kind.values[0] != "all pairs"]


def small(variant="", **options):
    """A small model in float64 with parameters that are nowhere zero."""
    defaults = {"hidden_channels": 10, "num_basis": 8, "num_interactions": 2, "cutoff": 4.5}
    make = PhysNet.asparagus if variant else PhysNet
    model = make(**{**defaults, **options}).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(("basis", "dispersion")):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def crystal_batch(crystal):
    numbers, positions, cell = crystal
    return AtomicBatch(numbers, positions, cell=cell)


def molecule(name, dtype=torch.float64):
    return AtomicBatch.from_ase(ase.build.molecule(name), dtype=dtype)


def molecules(*names):
    return AtomicBatch.from_ase([ase.build.molecule(name) for name in names], dtype=torch.float64)


def rotation():
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    return q * torch.linalg.det(q).sign()


def test_parameter_count():
    assert sum(p.numel() for p in PhysNet().parameters()) == 1_293_948


def test_new_model_predicts_its_shifts():
    shifts = [0.5 * k for k in range(95)]
    model = PhysNet(energy_shift=shifts, charge_shift=0.25).eval()
    out = model(molecule("H2O", torch.float32), forces=True)
    charges = torch.zeros(3, dtype=torch.float64)
    assert torch.equal(out["charges"], charges)
    torch.testing.assert_close(out["energy"], torch.tensor([5.0], dtype=torch.float64))
    assert not out["forces"].any()
    assert out["nonhierarchicality"] == 0
    weight = model.embedding.weight
    assert math.sqrt(3) - 0.01 < float(weight.max().detach()) <= math.sqrt(3)
    torch.testing.assert_close(model.basis.functions()[0][0].detach(), torch.tensor(1.0))


@pytest.mark.parametrize("kind", ["all pairs", "cutoff"])
def test_energy_is_the_sum_of_its_parts(kind):
    model = small(**KINDS[kind])
    names = ("CH3CH2OH", "HCN", "H2O")
    batch = molecules(*names)
    total = torch.tensor([1.0, -2.0, 0.0])
    out = model(batch, total_charge=total)
    structure = Structure(batch, model.neighbors(batch), batch.positions, None)
    energies, charges, penalty = model.atomic_properties(structure)
    assert out["nonhierarchicality"] == penalty > 0
    bounds = batch.system_ptr.tolist()
    for system, (start, end) in enumerate(pairwise(bounds)):
        raw, q = charges[start:end], out["charges"][start:end]
        torch.testing.assert_close(q, raw + (total[system].double() - raw.sum()) / (end - start))
        torch.testing.assert_close(q.sum(), total[system].double())
        excess = raw.sum() - total[system].double()
        torch.testing.assert_close(out["charge_error"][system], excess)
        x = batch.positions[start:end]
        torch.testing.assert_close(out["dipole"][system], (q[:, None] * x).sum(0))
        pairs = coulomb_energy(q, x, COULOMB_CONSTANT, 4.5 / 2, KINDS[kind].get("lr_cut"))
        torch.testing.assert_close(out["energy"][system], energies[start:end].sum() + pairs)
        torch.testing.assert_close(out["atomic_energies"][start:end].sum(), out["energy"][system])


@pytest.mark.parametrize("kind", PERIODIC)
def test_invariances(crystal, kind):
    model = small(**KINDS[kind])
    numbers, positions, cell = crystal
    out = model(crystal_batch(crystal), forces=True)
    turn = rotation()
    order = torch.randperm(10)
    images = torch.randint(-2, 3, (10, 3)).double() @ cell
    cases = {
        "rotation": (numbers, positions @ turn, cell @ turn, lambda f: f @ turn),
        "translation": (numbers, positions + torch.tensor([3.0, -1.0, 0.5]), cell, lambda f: f),
        "permutation": (numbers[order], positions[order], cell, lambda f: f[order]),
        "images": (numbers, positions + images, cell, lambda f: f),
    }
    for name, (z, x, c, move) in cases.items():
        other = model(AtomicBatch(z, x, cell=c), forces=True)
        torch.testing.assert_close(
            other["energy"], out["energy"], rtol=1e-11, atol=1e-11, msg=lambda m, n=name: n + m
        )
        torch.testing.assert_close(other["forces"], move(out["forces"]), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", ["plain", "all pairs"])
def test_invariances_of_a_molecule(kind):
    model = small(**KINDS[kind])
    batch = molecule("CH3CH2OH")
    out = model(batch, forces=True, total_charge=1.0)
    turn, order = rotation(), torch.randperm(9)
    moved = AtomicBatch(batch.numbers[order], (batch.positions @ turn + 7.0)[order])
    other = model(moved, forces=True, total_charge=1.0)
    torch.testing.assert_close(other["energy"], out["energy"], rtol=1e-12, atol=0)
    torch.testing.assert_close(other["charges"], out["charges"][order])
    torch.testing.assert_close(other["dipole"], out["dipole"] @ turn + 7.0)
    torch.testing.assert_close(other["forces"], (out["forces"] @ turn)[order], atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", PERIODIC)
def test_supercell_is_extensive(crystal, kind):
    model = small(**KINDS[kind])
    numbers, positions, cell = crystal
    shifts = torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(1)).double()
    repeated = (positions[None] + (shifts @ cell)[:, None]).reshape(-1, 3)
    large = cell * torch.tensor([[3.0], [2.0], [1.0]])
    out = model(crystal_batch(crystal), forces=True, stress=True, total_charge=0.5)
    batch = AtomicBatch(numbers.repeat(6), repeated, cell=large)
    more = model(batch, forces=True, stress=True, total_charge=3.0)
    torch.testing.assert_close(more["energy"], 6 * out["energy"], rtol=1e-11, atol=0)
    torch.testing.assert_close(more["charges"], out["charges"].repeat(6), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(more["forces"], out["forces"].repeat(6, 1), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(more["stress"], out["stress"], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(more["nonhierarchicality"], out["nonhierarchicality"])


def difference(function, step=1e-5):
    """The central difference of a function of one displacement."""
    return (function(step) - function(-step)) / (2 * step)


@pytest.mark.parametrize("kind", PERIODIC)
def test_forces_and_stress_are_derivatives(crystal, kind):
    model = small(**KINDS[kind])
    numbers, positions, cell = crystal
    out = model(crystal_batch(crystal), forces=True, stress=True, total_charge=-1.0)

    def energy(x, c):
        return float(model(AtomicBatch(numbers, x, cell=c), total_charge=-1.0)["energy"].detach())

    for atom, axis in [(0, 0), (4, 1), (9, 2)]:
        direction = torch.zeros_like(positions)
        direction[atom, axis] = 1.0
        slope = difference(lambda h, d=direction: energy(positions + h * d, cell))
        assert float(out["forces"][atom, axis].detach()) == pytest.approx(
            -slope, rel=1e-5, abs=1e-7
        )
    volume = float(torch.linalg.det(cell).abs())
    for a, b in [(0, 0), (1, 2)]:
        strain = torch.zeros(3, 3, dtype=torch.float64)
        strain[a, b] += 0.5
        strain[b, a] += 0.5

        def strained(h, strain=strain):
            deformation = torch.eye(3, dtype=torch.float64) + h * strain
            return energy(positions @ deformation, cell @ deformation)

        slope = difference(strained) / volume
        assert float(out["stress"][0, a, b].detach()) == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("kind", KIND)
def test_batch_equals_molecules_one_by_one(kind):
    model = small(**KINDS[kind])
    names = ("CH3CH2OH", "HCN", "C2H2", "O")
    total = torch.tensor([0.0, 1.0, -1.0, 2.0])
    batch = molecules(*names)
    out = model(batch, forces=True, total_charge=total)
    start = 0
    for index, name in enumerate(names):
        single = molecule(name)
        alone = model(single, forces=True, total_charge=float(total[index]))
        atoms = slice(start, start + single.num_atoms)
        for key in ("energy", "dipole"):
            torch.testing.assert_close(out[key][index : index + 1], alone[key])
        for key in ("atomic_energies", "charges", "forces"):
            torch.testing.assert_close(out[key][atoms], alone[key])
        start += single.num_atoms


def test_periodic_batch_with_a_gap_equals_crystals_one_by_one(crystal):
    model = small(lr_cut=6.0)
    numbers, positions, cell = crystal
    cells = torch.stack([cell, cell, 1.1 * cell])
    pbc = torch.tensor([[True, False, True], [True] * 3, [True] * 3])
    system = torch.tensor([0] * 10 + [2] * 10)  # the second has no atoms
    batch = AtomicBatch(numbers.repeat(2), positions.repeat(2, 1), system, cells, pbc)
    out = model(batch, forces=True, stress=True, total_charge=torch.tensor([1.0, 0.0, -1.0]))
    assert out["energy"][1] == 0
    for index, atoms, charge in ((0, slice(0, 10), 1.0), (2, slice(10, 20), -1.0)):
        single = AtomicBatch(numbers, positions, cell=cells[index], pbc=pbc[index])
        alone = model(single, forces=True, stress=True, total_charge=charge)
        torch.testing.assert_close(out["energy"][index : index + 1], alone["energy"])
        torch.testing.assert_close(out["stress"][index : index + 1], alone["stress"])
        torch.testing.assert_close(out["forces"][atoms], alone["forces"])
        torch.testing.assert_close(out["charges"][atoms], alone["charges"])


LINEAR = {
    "HCN": ([1, 6, 7], [0.0, 1.06, 2.22]),
    "CO2": ([8, 6, 8], [0.0, 1.16, 2.32]),
    "C2H2": ([1, 6, 6, 1], [0.0, 1.06, 2.26, 3.32]),
    "chain": ([6] * 5, [0.0, 1.3, 2.6, 3.9, 5.2]),
}


@pytest.mark.parametrize("kind", ["all pairs", "cutoff", "asparagus"])
@pytest.mark.parametrize("name", LINEAR)
def test_training_on_forces_of_linear_molecules(name, kind):
    numbers, along = LINEAR[name]
    positions = torch.zeros(len(numbers), 3, dtype=torch.float64)
    positions[:, 2] = torch.tensor(along, dtype=torch.float64)
    batch = AtomicBatch(torch.tensor(numbers), positions)
    check_training(small(**KINDS[kind]).train(), batch)


@pytest.mark.parametrize("kind", PERIODIC)
def test_training_on_forces_of_a_crystal(crystal, kind):
    check_training(small(**KINDS[kind]).train(), crystal_batch(crystal))


def check_training(model, batch):
    """Gradients of a loss with forces are finite, and those of finite differences."""

    def loss():
        out = model(batch, forces=True, total_charge=1.0)
        return (
            out["forces"].square().sum()
            + out["energy"].square().sum()
            + out["dipole"].square().sum()
            + 0.01 * out["nonhierarchicality"]
        )

    loss().backward()
    for parameter in model.parameters():
        assert bool(parameter.grad.isfinite().all())
    chosen = ["embedding.weight", "scaling.scale", "scaling.shift"]
    chosen += [n for n, _ in model.named_parameters() if n.startswith(("basis", "dispersion"))]
    chosen += [
        f"interactions.0.{n}"
        for n in ("filters.weight", "lin_sender.weight", "gate", "message_residuals.0.lin1.weight")
    ]
    chosen += ["interactions.1.atomic_residuals.1.lin2.bias", "outputs.1.lin.weight"]
    for name in chosen:
        parameter = model.get_parameter(name)
        index = int(parameter.grad.abs().argmax())
        start = float(parameter.detach().view(-1)[index])

        def moved(h, parameter=parameter, index=index, start=start):
            with torch.no_grad():
                parameter.view(-1)[index] = start + h
            value = float(loss().detach())
            with torch.no_grad():
                parameter.view(-1)[index] = start
            return value

        slope = difference(moved, 1e-5 * max(1.0, abs(start)))
        found = float(parameter.grad.view(-1)[index])
        assert found == pytest.approx(slope, rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("kind", PERIODIC)
def test_longer_and_padded_lists_change_nothing(crystal, kind):
    model = small(**KINDS[kind])
    batch = crystal_batch(crystal)
    out = model(batch, forces=True, total_charge=1.0)
    needed = model.list_cutoff(batch)
    made = batch.neighbors(7.0)
    lists = {
        "longer": made,
        "padded": batch.neighbors(needed, capacity=20_000),
        "given": NeighborList.from_edge_index(made.edge_index, 10, made.shifts),
    }
    for name, neighbors in lists.items():
        other = model(batch, forces=True, neighbors=neighbors, total_charge=1.0)
        for key in ("energy", "forces", "charges"):
            torch.testing.assert_close(
                out[key], other[key], rtol=1e-9, atol=1e-10, msg=lambda m, n=name: n + m
            )


def test_far_atoms_interact_by_their_charges_alone():
    model = small()
    positions = torch.tensor([[0.0, 0, 0], [50.0, 0, 0]], dtype=torch.float64)
    batch = AtomicBatch(torch.tensor([11, 17]), positions)
    assert model.list_cutoff(batch) >= 50.0
    out = model(batch, forces=True)
    q = out["charges"]
    pull = COULOMB_CONSTANT * q[0] * q[1] / 50.0**2
    torch.testing.assert_close(out["forces"][0, 0], -pull)
    assert abs(float(pull.detach())) > 1e-9
    assert not small(lr_cut=40.0)(batch, forces=True)["forces"].any()


@pytest.mark.parametrize("atoms", [0, 1])
def test_no_atom_and_a_lone_one(atoms):
    model = small()
    positions = torch.zeros(atoms, 3, dtype=torch.float64)
    out = model(AtomicBatch(torch.ones(atoms, dtype=torch.int64), positions), forces=True)
    assert bool(out["energy"].isfinite().all())
    assert out["nonhierarchicality"].isfinite()
    assert not out["forces"].any()
    if atoms:
        assert float(out["charges"].detach()) == pytest.approx(0.0, abs=1e-15)


def test_float32_sums_and_charges_are_float64():
    model = small(energy_shift=-1e5, lr_cut=6.0)
    batch = molecule("CH3CH2OH")
    exact = model(batch, forces=True, total_charge=1.0)
    out = model.float()(batch.to(dtype=torch.float32), forces=True, total_charge=1.0)
    assert {out[k].dtype for k in ("energy", "charges", "dipole")} == {torch.float64}
    assert float(out["charges"].sum().detach()) == pytest.approx(1.0, abs=1e-14)
    # float32 would round the total to multiples of 1/16
    torch.testing.assert_close(out["energy"], exact["energy"], rtol=0, atol=1e-3)
    torch.testing.assert_close(out["forces"].double(), exact["forces"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KIND)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saved_model_is_the_same(tmp_path, kind, dtype):
    model = small(**KINDS[kind], energy_shift=[0.1 * k for k in range(95)]).to(dtype)
    batch = molecule("CH3CH2OH", dtype)
    path = tmp_path / "model.safetensors"
    model.save(path)
    loaded = load(path)
    assert loaded.config == model.config
    assert torch.equal(loaded(batch)["energy"], model(batch)["energy"])


@pytest.mark.unemulated
def test_compiled_model_gives_the_same(crystal):
    blocks = {f"num_residual_{name}": 1 for name in ("atomic", "interaction", "output")}
    model = small(lr_cut=6.0, num_interactions=1, **blocks).eval()
    batch = crystal_batch(crystal)
    neighbors = model.neighbors(batch)
    out = model(batch, forces=True, neighbors=neighbors)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    batch.positions.requires_grad_()
    energy = compiled(batch, neighbors=neighbors)["energy"]
    (gradient,) = torch.autograd.grad(energy.sum(), batch.positions)
    torch.testing.assert_close(energy, out["energy"])
    torch.testing.assert_close(-gradient, out["forces"])


@pytest.mark.parametrize("lr_cut", [None, 5.0])
def test_ase_calculator(lr_cut):
    from molkern.md import ASECalculator

    model = small(lr_cut=lr_cut)
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.calc = ASECalculator(model, skin=0.5)
    for _ in range(4):
        batch = AtomicBatch.from_ase(atoms, dtype=torch.float64)
        expected = model(batch, forces=True)
        assert atoms.get_potential_energy() == pytest.approx(float(expected["energy"]), rel=1e-12)
        torch.testing.assert_close(torch.as_tensor(atoms.get_forces()), expected["forces"])
        atoms.positions *= 1.05  # farther than the first list's cutoff, all the same all pairs


def test_wrong_input(crystal):
    batch, model = crystal_batch(crystal), small(num_elements=9)
    with pytest.raises(ValueError, match=r"the batch is periodic, .* set its lr_cut"):
        model(batch)
    with pytest.raises(ValueError, match=r"the batch is periodic, .* set its lr_cut"):
        model(batch, neighbors=batch.neighbors(9.0))
    numbers, positions, _ = crystal
    numbers = numbers.clone()
    numbers[7] = 9
    with pytest.raises(ValueError, match="atom 7 has number 9, but the model's table goes from 0"):
        model(AtomicBatch(numbers, positions))
    open_batch = AtomicBatch(crystal[0], positions)
    with pytest.raises(ValueError, match=r"list has \d+ edges, .* sums over all 90 pairs of atoms"):
        model(open_batch, neighbors=open_batch.neighbors(4.5))
    long_range = small(lr_cut=6.0)
    with pytest.raises(ValueError, match=r"cutoff 4.5 is shorter than the model's 6.0"):
        long_range(batch, neighbors=batch.neighbors(4.5))
    with pytest.raises(ValueError, match=r"shape \[1\], one for each system, got \[2\]"):
        long_range(batch, total_charge=torch.zeros(2))
    with pytest.raises(ValueError, match="total_charge must be finite, got inf"):
        long_range(batch, total_charge=math.inf)
    with pytest.raises(TypeError, match="spin"):
        long_range(batch, spin=1)
    positions = positions.clone()
    positions[3, 0] = math.nan
    with pytest.raises(ValueError, match="atom 3 is NaN or infinite"):
        small()(AtomicBatch(crystal[0], positions))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoff": 0.0}, "cutoff must be positive and finite, got 0"),
        ({"cutoff": -1.0, "use_electrostatics": False}, "cutoff must be positive .* got -1"),
        ({"lr_cut": 0.0}, "lr_cut must be positive and finite, got 0"),
        ({"lr_cut": math.inf}, "lr_cut must be positive and finite, got inf"),
        ({"switch_range": -1.0}, "switch_range must be positive and finite, got -1"),
        ({"hidden_channels": 0}, "hidden_channels must be at least 1, got 0"),
        ({"num_interactions": 0}, "num_interactions must be at least 1, got 0"),
        ({"num_residual_output": -1}, "num_residual_output must not be negative, got -1"),
        ({"activation": "relu"}, "activation must be one of"),
        ({"output_activation": "relu"}, "activation must be one of"),
        ({"basis": "foo"}, "basis must be 'exponential' or 'gaussian', got 'foo'"),
        ({"cutoff_function": "foo"}, "cutoff_function must be one of .* got 'foo'"),
        ({"energy_shift": [0.0, -13.6]}, r"energy_shift has 2 values, .* 95: .*\(0 to 94\)"),
    ],
)
def test_wrong_constructor_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        PhysNet(**options)


def test_total_charges_of_numpy():
    batch, model = molecules("H2O", "CH4"), small(lr_cut=6.0)
    charges = np.array([1, -1])[::-1]  # of a negative stride, which torch does not take
    for given in (charges, charges.astype(">f4"), charges.tolist()):
        out = model(batch, total_charge=given)
        expected = model(batch, total_charge=torch.tensor([-1.0, 1.0]))
        assert torch.equal(out["energy"], expected["energy"])
