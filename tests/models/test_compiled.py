"""Compiled models: any number of atoms, edges and systems, any charge, in a few graphs."""

import pytest
import torch
from reference.small import NUMBERS, small_model
from torch._dynamo.testing import CompileCounterWithBackend

import molkern

pytestmark = pytest.mark.unemulated  # launches no kernel that others do not


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def of_sizes(*systems):
    """A batch of systems with these many atoms in a chain."""
    line = torch.arange(max(systems), dtype=torch.float64).unsqueeze(1)
    chain = torch.cat([0.9 * line, 0.1 * line.sin(), 0 * line], 1)
    positions = torch.cat([chain[:n] for n in systems])
    numbers = torch.cat([NUMBERS.repeat(2)[:n] for n in systems])
    return molkern.AtomicBatch(numbers, positions, torch.repeat_interleave(torch.tensor(systems)))


#: Each kind of model and of filters once or more: compiling takes long.
MODELS = [
    *(("DTNN", "exact"), ("SchNet", "spline"), ("PhysNet", "spline"), ("DimeNet", "exact")),
    ("DimeNetPlusPlus", "spline"),
]
#: PhysNet's smallest.
BARE = {f"num_residual_{part}": 0 for part in ("atomic", "interaction", "output")}


@pytest.mark.parametrize(("name", "filters"), MODELS)
def test_dynamic_shapes(name, filters):
    model = small_model(name, filters=filters, **(BARE if name == "PhysNet" else {}))
    if filters == "spline":
        model.spline_report()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    counts = []
    for systems in ((4, 3), (5, 3), (5, 4, 2), (6, 4, 5, 2), (2, 6, 3, 4, 5)):
        batch = of_sizes(*systems)
        neighbors = model.neighbors(batch)
        found = compiled(batch, neighbors=neighbors)["energy"]
        torch.testing.assert_close(found, model(batch, neighbors=neighbors)["energy"])
        counts.append(counter.frame_count)
    assert counts[-1] == counts[-2]
    found.sum().backward()  # by weights, through splines too
    assert any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_any_charge(backend):
    model = small_model("PhysNet", **BARE)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    batch = of_sizes(4, 3)
    neighbors = model.neighbors(batch)

    def check(charge):
        with torch.no_grad():
            found = compiled(batch, neighbors=neighbors, total_charge=charge)["energy"]
            expected = model(batch, neighbors=neighbors, total_charge=charge)["energy"]
        torch.testing.assert_close(found, expected)
        return counter.frame_count

    check(1.0)
    assert len({check(charge) for charge in (2.0, -1.5, 0.25, 3.0)}) == 1
    if backend == "aot_eager":
        check(2)
        assert len({check(charge) for charge in (3, -2)}) == 1
        assert len({check(torch.tensor([q, -q])) for q in (1.0, 2.0)}) == 1


def test_charges_of_several_kinds():
    model, batch = small_model("PhysNet"), of_sizes(4, 3)
    expected = model(batch, total_charge=torch.tensor([1.0, -1.0]))["energy"]
    for given in ([1, -1], (1.0, -1.0), torch.tensor([1, -1]).numpy(), torch.tensor([1, -1])):
        torch.testing.assert_close(model(batch, total_charge=given)["energy"], expected)
    for wrong in ("1", None, 1j):
        with pytest.raises(TypeError, match="total_charge must be a number"):
            model(batch, total_charge=wrong)
    with pytest.raises(ValueError, match=r"total_charge must be a number or have shape \[2\]"):
        model(batch, total_charge=torch.zeros(7))
