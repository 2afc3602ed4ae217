"""Models with spline filters beside the same models with exact ones."""

import copy

import pytest
import torch

import molkern
from molkern.data import ethanol_frames, ethanol_model
from molkern.models import DTNN, DimeNet, DimeNetPlusPlus, PhysNet, SchNet

CUTOFF = 4.0


def physnet():
    model = PhysNet(24, 16, 2, cutoff=CUTOFF, lr_cut=CUTOFF)
    for block in model.interactions:  # they start at zero
        torch.nn.init.normal_(block.filters.weight, std=0.2)
    for block in model.outputs:
        torch.nn.init.normal_(list(block.parameters())[-1], std=0.2)
    return model


MODELS = {
    "schnet": lambda: SchNet(24, 32, 2, 20, cutoff=CUTOFF),
    "schnet_mean": lambda: SchNet(24, 32, 2, 20, cutoff=CUTOFF, aggregation="mean"),
    "schnet_mlcg": lambda: SchNet(
        24, 32, 2, 20, cutoff=CUTOFF, basis="exponential", activation="tanh"
    ),
    "schnet_official": lambda: SchNet.official(24, 2, cutoff=CUTOFF),
    "physnet": physnet,
    "dtnn": lambda: DTNN(16, 24, 2, cutoff=CUTOFF, width=0.4, zero_start=False),
    "dimenet": lambda: DimeNet(24, num_blocks=1, cutoff=CUTOFF, output_init="glorot_orthogonal"),
    "dimenetpp": lambda: DimeNetPlusPlus(
        24, num_blocks=1, cutoff=CUTOFF, output_init="glorot_orthogonal"
    ),
}


def molecules(dtype=torch.float64, spacing=1.2):
    """Two molecules side by side, no two atoms closer than half of the spacing."""
    generator = torch.Generator().manual_seed(3)
    grid = torch.cartesian_prod(*[torch.arange(3.0)] * 3)[:11] * spacing
    positions = grid + 0.3 * torch.rand(11, 3, generator=generator)
    numbers = torch.randint(1, 9, (11,), generator=generator)
    batch = torch.tensor([0] * 6 + [1] * 5)
    return molkern.AtomicBatch(numbers, positions.to(dtype), batch)


def periodic(crystal, dtype=torch.float64):
    numbers, positions, cell = crystal
    return molkern.AtomicBatch(numbers, positions.to(dtype), cell=cell.to(dtype))


def both(model, batch, **options):
    model.filters = "exact"
    exact = model(batch, **options)
    model.filters = "spline"
    return exact, model(batch, **options)


def relative(a, b):
    return float((a.double() - b.double()).abs().max() / b.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_forces_and_stress_are_those_of_the_exact_model(name, crystal):
    model = MODELS[name]().double().eval()
    for batch, stress in ((molecules(), False), (periodic(crystal), True)):
        exact, splined = both(model, batch, forces=True, stress=stress)
        assert relative(splined["forces"], exact["forces"]) < 1e-6
        assert relative(splined["energy"], exact["energy"]) < 1e-8
        if stress:
            assert relative(splined["stress"], exact["stress"]) < 1e-6
    report = model.spline_report()
    assert report.value_error <= report.tolerance == 1e-9
    assert report.slope_error <= 1e-7


@pytest.mark.parametrize("name", MODELS)
def test_float32_rounds_as_the_exact_model_does(name):
    """Both are compared with the exact model in float64."""
    model = MODELS[name]().eval()
    truth = copy.deepcopy(model).double()(molecules(), forces=True)
    exact, splined = both(model, molecules(torch.float32), forces=True)
    ours, theirs = (relative(out["forces"], truth["forces"]) for out in (splined, exact))
    assert ours < 2 * theirs + 1e-6
    assert model.spline_report().tolerance == 1e-7


@pytest.mark.parametrize("name", MODELS)
def test_short_distances(name):
    """Down to 0.5 Å, where filters are steep."""
    model = MODELS[name]().double().eval()
    for distance in (0.5, 0.7, 1.5, 3.9):
        pair = torch.tensor([[0.0, 0, 0], [distance, 0, 0]], dtype=torch.float64)
        exact, splined = both(model, molkern.AtomicBatch(torch.tensor([6, 8]), pair), forces=True)
        scale = exact["forces"].abs().max().clamp(min=1e-3)
        assert (splined["forces"] - exact["forces"]).abs().max() < 1e-6 * scale


@pytest.mark.parametrize("name", MODELS)
def test_weight_gradients_of_a_loss_on_forces(name):
    """Second derivatives reach the weights through the tables as through the network."""
    model = MODELS[name]().double().train()
    batch = molecules()
    found = []
    for filters in ("exact", "spline"):
        model.filters = filters
        model.zero_grad()
        out = model(batch, forces=True)
        (out["energy"].square().sum() + out["forces"].square().sum()).backward()
        found.append({k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None})
    exact, splined = found
    assert exact.keys() == splined.keys()
    largest = max(float(value.abs().max()) for value in exact.values())
    for key, value in exact.items():
        torch.testing.assert_close(splined[key], value, rtol=1e-5, atol=1e-6 * largest, msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_forces_are_the_gradient_of_the_energy(name):
    """Of the spline model's own energy, exactly: by central differences."""
    model = MODELS[name]().double().eval()
    model.filters = "spline"
    batch = molecules()
    forces = model(batch, forces=True)["forces"]
    direction = torch.randn_like(batch.positions)
    energies = []
    for step in (1e-5, -1e-5):
        batch.positions = batch.positions + step * direction
        energies.append(model(batch)["energy"].sum())
        batch.positions = batch.positions - step * direction
    slope = (energies[0] - energies[1]) / 2e-5
    torch.testing.assert_close(-(forces * direction).sum(), slope, rtol=1e-6, atol=1e-7)


def test_the_shipped_model():
    model = ethanol_model()
    frames = ethanol_frames()["test"][:50]
    for dtype in (torch.float64, torch.float32):
        exact, splined = both(model.to(dtype), frames.batch(dtype), forces=True)
        error = relative(splined["forces"], exact["forces"])
        assert error < (1e-6 if dtype == torch.float64 else 2e-5)


@pytest.mark.parametrize("training", [True, False])
def test_changed_weights_are_seen(training):
    """In place, by an optimiser, by load_state_dict and by another parameter."""
    model = SchNet(16, 16, 1, 8, cutoff=CUTOFF, filters="spline").double().train(training)
    batch = molecules()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.interactions[0].filter_network.parameters():
            p.mul_(1.3).add_(0.1)

    def check():
        exact, splined = both(model, batch, forces=True)
        assert relative(splined["forces"], exact["forces"]) < 1e-6

    check()
    with torch.no_grad():
        model.interactions[0].filter_network.layers[0].weight.mul_(1.5)
    check()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    model(batch)["energy"].sum().backward()
    optimizer.step()
    check()
    model.load_state_dict(other.state_dict())
    check()
    model.interactions[0].filter_network = copy.deepcopy(other.interactions[0].filter_network)
    with torch.no_grad():
        model.interactions[0].filter_network.layers[0].weight.mul_(-1)
    check()


def test_tables_are_made_once_for_a_set_of_weights(monkeypatch):
    model = SchNet(16, 16, 1, 8, cutoff=CUTOFF, filters="spline").eval()
    batch = molecules(torch.float32)
    model(batch, forces=True)
    calls = []
    monkeypatch.setattr(SchNet, "filter_values", lambda *a: calls.append(a))
    for _ in range(3):
        model(batch, forces=True)
        with torch.no_grad():
            model(batch)
    assert calls == []


def test_a_gradient_in_evaluation_mode_is_not_lost():
    """Tables are constants only where nothing can be differentiated by the weights."""
    model = SchNet(16, 16, 1, 8, cutoff=CUTOFF, filters="spline").eval()
    model(molecules(torch.float32))["energy"].sum().backward()
    assert model.interactions[0].filter_network.layers[0].weight.grad.abs().max() > 0


def test_frozen_weights_need_no_gradients():
    model = SchNet(16, 16, 1, 8, cutoff=CUTOFF, filters="spline").train().requires_grad_(False)
    batch = molecules(torch.float32)
    batch.positions.requires_grad_()
    out = model(batch, forces=True)
    (second,) = torch.autograd.grad(out["forces"].square().sum(), batch.positions)
    assert second.abs().max() > 0


def test_the_switch(tmp_path):
    model = SchNet(16, 16, 1, 8, cutoff=CUTOFF, filters="spline", spline_tolerance=1e-5).eval()
    batch = molecules(torch.float32)
    before = model(batch, forces=True)
    model.save(tmp_path / "model.safetensors")
    loaded = molkern.models.load(tmp_path / "model.safetensors")
    assert loaded.filters == "spline"
    assert loaded.spline_report().tolerance == 1e-5
    after, copied = loaded(batch, forces=True), copy.deepcopy(model)(batch, forces=True)
    assert torch.equal(before["forces"], after["forces"])
    assert torch.equal(before["forces"], copied["forces"])
    with pytest.raises(ValueError, match="must be 'exact' or 'spline', got 'cubic'"):
        model.filters = "cubic"
    with pytest.raises(ValueError, match="must be 'exact' or 'spline', got 'cubic'"):
        SchNet(filters="cubic")
    with pytest.raises(ValueError, match="tolerance must be positive, got -1"):
        SchNet(spline_tolerance=-1.0)


def test_a_model_moves_to_another_type():
    model = SchNet(16, 16, 1, 8, cutoff=CUTOFF, filters="spline").eval()
    assert model(molecules(torch.float32), forces=True)["forces"].dtype == torch.float32
    model.double()
    exact, splined = both(model, molecules(), forces=True)
    assert relative(splined["forces"], exact["forces"]) < 1e-6
    assert model.spline_report().tolerance == 1e-9


def test_tolerances_order_errors():
    errors = []
    for tolerance in (1e-6, 1e-8, 1e-10):
        torch.manual_seed(0)
        model = SchNet(16, 16, 1, 60, cutoff=CUTOFF, spline_tolerance=tolerance).double().eval()
        exact, splined = both(model, molecules(), forces=True)
        errors.append(relative(splined["forces"], exact["forces"]))
        assert errors[-1] < 1e3 * tolerance
    assert errors[0] > errors[1] > errors[2]


def test_a_longer_list_makes_no_difference(crystal):
    batch = periodic(crystal)
    for name in ("schnet", "schnet_official", "physnet", "dtnn"):
        model = MODELS[name]().double().eval()
        model.filters = "spline"
        short = model(batch, forces=True)
        long = model(batch, forces=True, neighbors=batch.neighbors(CUTOFF + 1.0))
        torch.testing.assert_close(short["forces"], long["forces"], rtol=1e-10, atol=1e-12)


def scaled(model, factor):
    """Its filters under a factor, as of weights that have changed long since."""
    with torch.no_grad():
        for parameter in model.interactions[0].filter_network.parameters():
            parameter.mul_(factor)


@pytest.mark.parametrize("training", [True, False])
def test_forgotten_splines_depend_on_present_weights_alone(training):
    model = SchNet(16, 16, 1, 20, cutoff=CUTOFF, filters="spline").double().train(training)
    scaled(model, 16.0)
    batch = molecules()
    model(batch, forces=True)
    before = model.spline_report()
    scaled(model, 1 / 16)
    fresh = copy.deepcopy(model)
    expected = fresh(batch, forces=True)
    if not training:  # the search goes on from the grid of other weights
        assert model.spline_report().grid == before.grid
    assert fresh.spline_report().grid != before.grid
    model.forget_splines()
    out = model(batch, forces=True)
    assert model.spline_report() == fresh.spline_report()
    for name in ("energy", "forces"):
        assert torch.equal(out[name], expected[name]), name


def test_weights_changed_past_torch_are_seen_after_forgetting():
    model = SchNet(16, 16, 1, 8, cutoff=CUTOFF, filters="spline").double().eval()
    batch = molecules()
    model(batch, forces=True)
    evaluator = molkern.md.Evaluator(model, batch)
    evaluator(batch.positions)
    for parameter in model.interactions[0].filter_network.parameters():
        parameter.data.mul_(1.5)
    exact, stale = both(model, batch, forces=True)
    assert relative(stale["forces"], exact["forces"]) > 1e-3
    model.forget_splines()
    exact, renewed = both(model, batch, forces=True)
    assert relative(renewed["forces"], exact["forces"]) < 1e-6
    assert relative(evaluator(batch.positions)["forces"], exact["forces"]) < 1e-6
