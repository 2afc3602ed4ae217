"""Models under modes of torch that change what tensors are made: nothing stays behind."""

import copy

import pytest
import torch
from reference.small import NAMES, NUMBERS, POSITIONS, molecule, several, small_model

import molkern

pytestmark = pytest.mark.unemulated  # launches no kernel that others do not


MODELS = [(name, filters) for name in NAMES for filters in ("exact", "spline")]


@pytest.fixture(params=MODELS, ids=lambda case: "-".join(case))
def model(request):
    name, filters = request.param
    return small_model(name, filters=filters)


@pytest.fixture(params=["meta", "cpu"])
def default_device(request):
    torch.set_default_device(request.param)
    yield request.param
    torch.set_default_device(None)


@pytest.fixture(params=[torch.float64, torch.float16, torch.bfloat16], ids=str)
def default_dtype(request):
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def forces_of(model, **options):
    return model(molecule(**options), forces=True)["forces"]


def test_first_use_in_inference_mode(model):
    expected = copy.deepcopy(model)(molecule(), forces=True)
    with torch.inference_mode():
        energy = model(molecule())["energy"]
    torch.testing.assert_close(energy, expected["energy"])
    with torch.no_grad():
        torch.testing.assert_close(forces_of(model), expected["forces"])
    model.train()
    forces_of(model).square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_batches_and_lists_made_in_inference_mode(model):
    expected = forces_of(model)
    with torch.inference_mode():
        batch = molecule(POSITIONS.clone())
        neighbors = model.neighbors(batch)
    for given in (None, neighbors):
        found = model(batch, forces=True, neighbors=given)["forces"]
        torch.testing.assert_close(found, expected)
    model.train()
    model(batch, forces=True, neighbors=neighbors)["forces"].square().sum().backward()
    model(batch, neighbors=neighbors)["energy"].sum().backward()


def test_models_made_in_inference_mode(model):
    expected = forces_of(model)
    with torch.inference_mode():
        made = small_model(type(model).__name__, filters=model.filters)
        loaded = molkern.models.load(model.to_bytes())
    with torch.no_grad():
        torch.testing.assert_close(made(molecule())["energy"], model(molecule())["energy"])
    torch.testing.assert_close(forces_of(loaded), expected)
    torch.testing.assert_close(forces_of(copy.deepcopy(made)), expected)
    with pytest.raises(RuntimeError, match=r"torch\.inference_mode\(\).*copy\.deepcopy\(model\)"):
        made.train()(molecule(), forces=True)
    evaluate = molkern.md.Evaluator(made, molecule())
    if type(model).__name__ != "SchNet" or model.filters == "exact":  # has a path without a tape
        with pytest.raises(RuntimeError, match=r"Evaluator: torch\.inference_mode\(\).*deepcopy"):
            evaluate(POSITIONS)


def test_another_default_device(model, default_device):
    """Constants are made where they are used; what is given is on the CPU here."""
    fresh = copy.deepcopy(model)
    with torch.device("cpu"):
        expected = forces_of(model)
    found = fresh(several(POSITIONS, POSITIONS), forces=True)["forces"]
    torch.testing.assert_close(found, torch.cat([expected, expected]))
    torch.testing.assert_close(forces_of(molkern.models.load(model.to_bytes())), expected)
    fresh.train()
    forces_of(fresh).square().sum().backward()
    assert fresh.hessian(molecule()).device.type == "cpu"


def test_large_systems_with_another_default_device(default_device):
    """Sums of many atoms take another way."""
    positions = torch.arange(3 * 40000, dtype=torch.float64, device="cpu").reshape(-1, 3)
    pointers = torch.tensor([0, 40000], dtype=torch.int32, device="cpu")
    total = molkern.ops.segment_sum(positions, pointers)
    torch.testing.assert_close(total, positions.sum(0, keepdim=True))
    assert molkern.ops.segment_expand(total, pointers, 40000).shape == (40000, 3)


def test_models_without_memory(model):
    """Made on "meta", given memory and weights: the same model."""
    with torch.device("meta"):
        made = type(model)(**model.config).double()
    assert all(p.is_meta for p in made.parameters())
    made.to_empty(device="cpu").load_state_dict(model.state_dict())
    torch.testing.assert_close(forces_of(made.eval()), forces_of(model))


def test_another_default_type(model, default_dtype):
    expected = forces_of(model)
    torch.testing.assert_close(forces_of(molkern.models.load(model.to_bytes())), expected)
    made = type(model)(**model.config).double()
    made.load_state_dict(model.state_dict())
    torch.testing.assert_close(forces_of(made.eval()), expected)
    forces_of(made.train()).square().sum().backward()
    single = molkern.AtomicBatch(NUMBERS, POSITIONS.float())
    assert type(model)(**model.config).float()(single)["energy"].dtype == torch.float64


def test_ase_with_another_default_device(default_device):
    ase = pytest.importorskip("ase")
    atoms = ase.Atoms("OH", [[0, 0, 0], [1, 0, 0]], cell=[4, 4, 4], pbc=True)
    batch = molkern.AtomicBatch.from_ase([atoms, atoms])
    for value in (batch.numbers, batch.positions, batch.batch, batch.cell, batch.pbc):
        assert value.device.type == "cpu"
    assert molkern.neighbor_list(batch.positions[:2], 1.5, pbc=False).num_edges == 2


def test_dispersion_with_another_default_device(default_device):
    pytest.importorskip("tad_dftd3")
    with torch.device("cpu"):
        model = small_model("PhysNet", use_dispersion=True)
        expected = forces_of(model)
    torch.testing.assert_close(forces_of(model), expected)


def test_conversions_under_another_default_device(default_device):
    pyg = pytest.importorskip("torch_geometric.nn")
    with torch.device("cpu"):
        module = pyg.SchNet(8, 8, 2, 6, cutoff=4.0)
    with torch.inference_mode():
        converted = molkern.interop.from_pyg(module)
    assert all(t.is_cpu and not t.is_inference() for t in converted.state_dict().values())
