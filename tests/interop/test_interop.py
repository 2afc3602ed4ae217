"""Converted models against numbers computed by the codes they come from."""

import numpy as np
import pytest
import torch

import molkern
from molkern import AtomicBatch
from molkern.interop import from_pyg, load


def batch_of(numbers, positions, lengths, **options):
    system = torch.arange(len(lengths)).repeat_interleave(torch.as_tensor(lengths))
    return AtomicBatch(torch.as_tensor(numbers), torch.as_tensor(positions), system, **options)


def check(out, energies, forces, tolerance):
    np.testing.assert_allclose(out["energy"].numpy(), energies, rtol=tolerance)
    scale = np.abs(forces).max()
    difference = np.abs(out["forces"].numpy().reshape(forces.shape) - forces).max()
    assert difference <= tolerance * scale


@pytest.mark.parametrize("kind", ["energy", "force"])
def test_official_c20(reference, kind):
    data = reference("schnet2017_c20_reference.npz")
    model = load(reference.path(f"schnet2017_c20_{kind}_model_weights.npz")).double()
    frames = len(data["R"])
    batch = batch_of(np.tile(data["Z"], frames), data["R"].reshape(-1, 3), [20] * frames)
    out = model(batch, forces=True)
    energies, forces = data[f"E_{kind}_model_f64"], data[f"F_{kind}_model_f64"]
    check(out, energies, forces, 1e-9)
    # Against the total alone 1e-9 would hide 5e-4 kcal/mol
    np.testing.assert_allclose(out["energy"].numpy(), energies, rtol=0, atol=1e-8)


def test_official_c20_in_float32(reference):
    data = reference("schnet2017_c20_reference.npz")
    model = load(reference.path("schnet2017_c20_force_model_weights.npz"))
    batch = AtomicBatch(torch.as_tensor(data["Z"]), torch.as_tensor(data["R"][5])).to(
        dtype=torch.float32
    )
    out = model(batch, forces=True)
    # Sums in float64 keep what float32 totals near -477,077 lose
    assert float(out["energy"]) == pytest.approx(data["E_force_model_f64"][5], abs=5e-3)
    np.testing.assert_allclose(out["forces"], data["F_force_model_f64"][5], atol=2e-2)


def test_schnetpack(reference):
    data = reference("schnetpack_random_reference.npz")
    model = load(reference.path("schnetpack_random_weights.npz")).double()
    batch = batch_of(data["Z"], data["R"], data["N"], cell=torch.as_tensor(data["cell"]),
                     pbc=torch.as_tensor(data["pbc"]))  # fmt: skip
    out = model(batch, forces=True)
    check(out, data["E_f64"], data["F_f64"], 1e-9)
    periodic = data["pbc"].all(1)
    first = int(data["N"][: periodic.argmax()].sum())
    crystals = batch_of(
        data["Z"][first:], data["R"][first:], data["N"][periodic.argmax() :],
        cell=torch.as_tensor(data["cell"][periodic.argmax() :]),
        pbc=torch.as_tensor(data["pbc"][periodic.argmax() :]),
    )  # fmt: skip
    stress = model(crystals, stress=True)["stress"].numpy()
    full = data["pbc"][periodic.argmax() :].all(1)
    expected = data["stress_f64"][periodic.argmax() :][full]
    np.testing.assert_allclose(stress[full], expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_coarse_grained_chignolin(reference):
    data = reference("schnet_cg_chignolin_reference.npz")
    model = load(reference.path("schnet_cg_chignolin_weights.npz")).double()
    frames = len(data["R"])
    batch = batch_of(np.tile(data["atom_types"], frames), data["R"].reshape(-1, 3), [10] * frames)
    check(model(batch, forces=True), data["E_f64"][:, 0], data["F_f64"][:, 0], 1e-9)


def geometric_model(**options):
    """A small, perturbed SchNet of PyTorch Geometric in float64, and two molecules for it."""
    geometric = pytest.importorskip("torch_geometric.nn")

    def all_pairs(positions, batch):  # PyTorch Geometric's own search needs torch_cluster
        neighbors = molkern.neighbor_list(positions.detach(), 4.0, batch=batch)
        return neighbors.edge_index, neighbors.distances(positions)

    model = geometric.SchNet(
        hidden_channels=32, num_filters=24, num_interactions=3, num_gaussians=20, cutoff=4.0,
        interaction_graph=all_pairs, **options,
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    numbers = torch.randint(1, 10, (20,))
    positions = 4 * torch.rand(20, 3, dtype=torch.float64)
    return model.eval(), numbers, positions, torch.tensor([0] * 9 + [1] * 11)


@pytest.mark.parametrize("shifts", [False, True])
@pytest.mark.parametrize(
    ("name", "readout"), [("energy", "add"), ("energy", "mean"), ("dipole_moment", "mean")]
)
def test_pytorch_geometric(name, readout, shifts):
    """Dipoles are sums with any readout, there too."""
    options = {"dipole": name == "dipole_moment", "readout": readout}
    if shifts:
        options |= {"mean": -0.5, "std": 2.0, "atomref": torch.randn(100, 1)}
    theirs, numbers, positions, system = geometric_model(**options)
    if shifts:
        theirs.scale = 1.7
    if name == "dipole_moment":
        # Not in place: the buffer is ase's own array
        theirs.atomic_mass = theirs.atomic_mass + torch.rand_like(theirs.atomic_mass)
    moving = positions.clone().requires_grad_()
    values = theirs(numbers, moving, system).squeeze(1)
    (gradient,) = torch.autograd.grad(values.sum(), moving)
    ours = from_pyg(theirs)
    out = ours(AtomicBatch(numbers, positions, system), forces=True)
    torch.testing.assert_close(out[name], values.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(out["forces"], -gradient, rtol=1e-10, atol=1e-12)
    if shifts and name == "energy":
        assert ours.reference.reference.requires_grad


def test_converted_dipoles_keep_their_masses(tmp_path):
    theirs, numbers, positions, system = geometric_model(dipole=True)
    theirs.atomic_mass = theirs.atomic_mass.clone()
    theirs.atomic_mass[1] = 2.014
    ours = from_pyg(theirs)
    ours.save(tmp_path / "dipole.safetensors")
    again = molkern.models.load(tmp_path / "dipole.safetensors")
    batch = AtomicBatch(numbers, positions, system)
    assert torch.equal(again(batch)["dipole"], ours(batch)["dipole"])
    assert float(again.readout.layer.masses[1]) == 2.014


def schnetpack_arrays():
    """A small SchNet under SchNetPack's names: 8 features, 6 filters, 5 Gaussians."""
    shapes = {"output_modules.0.outnet.0": (4, 8), "output_modules.0.outnet.1": (1, 4)}
    for i in range(2):
        block = f"representation.interactions.{i}"
        shapes[f"{block}.filter_network.0"] = (6, 5)
        shapes[f"{block}.filter_network.1"] = (6, 6)
        shapes[f"{block}.f2out.0"] = (8, 6)
        shapes[f"{block}.f2out.1"] = (8, 8)
    random = np.random.default_rng(0)
    arrays = {f"{name}.weight": random.normal(size=shape) for name, shape in shapes.items()}
    arrays |= {f"{name}.bias": random.normal(size=shape[0]) for name, shape in shapes.items()}
    for i in range(2):
        arrays[f"representation.interactions.{i}.in2f.weight"] = random.normal(size=(6, 8))
    arrays["representation.embedding.weight"] = random.normal(size=(10, 8))
    arrays["representation.cutoff_fn.cutoff"] = np.array([4.0])
    arrays["representation.radial_basis.offsets"] = np.linspace(0.0, 4.0, 5)
    arrays["representation.radial_basis.widths"] = np.ones(5)
    return arrays


def saved(path, arrays):
    np.savez(path / "weights.npz", **arrays)
    return path / "weights.npz"


def test_schnetpack_offsets(tmp_path):
    arrays = schnetpack_arrays()
    batch = AtomicBatch(torch.tensor([1, 8, 1]), torch.rand(3, 3, dtype=torch.float64))
    plain = load(saved(tmp_path, arrays))(batch)["energy"]
    # AddOffsets beside a postprocessor without tensors: E + n · mean + Σ atomref[Z]
    arrays["postprocessors.1.mean"] = np.array([-3.0])
    arrays["postprocessors.1.atomref"] = np.arange(12.0)
    shifted = load(saved(tmp_path, arrays))(batch)["energy"]
    torch.testing.assert_close(shifted, plain - 3 * 3.0 + (1 + 8 + 1))
    arrays["postprocessors.2.mean"] = np.array([-3.0])
    with pytest.raises(ValueError, match=r"weights.npz: .*unknown.*'postprocessors.2.mean'"):
        load(saved(tmp_path, arrays))


def test_loaded_model_has_the_type_of_the_file(tmp_path):
    name = "representation.interactions.0.in2f.weight"
    for dtype in (np.float64, np.float32):
        arrays = {key: array.astype(dtype) for key, array in schnetpack_arrays().items()}
        weight = load(saved(tmp_path, arrays)).interactions[0].conv.lin_in.weight.detach().numpy()
        assert weight.dtype == dtype
        assert np.array_equal(weight, arrays[name])


@pytest.mark.parametrize(
    "file",
    ["schnet2017_c20_force_model", "schnetpack_random", "schnet_cg_chignolin"],
)
@pytest.mark.parametrize("extra", [np.zeros(3), np.array("text")])
def test_entry_that_no_layout_knows(tmp_path, reference, file, extra):
    arrays = {**reference(f"{file}_weights.npz"), "postprocessors.0.scale": extra}
    with pytest.raises(ValueError, match=r"unknown.*\['postprocessors.0.scale'\]"):
        load(saved(tmp_path, arrays))


@pytest.mark.parametrize(
    ("file", "entry", "message"),
    [
        ("schnet2017_c20_force_model", "meta_json", r"no 'cutoff' in its meta_json"),
        ("schnet2017_c20_force_model", "atomref/embeddings/W:0", "no 'atomref/embeddings/W:0'"),
        ("schnet_cg_chignolin", "meta_json", r"no 'cutoff_upper' in its meta_json"),
        ("schnet_cg_chignolin", "rbf_layer.betas", "no 'rbf_layer.betas'"),
        (
            "schnetpack_random",
            "output_modules.0.outnet.1.bias",
            "no 'output_modules.0.outnet.1.bias'",
        ),
    ],
)
def test_missing_entry(tmp_path, reference, file, entry, message):
    arrays = dict(reference(f"{file}_weights.npz"))
    del arrays[entry]
    with pytest.raises(ValueError, match=f"weights.npz: {message}"):
        load(saved(tmp_path, arrays))


def test_files_that_are_no_archive(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "objects.npz", np.array([None]))
    (tmp_path / "junk.npz").write_bytes(b"no archive at all")
    (tmp_path / "empty.npz").write_bytes(b"")
    cut = saved(tmp_path, {"a": np.zeros(100)}).read_bytes()[:200]
    (tmp_path / "cut.npz").write_bytes(cut)
    for name in ("array.npy", "objects.npz", "junk.npz", "empty.npz", "cut.npz"):
        with pytest.raises(ValueError, match=f"{name} is not an .npz archive of plain arrays"):
            load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="absent"):
        load(tmp_path / "absent.npz")
    np.savez(tmp_path / "meta.npz", meta_json=np.array("{"), a=np.zeros(1))
    with pytest.raises(ValueError, match=r"meta.npz: meta_json is not a JSON object"):
        load(tmp_path / "meta.npz")


def test_refusals(tmp_path):
    with pytest.raises(
        TypeError, match=r"from_pyg converts torch_geometric.nn.SchNet.*, got torch"
    ):
        from_pyg(torch.nn.Linear(1, 1))
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(ValueError, match="no model recognised"):
        load(tmp_path / "other.npz")
    geometric = pytest.importorskip("torch_geometric.nn")
    with pytest.raises(ValueError, match=r"a sum or mean over atoms, .* readout MaxAggregation"):
        from_pyg(geometric.SchNet(readout="max"))
    module = geometric.SchNet(dipole=True)
    module.scale = -1.0
    with pytest.raises(ValueError, match=r"dipoles of a positive scale, this one has -1.0"):
        from_pyg(module)
    module = geometric.SchNet()
    del module.scale
    with pytest.raises(ValueError, match=r"schnet\.SchNet is of a version that is not known"):
        from_pyg(module)
