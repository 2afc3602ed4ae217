"""The elements that a model was trained on: kept, saved, and checked."""

import copy
import json
import pickle

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

import molkern
from molkern import AtomicBatch
from molkern.data import ethanol_model
from molkern.elements import SYMBOLS, referenced, symbols
from molkern.models import DTNN, DimeNet, DimeNetPlusPlus, PhysNet, SchNet, load

pytestmark = pytest.mark.unemulated  # launches no kernel that others do not


MODELS = {
    "SchNet": lambda: SchNet(8, 8, 1, num_basis=8, cutoff=4.0, num_elements=20),
    "DTNN": lambda: DTNN(8, 8, 1, num_basis=8, cutoff=4.0),
    "PhysNet": lambda: PhysNet(8, 8, 1, cutoff=4.0, num_elements=20),
    "DimeNet": lambda: DimeNet(8, num_blocks=1, num_spherical=2, num_radial=2, num_elements=20),
    "DimeNetPlusPlus": lambda: DimeNetPlusPlus(
        8, num_blocks=1, int_emb_size=4, out_emb_size=8, num_spherical=2, num_radial=2
    ),
}


def trained(name="SchNet"):
    model = MODELS[name]().eval()
    model.elements = [8, 1, 6, 1]
    return model


def molecule(*numbers):
    positions = torch.arange(3.0 * len(numbers)).reshape(-1, 3) / 3
    return AtomicBatch(torch.tensor(numbers), positions)


@pytest.mark.parametrize("name", MODELS)
def test_other_elements_are_refused_unless_one_insists(name, device):
    model = trained(name).to(device)
    assert model.elements == (1, 6, 8)
    model(molecule(1, 8, 1).to(device), forces=True)
    nitrogen = molecule(1, 8, 7, 1).to(device)
    message = rf"atom 2 is N \(7\), which this {name} does not know: it knows H, C, O; .*allow_unk"
    with pytest.raises(ValueError, match=message):
        model(nitrogen)
    with pytest.raises(ValueError, match=message):
        molkern.md.Evaluator(model, nitrogen)
    model.allow_unknown_elements = True
    expected = model(nitrogen)
    model.allow_unknown_elements, model.elements = False, None
    found = model(nitrogen)
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_models_that_learn_take_any_element():
    model = trained().train()
    out = model(molecule(1, 7), forces=True)
    out["forces"].square().sum().backward()
    with torch.no_grad(), pytest.raises(ValueError, match=r"atom 1 is N"):
        model(molecule(1, 7))
    with pytest.raises(ValueError, match=r"number 20, but the model's table goes from 0 to 19"):
        model(molecule(1, 20))


@pytest.mark.parametrize("name", MODELS)
def test_elements_go_where_the_model_goes(name, tmp_path):
    model = trained(name)
    model.save(tmp_path / "model.safetensors")
    copies = [
        load(tmp_path / "model.safetensors"),
        load(model.to_bytes()),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        copy.copy(model).double(),
    ]
    assert [made.elements for made in copies] == [(1, 6, 8)] * 5
    assert not any("element" in key for key in model.state_dict())
    model.allow_unknown_elements = True
    assert copy.deepcopy(model).allow_unknown_elements
    assert not load(model.to_bytes()).allow_unknown_elements  # who insists says so again


def described(model, **changes):
    """A model's file with other words in its description."""
    content = model.to_bytes()
    length = int.from_bytes(content[:8], "little")
    words = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["molkern"])
    words = {k: v for k, v in {**words, **changes}.items() if v is not ...}
    return safetensors.torch.save(safetensors.torch.load(content), {"molkern": json.dumps(words)})


def test_files_that_do_not_say():
    model = trained()
    assert load(described(model)).elements == (1, 6, 8)
    old = load(described(model, elements=...))
    assert old.elements is None
    old(molecule(1, 7, 19))
    for wrong in ("H", ["H"], [1.5], [], [99], [-1], 7, {"a": 1}, [True], [[1]]):
        with pytest.raises(ValueError, match=r"the content: elements "):
            load(described(model, elements=wrong))
    MODELS["SchNet"]().to_bytes()
    assert b"elements" not in MODELS["SchNet"]().to_bytes().replace(b"num_elements", b"")


def test_what_elements_may_be():
    model = MODELS["SchNet"]()
    for value in ((1, 6), {6, 1}, np.array([6, 1, 6]), torch.tensor([1, 6]), range(1, 7, 5)):
        model.elements = value
        assert model.elements == (1, 6)
    model.elements = None
    assert model.elements is None
    with pytest.raises(ValueError, match=r"elements has 20, but the model's table goes from 0 to"):
        model.elements = [1, 20]


def test_the_shipped_model():
    model = ethanol_model()
    assert model.elements == (1, 6, 8)
    with pytest.raises(ValueError, match=r"atom 1 is N \(7\), which this SchNet does not know"):
        model(molecule(6, 7, 1))


@pytest.mark.parametrize("count", [3, 5000])
@pytest.mark.parametrize("largest", [9, 300])
def test_elements_of_a_batch(count, largest, device):
    numbers = torch.randint(1, 8, (count,), generator=torch.Generator().manual_seed(0))
    numbers[1] = largest
    batch = AtomicBatch(numbers.to(device), torch.zeros(count, 3, device=device))
    assert batch.elements == tuple(sorted(set(numbers.tolist())))
    batch.numbers[0] = 10
    assert 10 in batch.elements
    assert AtomicBatch(numbers[:0], batch.positions[:0].cpu()).elements == ()


def test_a_gpu_is_waited_for_once(monkeypatch):
    class OnDevice(torch.Tensor):
        is_cpu = False

    reads = []
    for name in ("_distinct", "_value_range"):
        read = getattr(molkern.graph, name)
        monkeypatch.setattr(
            molkern.graph, name, lambda x, read=read: reads.append(type(x)) or read(x)
        )
    batch = molecule(1, 6, 8)
    batch.numbers = batch.numbers.as_subclass(OnDevice)
    model = trained()
    for _ in range(3):
        model.check(batch)
        assert batch.number_range == (1, 8)
    assert reads == [OnDevice]
    batch.numbers[0] = 7
    with pytest.raises(ValueError, match=r"atom 0 is N"):
        model.check(batch)
    assert len(reads) == 2
    # What the CPU knows travels along
    reads.clear()
    there = molecule(1, 6, 8)._mapped(lambda value: value.as_subclass(OnDevice))
    model.check(there.to(dtype=torch.float32))
    assert OnDevice not in reads


def test_compiled_models_do_not_look():
    model = trained()
    model.spline_report()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    water, list_ = molecule(8, 1, 1), model.neighbors(molecule(8, 1, 1))
    expected = model(water, neighbors=list_)["energy"]
    torch.testing.assert_close(compiled(water, neighbors=list_)["energy"], expected)


def test_names_of_elements():
    ase_data = pytest.importorskip("ase.data")
    assert list(SYMBOLS) == ase_data.chemical_symbols
    assert symbols([8, 1]) == "H, O"
    assert symbols(range(1, 119)) == "H to Og, 118 elements"
    assert referenced(None) is None
    assert referenced([0.0, 0.0]) is None
    assert referenced([1.0, 0.5, 0.0, -1.0]) == (1, 3)
    assert referenced([[0.0, 0.0], [0.0, 1.0]]) == (1,)
