"""SchNetPack's modules: stand-ins, which are always there, and the real ones where installed."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reference import peers

import molkern
from molkern import AtomicBatch
from molkern.interop import from_schnetpack, load

PLACES = {
    "nn": ["BesselRBF", "CosineCutoff", "GaussianRBF", "MollifierCutoff", "shifted_softplus"],
    "representation": ["PaiNN", "SchNet"],
    "atomistic": ["Atomwise", "DipoleMoment", "Forces", "PairwiseDistances", "Strain"],
    "transform": ["AddOffsets", "CastTo64", "ScaleProperty"],
    "model": ["NeuralNetworkPotential"],
}


@pytest.fixture(params=["stand-in", "installed"])
def spk(request):
    """The package's classes."""
    if request.param == "stand-in":
        return peers
    pytest.importorskip("schnetpack", exc_type=ImportError)
    found = SimpleNamespace(real=True)
    for place, names in PLACES.items():
        part = importlib.import_module(f"schnetpack.{place}")
        for name in names:
            setattr(found, name, getattr(part, name))
    return found


def potential(spk, *, postprocessors=(), outputs=None, head=(), basis=None, cutoff=None, **options):
    representation = spk.SchNet(
        n_atom_basis=options.pop("features", 12),
        n_interactions=options.pop("blocks", 2),
        radial_basis=basis or spk.GaussianRBF(n_rbf=9, cutoff=4.5),
        cutoff_fn=cutoff or spk.CosineCutoff(4.5),
        n_filters=10,
        **options,
    )
    if outputs is None:
        outputs = [spk.Atomwise(n_in=12, output_key="energy", **dict(head))]
    model = spk.NeuralNetworkPotential(
        representation,
        input_modules=[spk.PairwiseDistances()],
        output_modules=outputs,
        postprocessors=list(postprocessors),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


def expected(spk, module, numbers, positions, cell=None):
    """Energy and forces of a system by the module itself."""
    neighbors = molkern.neighbor_list(positions, 4.5, cell)
    positions = positions.clone().requires_grad_()
    if spk is peers:
        distances = neighbors.distances(positions, cell)
        energy = module.energies_of_atoms(numbers, distances, neighbors.edge_index).sum()
    else:
        senders, receivers = neighbors.edge_index
        offsets = 0 * positions[senders] if cell is None else neighbors.shifts.double() @ cell
        inputs = {
            "_atomic_numbers": numbers,
            "_positions": positions,
            "_idx_i": receivers,
            "_idx_j": senders,
            "_offsets": offsets,
            "_idx_m": torch.zeros_like(numbers),
            "_n_atoms": torch.tensor([len(numbers)]),
        }
        energy = module(inputs)["energy"].sum()
    return energy.detach(), -torch.autograd.grad(energy, positions)[0]


def check(spk, module, numbers, positions, cell=None):
    energy, forces = expected(spk, module, numbers, positions, cell)
    model = from_schnetpack(module)
    out = model(AtomicBatch(numbers, positions, cell=cell), forces=True)
    torch.testing.assert_close(out["energy"][0].detach(), energy, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(out["forces"].detach(), forces, rtol=1e-9, atol=1e-10)
    return model


def offsets(spk, **flags):
    step = spk.AddOffsets("energy", **flags)
    step.mean = torch.tensor([-3.5])
    step.atomref = torch.arange(100.0)
    return step


CASES = {
    "plain": lambda spk: {},
    "silu and tanh": lambda spk: {
        "activation": torch.nn.functional.silu,
        "head": {"activation": torch.tanh},
    },
    "activation modules": lambda spk: {
        "activation": torch.nn.Tanh(),
        "head": {"activation": torch.nn.SiLU()},
    },
    "shifted softplus in the head": lambda spk: {"head": {"activation": spk.shifted_softplus}},
    "one layer": lambda spk: {"head": {"n_layers": 1}},
    "uneven head": lambda spk: {"head": {"n_hidden": [7, 5, 3], "n_layers": 4}},
    "one block": lambda spk: {"blocks": 1},
    "shifted basis": lambda spk: {"basis": spk.GaussianRBF(n_rbf=6, cutoff=3.0, start=0.5)},
    "trained basis": lambda spk: {"basis": spk.GaussianRBF(n_rbf=9, cutoff=4.5, trainable=True)},
    "mean": lambda spk: {"postprocessors": [spk.CastTo64(), offsets(spk, add_mean=True)]},
    "references": lambda spk: {"postprocessors": [offsets(spk, add_atomrefs=True)]},
    "both": lambda spk: {"postprocessors": [offsets(spk, add_mean=True, add_atomrefs=True)]},
}


@pytest.mark.parametrize("case", CASES)
def test_same_numbers(spk, case, crystal):
    numbers, positions, cell = crystal
    module = potential(spk, **CASES[case](spk))
    check(spk, module, numbers, positions)
    model = check(spk, module, numbers, positions, cell)
    trained = [name for name, _ in model.named_parameters() if name.startswith("basis")]
    assert len(trained) == (2 if case == "trained basis" else 0)


def test_type_and_mode_follow_the_module(spk, tmp_path, crystal):
    numbers, positions, cell = crystal
    for module in (potential(spk), potential(spk).float().train()):
        model = from_schnetpack(module)
        dtype = module.representation.embedding.weight.dtype
        assert model.embedding.weight.dtype == dtype
        assert model.training == module.training
        batch = AtomicBatch(numbers, positions, cell=cell).to(dtype=dtype)
        model.save(tmp_path / "model.safetensors")
        again = molkern.models.load(tmp_path / "model.safetensors")
        assert torch.equal(again(batch)["energy"], model(batch)["energy"])


def test_offsets_that_are_switched_off(spk):
    module = potential(spk, postprocessors=[offsets(spk, add_mean=True)])
    module.do_postprocessing = False
    assert float(from_schnetpack(module).reference.mean) == 0


def test_forces_and_atomwise_in_any_place(spk, crystal):
    numbers, positions, _ = crystal
    module = potential(spk)
    alone = from_schnetpack(module)
    atomwise = module.output_modules[0]
    module.output_modules = torch.nn.ModuleList([spk.Forces(), atomwise])
    batch = AtomicBatch(numbers, positions)
    assert torch.equal(from_schnetpack(module)(batch)["energy"], alone(batch)["energy"])


def test_reference(spk, reference):
    """The module with the weights of the file, against numbers made by the real package."""
    data = reference("schnetpack_random_reference.npz")
    weights = reference("schnetpack_random_weights.npz")
    atomwise = spk.Atomwise(n_in=128, output_key="energy")
    module = spk.NeuralNetworkPotential(
        spk.SchNet(
            n_atom_basis=128,
            n_interactions=6,
            radial_basis=spk.GaussianRBF(n_rbf=50, cutoff=5.0),
            cutoff_fn=spk.CosineCutoff(5.0),
        ),
        input_modules=[spk.Strain(), spk.PairwiseDistances()],
        output_modules=[atomwise, spk.Forces(calc_stress=True)],
    )
    del weights["hyper_json"]
    module.load_state_dict({name: torch.as_tensor(value) for name, value in weights.items()})
    model = from_schnetpack(module.double())
    system = torch.arange(21).repeat_interleave(torch.as_tensor(data["N"]))
    arrays = {name: torch.as_tensor(data[name]) for name in ("Z", "R", "cell", "pbc")}
    batch = AtomicBatch(arrays["Z"], arrays["R"], system, arrays["cell"], arrays["pbc"])
    out = model.eval()(batch, forces=True)
    np.testing.assert_allclose(out["energy"], data["E_f64"], rtol=1e-9)
    np.testing.assert_allclose(
        out["forces"], data["F_f64"], rtol=0, atol=1e-9 * np.abs(data["F_f64"]).max()
    )
    by_name = load(reference.path("schnetpack_random_weights.npz")).double()
    assert torch.equal(by_name(batch)["energy"], model(batch)["energy"])


def layer_of_mine(x):
    return x.relu()


def changed(**changes):
    """A model with attributes replaced, given by path with __ for dots."""

    def make(spk):
        module = potential(spk)
        for path, value in changes.items():
            *owners, name = path.split("__")
            owner = module
            for step in owners:
                owner = owner[int(step)] if step.isdigit() else getattr(owner, step)
            setattr(owner, name, value)
        return module

    return make


REFUSALS = {
    r"activation of .* test_schnetpack.layer_of_mine, which has no": lambda spk: potential(
        spk, activation=layer_of_mine
    ),
    r"the radial basis is a schnetpack\.nn\.radial\.BesselRBF": lambda spk: potential(
        spk, basis=spk.BesselRBF(9, 4.5)
    ),
    r"the cutoff function is a schnetpack\.nn\.cutoff\.MollifierCutoff": lambda spk: potential(
        spk, cutoff=spk.MollifierCutoff(4.5)
    ),
    r"the nuclear embedding is a torch\.nn\.modules\.linear\.Linear": lambda spk: potential(
        spk, nuclear_embedding=torch.nn.Linear(2, 2)
    ),
    r"an electronic embedding .*Linear\) has no counterpart": lambda spk: potential(
        spk, electronic_embeddings=[torch.nn.Linear(2, 2)]
    ),
    r"aggregation_mode 'avg' is not converted": lambda spk: potential(
        spk, head={"aggregation_mode": "avg"}
    ),
    r"Atomwise with 2 outputs": lambda spk: potential(spk, head={"n_out": 2}),
    r"one Atomwise is needed, this one has 2": lambda spk: potential(
        spk, outputs=[spk.Atomwise(n_in=12), spk.Atomwise(n_in=12)]
    ),
    r"Forces differentiates 'energy', but Atomwise predicts 'y'": lambda spk: potential(
        spk, outputs=[spk.Atomwise(n_in=12), spk.Forces()]
    ),
    r"is_extensive=False": lambda spk: potential(
        spk, postprocessors=[offsets(spk, add_mean=True, is_extensive=False)]
    ),
    r"AddOffsets for 'gap', but the model predicts 'energy'": lambda spk: potential(
        spk, postprocessors=[spk.AddOffsets("gap", add_mean=True)]
    ),
    r"Atomwise with per_atom_output_key='e_i' has no counterpart": lambda spk: potential(
        spk, head={"per_atom_output_key": "e_i"}
    ),
    r"the model is of SchNetPack 3\.0": changed(spk_version="3.0"),
    r"interaction 1, in2f has an activation": changed(
        representation__interactions__1__in2f__activation=torch.nn.Tanh()
    ),
    r"these layers need one and the same activation": changed(
        representation__interactions__1__f2out__0__activation=torch.nn.Tanh()
    ),
    r"the last layer of outnet has the activation 'tanh'": changed(
        output_modules__0__outnet__1__activation=torch.nn.Tanh()
    ),
    r"an input module is a torch\.nn\.modules\.activation\.Tanh": changed(
        input_modules=torch.nn.ModuleList([torch.nn.Tanh()])
    ),
    r"of a version that is not known here: .*output_modules": lambda spk: without(
        potential(spk), "output_modules"
    ),
    r"NeuralNetworkPotential is of a version .*outnet": lambda spk: without(
        potential(spk), "output_modules.0.outnet"
    ),
}


def without(module, path):
    *owners, name = path.split(".")
    owner = module
    for step in owners:
        owner = owner[int(step)] if step.isdigit() else getattr(owner, step)
    delattr(owner, name)
    return module


@pytest.mark.parametrize("message", REFUSALS)
def test_refusals(spk, message):
    module = REFUSALS[message](spk)
    with pytest.raises(ValueError, match=message):
        from_schnetpack(module)


def test_arguments_are_known(spk):
    """All of the installed package, and of the stand-ins."""
    from molkern.interop import audit, schnetpack

    module = potential(spk, outputs=[spk.Atomwise(n_in=12, output_key="energy"), spk.Forces()])
    classes = {type(part).__name__: type(part) for part in module.modules()}
    classes |= {"AddOffsets": spk.AddOffsets, "CastTo64": spk.CastTo64}
    seen = set()
    for path, part in schnetpack.PARTS.items():
        for name in set(part.names) & set(classes):
            if part.arguments is not None:
                assert not list(audit.unknown_arguments(classes[name], part.arguments)), path
                seen.add(name)
    assert {"NeuralNetworkPotential", "SchNet", "GaussianRBF", "Atomwise", "AddOffsets"} < seen


def test_frozen_parameters_stay_frozen(spk):
    module = potential(spk, basis=spk.GaussianRBF(n_rbf=9, cutoff=4.5, trainable=True))
    module.representation.embedding.weight.requires_grad_(False)
    module.representation.radial_basis.offsets.requires_grad_(False)
    module.output_modules[0].outnet[0].bias.requires_grad_(False)
    model = from_schnetpack(module)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"embedding.weight", "basis.centers", "head.layers.0.bias"}
    assert model.basis.widths.requires_grad
    module.requires_grad_(False)
    assert not any(p.requires_grad for p in from_schnetpack(module).parameters())


def test_elements_are_those_of_the_references(spk, crystal):
    step = offsets(spk, add_atomrefs=True)
    step.atomref = torch.zeros(100)
    step.atomref[[1, 8]] = torch.tensor([-0.5, -75.0])
    model = from_schnetpack(potential(spk, postprocessors=[step]))
    assert set(model.elements) == {0, 1, 8}
    step.atomref = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"the atomref of AddOffsets must have shape \[Z\]"):
        from_schnetpack(potential(spk, postprocessors=[step]))


class Mine(torch.nn.Linear):
    activation = None


def hooked(module):
    module.representation.interactions[0].in2f.register_forward_hook(lambda *_: None)
    return module


def parametrised(module):
    torch.nn.utils.parametrizations.weight_norm(module.output_modules[0].outnet[0])
    return module


ALTERED = {
    r"representation.interactions.0.in2f has a hook": hooked,
    r"output_modules.0.outnet.0 has a parametrisation of its weight": parametrised,
    r"interactions.1.in2f is a .*Mine, which has no": lambda module: put(
        module, "representation.interactions.1.in2f", Mine(12, 10, bias=False).double()
    ),
    r"representation has a forward of its own": lambda module: put(
        module, "representation.forward", lambda inputs: inputs
    ),
    r"representation.embedding has max_norm=1.0": lambda module: put(
        module, "representation.embedding.max_norm", 1.0
    ),
    r"no counterpart: \['representation.gate'\]": lambda module: put(
        module, "representation.gate", torch.nn.Parameter(torch.ones(1).double())
    ),
    r"the layer|representation.dropout is a .*Dropout": lambda module: put(
        module, "representation.dropout", torch.nn.Dropout()
    ),
    r"radial_basis.offsets has shape \[1\], expected \[9\]": lambda module: put(
        module, "representation.radial_basis.offsets", torch.zeros(1).double()
    ),
    r"cutoff_fn.cutoff must be a number": lambda module: put(
        module, "representation.cutoff_fn.cutoff", torch.ones(2)
    ),
}


def put(module, path, value):
    *owners, name = path.split(".")
    setattr(module.get_submodule(".".join(owners)), name, value)
    return module


@pytest.mark.parametrize("message", ALTERED)
def test_alterations_are_noticed(spk, message):
    module = ALTERED[message](potential(spk))
    with pytest.raises(ValueError, match=message):
        from_schnetpack(module)


def test_other_representations_and_heads():
    module = potential(peers)
    module.representation = peers.PaiNN()
    with pytest.raises(ValueError, match=r"the representation is a schnetpack\..*\.PaiNN, which"):
        from_schnetpack(module)
    module = potential(peers, outputs=[peers.DipoleMoment()])
    with pytest.raises(ValueError, match=r"output module 0 is a .*DipoleMoment.* Atomwise, Forces"):
        from_schnetpack(module)
    module = potential(peers, postprocessors=[peers.ScaleProperty()])
    with pytest.raises(ValueError, match=r"a postprocessor is a .*ScaleProperty"):
        from_schnetpack(module)


def test_other_classes(spk):
    class Mine(spk.NeuralNetworkPotential):
        pass

    for module in (torch.nn.Linear(1, 1), potential(spk).representation, Mine(torch.nn.Tanh())):
        with pytest.raises(TypeError, match=r"NeuralNetworkPotential and AtomisticModel, got"):
            from_schnetpack(module)
