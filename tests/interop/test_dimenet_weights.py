"""DimeNet and DimeNet++ with the weights of other codes, against their numbers."""

import functools

import numpy as np
import pytest
import torch
from reference.triplets import triplet_list
from scipy.special import jv

import molkern
from molkern import AtomicBatch, NeighborList
from molkern.interop import from_pyg, load
from molkern.models import DimeNet, DimeNetPlusPlus

FILES = {DimeNet: "dimenet_official_random", DimeNetPlusPlus: "dimenetpp_official_random"}
KINDS = list(FILES)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


def molecules(data, dtype=torch.float64):
    systems = torch.arange(len(data["N"])).repeat_interleave(torch.as_tensor(data["N"]))
    positions = torch.as_tensor(data["R"], dtype=dtype)
    return AtomicBatch(torch.as_tensor(data["Z"]), positions, systems)


def deviation(found, expected):
    """The largest difference, as a part of the largest value."""
    return np.abs(found.detach().numpy() - expected).max() / np.abs(expected).max()


def norms_in_float32(zeros):
    """√(2 / j_{l+1}(z)²) √((2l + 1) / 4π), the first root computed in float32.

    The official code's constants follow NumPy: since its version 2 a scalar of float32 times a
    number of Python stays float32, and so did the norms of the reference run.
    """
    norms = np.empty(zeros.shape)
    for order, z in enumerate(zeros.numpy().astype(np.float32)):
        after = np.sqrt(np.pi / (2 * z)) * jv(np.float32(order + 1.5), z)
        norms[order] = (1 / (0.5 * after**2) ** 0.5).astype(np.float64)
        norms[order] *= np.sqrt((2 * order + 1) / (4 * np.pi))
    return torch.as_tensor(norms)


@pytest.mark.unemulated
def test_official_code(kind, reference):
    data = reference(f"{FILES[kind]}_reference.npz")
    model = load(reference.path(f"{FILES[kind]}_weights.npz")).double()
    assert type(model) is kind
    batch = molecules(data)
    norms = norms_in_float32(model.spherical.zeros)
    torch.testing.assert_close(model.spherical.norms, norms, rtol=1e-6, atol=0)
    # With norms of float64, where the zeros alone are rounded, the first molecule differs by 1e-7
    single = AtomicBatch(batch.numbers[: data["N"][0]], batch.positions[: data["N"][0]])
    assert deviation(model(single)["property"], data["P_f64"][:1]) < 1e-6
    model.spherical.norms.copy_(norms)
    out = model(batch, forces=True)
    assert deviation(out["property"], data["P_f64"]) < 1e-11
    assert deviation(out["forces"], data["F_f64"]) < 1e-11


@pytest.mark.unemulated
def test_official_code_with_exact_zeros(kind, reference):
    data = reference(f"{FILES[kind]}_reference.npz")
    loaded = load(reference.path(f"{FILES[kind]}_weights.npz"))
    assert loaded.config["zeros_dtype"] == "float32"
    model = kind(**{**loaded.config, "zeros_dtype": "float64"}).double()
    model.load_state_dict({**model.state_dict(), **dict(loaded.named_parameters())})
    out = model(molecules(data), forces=True)
    assert deviation(out["property"], data["P_f64_exactzeros"]) < 1e-11
    assert deviation(out["forces"], data["F_f64_exactzeros"]) < 1e-11


@pytest.mark.unemulated
def test_official_code_in_float32(kind, reference):
    data = reference(f"{FILES[kind]}_reference.npz")
    model = load(reference.path(f"{FILES[kind]}_weights.npz"))
    out = model(molecules(data, torch.float32), forces=True)
    for name, key in (("property", "P"), ("forces", "F")):
        ours = deviation(out[name], data[f"{key}_f64"])
        theirs = deviation(torch.as_tensor(data[f"{key}_f32"]), data[f"{key}_f64"])
        assert ours < max(2 * theirs, 1e-6), (name, ours, theirs)


def test_official_graph(reference):
    """The same edges, and as many triplets as the official code lists."""
    data = reference("dimenet_official_random_reference.npz")
    graph = reference("dimenet_graph_cutoff5.npz")
    ours = molecules(data).neighbors(5.0)
    theirs = np.stack([graph["idnb_j"], graph["idnb_i"]])
    assert set(map(tuple, ours.edge_index.T.tolist())) == set(map(tuple, theirs.T.tolist()))
    assert ours.num_edges == theirs.shape[1]
    kj, ji = triplet_list(ours)
    assert len(kj) == len(graph["id_expand_kj"])
    listed = np.stack([graph["id3dnb_k"], graph["id3dnb_j"], graph["id3dnb_i"]], 1)
    senders, receivers = ours.edge_index
    found = torch.stack([senders[kj], senders[ji], receivers[ji]], 1)
    assert set(map(tuple, found.tolist())) == set(map(tuple, listed.tolist()))


# PyTorch Geometric


@pytest.fixture
def geometric(monkeypatch):
    """Its DimeNet, with molkern's graph: its own search and triplets need torch_cluster and
    torch_sparse, which have no wheels for every torch."""
    dimenet = pytest.importorskip("torch_geometric.nn.models.dimenet")
    pytest.importorskip("sympy")

    def radius_graph(x, r, batch, max_num_neighbors):
        return molkern.neighbor_list(x.detach(), r, batch=batch).edge_index

    def triplets(edge_index, num_nodes):
        kj, ji = triplet_list(NeighborList.from_edge_index(edge_index, num_nodes))
        senders, receivers = edge_index
        return receivers, senders, receivers[ji], senders[ji], senders[kj], kj, ji

    monkeypatch.setattr(dimenet, "radius_graph", radius_graph)
    monkeypatch.setattr(dimenet, "triplets", triplets)
    utils = pytest.importorskip("torch_geometric.nn.models.dimenet_utils")
    monkeypatch.setattr(utils, "bessel_basis", bessel_forms(utils.bessel_basis))
    return dimenet


@functools.cache
def bessel_forms(function):
    """Formulas that take seconds to derive, derived once for all tests."""
    return functools.cache(function)


def their_model(geometric, kind, **options):
    sizes = {"hidden_channels": 16, "out_channels": 1, "num_blocks": 2}
    sizes |= {"num_spherical": 3, "num_radial": 2, "output_initializer": "glorot_orthogonal"}
    if kind is DimeNet:
        model = geometric.DimeNet(**{**sizes, "num_bilinear": 3, **options})
    else:
        own = {"int_emb_size": 8, "basis_emb_size": 4, "out_emb_channels": 12}
        model = geometric.DimeNetPlusPlus(**{**sizes, **own, **options})
    model.double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("rbf"):
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def scattered(atoms, closest=0.7):
    """Atoms at random, none closer than a bond of hydrogen."""
    positions = torch.zeros(1, 3, dtype=torch.float64)
    while len(positions) < atoms:
        new = 4 * torch.rand(1, 3, dtype=torch.float64)
        if torch.cdist(new, positions).min() > closest:
            positions = torch.cat([positions, new])
    return positions


@pytest.mark.unemulated
@pytest.mark.parametrize(
    "options",
    [
        {"num_spherical": 7, "num_radial": 3},
        {"out_channels": 3, "cutoff": 3.5, "envelope_exponent": 4, "num_output_layers": 1},
        {"num_blocks": 1, "num_before_skip": 2, "num_after_skip": 0, "act": "silu"},
    ],
)
def test_pytorch_geometric(geometric, kind, options):
    theirs = their_model(geometric, kind, **options)
    numbers = torch.randint(1, 10, (20,))
    positions = torch.cat([scattered(9), scattered(11)])
    system = torch.tensor([0] * 9 + [1] * 11)
    moving = positions.clone().requires_grad_()
    expected = theirs(numbers, moving, system)
    (gradient,) = torch.autograd.grad(expected.sum(), moving)
    ours = from_pyg(theirs.eval())
    assert type(ours) is kind
    assert not ours.training
    out = ours(AtomicBatch(numbers, positions, system), forces=True)
    torch.testing.assert_close(out["property"], expected.detach(), rtol=1e-9, atol=0)
    assert deviation(out["forces"], -gradient.numpy()) < 1e-8


def test_pytorch_geometric_keeps_type_and_mode(geometric, kind, tmp_path):
    theirs = their_model(geometric, kind).float().train()
    ours = from_pyg(theirs)
    assert ours.training
    assert all(parameter.dtype == torch.float32 for parameter in ours.parameters())
    assert ours.spherical.norms.dtype == torch.float64
    # The norms are saved with the weights
    ours.save(tmp_path / "model.safetensors")
    again = molkern.models.load(tmp_path / "model.safetensors")
    assert torch.equal(again.spherical.norms, ours.spherical.norms)
    assert not torch.equal(kind(**ours.config).spherical.norms, ours.spherical.norms)


@pytest.mark.parametrize("act", ["relu", torch.nn.Tanh(), torch.nn.functional.gelu])
def test_other_activations_are_refused(geometric, kind, act):
    with pytest.raises(ValueError, match=r"activation swish \(silu\), not (ReLU|Tanh|gelu)$"):
        from_pyg(their_model(geometric, kind, act=act))


# Files


def official_arrays(model):
    """The variables of a model under the official code's names."""
    from molkern.interop.dimenet import _official_name

    arrays = {}
    for name, parameter in model.named_parameters():
        matrix = name.endswith(".weight") and not name.endswith("emb.weight")
        value = parameter.detach().numpy()
        arrays[_official_name(name)] = value.T if matrix else value
    return arrays


def saved(path, arrays, meta='{"cutoff": 4.0, "envelope_exponent": 4}'):
    np.savez(path / "weights.npz", hyper_json=np.array(meta), **arrays)
    return path / "weights.npz"


OTHER_SIZES = {
    "hidden_channels": 6, "num_targets": 2, "num_blocks": 3, "num_spherical": 3, "num_radial": 2,
    "num_before_skip": 0, "num_after_skip": 1, "num_output_layers": 2, "num_elements": 9,
    "cutoff": 4.0, "exponent": 5, "zeros_dtype": "float32", "output_init": "glorot_orthogonal",
}  # fmt: skip
OWN_SIZES = {
    DimeNet: {"num_bilinear": 4},
    DimeNetPlusPlus: {"int_emb_size": 5, "basis_emb_size": 4, "out_emb_size": 7},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_size(tmp_path, kind, dtype):
    model = kind(**OTHER_SIZES, **OWN_SIZES[kind]).to(dtype)
    loaded = load(saved(tmp_path, official_arrays(model)))
    assert type(loaded) is kind
    different = {name for name in model.config if loaded.config[name] != model.config[name]}
    assert different <= {"output_init"}
    batch = AtomicBatch(torch.tensor([1, 8, 1]), torch.rand(3, 3, dtype=dtype))
    out, expected = loaded(batch)["property"], model(batch)["property"]
    assert torch.equal(out, expected)


def test_names_are_those_of_the_checkpoints(kind, reference):
    arrays = reference(f"{FILES[kind]}_weights.npz")
    shapes = {name: array.shape for name, array in official_arrays(kind()).items()}
    assert shapes == {n: a.shape for n, a in arrays.items() if n != "hyper_json"}


def test_wrong_files(tmp_path, kind):
    arrays = official_arrays(kind(**OTHER_SIZES, **OWN_SIZES[kind]))
    with pytest.raises(ValueError, match="no 'envelope_exponent' in its hyper_json"):
        load(saved(tmp_path, arrays, '{"cutoff": 4.0}'))
    with pytest.raises(ValueError, match=r"unknown entries.*\['more'\]"):
        load(saved(tmp_path, {**arrays, "more": np.zeros(3)}))
    name = "int_blocks/1/dense_ji/kernel"
    with pytest.raises(ValueError, match=rf"{name} has shape \[6, 5\], expected \[6, 6\]"):
        load(saved(tmp_path, {**arrays, name: np.zeros((5, 6), np.float32)}))
    del arrays[name]
    with pytest.raises(ValueError, match=f"no '{name}' in the file"):
        load(saved(tmp_path, arrays))
