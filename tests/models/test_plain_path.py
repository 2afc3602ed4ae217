"""Layers that are wrapped, hooked, parametrised or replaced: one model, one answer on every path.

The reference calls every module: a hook for all modules makes each fused path step aside, and
forces are the gradient of the energy alone.
"""

import contextlib
import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize, prune

import molkern
from molkern.md.kept import KeptEvaluators
from molkern.models import DTNN, DimeNet, DimeNetPlusPlus, PhysNet, SchNet

pytestmark = pytest.mark.unemulated  # launches no kernel that others do not


CUTOFF = 4.0
#: By what outputs and inputs are changed.
FACTOR = 1.1

COMMON = {"cutoff": CUTOFF, "num_elements": 9, "spline_tolerance": 1e-5}
DIRECTIONAL = {
    "num_blocks": 1,
    "num_spherical": 3,
    "num_radial": 3,
    "num_before_skip": 0,
    "num_after_skip": 1,
    "num_output_layers": 1,
    "output_init": "glorot_orthogonal",
}
MODELS = {
    "schnet": lambda: SchNet(8, 6, 1, 6, mean=0.3, scale=1.5, **COMMON),
    "schnet mean": lambda: SchNet(
        8, 6, 1, 6, aggregation="mean", readout="mean", activation="ssp_pyg", **COMMON
    ),
    "schnet mlcg": lambda: SchNet(
        8, 6, 2, 6, basis="exponential", activation="tanh", head_hidden=[4, 4], **COMMON
    ),
    "schnet official": lambda: SchNet(
        8,
        8,
        1,
        8,
        gaussian_coefficient=4.0,
        cutoff_function="none",
        activation="ssp_official",
        filter_activation=True,
        **COMMON,
    ),
    "physnet": lambda: PhysNet(
        8,
        6,
        1,
        lr_cut=6.0,
        num_residual_atomic=1,
        num_residual_interaction=1,
        num_residual_output=1,
        **COMMON,
    ),
    "asparagus": lambda: PhysNet.asparagus(
        8,
        6,
        1,
        num_residual_atomic=0,
        num_residual_interaction=1,
        num_residual_output=1,
        use_electrostatics=False,
        **COMMON,
    ),
    "dtnn": lambda: DTNN(8, 6, 2, 12, width=0.4, zero_start=False, **COMMON),
    "dimenet": lambda: DimeNet(8, num_bilinear=2, scale=1.5, **DIRECTIONAL, **COMMON),
    "dimenet++": lambda: DimeNetPlusPlus(
        8, int_emb_size=4, basis_emb_size=3, out_emb_size=8, **DIRECTIONAL, **COMMON
    ),
}


def made(name):
    torch.manual_seed(5)
    model = MODELS[name]().double()
    with torch.no_grad():
        for parameter in model.parameters():  # some start at zero
            if not parameter.any():
                parameter.normal_(std=0.3)
    return model


def molecule(periodic=False):
    positions = torch.tensor(
        [[0.0, 0, 0], [1.1, 0.1, 0], [-0.4, 1.0, 0.3], [2.6, 1.3, -0.5]], dtype=torch.float64
    )
    cell = 4.5 * torch.eye(3, dtype=torch.float64) if periodic else None
    return molkern.AtomicBatch(torch.tensor([8, 1, 1, 6]), positions, cell=cell)


@contextlib.contextmanager
def unfused():
    handle = register_module_forward_hook(lambda *_: None)
    try:
        yield
    finally:
        handle.remove()


def reference(model, batch):
    """Energy and forces by calling every module, with a tape through the energy alone."""
    model.filters = "exact"
    positions = batch.positions.clone().requires_grad_()
    system = molkern.AtomicBatch(batch.numbers, positions, cell=batch.cell)
    with unfused():
        energy = model(system)["energy"]
        (gradient,) = torch.autograd.grad(energy.sum(), positions)
    return energy.detach(), -gradient


def called(model):
    """The names of the modules that are called where no path is fused."""
    names, found = {id(module): name for name, module in model.named_modules()}, set()
    handle = register_module_forward_hook(lambda module, *_: found.add(names[id(module)]))
    model(molecule())
    handle.remove()
    return [name for name in names.values() if name and name in found]


def scaled(value):
    if isinstance(value, dict):
        return {key: scaled(item) for key, item in value.items()}
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return FACTOR * value
    return value


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.wrapped = module

    def forward(self, *arguments):
        return scaled(self.wrapped(*arguments))


class LowRank(nn.Module):
    """An adapter of a linear layer."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Parameter(0.3 * torch.randn(2, base.in_features, dtype=torch.float64))
        self.up = nn.Parameter(0.3 * torch.randn(base.out_features, 2, dtype=torch.float64))

    def forward(self, x):
        return self.base(x) + x.to(self.down.dtype) @ self.down.t() @ self.up.t()


class Scale(nn.Module):
    def forward(self, weight):
        return FACTOR * weight


class OwnEmbedding(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, width, dtype=torch.float64))

    def forward(self, numbers):
        return torch.sin(self.table)[numbers]


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(x)


class Derived(nn.Linear):
    """A layer of a class of its own."""

    def forward(self, x):
        return FACTOR * super().forward(x)


def replace(model, name, module):
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


# Changes: each is made to a module of a model, and says whether it applies.


def wrap(model, name):
    replace(model, name, Wrapper(model.get_submodule(name)))
    return True


def adapt(model, name):
    layer = model.get_submodule(name)
    if isinstance(layer, nn.Linear):
        replace(model, name, LowRank(layer))
    return isinstance(layer, nn.Linear)


def hook(model, name):
    model.get_submodule(name).register_forward_hook(lambda _m, _i, output: scaled(output))
    return True


def hook_inputs(model, name):
    module = model.get_submodule(name)
    module.register_forward_pre_hook(lambda _m, inputs: (scaled(inputs[0]), *inputs[1:]))
    return not isinstance(module, (nn.Embedding, molkern.nn.DimeNetEmbedding))


def hook_gradients(model, name):
    """Gradients on their way back are scaled."""
    module = model.get_submodule(name)
    module.register_full_backward_hook(
        lambda _m, inputs, _o: tuple(None if g is None else scaled(g) for g in inputs)
    )
    return not name.endswith("readout")  # whose output torch does not look into


def parametrise(model, name):
    module = model.get_submodule(name)
    if "weight" in module._parameters:
        parametrize.register_parametrization(module, "weight", Scale())
        return True
    return False


def normalise(model, name):
    """By a hook of the old kind, which leaves a plain attribute."""
    module = model.get_submodule(name)
    if not isinstance(module, nn.Linear):
        return False
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(module)
    with torch.no_grad():
        module.weight_g.mul_(FACTOR)
    return True


def reassign(model, name):
    """The instance gets a forward of its own, which calls that of its class."""
    module = model.get_submodule(name)
    forward = module.forward
    module.forward = lambda *arguments: scaled(forward(*arguments))
    return True


def put_in_place(model, name):
    """Layers of the user's own."""
    module = model.get_submodule(name)
    torch.manual_seed(3)
    double = {"dtype": torch.float64}
    if name == "embedding" and isinstance(module, nn.Embedding):
        new = OwnEmbedding(module.embedding_dim)
    elif name == "head":
        new = nn.Sequential(nn.Linear(8, 5, **double), nn.GELU(), nn.Linear(5, 1, **double))
    elif type(module) is nn.Linear:
        new = Derived(module.in_features, module.out_features, **double)
    elif isinstance(module, nn.Linear):
        inner = nn.Linear(module.in_features, 3, **double)
        new = nn.Sequential(inner, nn.GELU(), nn.Linear(3, module.out_features, **double))
    elif isinstance(module, (nn.SiLU, nn.Tanh, molkern.nn.ShiftedSoftplus)):
        new = nn.GELU()
    elif isinstance(module, nn.Identity):
        new = Sine()
    else:
        return False
    replace(model, name, new)
    return True


CHANGES = {
    change.__name__: change
    for change in (
        wrap,
        adapt,
        hook,
        hook_inputs,
        hook_gradients,
        parametrise,
        normalise,
        reassign,
        put_in_place,
    )
}


#: Charges without energies.
WITHOUT_EFFECT = {("asparagus", "charge_correction")}


def after_filters(place):
    """Where splines change nothing, but for SchNet, which has a path of its own with them."""
    return not place.startswith(("basis", "spherical", "lin_distance", "interaction"))


def close(out, expected, rtol=1e-9):
    for key, value in zip(("energy", "forces"), expected, strict=True):
        scale = float(value.abs().max())
        torch.testing.assert_close(out[key].detach(), value, rtol=0, atol=rtol * scale + 1e-12)


@functools.cache
def unchanged(name):
    return reference(made(name), molecule())


@functools.cache
def places(name):
    return called(made(name))


@pytest.mark.parametrize("name", MODELS)
def test_every_module_but_containers_is_called(name):
    model = made(name)
    rest = [m for n, m in model.named_modules() if n and n not in places(name)]
    assert all(type(m) is nn.ModuleList for m in rest)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", MODELS)
def test_one_answer(name, change):
    batch, count = molecule(), 0
    for place in places(name):
        model = made(name)
        if not CHANGES[change](model, place):
            continue
        count += 1
        expected = reference(model, batch)
        if change != "hook_gradients" and (name, place) not in WITHOUT_EFFECT:
            pairs = zip(unchanged(name), expected, strict=True)
            assert any((a - b).abs().max() > 1e-6 for a, b in pairs), place
        for filters, rtol in (("exact", 1e-9), ("spline", 1e-4)):
            if filters == "spline" and not name.startswith("schnet") and after_filters(place):
                continue
            model.filters = filters
            try:
                if filters == "exact" or name.startswith("schnet"):
                    close(model.train()(batch, forces=True), expected, rtol)
                close(molkern.md.Evaluator(model, batch)(), expected, rtol)
            except Exception as error:
                raise AssertionError(f"{place}, {filters}: {error}") from error
    assert count


# What changes between two calls, when tables and composed layers are there


def hook_all(model, name):
    model.hook = register_module_forward_hook(
        lambda module, _i, output: scaled(output) if module is model.get_submodule(name) else None
    )
    return True


LATER = [
    ("schnet", "interactions.0.lin", hook),
    ("schnet", "interactions.0.lin", hook_inputs),
    ("schnet", "interactions.0.lin", hook_all),
    ("schnet", "head.layers.0", reassign),
    ("schnet", "head.layers.2", parametrise),
    ("schnet", "embedding", wrap),
    ("schnet", "head", put_in_place),
    ("schnet", "interactions.0.filter_network.layers.0", hook),
    ("schnet", "interactions.0.filter_network", reassign),
    ("schnet", "basis", wrap),
    ("physnet", "interactions.0.filters", adapt),
    ("physnet", "basis", hook),
    ("dtnn", "interaction.lin_out", hook),
    ("dtnn", "lin_distance", put_in_place),
    ("dimenet", "interactions.0.lin_sbf", hook),
    ("dimenet++", "interactions.0.lin_sbf2", adapt),
    ("dimenet++", "spherical", hook),
]


@pytest.mark.parametrize(("name", "place", "change"), LATER)
def test_changes_between_steps_are_seen(name, place, change):
    model, batch = made(name).eval(), molecule()
    model.filters = "spline"
    evaluate = molkern.md.Evaluator(model, batch)
    before = {key: value.clone() for key, value in evaluate().items()}
    assert change(model, place)
    try:
        after = {key: value.clone() for key, value in evaluate().items()}
        assert (after["energy"] - before["energy"]).abs() > 1e-6
        close(after, reference(model, batch), 1e-4)
    finally:
        if change is hook_all:
            model.hook.remove()


def test_hooks_that_are_taken_away_again():
    model, batch = made("schnet").eval(), molecule()
    model.filters = "spline"
    evaluate = molkern.md.Evaluator(model, batch)
    before = evaluate()["forces"].clone()
    for place in ("interactions.0.lin", "interactions.0.filter_network.layers.2"):
        seen = []
        handle = model.get_submodule(place).register_forward_hook(lambda *_, s=seen: s.append(1))
        assert model.lean() is None or place.endswith("layers.2")
        torch.testing.assert_close(evaluate()["forces"], before, rtol=1e-11, atol=1e-12)
        assert seen
        handle.remove()
        assert torch.equal(evaluate()["forces"], before)
        assert model.lean() is not None


def test_layers_as_they_were_made_are_fused():
    for options in ({}, {"activation": "ssp_official"}, {"head_hidden": [4, 4]}):
        model = SchNet(8, 6, 1, 6, filters="spline", **options, **COMMON).double().eval()
        assert model.lean() is not None


@pytest.mark.filterwarnings("ignore:For backward hooks to be called")
@pytest.mark.parametrize("filters", ["exact", "spline"])
def test_backward_hooks_see_every_gradient(filters):
    for name in ("schnet", "dtnn", "dimenet", "physnet"):
        model, batch = made(name).eval(), molecule()
        model.filters = filters
        places, seen = called(model), []
        for place in places:
            model.get_submodule(place).register_full_backward_hook(
                lambda *_, p=place, s=seen: s.append(p)
            )
        model(batch, forces=True)
        # Embeddings have no gradient by what they are given; a readout gives a dictionary
        assert set(places) - set(seen) <= {"readout", "embedding", "embedding.emb"}


@pytest.mark.parametrize("filters", ["exact", "spline"])
def test_stress(filters):
    model, batch = made("schnet").eval(), molecule(periodic=True)
    model.filters = filters
    expected = model(batch, stress=True)["stress"]
    hook(model, "interactions.0.lin")
    changed = model(batch, stress=True)["stress"]
    assert (changed - expected).abs().max() > 1e-6
    with unfused():
        model.filters = "exact"
        expected = model(batch, stress=True)["stress"]
    scale = float(expected.abs().max())
    torch.testing.assert_close(changed, expected, rtol=0, atol=scale * 1e-4)


# The model itself


class Shifted(SchNet):
    def predict(self, structure, **conditions):
        out = super().predict(structure, **conditions)
        return {**out, "energy": 2 * out["energy"]}


class Called(SchNet):
    def forward(self, batch, *arguments, **options):
        out = super().forward(batch, *arguments, **options)
        return {key: 2 * value for key, value in out.items()}


class Computed(SchNet):
    def compute(self, *arguments, **options):
        out = super().compute(*arguments, **options)
        return {key: 2 * value for key, value in out.items()}


def predict_anew(model):
    predict = model.predict

    def doubled(structure, **conditions):
        out = predict(structure, **conditions)
        return {**out, "energy": 2 * out["energy"]}

    model.predict = doubled


def forward_anew(model):
    forward = model.forward
    model.forward = lambda *a, **k: {key: 2 * value for key, value in forward(*a, **k).items()}


def hook_result(model):
    def doubled(_model, _inputs, out):
        return {key: 2 * value for key, value in out.items()}

    model.register_forward_hook(doubled)


@pytest.mark.parametrize("filters", ["exact", "spline"])
@pytest.mark.parametrize("kind", [Shifted, Called, Computed])
def test_subclasses_are_asked(kind, filters):
    plain = made("schnet").eval()
    model = kind(8, 6, 1, 6, mean=0.3, scale=1.5, **COMMON).double().eval()
    model.load_state_dict(plain.state_dict())
    batch = molecule()
    plain.filters = model.filters = filters
    out = plain(batch, forces=True)
    expected = 2 * out["energy"], 2 * out["forces"]
    close(model(batch, forces=True), expected)
    close(molkern.md.Evaluator(model, batch)(), expected)


@pytest.mark.parametrize("filters", ["exact", "spline"])
@pytest.mark.parametrize("change", [predict_anew, forward_anew, hook_result])
def test_what_is_done_to_the_model_itself(change, filters):
    model, batch = made("schnet").eval(), molecule()
    model.filters = filters
    evaluate = molkern.md.Evaluator(model, batch)
    out = {key: value.clone() for key, value in evaluate().items()}
    change(model)
    expected = 2 * out["energy"], 2 * out["forces"]
    close(model(batch, forces=True), expected)
    close(evaluate(), expected)


# Beyond the cutoff, where lists may reach


def offset(model, name):
    model.get_submodule(name).register_forward_hook(lambda _m, _i, output: output + 0.2)


@pytest.mark.parametrize("filters", ["exact", "spline"])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("schnet", "interactions.0.filter_network"),
        ("schnet", "interactions.0.conv"),
        ("physnet", "interactions.0.filters"),
        ("asparagus", "interactions.0.filters"),
        ("dtnn", "interaction.lin_out"),
        ("dtnn", "lin_distance"),
        ("dimenet", "interactions.0.lin_rbf"),
    ],
)
def test_the_reach_of_a_list_does_not_matter(name, place, filters):
    batch = molecule(periodic=True)
    model = made(name).eval()
    model.filters = filters
    offset(model, place)
    near = model(batch, forces=True)
    far = model(batch, forces=True, neighbors=batch.neighbors(model.list_cutoff(batch) + 1.0))
    close(far, (near["energy"], near["forces"]))


# Layers of which splines cannot be made


def test_filters_that_cannot_be_computed_in_float64_are_exact(caplog):
    caplog.set_level("INFO", "molkern")
    model = made("schnet").float().eval()
    batch = molecule().to(dtype=torch.float32)
    # What it holds is the layer of float32
    reassign(model, "interactions.0.filter_network.layers.0")
    expected = model(batch, forces=True)
    model.filters = "spline"
    out = model(batch, forces=True)
    close(out, (expected["energy"], expected["forces"]), 1e-6)
    assert "filters are exact, not splines" in caplog.text
    with pytest.raises(ValueError, match="must work in a copy, in float64, and be smooth"):
        model.spline_report()
    with pytest.raises(ValueError, match="lean path"):
        molkern.models.LeanSchNet(model)
    model.interactions[0].filter_network.layers[0].__dict__.pop("forward")
    assert model.spline_report().value_error < 1e-5


def test_filters_that_are_not_smooth_are_exact():
    model, batch = made("schnet").eval(), molecule()
    model.interactions[0].filter_network.layers[1] = nn.Sequential(nn.ReLU(), Sine())
    expected = reference(model, batch)
    model.filters = "spline"
    close(model(batch, forces=True), expected, 1e-3)


def test_blocks_that_do_not_take_splines_are_given_a_basis():
    model, batch = made("physnet").eval(), molecule()
    seen = []
    model.interactions[0].register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[1]))
    model.filters = "spline"
    model(batch, forces=True)
    assert all(isinstance(basis, torch.Tensor) for basis in seen)
    with pytest.raises(ValueError, match=r"cannot be splines: interactions\.0 is replaced"):
        model.spline_report()


def test_dropout_among_the_filters():
    """In training it is drawn for every edge, which no spline is; in evaluation there is none."""
    model, batch = made("schnet"), molecule()
    network = model.interactions[0].filter_network
    network.layers.append(nn.Dropout(0.5))
    drawn = []
    network.layers[-1].register_forward_hook(lambda _m, inputs, _o: drawn.append(inputs[0].shape))
    model.filters = "spline"
    out = model.eval()(batch, forces=True)
    close(out, reference(model, batch), 1e-4)
    model.filters = "spline"
    drawn.clear()
    model.train()(batch, forces=True)
    assert drawn[-1][0] == batch.neighbors(CUTOFF).num_edges


@pytest.mark.parametrize("place", ["interactions.0.filter_network.layers.0", "head.layers.0"])
def test_pruned_layers_are_copied(place):
    """Their weights are results, with a history, which copies have to leave behind."""
    model, batch = made("schnet").eval(), molecule()
    prune.l1_unstructured(model.get_submodule(place), "weight", 0.4)
    expected = reference(model, batch)
    model.filters = "spline"
    close(model(batch, forces=True), expected, 1e-4)


def test_what_filters_do_not_need_is_not_copied():
    model, batch = made("schnet").eval(), molecule()

    class Uncopied(nn.Sequential):
        def __deepcopy__(self, memo):
            raise RuntimeError("not to be copied")

    model.head = Uncopied(nn.Linear(8, 1, dtype=torch.float64))
    model.head.register_forward_hook(lambda *_: None)
    expected = reference(model, batch)
    model.filters = "spline"
    close(model(batch, forces=True), expected, 1e-4)


# Single layers


@pytest.mark.parametrize("filters", ["exact", "spline"])
def test_other_kinds_of_layers(filters):
    batch = molecule()
    double = {"dtype": torch.float64}

    def compiled(model):
        layer = model.interactions[0].lin
        model.interactions[0].lin = torch.compile(layer, backend="eager")

    def normed(model):
        model.embedding = nn.Embedding(9, 8, max_norm=0.5, **double)

    def without_bias(model):
        model.interactions[0].lin = nn.Linear(8, 8, bias=False, **double)

    def narrow(model):
        model.interactions[0].lin = nn.Linear(8, 1, **double)  # broadcast

    def turned(model):
        layer = model.head.layers[0]
        layer.weight = nn.Parameter(layer.weight.detach().t().contiguous().t())

    def plain_attribute(model):
        layer = model.head.layers[0]
        del layer.weight
        layer.weight = torch.rand(4, 8, **double)

    def subclass(model):
        class Kind(torch.Tensor):
            pass

        layer = model.interactions[0].lin
        layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Kind))

    def deeper(model):
        model.head.layers.append(nn.Linear(1, 1, **double))

    for change in (
        compiled,
        normed,
        without_bias,
        narrow,
        turned,
        plain_attribute,
        subclass,
        deeper,
    ):
        model = made("schnet").eval()
        torch.manual_seed(2)
        change(model)
        expected = reference(model, batch)
        model.filters = filters
        for _ in range(2):
            close(model(batch, forces=True), expected, 1e-4)
        if change is plain_attribute:
            model.head.layers[0].weight = torch.rand(4, 8, **double)
            expected = reference(model, batch)
            model.filters = filters
            close(model(batch, forces=True), expected, 1e-4)


@pytest.mark.parametrize("name", ["schnet", "dtnn"])
def test_heads_give_one_number_for_each_atom(name):
    model, batch = made(name).eval(), molecule()
    flat = nn.Sequential(nn.Linear(8, 1, dtype=torch.float64), nn.Flatten(0))
    column = flat[:1]
    model.head = flat
    expected = model(batch, forces=True)
    model.head = column
    close(model(batch, forces=True), (expected["energy"], expected["forces"]))
    model.head = nn.Linear(8, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"the head must give one number .* got \[4, 2\]"):
        model(batch)


def test_types_are_those_of_the_network():
    """Of what is left of it where the first layer has no weights of a floating type."""
    model, batch = made("schnet").eval(), molecule()

    class Ordinal(nn.Module):
        def __init__(self):
            super().__init__()
            self.order = nn.Parameter(torch.arange(9), requires_grad=False)
            self.reference = molkern.nn.AtomicReference(reference=[0.0] * 9, trainable=True)

        def forward(self, numbers):
            return self.order[numbers].to(torch.float32).unsqueeze(1).expand(-1, 8)

    model.float().embedding = Ordinal()
    for filters in ("exact", "spline"):
        model.filters = filters
        with pytest.raises(TypeError, match=r"the model is torch\.float32"):
            model(batch)
        out = model(batch.to(dtype=torch.float32), forces=True)
        kept = KeptEvaluators(model)
        evaluate = kept.find(batch.numbers, batch.positions)
        torch.testing.assert_close(evaluate()["forces"], out["forces"])


@pytest.mark.parametrize("angle", ["kji", "plusplus", "at_i"])
@pytest.mark.parametrize("name", ["dimenet", "dimenet++"])
def test_triplets_as_a_list(name, angle, crystal):
    numbers, positions, cell = crystal
    batch = molkern.AtomicBatch(numbers % 8, positions, cell=cell)
    pairs = batch.neighbors(3.0)
    keep = torch.rand(pairs.num_edges) < 0.8
    partial = molkern.NeighborList.from_edge_index(
        pairs.edge_index[:, keep], 10, pairs.shifts[keep]
    )
    torch.manual_seed(5)
    kind = type(made(name))
    model = kind(8, angle=angle, **DIRECTIONAL, **{**COMMON, "cutoff": 3.0}).double().eval()
    padded = batch.neighbors(3.0, capacity=pairs.num_edges + 7)
    lists = [pairs, padded, partial]
    expected = [model(batch, stress=True, forces=True, neighbors=graph) for graph in lists]
    for block in model.interactions:
        last = "lin_sbf" if name == "dimenet" else "lin_sbf2"
        getattr(block, last).register_forward_hook(lambda *_: None)
    for graph, out in zip(lists, expected, strict=True):
        ours = model(batch, stress=True, forces=True, neighbors=graph)
        for key in ("energy", "forces", "stress"):
            torch.testing.assert_close(ours[key], out[key], rtol=1e-9, atol=1e-9)


def test_copies_answer_as_the_model_does():
    model, batch = made("schnet").eval(), molecule()
    model.filters = "spline"
    hook(model, "head.layers.0")
    expected = model(batch, forces=True)
    other = copy.deepcopy(model)
    close(other(batch, forces=True), (expected["energy"], expected["forces"]))
