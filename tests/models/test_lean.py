"""Energy and forces without a tape: the numbers of the other path, and its exported forms."""

import copy

import pytest
import torch

import molkern
from molkern.models import LeanSchNet, SchNet

CUTOFF = 4.0


def small(dtype=torch.float64, **options):
    options = {"filters": "spline", "cutoff": CUTOFF, **options}
    return SchNet(16, 24, 2, 12, **options).to(dtype).eval()


def molecules(dtype=torch.float64, sizes=(7, 1, 5)):
    positions = 3 * torch.rand(sum(sizes), 3, dtype=torch.float64)
    batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    numbers = torch.randint(1, 9, (len(batch),))
    return molkern.AtomicBatch(numbers, positions.to(dtype), batch)


def taped(model, batch, monkeypatch, **options):
    """What the model gives without its lean path."""
    with monkeypatch.context() as patch:
        patch.setattr(SchNet, "lean", lambda self: None)
        return model(batch, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "silu", "head_hidden": [12, 6], "filter_activation": True},
        {"activation": "tanh", "head_hidden": [], "scale": 2.5, "mean": -1.0},
        {"activation": "ssp_pyg", "reference": [float(k) for k in range(100)]},
        {"activation": "ssp_official", "cutoff_function": "none"},
    ],
)
def test_equals_the_taped_path(options, monkeypatch):
    model, batch = small(**options), molecules()
    ours = model(batch, forces=True)
    theirs = taped(model, batch, monkeypatch, forces=True)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype
        torch.testing.assert_close(ours[key], value, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("capacity", [None, 900])
def test_crystals_and_stress(crystal, capacity, monkeypatch):
    numbers, positions, cell = crystal
    both = molkern.AtomicBatch(
        torch.cat([numbers, numbers]),
        torch.cat([positions, positions * 1.01]),
        torch.tensor([0] * 10 + [1] * 10),
        torch.stack([cell, 1.01 * cell]),
    )
    model = small()
    for batch in (molkern.AtomicBatch(numbers, positions, cell=cell), both):
        room = None if capacity is None else capacity * batch.num_systems
        neighbors = batch.neighbors(CUTOFF, capacity=room)
        for wanted in ({"forces": True, "stress": True}, {"stress": True}):
            ours = model(batch, neighbors=neighbors, **wanted)
            theirs = taped(model, batch, monkeypatch, neighbors=neighbors, **wanted)
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                torch.testing.assert_close(ours[key], value, rtol=1e-10, atol=1e-11)


def test_graphs_that_are_not_symmetric(monkeypatch):
    batch = molecules(sizes=(8,))
    pairs = batch.neighbors(CUTOFF).edge_index
    keep = torch.rand(pairs.shape[1]) < 0.7
    graph = molkern.NeighborList.from_edge_index(pairs[:, keep], 8)
    assert graph.reverse is None
    model = small()
    ours = model(batch, forces=True, neighbors=graph)
    theirs = taped(model, batch, monkeypatch, forces=True, neighbors=graph)
    torch.testing.assert_close(ours["forces"], theirs["forces"], rtol=1e-11, atol=1e-12)


def test_errors_are_those_of_the_model():
    model, batch = small(), molecules()
    with pytest.raises(ValueError, match="stress needs a cell"):
        model(batch, stress=True)
    batch.positions[2, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        model(batch, forces=True)
    with pytest.raises(ValueError, match="filters='spline'"):
        LeanSchNet(small(filters="exact"))
    with pytest.raises(ValueError, match="filters='spline'"):
        LeanSchNet(small(aggregation="mean"))
    with pytest.raises(ValueError, match="filters='spline'"):
        LeanSchNet(small(readout="mean"))
    assert small(readout="mean").lean() is None


def arguments_of(model, batch):
    """What the model calls the operator with."""
    neighbors, found = batch.neighbors(CUTOFF), []
    operator = molkern.models.lean.operators.schnet_energy_grad.default

    class Operators:
        class schnet_energy_grad:
            @staticmethod
            def default(*arguments):
                found.append(arguments)
                return operator(*arguments)

        def __getattr__(self, name):
            return getattr(torch.ops.molkern, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(molkern.models.lean, "operators", Operators())
        model(batch, forces=True, neighbors=neighbors)
    return list(found[0])


@pytest.mark.parametrize("activation", ["ssp", "ssp_pyg"])
def test_opcheck(activation):
    arguments = arguments_of(small(activation=activation), molecules())
    operator = torch.ops.molkern.schnet_energy_grad.default
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_layers_that_do_not_fit_are_refused():
    arguments = arguments_of(small(), molecules())
    for place, message in ((13, "three for each of 2 tables and the head's, got 7 and 8"),
                           (15, "for each of 4 layers, got 3, 4 and 4")):  # fmt: skip
        wrong = list(arguments)
        assert isinstance(wrong[place], list)
        wrong[place] = wrong[place][:-1]
        with pytest.raises(ValueError, match=message):
            torch.ops.molkern.schnet_energy_grad(*wrong)
    wrong = list(arguments)
    wrong[13] = [weight.float() for weight in wrong[13]]
    with pytest.raises(TypeError, match="weight is"):
        torch.ops.molkern.schnet_energy_grad(*wrong)


def test_under_autocast():
    model, batch = small(torch.float32), molecules(torch.float32)
    expected = model(batch, forces=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = model(batch, forces=True)
    for key, value in expected.items():
        torch.testing.assert_close(ours[key], value)


def test_stress_under_autocast(crystal):
    numbers, positions, cell = crystal
    model = small(torch.float32)
    batch = molkern.AtomicBatch(numbers, positions.float(), cell=cell.float())
    expected = model(batch, stress=True)["stress"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(batch, stress=True)["stress"], expected)
        # The taped path computes layers in bfloat16, but where atoms are stays as it is
        model.filters = "exact"
        both = model(batch, forces=True), model(batch, forces=True, stress=True)
    torch.testing.assert_close(both[0]["energy"], both[1]["energy"], rtol=1e-4, atol=1e-4)


def test_no_graph_is_recorded():
    model, batch = small(), molecules()
    out = model(batch, forces=True)
    assert not any(value.requires_grad for value in out.values())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("layer", ["embedding", "interactions", "head", "reference"])
def test_layers_that_are_replaced(layer, monkeypatch):
    model, batch = small(mean=1.0), molecules()
    model(batch, forces=True)
    setattr(model, layer, getattr(small(mean=2.0), layer))
    ours = model(batch, forces=True)
    for key, value in taped(model, batch, monkeypatch, forces=True).items():
        torch.testing.assert_close(ours[key], value, rtol=1e-11, atol=1e-12)


def test_a_copy_has_its_own(monkeypatch):
    model, batch = small(), molecules()
    before = model(batch, forces=True)["forces"]
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.interactions[0].lin.weight.mul_(2.0)
        other.interactions[1].filter_network.layers[0].bias.add_(0.5)
    assert torch.equal(model(batch, forces=True)["forces"], before)
    ours, theirs = other(batch, forces=True), taped(other, batch, monkeypatch, forces=True)
    torch.testing.assert_close(ours["forces"], theirs["forces"], rtol=1e-11, atol=1e-12)
    assert "table_0" not in model.state_dict()


def test_memory_of_a_large_system():
    """Bound by what is kept for each atom, not by edges and features."""
    model = small(torch.float32)
    side = 12
    grid = torch.cartesian_prod(*[torch.arange(side) * 1.5] * 3)
    positions = grid + 0.2 * torch.rand(side**3, 3)
    batch = molkern.AtomicBatch(
        torch.ones(side**3, dtype=torch.int64), positions, cell=1.5 * side * torch.eye(3)
    )
    neighbors = batch.neighbors(CUTOFF)
    model(batch, forces=True, neighbors=neighbors)
    with torch.profiler.profile(profile_memory=True) as profile:
        model(batch, forces=True, neighbors=neighbors)
    current = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    assert 0 < peak < 0.5 * neighbors.num_edges * 24 * 4


@pytest.mark.unemulated  # takes long and runs the kernels that others run
def test_compiled():
    model, batch = small(torch.float32), molecules(torch.float32)
    lean = LeanSchNet(model)
    inputs = lean.inputs(batch, batch.neighbors(CUTOFF))
    with torch.no_grad():
        compiled = torch.compile(lean, fullgraph=True)(*inputs)
    for ours, theirs in zip(compiled, lean(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.unemulated
def test_the_model_itself_compiles():
    """Energies, with the tables that are there."""
    model, batch = small(torch.float32), molecules(torch.float32)
    neighbors = batch.neighbors(CUTOFF)

    with torch.no_grad():
        expected = model_energy(model, batch, neighbors, batch.positions)  # makes the tables
        compiled = torch.compile(lambda p: model_energy(model, batch, neighbors, p), fullgraph=True)
        torch.testing.assert_close(compiled(batch.positions), expected)


def model_energy(model, batch, neighbors, positions):
    structure = molkern.models.Structure(batch, neighbors, positions, None)
    return model.predict(structure)["energy"]


@pytest.mark.unemulated
def test_exported_and_packaged(tmp_path):
    """One program for molecules of any size, run by torch and as AOTInductor's package."""
    model = small(torch.float32)
    lean = LeanSchNet(model)
    batches = [molecules(torch.float32, sizes=(size,)) for size in (9, 5)]
    calls = [lean.inputs(batch, batch.neighbors(CUTOFF)) for batch in batches]
    shapes = lean.dynamic_shapes(calls[0])
    program = torch.export.export(lean, calls[0], dynamic_shapes=shapes)
    for call in calls:
        for ours, theirs in zip(program.module()(*call), lean(*call), strict=True):
            torch.testing.assert_close(ours, theirs)
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "m.pt2"))
    package = torch._inductor.aoti_load_package(path)
    for call in calls:
        for ours, theirs in zip(package(*call), lean(*call), strict=True):
            torch.testing.assert_close(ours, theirs)
