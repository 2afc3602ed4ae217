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


@pytest.mark.parametrize("shifts", [False, True])
def test_pytorch_geometric(shifts):
    geometric = pytest.importorskip("torch_geometric.nn")
    options = {}
    if shifts:
        options = {"mean": -0.5, "std": 2.0, "atomref": torch.randn(100, 1)}

    def all_pairs(positions, batch):  # PyTorch Geometric's own search needs torch_cluster
        neighbors = molkern.neighbor_list(positions.detach(), 4.0, batch=batch)
        return neighbors.edge_index, neighbors.distances(positions)

    theirs = geometric.SchNet(
        hidden_channels=32, num_filters=24, num_interactions=3, num_gaussians=20, cutoff=4.0,
        interaction_graph=all_pairs, **options,
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    numbers = torch.randint(1, 10, (20,))
    positions = 4 * torch.rand(20, 3, dtype=torch.float64)
    system = torch.tensor([0] * 9 + [1] * 11)
    moving = positions.clone().requires_grad_()
    energies = theirs(numbers, moving, system).squeeze(1)
    (gradient,) = torch.autograd.grad(energies.sum(), moving)
    ours = from_pyg(theirs.eval())
    out = ours(AtomicBatch(numbers, positions, system), forces=True)
    torch.testing.assert_close(out["energy"], energies.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(out["forces"], -gradient, rtol=1e-10, atol=1e-12)
    if shifts:
        assert ours.reference.reference.requires_grad


def test_refusals(tmp_path):
    with pytest.raises(TypeError, match=r"from_pyg converts torch_geometric.nn.SchNet, got torch"):
        from_pyg(torch.nn.Linear(1, 1))
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    with pytest.raises(ValueError, match="no model recognised"):
        load(tmp_path / "other.npz")
    geometric = pytest.importorskip("torch_geometric.nn")
    with pytest.raises(ValueError, match="readout MeanAggregation"):
        from_pyg(geometric.SchNet(readout="mean"))
    with pytest.raises(ValueError, match="dipole=True"):
        from_pyg(geometric.SchNet(dipole=True))
