"""What a model was made with cannot be changed afterwards, where that would do half of it."""

import copy
import inspect
import json
import pickle

import pytest
import torch

from molkern import AtomicBatch
from molkern.models import DTNN, DimeNet, DimeNetPlusPlus, PhysNet, SchNet, load
from molkern.nn import AtomicReference

pytestmark = pytest.mark.unemulated  # launches no kernel that others do not


SMALL = {
    SchNet: dict(hidden_channels=8, num_filters=8, num_interactions=2, num_basis=8, cutoff=4.0),
    DTNN: dict(hidden_channels=8, num_factors=8, num_interactions=2, num_basis=8, cutoff=4.0),
    PhysNet: dict(hidden_channels=8, num_basis=8, num_interactions=2, cutoff=4.0, lr_cut=6.0),
    DimeNet: dict(hidden_channels=8, num_blocks=1, num_spherical=2, num_radial=2, cutoff=4.0),
    DimeNetPlusPlus: dict(hidden_channels=8, num_blocks=1, num_spherical=2, num_radial=2),
}
KINDS = list(SMALL)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def model(request):
    return request.param(**SMALL[request.param]).eval()


def molecule():
    return AtomicBatch(torch.tensor([8, 1, 1]), torch.arange(9.0).reshape(3, 3) / 3)


#: Another value than the one that a model is made with.
OTHER = {
    "basis": "none", "output_init": "none", "angle": "none", "zeros_dtype": "float16",
    "readout": "max", "activation": "none", "cutoff_function": "none", "prediction": "none",
    "reference": [0.0] * 100, "head_hidden": [3], "dispersion_parameters": [1.0] * 4,
}  # fmt: skip


def test_arguments_cannot_be_set(model):
    """Each of them, so that new ones are noticed."""
    before = model(molecule())
    names = list(inspect.signature(type(model).__init__).parameters)[1:]
    assert {"cutoff", "num_elements"} < set(names)
    for name in names:
        if name in ("filters", "spline_tolerance"):
            continue
        message = rf"^{name} of a {type(model).__name__} is .* cannot be set to .*: make a new"
        with pytest.raises(AttributeError, match=message):
            setattr(model, name, OTHER.get(name, 3.25))
    after = model(molecule())
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_what_is_no_change_is_allowed(model):
    model.cutoff, model.num_elements = model.cutoff, model.num_elements
    model.note = "my own"
    if not isinstance(model, PhysNet):
        model.reference = AtomicReference(mean=2.0, num_targets=model.num_targets or None)
        assert float(model.reference.mean) == 2.0


def test_what_follows_from_arguments_cannot_be_set():
    for name, value in (("reach", 3.0), ("num_interactions", 5)):
        with pytest.raises(AttributeError, match=f"{name} of a DTNN is "):
            setattr(DTNN(8, 8, 1), name, value)
    with pytest.raises(AttributeError, match=r"lr_cut of a PhysNet is 6\.0"):
        PhysNet(**SMALL[PhysNet]).lr_cut = None


def test_the_configuration_cannot_be_changed(model):
    config = model.config
    with pytest.raises(TypeError, match="cannot be changed: make a new model"):
        config["cutoff"] = 3.0
    for change in (
        lambda: config.update(cutoff=3.0),
        lambda: config.pop("cutoff"),
        config.clear,
        lambda: config.setdefault("new", 1),
        config.popitem,
        lambda: config.__ior__({"cutoff": 1.0}),
        lambda: config.__delitem__("cutoff"),
    ):
        with pytest.raises(TypeError, match="cannot be changed"):
            change()
    with pytest.raises(AttributeError, match="config tells how a "):
        model.config = {}
    for made in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert made == config == model.config
    assert json.loads(json.dumps(config)) == config
    again = type(model)(**{**config, "cutoff": 3.0})
    assert again.cutoff == again.basis.cutoff == 3.0 or isinstance(again, DTNN)


def test_lists_in_the_configuration_are_copies():
    model = SchNet(8, 8, 1, num_elements=3, reference=[0.0, 1.0, 2.0])
    model.config["reference"][1] = 5.0
    assert load(model.to_bytes()).config["reference"] == [0.0, 1.0, 2.0]


def test_copies_and_files(model, tmp_path):
    model.save(tmp_path / "model.safetensors")
    expected = model(molecule())
    copies = [load(tmp_path / "model.safetensors"), copy.deepcopy(model), copy.copy(model)]
    copies.append(pickle.loads(pickle.dumps(model)))
    state = model.state_dict()
    copies[1].load_state_dict(state)
    for made in copies:
        assert made.cutoff == model.cutoff
        assert made.config == model.config
        found = made(molecule())
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        with pytest.raises(AttributeError, match="cutoff of a"):
            made.cutoff = 1.5


def test_pickles_of_earlier_versions(model):
    old = copy.copy(model)
    old.__dict__["config"] = old.__dict__.pop("_config")
    again = pickle.loads(pickle.dumps(old))
    assert again.config == model.config
    assert again.filters == "exact"


def test_the_tolerance_of_splines_can_be_set(model):
    model = model.double()
    model.filters, model.spline_tolerance = "spline", 1e-3
    coarse = model.spline_report()
    model.spline_tolerance = 1e-7
    fine = model.spline_report()
    assert coarse.tolerance == 1e-3
    assert fine.tolerance == 1e-7
    assert fine.knots >= coarse.knots
    assert load(model.to_bytes()).spline_tolerance == 1e-7
    made = type(model)(**{**model.config, "spline_tolerance": 1e-7}).double()
    made.load_state_dict(model.state_dict())
    assert made.spline_report() == fine
    with pytest.raises(ValueError, match="tolerance must be positive, got -1"):
        model.spline_tolerance = -1


def test_models_of_ones_own_keep_their_freedom():
    class Mine(SchNet.__base__):
        def __init__(self, cutoff=3.0):
            super().__init__()
            self.remember(cutoff=cutoff)
            self.cutoff, self.num_elements = cutoff, 10
            self.weight = torch.nn.Parameter(torch.ones(1))

    mine = Mine()
    mine.cutoff = 4.0
    assert mine.cutoff == 4.0


def test_subclasses_refuse_too():
    class Wide(SchNet):
        pass

    with pytest.raises(AttributeError, match=r"cutoff of a Wide is 4.0 .* Wide\(\*\*\{\*\*model"):
        Wide(**SMALL[SchNet]).cutoff = 5.0
