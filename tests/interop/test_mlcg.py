"""mlcg's modules, as stand-ins: the package is not on PyPI."""

import json

import numpy as np
import pytest
import torch
from reference import peers

import molkern
from molkern import AtomicBatch
from molkern.interop import from_mlcg


def cosine(upper=4.5, lower=0.0):
    return peers.MlcgCosineCutoff(lower, upper)


def network(*, basis=None, cutoff=None, head=(7,), **options):
    defaults = {
        "hidden_channels": 12,
        "embedding_size": 9,
        "num_filters": 10,
        "num_interactions": 2,
    }
    module = peers.StandardSchNet(
        basis or peers.ExpNormalBasis(cosine(), 8),
        cutoff or cosine(),
        list(head),
        **{**defaults, **options},
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.double().eval()


def expected(module, numbers, positions, cell):
    neighbors = molkern.neighbor_list(positions, 4.5, cell)
    positions = positions.clone().requires_grad_()
    distances = neighbors.distances(positions, cell)
    energy = module.energies_of_atoms(numbers, distances, neighbors.edge_index).sum()
    return energy.detach(), -torch.autograd.grad(energy, positions)[0]


CASES = {
    "plain": lambda: {},
    "fixed basis": lambda: {"basis": peers.ExpNormalBasis(cosine(), 8, trainable=False)},
    "no cutoff in the basis": lambda: {
        "basis": peers.ExpNormalBasis(peers.IdentityCutoff(0, 4.5), 8)
    },
    "no cutoff in the filters": lambda: {"cutoff": peers.IdentityCutoff(0, float("inf"))},
    "Gaussians": lambda: {"basis": peers.GaussianBasis(peers.IdentityCutoff(0, 4.5), 8)},
    "Gaussians with a cutoff": lambda: {"basis": peers.GaussianBasis(cosine(), 8)},
    "SiLU": lambda: {"activation": torch.nn.SiLU()},
    "mean": lambda: {"aggr": "mean"},
    "one block": lambda: {"num_interactions": 1},
    "long head": lambda: {"head": (9, 5, 4)},
    "wide filters": lambda: {"num_filters": 17},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("periodic", [False, True])
def test_same_numbers(case, periodic, crystal):
    numbers, positions, cell = crystal
    cell = cell if periodic else None
    module = network(**CASES[case]())
    energy, forces = expected(module, numbers, positions, cell)
    model = from_mlcg(module)
    out = model(AtomicBatch(numbers, positions, cell=cell), forces=True)
    torch.testing.assert_close(out["energy"][0], energy, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(out["forces"], forces, rtol=1e-10, atol=1e-11)
    fixed = case == "fixed basis" or case.startswith("Gaussians")
    assert ("basis.centers" in dict(model.named_parameters())) != fixed


def test_reference(reference):
    """The module with the weights of the file, against numbers made by mlcg."""
    weights = reference("schnet_cg_chignolin_weights.npz")
    data = reference("schnet_cg_chignolin_reference.npz")
    meta = json.loads(str(weights.pop("meta_json")))
    cutoff = cosine(meta["cutoff_upper"])
    module = peers.StandardSchNet(
        peers.ExpNormalBasis(cutoff, meta["num_rbf"]),
        cutoff,
        [128, 64],
        hidden_channels=meta["hidden"],
        embedding_size=meta["embedding"],
        num_filters=meta["filters"],
        num_interactions=meta["n_interactions"],
    )
    module.load_state_dict({name: torch.as_tensor(value) for name, value in weights.items()})
    model = from_mlcg(peers.GradientsOut(module)).double().eval()
    frames, beads = data["R"].shape[:2]
    batch = AtomicBatch(
        torch.as_tensor(np.tile(data["atom_types"], frames)),
        torch.as_tensor(data["R"].reshape(-1, 3)),
        torch.arange(frames).repeat_interleave(beads),
    )
    out = model(batch, forces=True)
    np.testing.assert_allclose(out["energy"], data["E_f64"][:, 0], rtol=1e-9)
    forces = data["F_f64"][:, 0].reshape(-1, 3)
    np.testing.assert_allclose(out["forces"], forces, rtol=0, atol=1e-9 * np.abs(forces).max())


def test_type_and_mode_follow_the_module(tmp_path, crystal):
    numbers, positions, cell = crystal
    for module in (network(), network().float().train()):
        model = from_mlcg(module)
        dtype = module.embedding_layer.weight.dtype
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert model.training == module.training
        batch = AtomicBatch(numbers, positions, cell=cell).to(dtype=dtype)
        model.save(tmp_path / "model.safetensors")
        again = molkern.models.load(tmp_path / "model.safetensors")
        assert torch.equal(again(batch)["energy"], model(batch)["energy"])


def changed(**changes):
    def make():
        module = network()
        for path, value in changes.items():
            *owners, name = path.split("__")
            owner = module
            for step in owners:
                owner = owner[int(step)] if step.isdigit() else getattr(owner, step)
            setattr(owner, name, value)
        return module

    return make


def mlp(widths, **options):
    return peers.MLP(widths, torch.nn.Tanh(), **options)


REFUSALS = {
    r"the radial basis is a mlcg\..*\.ExtendedExpNormalBasis": lambda: network(
        basis=peers.ExtendedExpNormalBasis(cosine(), 8)
    ),
    r"lower cutoff of 1.0, which has no counterpart": lambda: network(
        basis=peers.ExpNormalBasis(cosine(lower=1.0), 8)
    ),
    r"the cutoff function of interaction block 0 is a .*ShiftedCosineCutoff": lambda: network(
        cutoff=peers.ShiftedCosineCutoff()
    ),
    r"the filters' cutoff 4.0 is not that of the basis, 4.5": lambda: network(cutoff=cosine(4.0)),
    r"aggregation 'max' has no counterpart; converted are \['add'": lambda: network(aggr="max"),
    r"activation of layer 1 of the filter network of interaction block 0 is .*ReLU": lambda: (
        network(activation=torch.nn.ReLU())
    ),
    r"output_network is a mlcg\.nn\.mlp\.TypesMLP": changed(output_network=peers.TypesMLP()),
    r"output_network has 2 outputs; 1 is needed": changed(output_network=mlp([12, 7, 2])),
    r"the filter network of interaction block 1 has layers of widths \[6, 10\]": changed(
        interaction_blocks__1__conv__filter_network=mlp([8, 6, 10])
    ),
    r"the interaction blocks differ": changed(
        interaction_blocks__1__conv__filter_network=mlp([8, 10, 10])
    ),
    r"need one and the same activation": changed(interaction_blocks__1__activation=torch.nn.SiLU()),
    r"interaction block 0 is a torch\.nn\.modules\.linear\.Linear": changed(
        interaction_blocks=torch.nn.Sequential(torch.nn.Linear(2, 2))
    ),
    r"the embedding layer is a torch\.nn\.modules\.linear\.Linear": changed(
        embedding_layer=torch.nn.Linear(2, 2)
    ),
    r"without interaction blocks": changed(interaction_blocks=torch.nn.Sequential()),
    r"StandardSchNet is of a version that is not known here: .*betas": lambda: without_betas(),
}


def without_betas():
    module = network()
    del module.rbf_layer.betas
    return module


def hooked():
    module = network()
    module.interaction_blocks[1].lin.register_forward_hook(lambda *_: None)
    return module


REFUSALS |= {
    r"interaction_blocks.1.lin has a hook": hooked,
    r"max_num_neighbors=20 has no counterpart: .* Set it to 1000 or more": lambda: network(
        max_num_neighbors=20
    ),
    r"self_interaction=True has no counterpart": changed(self_interaction=True),
    r"rbf_layer has alpha=2.0, 1.11": changed(rbf_layer__alpha=2.0),
    r"rbf_layer.means has shape \[1\], expected \[8\]": changed(
        rbf_layer__means=torch.nn.Parameter(torch.ones(1).double())
    ),
    r"interaction_blocks.0.extra is a .*Dropout": changed(
        interaction_blocks__0__extra=torch.nn.Dropout()
    ),
    r"no counterpart: \['gate'\]": changed(gate=torch.nn.Parameter(torch.ones(1).double())),
    r"interaction_blocks.0.conv has a forward of its own": changed(
        interaction_blocks__0__conv__forward=lambda *_: None
    ),
    r"embedding_layer has sparse=True": changed(embedding_layer__sparse=True),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_refusals(message):
    module = REFUSALS[message]()
    with pytest.raises(ValueError, match=message):
        from_mlcg(module)


def test_arguments_are_known():
    from molkern.interop import audit, mlcg

    classes = {type(part).__name__: type(part) for part in network().modules()}
    classes["GaussianBasis"] = peers.GaussianBasis
    seen = set()
    for path, part in mlcg.PARTS.items():
        for name in set(part.names) & set(classes):
            if part.arguments is not None:
                assert not list(audit.unknown_arguments(classes[name], part.arguments)), path
                seen.add(name)
    expected = {"StandardSchNet", "ExpNormalBasis", "GaussianBasis", "MLP", "InteractionBlock"}
    assert expected | {"CFConv", "CosineCutoff"} == seen


def test_frozen_parameters_stay_frozen():
    module = network()
    module.rbf_layer.betas.requires_grad_(False)
    module.embedding_layer.weight.requires_grad_(False)
    module.output_network.layers[0].weight.requires_grad_(False)
    model = from_mlcg(module)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"basis.widths", "embedding.weight", "head.layers.0.weight"}


def test_an_activation_of_the_output(crystal):
    numbers, positions, _ = crystal
    module = network(output_activation=torch.nn.SiLU())
    energy, _ = expected(module, numbers, positions, None)
    out = from_mlcg(module)(AtomicBatch(numbers, positions))
    torch.testing.assert_close(out["energy"][0].detach(), energy, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("wrapper", [peers.GradientsOut])
def test_hooks_of_wrappers(wrapper):
    module = wrapper(network())
    module.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"the wrapper GradientsOut has a hook"):
        from_mlcg(module)


def test_other_classes():
    class Mine(peers.StandardSchNet):
        pass

    mine = Mine(peers.ExpNormalBasis(cosine(), 8), cosine(), [4])
    for module in (torch.nn.Linear(1, 1), mine, peers.GradientsOut(torch.nn.Linear(1, 1))):
        with pytest.raises(TypeError, match=r"from_mlcg converts mlcg\.nn\.SchNet .*, got"):
            from_mlcg(module)
    terms = peers.SumOut({"bonds": torch.nn.Linear(1, 1), "SchNet": network()})
    with pytest.raises(TypeError, match=r"SumOut; its terms are \['bonds', 'SchNet'\]: give"):
        from_mlcg(terms)
    assert from_mlcg(terms.models["SchNet"]).cutoff == 4.5
