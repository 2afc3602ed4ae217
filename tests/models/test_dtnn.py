"""DTNN: what it is by definition, with and without periodicity; the authors' numbers are in
tests/interop/test_official_dtnn.py."""

import json
import math

import pytest
import torch
from reference.dtnn import atomic_energies
from torch.autograd import gradcheck, gradgradcheck

import molkern
from molkern import AtomicBatch
from molkern.models import DTNN, load


def small(**options):
    """A small one in float64 that has interactions."""
    defaults = {"hidden_channels": 6, "num_factors": 8, "num_interactions": 2, "num_basis": 16}
    model = DTNN(**{**defaults, "cutoff": 4.0, "zero_start": False, **options}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def crystal_batch(crystal):
    numbers, positions, cell = crystal
    return AtomicBatch(numbers, positions, cell=cell)


def rotation():
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    return q * torch.linalg.det(q).sign()


def arrays_of(model):
    """Its tensors under the authors' names."""
    first, _, last = model.head.layers
    layers = {
        "Dense_1": model.lin_distance,
        "in2fac": model.interaction.lin_in,
        "fac2out": model.interaction.lin_out,
        "Dense_2": first,
        "Dense_3": last,
    }
    arrays = {f"model/{name}/W": layer.weight.detach().T for name, layer in layers.items()}
    biased = {name: layer for name, layer in layers.items() if layer.bias is not None}
    arrays |= {f"model/{name}/b": layer.bias.detach() for name, layer in biased.items()}
    arrays["model/Dense/W"] = model.embedding.weight.detach()
    arrays |= {"model/std": model.reference.scale, "model/mu": model.reference.mean}
    arrays["model/Embedding/W"] = torch.zeros(model.num_elements, 1)
    return arrays


def test_the_authors_defaults():
    model = DTNN()
    assert sum(p.numel() for p in model.parameters()) == 10_801
    torch.testing.assert_close(
        model.basis.centers, torch.arange(100, dtype=torch.float64) * (20 / 99)
    )
    torch.testing.assert_close(model.basis.widths, torch.full((100,), 12.5).double())
    assert model.embedding.weight.shape == (20, 30)
    assert float(model.embedding.weight.detach().std()) == pytest.approx(30**-0.25, rel=0.1)
    for zero in (model.interaction.lin_out.weight, model.head.layers[2].weight):
        assert not zero.any()
    assert model.interaction.lin_out.bias is None
    for layer in (model.lin_distance, model.interaction.lin_in, model.head.layers[0]):
        assert layer.weight.any()
        assert not layer.bias.any()


def test_a_new_model_has_the_energies_of_its_atoms():
    model = DTNN(mean=-1.5, reference=list(range(20))).double()
    batch = AtomicBatch(torch.tensor([1, 8]), torch.rand(2, 3, dtype=torch.float64))
    assert model(batch)["energy"].item() == 1 + 8 - 2 * 1.5


def test_switches():
    paper = DTNN(num_basis=106, first_center=-1.0)
    torch.testing.assert_close(paper.basis.centers, -1 + 0.2 * torch.arange(106).double())
    other = DTNN(last_center=10.0, width=0.5, head_hidden=[8, 4], zero_start=False)
    assert float(other.basis.centers[-1]) == 10.0
    assert float(other.basis.widths[0]) == 2.0
    assert [layer.out_features for layer in list(other.head.layers)[::2]] == [8, 4, 1]
    assert other.interaction.lin_out.weight.any()


@pytest.mark.parametrize("pbc", [None, [True] * 3, [True, False, True], [False] * 3])
def test_equals_plain_loops(crystal, pbc):
    model = small(scale=1.3, mean=0.2)
    numbers, positions, cell = crystal
    positions = positions - cell[0] + 2 * cell[1]  # outside the cell
    flat = {} if pbc is None else {"cell": cell, "pbc": pbc}
    if pbc == [False] * 3:
        flat = {}
    moving = positions.clone().requires_grad_()
    plain = atomic_energies(
        arrays_of(model), numbers, moving, passes=2, cutoff=4.0, spacing=0.2, **flat
    )  # its centres are 16 × 0.2 Å long
    model.basis.centers.copy_(torch.linspace(0, 3.2, 16, dtype=torch.float64))
    model.basis.widths.fill_(12.5)
    (gradient,) = torch.autograd.grad(plain.sum(), moving)
    given = {} if pbc is None else {"cell": cell, "pbc": torch.tensor(pbc)}
    out = model.eval()(AtomicBatch(numbers, positions, **given), forces=True)
    torch.testing.assert_close(out["energy"][0], plain.sum().detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out["forces"], -gradient, rtol=1e-10, atol=1e-11)


def test_all_pairs_interact_at_any_distance():
    model = small()
    far = torch.tensor([[0.0, 0, 0], [1e3, 0, 0], [0, -5e4, 0]], dtype=torch.float64)
    batch = AtomicBatch(torch.tensor([1, 6, 8]), far)
    assert model.neighbors(batch).num_edges == 6
    together = model(batch)["energy"]
    alone = model(AtomicBatch(batch.numbers, far, batch=torch.arange(3)))["energy"]
    assert abs(float((together - alone.sum()).detach())) > 1e-3
    # Beyond the last Gaussian there is only the bias: no force, and the same at any distance
    nearer = model(AtomicBatch(batch.numbers, far / 10), forces=True)
    torch.testing.assert_close(nearer["energy"], together)
    assert not nearer["forces"].any()


@pytest.mark.parametrize("periodic", [True, False])
def test_invariances(crystal, periodic):
    model = small()
    numbers, positions, cell = crystal
    turn = rotation()
    order = torch.randperm(10)
    images = torch.randint(-2, 3, (10, 3)).double() @ cell
    cases = {
        "rotation": (numbers, positions @ turn, cell @ turn, lambda f: f @ turn),
        "reflection": (numbers, -positions, -cell, lambda f: -f),
        "translation": (numbers, positions + torch.tensor([3.0, -1.0, 0.5]), cell, lambda f: f),
        "permutation": (numbers[order], positions[order], cell, lambda f: f[order]),
    }
    if periodic:
        cases["images"] = (numbers, positions + images, cell, lambda f: f)

    def evaluate(z, x, c):
        return model(AtomicBatch(z, x, cell=c if periodic else None), forces=True)

    out = evaluate(numbers, positions, cell)
    for name, (z, x, c, move) in cases.items():
        other = evaluate(z, x, c)
        torch.testing.assert_close(
            other["energy"], out["energy"], rtol=1e-12, atol=1e-12, msg=lambda m, n=name: n + m
        )
        torch.testing.assert_close(other["forces"], move(out["forces"]), rtol=1e-9, atol=1e-11)


def test_supercell_is_extensive(crystal):
    model = small()
    numbers, positions, cell = crystal
    shifts = torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(1)).double()
    repeated = (positions[None] + (shifts @ cell)[:, None]).reshape(-1, 3)
    large = cell * torch.tensor([[3.0], [2.0], [1.0]])
    out = model(crystal_batch(crystal), forces=True, stress=True)
    more = model(AtomicBatch(numbers.repeat(6), repeated, cell=large), forces=True, stress=True)
    torch.testing.assert_close(more["energy"], 6 * out["energy"], rtol=1e-12, atol=0)
    torch.testing.assert_close(more["forces"], out["forces"].repeat(6, 1), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(more["stress"], out["stress"], rtol=1e-9, atol=1e-11)


def slope(evaluate, positions, atom, axis, step=1e-5):
    values = []
    for sign in (1, -1):
        moved = positions.clone()
        moved[atom, axis] += sign * step
        values.append(evaluate(moved).detach())
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize("periodic", [True, False])
def test_forces_are_minus_the_gradient(crystal, periodic):
    model = small()
    numbers, positions, cell = crystal
    cell = cell if periodic else None

    def energy(x):
        return model(AtomicBatch(numbers, x, cell=cell))["energy"][0]

    forces = model(AtomicBatch(numbers, positions, cell=cell), forces=True)["forces"].detach()
    for atom, axis in [(0, 0), (4, 1), (9, 2)]:
        expected = -float(slope(energy, positions, atom, axis))
        assert float(forces[atom, axis]) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_stress_is_the_derivative_under_strain(crystal):
    model = small()
    numbers, positions, cell = crystal
    stress = model(crystal_batch(crystal), stress=True)["stress"][0].detach()
    volume = float(torch.linalg.det(cell).abs())
    for a, b in [(0, 0), (1, 2)]:
        energies = []
        for sign in (1, -1):
            strain = torch.eye(3, dtype=torch.float64)
            strain[a, b] += sign * 5e-7
            strain[b, a] += sign * 5e-7
            strained = AtomicBatch(numbers, positions @ strain, cell=cell @ strain)
            energies.append(float(model(strained)["energy"].detach()))
        expected = (energies[0] - energies[1]) / 2e-6 / volume
        assert float(stress[a, b]) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_gradcheck():
    model = small(hidden_channels=3, num_factors=4, num_basis=6)
    numbers = torch.tensor([1, 6, 8, 1])
    positions = (2 * torch.rand(4, 3, dtype=torch.float64)).requires_grad_()

    def energy(x, *weights):
        return model(AtomicBatch(numbers, x))["energy"]

    inputs = (positions, *model.parameters())
    assert gradcheck(energy, inputs)
    assert gradgradcheck(energy, inputs, atol=1e-4)


LINES = {
    "HCN": ([1, 6, 7], [0.0, 1.07, 2.22]),
    "CO2": ([8, 6, 8], [-1.16, 0.0, 1.16]),
    "C2H2": ([1, 6, 6, 1], [-1.66, -0.6, 0.6, 1.66]),
    "carbon": ([6] * 8, [1.28 * k for k in range(8)]),
}


@pytest.mark.parametrize("name", LINES)
def test_collinear_molecules(name):
    """Forces train: second derivatives are finite and those of the forces."""
    numbers, places = LINES[name]
    model = small(num_basis=30, width=0.4).train()
    direction = torch.tensor([1.0, 2.0, -2.0], dtype=torch.float64) / 3
    positions = torch.tensor(places, dtype=torch.float64)[:, None] * direction
    numbers = torch.tensor(numbers)
    weights = torch.randn(len(numbers), 3, dtype=torch.float64)

    def forces(x):
        return model(AtomicBatch(numbers, x), forces=True)["forces"]

    moving = positions.clone().requires_grad_()
    out = forces(moving)
    torch.testing.assert_close(out - (out @ direction)[:, None] * direction, 0 * out)
    used = [p for name, p in model.named_parameters() if name != "head.layers.2.bias"]
    grads = torch.autograd.grad((out * weights).sum(), [moving, *used])
    assert all(bool(g.isfinite().all()) for g in grads)
    for atom in range(len(numbers)):
        for axis in range(3):
            expected = (slope(forces, positions, atom, axis) * weights).sum()
            torch.testing.assert_close(grads[0][atom, axis], expected, rtol=1e-6, atol=1e-7)


def test_batch_equals_systems_one_by_one(crystal):
    """Periodic, open and empty systems side by side; the open one is longer than the cutoff."""
    model = small()
    numbers, positions, cell = crystal
    line = torch.arange(5, dtype=torch.float64)[:, None] * torch.tensor([[1.4, 0.7, 0.3]])
    parts = [(numbers[:3], positions[:3]), (numbers[3:3], positions[3:3])]
    parts += [(numbers, positions), (numbers[:5], line)]
    pbc = torch.tensor([[True, False, True], [True] * 3, [True] * 3, [False] * 3])
    cells = torch.stack([cell, 1.2 * cell, 0.9 * cell, 0 * cell])
    system = torch.tensor([0] * 3 + [2] * 10 + [3] * 5)
    numbers = torch.cat([z for z, _ in parts])
    positions = torch.cat([x for _, x in parts])
    out = model(AtomicBatch(numbers, positions, system, cells, pbc), forces=True)
    start = 0
    for index, (z, x) in enumerate(parts):
        one = {} if index == 3 else {"cell": cells[index], "pbc": pbc[index]}
        alone = model(AtomicBatch(z, x, **one), forces=True)
        torch.testing.assert_close(out["energy"][index : index + 1], alone["energy"])
        torch.testing.assert_close(out["forces"][start : start + len(z)], alone["forces"])
        start += len(z)
    # The same molecules without cells
    plain = AtomicBatch(numbers, positions, system, num_systems=4)
    unbound = model(plain)["energy"]
    torch.testing.assert_close(unbound[3], out["energy"][3])


@pytest.mark.parametrize("periodic", [True, False])
def test_longer_neighbor_list_changes_nothing(crystal, periodic):
    numbers, positions, cell = crystal
    batch = AtomicBatch(numbers, positions, cell=cell if periodic else None)
    model = small().train()
    out = model(batch, forces=True)
    out["forces"].square().sum().backward()
    expected = [p.grad for p in model.parameters()]
    for options in ({"cutoff": 30.0 if not periodic else 6.5}, {"cutoff": 9.0, "capacity": 20_000}):
        model.zero_grad()
        other = model(batch, forces=True, neighbors=batch.neighbors(**options))
        torch.testing.assert_close(other["energy"], out["energy"], rtol=1e-12, atol=0)
        torch.testing.assert_close(other["forces"], out["forces"], rtol=1e-9, atol=1e-12)
        other["forces"].square().sum().backward()
        grads = [p.grad for p in model.parameters()]
        torch.testing.assert_close(grads, expected, rtol=1e-9, atol=1e-12)


def test_lists_that_lack_pairs_are_refused(crystal):
    numbers, positions, _ = crystal
    model = small()
    molecule, periodic = AtomicBatch(numbers, positions), crystal_batch(crystal)
    extent = float(torch.cdist(positions, positions).max())
    with pytest.raises(ValueError, match=r"cutoff 4\.0 lacks pairs of system 0, but DTNN has no"):
        model(molecule, neighbors=molecule.neighbors(4.0))
    whole = molecule.neighbors(1.001 * extent)
    expected = model(molecule)["energy"]
    assert torch.equal(model(molecule, neighbors=whole)["energy"], expected)
    with pytest.raises(ValueError, match=r"cutoff 3\.5 is shorter than the model's 4\.0"):
        model(periodic, neighbors=periodic.neighbors(3.5))
    # A molecule smaller than a list's cutoff, which is shorter than the model's
    pair = AtomicBatch(numbers[:2], torch.eye(3, dtype=torch.float64)[:2])
    short = pair.neighbors(2.0)
    assert torch.equal(model(pair, neighbors=short)["energy"], model(pair)["energy"])
    # One of the user's own is taken as it is
    some = molkern.NeighborList.from_edge_index(whole.edge_index[:, ::2], 10)
    assert not torch.equal(model(molecule, neighbors=some)["energy"], expected)


def test_same_bits_for_every_number_of_threads(crystal, threads):
    model = small().eval()
    batch = crystal_batch(crystal)
    threads(1)
    one = model(batch, forces=True)
    threads(2)
    two = model(batch, forces=True)
    for name in one:
        assert torch.equal(one[name], two[name])


@pytest.mark.parametrize("atoms", [0, 1])
def test_lone_atoms(atoms):
    model = small()
    positions = torch.zeros(atoms, 3, dtype=torch.float64)
    out = model(AtomicBatch(torch.ones(atoms, dtype=torch.int64), positions), forces=True)
    assert out["energy"].shape == (1,)
    assert not out["forces"].any()


@pytest.mark.unemulated
def test_compiled_model_gives_the_same(crystal):
    model = small().eval()
    for batch in (crystal_batch(crystal), AtomicBatch(*crystal[:2])):
        neighbors = model.neighbors(batch)
        expected = model(batch, neighbors=neighbors)["energy"]
        compiled = torch.compile(model, fullgraph=True)
        torch.testing.assert_close(compiled(batch, neighbors=neighbors)["energy"], expected)


def test_calculator_in_vacuum_reaches_all_pairs():
    ase = pytest.importorskip("ase")
    model = small().eval()
    positions = torch.arange(4, dtype=torch.float64)[:, None] * torch.tensor([[3.0, 2.0, 0.0]])
    atoms = ase.Atoms(
        "HOCH", positions=positions.numpy(), calculator=molkern.md.ASECalculator(model)
    )
    for _ in range(3):
        out = model(AtomicBatch.from_ase(atoms, torch.float64), forces=True)
        assert atoms.get_potential_energy() == pytest.approx(float(out["energy"]), rel=1e-12)
        torch.testing.assert_close(torch.as_tensor(atoms.get_forces()), out["forces"])
        atoms.positions[3, 0] += 0.2


def test_save_and_load(tmp_path, crystal):
    model = small(head_hidden=(4, 3), first_center=-0.5, reference=torch.arange(20.0)).float()
    model.save(tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert isinstance(again, DTNN)
    assert again.config == model.config == json.loads(json.dumps(model.config))
    batch = crystal_batch(crystal).to(dtype=torch.float32)
    assert torch.equal(again(batch)["energy"], model.eval()(batch)["energy"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_channels": 0}, "hidden_channels must be at least 1, got 0"),
        ({"num_factors": 0}, "num_factors must be at least 1, got 0"),
        ({"num_interactions": 0}, "num_interactions must be at least 1, got 0"),
        ({"num_basis": -1}, "num_basis must be at least 1, got -1"),
        ({"num_elements": 0}, "num_elements must be at least 1, got 0"),
        ({"cutoff": 0.0}, "cutoff must be positive and finite, got 0"),
        ({"cutoff": math.inf}, "cutoff must be positive and finite, got inf"),
        ({"width": 0.0}, "width must be positive and finite, got 0"),
        ({"first_center": 21.0}, r"centres must ascend .* got 21\.0 and 20\.0"),
        ({"last_center": math.nan}, r"centres must ascend .* got 0\.0 and nan"),
        ({"reference": [0.0, -13.6]}, r"reference has 2 energies, but num_elements is 20"),
    ],
)
def test_wrong_constructor_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        DTNN(**options)


def test_wrong_input(crystal):
    numbers, positions, cell = crystal
    model = small(num_elements=9)
    wrong = numbers.clone()
    wrong[7] = 9
    with pytest.raises(ValueError, match="atom 7 has number 9, but the model's table goes from 0"):
        model(AtomicBatch(wrong, positions))
    with pytest.raises(TypeError, match=r"positions are torch.float32 but the model is"):
        model(crystal_batch(crystal).to(dtype=torch.float32))
    for value in (math.nan, math.inf):
        broken = positions.clone()
        broken[3, 1] = value
        for given in (None, cell):
            with pytest.raises(ValueError, match=r"atom 3\b|atom 3 "):
                model(AtomicBatch(numbers, broken, cell=given))
    with pytest.raises(ValueError, match="stress needs a cell"):
        model(AtomicBatch(numbers, positions), stress=True)
