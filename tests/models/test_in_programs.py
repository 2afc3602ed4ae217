"""Models in the middle of others' programs: splines follow what torch tells nothing of."""

import copy

import numpy as np
import pytest
import torch
from reference.small import NAMES, NUMBERS, POSITIONS, molecule, small_model
from torch import nn

import molkern

#: A module among those that make the filters.
FILTERS = {
    "DTNN": "lin_distance",
    "SchNet": "interactions.1.filter_network.layers.0",
    "PhysNet": "interactions.0.filters",
}


def close(out, expected, rtol=1e-6):
    for key in ("energy", "forces"):
        value = expected[key].detach()
        scale = float(value.abs().max())
        torch.testing.assert_close(out[key].detach(), value, rtol=0, atol=rtol * scale)


def exact(model):
    """What a copy with exact filters says."""
    other = copy.deepcopy(model).eval()
    other.filters = "exact"
    return other(molecule(), forces=True)


def replaced(model, name, kind):
    parent, _, last = name.rpartition(".")
    layer = kind(model.get_submodule(name))
    setattr(model.get_submodule(parent), last, layer)
    return layer


# Weights


def loss_of(out):
    return out["energy"].sum() + out["forces"].square().sum()


@pytest.mark.parametrize("name", NAMES)
def test_fused_optimizers(name):
    """They write weights without a trace; gradients may be gone before the next evaluation."""
    model = small_model(name, filters="spline")
    evaluate = molkern.md.Evaluator(model, molecule())
    evaluate()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, fused=True)
    for keep in (True, False):
        loss_of(model.train()(molecule(), forces=True)).backward()
        close(model.eval()(molecule(), forces=True), exact(model))  # before the step
        optimizer.step()
        if not keep:
            optimizer.zero_grad()
        close(model(molecule(), forces=True), exact(model))
        close(evaluate(), exact(model))
        tables = model._splines.made.tables
        evaluate()
        assert model._splines.made.tables is tables
        assert not model._splines.trained


def test_training_by_exact_filters_and_through_data():
    model = small_model("SchNet", filters="spline")
    close(model(molecule(), forces=True), exact(model))
    model.filters = "exact"
    loss_of(model.train()(molecule(), forces=True)).backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.data.sub_(0.01 * parameter.grad)
    model.filters = "spline"
    close(model.eval()(molecule(), forces=True), exact(model))


def test_unchanged_weights_keep_their_tables():
    model = small_model("SchNet", filters="spline")
    model(molecule(), forces=True)
    tables = model._splines.made.tables
    assert model(molecule())["energy"].requires_grad
    model(molecule(), forces=True)
    assert model._splines.made.tables is tables
    assert not model._splines.trained


def test_compiled_training_with_a_fused_optimizer():
    torch._dynamo.reset()
    model = small_model("SchNet", filters="exact")
    model.filters = "spline"
    model.spline_report()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, fused=True)
    neighbors = model.neighbors(molecule())
    compiled(molecule(), neighbors=neighbors)["energy"].sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    close(model(molecule(), forces=True), exact(model))
    torch._dynamo.reset()


# Attributes


class Adapter(nn.Module):
    """With the switches that such have, and a count of its calls."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.scale, self._disabled = layer, {"own": 0.5}, False
        self.active, self.shift, self.calls = ["own"], torch.zeros(1).double(), 0

    def forward(self, *arguments):
        self.calls += 1
        out = self.layer(*arguments) + self.shift * 0.01
        if not self._disabled:
            for name in self.active:
                out = out * (1 + self.scale[name])
        return out


@pytest.mark.parametrize("name", FILTERS)
def test_switches_of_adapters_are_seen(name):
    model = small_model(name, filters="spline")
    adapter = replaced(model, FILTERS[name], Adapter)
    evaluate = molkern.md.Evaluator(model, molecule())
    last = None
    for change in (
        lambda: None,
        lambda: adapter.scale.update(own=0.1),
        lambda: setattr(adapter, "_disabled", True),
        lambda: setattr(adapter, "_disabled", False),
        lambda: adapter.active.clear(),
        lambda: setattr(adapter, "active", ["own", "own"]),
        lambda: adapter.shift.add_(1.0),
    ):
        change()
        energy = evaluate()["energy"].clone()
        assert last is None or (energy - last).abs() > 1e-7
        close(evaluate(), exact(model))
        close(model(molecule(), forces=True), exact(model))
        last = energy


def test_counts_of_calls_do_not_renew_splines():
    model = small_model("SchNet", filters="spline")
    adapter = replaced(model, FILTERS["SchNet"], Adapter)
    model(molecule(), forces=True)
    made, calls = model._splines.made, adapter.calls
    model(molecule(), forces=True)
    assert model._splines.made is made
    model.train()
    for _ in range(2):
        model(molecule(), forces=True)
    assert adapter.calls > calls
    assert model._splines.made is made
    close(model.eval()(molecule(), forces=True), exact(model))


# Autocast


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_splines_in_training_under_autocast(name, dtype):
    """Tables through rounded values would have no slopes to speak of."""
    model = small_model(name, filters="spline").float()
    batch = molecule().to(dtype=torch.float32)
    expected = model(batch, forces=True)
    with torch.autocast("cpu", dtype):
        out = model.train()(batch, forces=True)
    loss_of(out).backward()
    close(out, expected, 0.03)


def test_first_use_under_autocast():
    """Splines made under autocast are those of later calls; adapters do not prevent them."""
    model = small_model("SchNet", filters="spline").float()
    replaced(model, FILTERS["SchNet"], Adapter).shift = torch.zeros(1)
    batch = molecule().to(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        model(batch, forces=True)
    assert not model._splines.made.obstacle
    close(model(batch, forces=True), copy.deepcopy(model)(batch, forces=True))


# Export


@pytest.mark.parametrize("filters", ["exact", "spline"])
@pytest.mark.parametrize("name", NAMES)
def test_export_takes_the_fused_path(name, filters):
    model = small_model(name, filters=filters).requires_grad_(False)
    if filters == "spline":
        model.spline_report()
    neighbors = model.neighbors(molecule())

    class Energy(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, positions):
            batch = molkern.AtomicBatch(NUMBERS, positions)
            return self.model(batch, neighbors=neighbors)["energy"]

    program = torch.export.export(Energy(), (POSITIONS,), strict=False)
    moved = 1.05 * POSITIONS
    torch.testing.assert_close(program.module()(moved), Energy()(moved))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["DTNN", "PhysNet"])
def test_traces_do_not_keep_how_far_lists_reach(name):
    """Energies of larger molecules would leave out pairs."""
    model = small_model(name)
    with pytest.raises(RuntimeError, match=r"torch\.jit\.trace would keep.*neighbors="):
        torch.jit.trace(lambda positions: model(molecule(positions))["energy"], (POSITIONS,))


# Numbers of NumPy


def test_flags_of_numpy():
    model, batch = small_model("SchNet"), molecule(cell=6 * torch.eye(3, dtype=torch.float64))
    expected = model(batch, forces=True, stress=True)
    out = model(batch, forces=np.True_, stress=np.bool_(1))
    assert torch.equal(out["forces"], expected["forces"])
    assert torch.equal(out["stress"], expected["stress"])
    assert "forces" not in model(batch, forces=np.False_)


def test_models_made_of_numbers_of_numpy_can_be_saved():
    model = molkern.models.SchNet(
        np.int64(8), np.int32(6), np.int8(1), cutoff=np.float32(4.0), head_hidden=[np.int64(4)]
    )
    other = molkern.models.load(model.to_bytes())
    assert other.config == model.config
    assert all(type(value) is not np.int64 for value in other.config.values())
