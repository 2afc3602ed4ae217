"""Derivatives of models by every way that torch has: right, or refused with what works."""

import copy

import pytest
import torch
from reference.small import NAMES, POSITIONS, molecule, several, small_model
from torch.autograd import forward_ad

import molkern

MODELS = [(name, filters) for name in NAMES for filters in ("exact", "spline")]


@pytest.fixture(params=MODELS, ids=lambda case: "-".join(case))
def model(request):
    name, filters = request.param
    return small_model(name, filters=filters)


def energy_of(model):
    """The energy by positions, with the list of the molecule."""
    neighbors = model.neighbors(molecule())
    return lambda positions: model(molecule(positions), neighbors=neighbors)["energy"].sum()


def test_torch_func(model):
    energy = energy_of(model)
    forces = model(molecule(), forces=True)["forces"]
    torch.testing.assert_close(torch.func.grad(energy)(POSITIONS), -forces)
    # With a neighbor list made within the transform
    own = torch.func.grad(lambda p: model(molecule(p))["energy"].sum())(POSITIONS)
    torch.testing.assert_close(own, -forces)
    moved = 1.05 * POSITIONS
    pair = torch.stack([POSITIONS, moved])
    expected = torch.stack([energy(POSITIONS), energy(moved)])
    torch.testing.assert_close(torch.vmap(energy)(pair), expected)


def test_hessian(model):
    batch, energy = molecule(), energy_of(model)
    found = model.hessian(batch)
    assert found.shape == (4, 3, 4, 3)
    assert found.dtype == torch.float64
    assert torch.equal(found, found.permute(2, 3, 0, 1))
    torch.testing.assert_close(
        found, torch.autograd.functional.hessian(energy, POSITIONS), rtol=1e-5, atol=1e-5
    )
    h, direction = 1e-4, torch.randn_like(POSITIONS)
    up, down = (
        model(molecule(POSITIONS + s * h * direction), forces=True)["forces"] for s in (1, -1)
    )
    product = (found * direction).sum((2, 3))
    torch.testing.assert_close(product, (down - up) / (2 * h), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(model.hessian(batch), found)
    torch.testing.assert_close(model.train().hessian(batch, model.neighbors(batch)), found)


def test_hessians_of_a_batch(model):
    moved = 1.05 * POSITIONS
    found = model.hessian(several(POSITIONS, moved))
    assert len(found) == 2
    for one, positions in zip(found, (POSITIONS, moved), strict=True):
        torch.testing.assert_close(one, model.hessian(molecule(positions)))


@pytest.mark.parametrize("name", NAMES)
def test_hessian_of_a_periodic_system(name):
    options = {"lr_cut": 4.0} if name == "PhysNet" else {}
    model = small_model(name, **options)
    cell = 5.0 * torch.eye(3, dtype=torch.float64)

    def forces(positions):
        return model(molecule(positions, cell=cell), forces=True)["forces"]

    h, direction = 1e-4, torch.randn_like(POSITIONS)
    expected = (forces(POSITIONS - h * direction) - forces(POSITIONS + h * direction)) / (2 * h)
    found = model.hessian(molecule(cell=cell))
    torch.testing.assert_close((found * direction).sum((2, 3)), expected, rtol=1e-5, atol=1e-5)


def test_hessians_without_edges_and_atoms():
    model = small_model("SchNet")
    none = torch.zeros(0, dtype=torch.int64)
    empty = molkern.AtomicBatch(none, POSITIONS[:0])
    assert model.hessian(empty).shape == (0, 3, 0, 3)
    one = molkern.AtomicBatch(torch.tensor([1]), POSITIONS[:1])
    assert torch.equal(model.hessian(one), torch.zeros(1, 3, 1, 3, dtype=torch.float64))


def test_hessian_takes_conditions():
    model = small_model("PhysNet")
    charged = model.hessian(molecule(), total_charge=2.0)
    assert not torch.allclose(charged, model.hessian(molecule()), rtol=1e-6)
    with pytest.raises(TypeError, match="does not know 'charge'"):
        model.hessian(molecule(), charge=1)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"torch\.no_grad\(\)"):
        model.hessian(molecule())


def test_forward_mode_is_refused(model):
    energy = energy_of(model)

    def forces(positions):
        return model(molecule(positions), forces=True)["forces"]

    for function in (energy, lambda p: model(molecule(p))["energy"]):
        for transform in (
            lambda f: torch.func.jvp(f, (POSITIONS,), (POSITIONS,)),
            lambda f: torch.func.linearize(f, POSITIONS),
        ):
            with pytest.raises(RuntimeError, match="no forward-mode derivative"):
                transform(function)
    for function in (energy, forces):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(POSITIONS, POSITIONS)
            with pytest.raises(RuntimeError, match=r"no forward-mode.*model.hessian"):
                function(dual)


@pytest.mark.parametrize("name", NAMES)
def test_forward_mode_by_weights_of_splines_is_refused(name):
    """Tables that are made once would have no tangents."""
    model = small_model(name, filters="spline").requires_grad_(False)
    weights = {
        key: value.detach()
        for key, value in model.named_parameters()
        if any(part in key for part in ("filter", "basis", "radial", "rbf", "distance", "gate"))
    }
    key = next(iter(weights))

    def energy(weight):
        return torch.func.functional_call(model, {key: weight}, (molecule(),))["energy"]

    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(energy, (weights[key],), (torch.ones_like(weights[key]),))


def test_forces_in_transforms_are_refused(model):
    def forces(positions):
        return model(molecule(positions), forces=True)["forces"].sum()

    for call in (
        lambda: torch.func.grad(forces)(POSITIONS),
        lambda: torch.func.jvp(forces, (POSITIONS,), (POSITIONS,)),
        lambda: torch.vmap(forces)(torch.stack([POSITIONS, POSITIONS])),
        lambda: torch.func.grad(lambda p: model.hessian(molecule(p)).sum())(POSITIONS),
    ):
        with pytest.raises(RuntimeError, match=r"torch\.func\.grad or jacrev.*functional\.hessian"):
            call()


def test_forces_of_positions_that_ask_for_a_gradient(model):
    """In evaluation too: a zero Jacobian would be wrong without a word."""
    jacobian = torch.autograd.functional.jacobian(
        lambda positions: model(molecule(positions), forces=True)["forces"], POSITIONS
    )
    torch.testing.assert_close(-jacobian, model.hessian(molecule()), rtol=1e-5, atol=1e-5)


def test_forces_of_charges_that_ask_for_a_gradient():
    model = small_model("PhysNet")
    charge = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def forces(charge):
        return model(molecule(), forces=True, total_charge=charge)["forces"]

    (slope,) = torch.autograd.grad(forces(charge)[0, 0], charge)
    ends = [forces(charge.detach() + h)[0, 0] for h in (1e-4, -1e-4)]
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-4, rtol=1e-6, atol=1e-6)


def test_batched_gradients(model):
    positions = POSITIONS.clone().requires_grad_()
    forces = model(molecule(positions), forces=True)["forces"]
    rows = torch.eye(12, dtype=torch.float64).unflatten(1, (4, 3))
    (found,) = torch.autograd.grad(forces, positions, rows, is_grads_batched=True)
    hessian = model.hessian(molecule()).flatten(0, 1)
    torch.testing.assert_close(-found, hessian, rtol=1e-5, atol=1e-5)


def test_functional_call(model):
    """Gradients by weights given from outside, which splines follow; nothing stays behind."""
    before = model(molecule(), forces=True)
    weights = {name: value.detach() for name, value in model.named_parameters()}

    def energy(weights):
        return torch.func.functional_call(model, weights, (molecule(),))["energy"].sum()

    found = torch.func.grad(energy)(weights)
    model.train()
    expected = torch.autograd.grad(
        model(molecule())["energy"].sum(), list(model.parameters()), materialize_grads=True
    )
    model.eval()
    for gradient, value in zip(expected, found.values(), strict=True):
        torch.testing.assert_close(value, gradient)
    doubled = {name: 1.1 * value for name, value in model.named_parameters()}  # no leaves
    other = torch.func.functional_call(model, doubled, (molecule(),), {"forces": True})
    changed = copy.deepcopy(model)
    changed.load_state_dict(doubled, strict=False)
    torch.testing.assert_close(other["forces"], changed(molecule(), forces=True)["forces"])
    assert torch.equal(model(molecule(), forces=True)["forces"], before["forces"])


def test_ensembles_of_weights():
    model = small_model("SchNet")
    weights = {name: torch.stack([v, 1.1 * v]).detach() for name, v in model.named_parameters()}

    def energy(weights):
        return torch.func.functional_call(model, weights, (molecule(),))["energy"].sum()

    expected = torch.stack([energy({name: v[k] for name, v in weights.items()}) for k in (0, 1)])
    torch.testing.assert_close(torch.vmap(energy)(weights), expected)
    model.filters = "spline"
    with pytest.raises(RuntimeError, match=r"vmap over embedding.weight.*filters = 'exact'"):
        torch.vmap(energy)(weights)


def test_search_within_vmap_asks_for_a_capacity():
    pair = torch.stack([POSITIONS, 3.0 * POSITIONS])

    def lengths(positions, **options):
        return molkern.neighbor_list(positions, 2.0, **options).distances(positions)

    with pytest.raises(RuntimeError, match="capacity="):
        torch.vmap(lengths)(pair)
    found = torch.vmap(lambda p: lengths(p, capacity=12))(pair)
    for k in (0, 1):
        assert torch.equal(found[k], lengths(pair[k], capacity=12))


def test_lean_path_refuses_what_it_would_drop():
    model = small_model("SchNet", filters="spline")
    lean, batch = molkern.models.LeanSchNet(model), molecule()
    inputs = lean.inputs(batch, model.neighbors(batch))
    energy, forces = lean(*inputs)
    assert not energy.requires_grad
    assert not forces.requires_grad
    asked = (inputs[0], inputs[1].clone().requires_grad_(), *inputs[2:])
    with pytest.raises(RuntimeError, match=r"schnet_energy_grad has no derivative.*detach"):
        lean(*asked)
    with torch.no_grad():
        assert torch.equal(lean(*asked)[1], forces)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(inputs[1], inputs[1])
            with pytest.raises(RuntimeError, match="schnet_energy_grad has no derivative"):
                lean(inputs[0], dual, *inputs[2:])
    pair = torch.stack([POSITIONS, 1.05 * POSITIONS])
    energies, _ = torch.vmap(lambda p: lean(inputs[0], p, *inputs[2:]))(pair)
    torch.testing.assert_close(energies[0], energy)
