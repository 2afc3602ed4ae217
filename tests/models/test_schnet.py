import json

import numpy as np
import pytest
import torch

from molkern import AtomicBatch
from molkern.models import SchNet, load


def small(**options):
    defaults = {"hidden_channels": 12, "num_filters": 10, "num_interactions": 2, "num_basis": 9}
    return SchNet(**{**defaults, "cutoff": 4.5, **options}).double()


def crystal_batch(crystal):
    numbers, positions, cell = crystal
    return AtomicBatch(numbers, positions, cell=cell)


def rotation():
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    return q * torch.linalg.det(q).sign()


def test_parameter_count():
    assert sum(p.numel() for p in SchNet().parameters()) == 455_809


def test_energy_is_the_sum_of_atoms_in_float64(crystal):
    model = small(mean=-1e5).float()
    batch = crystal_batch(crystal).to(dtype=torch.float32)
    energy = model(batch)["energy"]
    assert energy.dtype == torch.float64
    # float32 would round the total to multiples of 1/16
    shifted = small(mean=0.0).float()
    shifted.load_state_dict({**model.state_dict(), "reference.mean": torch.tensor(0.0)})
    assert abs(float((energy - shifted(batch)["energy"]).detach()) + 1e6) < 1e-9


@pytest.mark.parametrize("aggregation", ["sum", "mean"])
def test_invariances(crystal, aggregation):
    model = small(aggregation=aggregation)
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
            other["energy"], out["energy"], rtol=1e-12, atol=1e-12, msg=lambda m, n=name: n + m
        )
        torch.testing.assert_close(other["forces"], move(out["forces"]), rtol=1e-9, atol=1e-11)


def test_supercell_is_extensive(crystal):
    model = small()
    numbers, positions, cell = crystal
    shifts = torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(1)).double()
    repeated = (positions[None] + (shifts @ cell)[:, None]).reshape(-1, 3)
    large = cell * torch.tensor([[3.0], [2.0], [1.0]])
    out = model(crystal_batch(crystal), forces=True)
    more = model(AtomicBatch(numbers.repeat(6), repeated, cell=large), forces=True)
    torch.testing.assert_close(more["energy"], 6 * out["energy"], rtol=1e-12, atol=0)
    torch.testing.assert_close(more["forces"], out["forces"].repeat(6, 1), rtol=1e-9, atol=1e-11)


def test_forces_are_minus_the_gradient(crystal):
    model = small()
    numbers, positions, cell = crystal
    forces = model(crystal_batch(crystal), forces=True)["forces"].detach()
    step = 1e-5
    for atom, axis in [(0, 0), (4, 1), (9, 2)]:
        energies = []
        for sign in (1, -1):
            moved = positions.clone()
            moved[atom, axis] += sign * step
            energies.append(float(model(AtomicBatch(numbers, moved, cell=cell))["energy"].detach()))
        slope = (energies[0] - energies[1]) / (2 * step)
        assert float(forces[atom, axis]) == pytest.approx(-slope, rel=1e-6, abs=1e-9)


def test_stress_is_the_derivative_under_strain(crystal):
    model = small()
    numbers, positions, cell = crystal
    stress = model(crystal_batch(crystal), stress=True)["stress"][0].detach()
    torch.testing.assert_close(stress, stress.T)
    volume = float(torch.linalg.det(cell).abs())
    step = 1e-5
    for a, b in [(0, 0), (1, 2), (2, 0)]:
        energies = []
        for sign in (1, -1):
            strain = torch.eye(3, dtype=torch.float64)
            strain[a, b] += sign * step / 2
            strain[b, a] += sign * step / 2
            strained = AtomicBatch(numbers, positions @ strain, cell=cell @ strain)
            energies.append(float(model(strained)["energy"].detach()))
        slope = (energies[0] - energies[1]) / (2 * step) / volume
        assert float(stress[a, b]) == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_batch_equals_systems_one_by_one(crystal):
    model = small()
    numbers, positions, cell = crystal
    cells = torch.stack([cell, 1.2 * cell, 0.9 * cell])
    parts = [(numbers[:3], positions[:3]), (numbers[3:3], positions[3:3]), (numbers, positions)]
    batch = AtomicBatch(
        torch.cat([z for z, _ in parts]),
        torch.cat([x for _, x in parts]),
        torch.tensor([0] * 3 + [2] * 10),
        cells,
        torch.tensor([[True, False, True], [True, True, True], [False, True, True]]),
    )
    out = model(batch, forces=True, stress=True)
    start = 0
    for index, (z, x) in enumerate(parts):
        single = AtomicBatch(z, x, cell=cells[index], pbc=batch.pbc[index])
        alone = model(single, forces=True, stress=True)
        torch.testing.assert_close(out["energy"][index : index + 1], alone["energy"])
        torch.testing.assert_close(out["forces"][start : start + len(z)], alone["forces"])
        torch.testing.assert_close(out["stress"][index : index + 1], alone["stress"])
        start += len(z)


@pytest.mark.parametrize("atoms", [0, 1, 2])
def test_lone_atoms_have_their_atomic_energy(atoms):
    model = small(reference=[0.0, -13.6, 0.0], num_elements=3)
    positions = 100.0 * torch.arange(3.0 * atoms, dtype=torch.float64).reshape(atoms, 3)
    numbers = torch.ones(atoms, dtype=torch.int64)
    out = model(AtomicBatch(numbers, positions), forces=True)
    alone = model(AtomicBatch(numbers[:1], torch.zeros_like(positions[:1])))["energy"]
    torch.testing.assert_close(out["energy"], atoms * alone)
    assert out["forces"].shape == (atoms, 3)
    assert not out["forces"].any()


def test_longer_neighbor_list_changes_nothing(crystal):
    batch = crystal_batch(crystal)
    official = {"cutoff_function": "none", "filter_activation": True}
    for options in ({}, official, {"aggregation": "mean"}):
        model = small(**options)
        out = model(batch, forces=True)
        more = model(batch, forces=True, neighbors=batch.neighbors(6.0))
        padded = model(batch, forces=True, neighbors=batch.neighbors(4.5, capacity=5000))
        for other in (more, padded):
            torch.testing.assert_close(out["energy"], other["energy"], rtol=1e-12, atol=0)
            torch.testing.assert_close(out["forces"], other["forces"], rtol=1e-9, atol=1e-12)


def test_training_on_forces_has_the_right_gradient(crystal):
    model = small().train()
    batch = crystal_batch(crystal)

    def loss():
        out = model(batch, forces=True, stress=True)
        return out["forces"].square().sum() + out["stress"].square().sum() + out["energy"].sum()

    loss().backward()
    step = 1e-6
    for parameter in (
        model.embedding.weight,
        model.interactions[0].filter_network.layers[0].weight,
        model.interactions[1].conv.lin_in.weight,
        model.head.layers[0].weight,
    ):
        index = int(parameter.grad.abs().argmax())
        values = []
        for sign in (1, -2):
            with torch.no_grad():
                parameter.view(-1)[index] += sign * step
            values.append(float(loss().detach()))
        with torch.no_grad():
            parameter.view(-1)[index] += step
        slope = (values[0] - values[1]) / (2 * step)
        assert float(parameter.grad.view(-1)[index]) == pytest.approx(slope, rel=1e-5)


def test_evaluation_keeps_no_graph_and_leaves_positions_alone(crystal):
    model = small().eval()
    batch = crystal_batch(crystal)
    out = model(batch, forces=True)
    assert not out["forces"].requires_grad
    assert not out["energy"].requires_grad
    assert not batch.positions.requires_grad
    with torch.no_grad():
        again = model(batch, forces=True)
    assert torch.equal(out["forces"], again["forces"])


@pytest.mark.unemulated
def test_compiled_model_gives_the_same(crystal):
    model = small().eval()
    batch = crystal_batch(crystal)
    neighbors = batch.neighbors(model.cutoff)
    out = model(batch, forces=True, neighbors=neighbors)
    compiled = torch.compile(model, fullgraph=True)
    # Energies compiled, forces by differentiating the compiled function
    batch.positions.requires_grad_()
    energy = compiled(batch, neighbors=neighbors)["energy"]
    (gradient,) = torch.autograd.grad(energy.sum(), batch.positions)
    batch.positions.requires_grad_(False)
    torch.testing.assert_close(energy, out["energy"])
    torch.testing.assert_close(-gradient, out["forces"])
    # Forces inside the compiled function, where torch can trace autograd.grad
    if hasattr(torch._dynamo.config, "trace_autograd_ops"):
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            inside = compiled(batch, forces=True, neighbors=neighbors)
        torch.testing.assert_close(inside["energy"], out["energy"])
        torch.testing.assert_close(inside["forces"], out["forces"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saved_model_is_the_same(tmp_path, crystal, dtype):
    model = small(basis="exponential", mean=-0.1, reference=[0.1 * k for k in range(100)]).to(dtype)
    batch = crystal_batch(crystal).to(dtype=dtype)
    path = tmp_path / "model.safetensors"
    model.save(path)
    loaded = load(path)
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(loaded(batch)["energy"], model(batch)["energy"])


def test_files_that_are_no_model(tmp_path):
    from safetensors.torch import save_file

    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load(wrong)
    save_file({"a": torch.zeros(1)}, str(wrong))
    with pytest.raises(ValueError, match="holds no molkern model"):
        load(wrong)
    newer = json.dumps({"format": 99, "model": "SchNet", "config": {}})
    save_file({"a": torch.zeros(1)}, str(wrong), metadata={"molkern": newer})
    with pytest.raises(ValueError, match=r"format 99.*update molkern"):
        load(wrong)


def test_wrong_input(crystal):
    numbers, positions, cell = crystal
    model = small(num_elements=9)
    batch = crystal_batch(crystal)
    with pytest.raises(TypeError, match=r"positions are torch.float32 but the model is"):
        model(batch.to(dtype=torch.float32))
    numbers = numbers.clone()
    numbers[7] = 9
    with pytest.raises(ValueError, match="atom 7 has number 9, but the model's table goes from 0"):
        model(AtomicBatch(numbers, positions, cell=cell))
    numbers[7] = -1
    with pytest.raises(ValueError, match="atom 7 has number -1, but the model's table goes from 0"):
        model(AtomicBatch(numbers, positions, cell=cell))
    batch.numbers = numbers  # after the range was read
    with pytest.raises(ValueError, match="atom 7 has number -1"):
        model(batch)
    batch = crystal_batch(crystal)
    model(batch)
    batch.numbers = batch.numbers.clone()
    batch.numbers[3] = 9
    with pytest.raises(ValueError, match="atom 3 has number 9"):
        model(batch)
    batch = crystal_batch(crystal)
    with pytest.raises(ValueError, match=r"batch is on cpu but the model is on meta: use"):
        small().to("meta")(batch)
    with pytest.raises(ValueError, match=r"cutoff 4.0 is shorter than the model's 4.5"):
        model(batch, neighbors=batch.neighbors(4.0))
    with pytest.raises(ValueError, match="is for 10 atoms, the batch has 3"):
        model(AtomicBatch(numbers[:3], positions[:3]), neighbors=batch.neighbors(4.5))
    with pytest.raises(ValueError, match="stress needs a cell"):
        model(AtomicBatch(numbers[:3], positions[:3]), stress=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"basis": "foo"}, "basis must be 'gaussian' or 'exponential', got 'foo'"),
        ({"activation": "relu"}, "activation must be one of"),
        ({"head_activation": "relu"}, "activation must be one of"),
        ({"cutoff_function": "foo"}, "cutoff_function must be one of .* got 'foo'"),
        ({"aggregation": "foo"}, "aggregation must be 'sum' or 'mean', got 'foo'"),
        ({"prediction": "foo"}, "prediction must be one of 'energy', .* got 'foo'"),
        ({"basis_cutoff_function": "foo"}, "cutoff_function must be one of .* got 'foo'"),
        ({"cutoff": 0.0}, "cutoff must be positive and finite, got 0"),
        ({"cutoff": -1.0, "cutoff_function": "none"}, "cutoff must be positive and finite, got -1"),
        ({"cutoff": 0.0, "basis": "exponential"}, "cutoff must be positive and finite, got 0"),
        ({"hidden_channels": 0}, "hidden_channels must be at least 1, got 0"),
        ({"num_filters": 0}, "num_filters must be at least 1, got 0"),
        ({"num_interactions": -1}, "num_interactions must be at least 1, got -1"),
        ({"num_basis": 0}, "num_basis must be at least 1, got 0"),
        ({"num_elements": 0}, "num_elements must be at least 1, got 0"),
        (
            {"reference": [0.0, -13.6]},
            r"reference has 2 energies, but num_elements is 100: .*\(0 to 99\)",
        ),
    ],
)
def test_wrong_constructor_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        SchNet(**options)


def test_configuration_is_plain():
    model = SchNet(
        16, cutoff=5, num_elements=2, head_hidden=(8, 4), mean=1,
        reference=torch.tensor([0.0, -0.5]),
    )  # fmt: skip
    assert list(model.config.items()) == [
        ("hidden_channels", 16),
        ("num_filters", 128),
        ("num_interactions", 6),
        ("num_basis", 50),
        ("cutoff", 5.0),
        ("num_elements", 2),
        ("basis", "gaussian"),
        ("gaussian_coefficient", None),
        ("cutoff_function", "cosine"),
        ("activation", "ssp"),
        ("head_activation", None),
        ("head_hidden", [8, 4]),
        ("filter_activation", False),
        ("filter_bias", True),
        ("head_bias", True),
        ("aggregation", "sum"),
        ("scale", 1.0),
        ("mean", 1.0),
        ("reference", [0.0, -0.5]),
        ("trainable_reference", False),
        ("prediction", "energy"),
        ("trainable_basis", False),
        ("basis_cutoff_function", None),
        ("filters", "exact"),
        ("spline_tolerance", None),
        ("readout", "sum"),
    ]
    assert json.loads(json.dumps(model.config)) == model.config


def test_float64_constants_survive_a_detour_through_float32():
    model = small(reference=[-0.1, -13.6], num_elements=2)
    detour = small(reference=[-0.1, -13.6], num_elements=2).float().double()
    assert torch.equal(model.basis.centers, detour.basis.centers)
    assert torch.equal(model.reference.reference, detour.reference.reference)
    assert np.isclose(float(model.basis.centers[1]), 4.5 / 8, rtol=1e-15)
