"""DTNN from the authors' variables, against their code and against plain loops."""

import json

import numpy as np
import pytest
import torch
from reference.dtnn import atomic_energies, random_arrays

from molkern import AtomicBatch
from molkern.interop import load
from molkern.models import DTNN

FILE = "dtnn_official_random_weights.npz"


def saved(path, arrays, **arguments):
    arguments = {"n_interactions": 2, "cutoff": 4.0, "rdf_spacing": 0.2, **arguments}
    description = json.dumps({"model_arguments": arguments})
    np.savez(path / "weights.npz", hyper_json=np.array(description), **arrays)
    return path / "weights.npz"


@pytest.fixture
def official(reference):
    data = reference("dtnn_official_random_reference.npz")
    return load(reference.path(FILE)), data, reference(FILE)


def molecules(data, dtype=torch.float64):
    system = torch.arange(len(data["N"])).repeat_interleave(torch.as_tensor(data["N"]).long())
    return AtomicBatch(torch.as_tensor(data["Z"]), torch.as_tensor(data["R"]).to(dtype), system)


def test_official_molecules(official):
    model, data, _ = official
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == 10_801
    model.double()
    out = model(molecules(data), forces=True)
    np.testing.assert_allclose(out["energy"], data["E_f64"], rtol=1e-13)
    np.testing.assert_allclose(out["forces"], data["F_f64"], rtol=0, atol=1e-12)
    # Atoms one by one: the last layers on what predict has before the sum
    batch = molecules(data)
    seen = []
    model.reference.register_forward_hook(lambda *call: seen.append(call[2]))
    model(batch)
    np.testing.assert_allclose(seen[0].detach(), data["Ei_f64"], rtol=0, atol=1e-12)


def test_official_in_float32(official):
    model, data, _ = official
    assert next(model.parameters()).dtype == torch.float32
    out = model(molecules(data, torch.float32), forces=True)
    np.testing.assert_allclose(out["energy"], data["E_f64"], rtol=0, atol=5e-4)
    np.testing.assert_allclose(out["forces"], data["F_f64"], rtol=0, atol=5e-4)


def test_there_is_no_cutoff(official):
    """Two molecules 23 Å apart, beyond the last Gaussian, still interact."""
    model, data, _ = official
    model.double()
    numbers, positions = torch.as_tensor(data["far_Z"]), torch.as_tensor(data["far_R"])
    out = model(AtomicBatch(numbers, positions), forces=True)
    assert float(out["energy"]) == pytest.approx(float(data["far_E_f64"]), rel=1e-13)
    np.testing.assert_allclose(out["forces"], data["far_F_f64"], rtol=0, atol=1e-12)


def test_crystals_differ_by_images_only(official):
    """The plain loops are the authors' code with one rule for images and molkern with another."""
    model, data, arrays = official
    model.double()
    del arrays["hyper_json"]
    numbers, positions = (
        torch.as_tensor(data["crystal_Z"]).long(),
        torch.as_tensor(data["crystal_R"]),
    )
    cell = torch.as_tensor(data["crystal_cell"])
    options = {"passes": 3, "spacing": 0.2, "cell": cell}
    for pbc, expected in zip(data["crystal_pbc"], data["crystal_Ei_f64"], strict=True):
        theirs = atomic_energies(
            arrays, numbers, positions, cutoff=20.0, pbc=pbc, summed=True, **options
        )
        np.testing.assert_allclose(theirs, expected, rtol=0, atol=1e-11)
    short = load_with_cutoff(model, 6.0)
    for pbc in data["crystal_pbc"]:
        plain = atomic_energies(arrays, numbers, positions, cutoff=6.0, pbc=pbc, **options).sum()
        batch = AtomicBatch(numbers, positions, cell=cell, pbc=torch.as_tensor(pbc))
        torch.testing.assert_close(short(batch)["energy"][0].detach(), plain, rtol=1e-12, atol=0)
    # No image in reach: all three agree, and with the molecule
    wide = {**options, "cell": 30 * torch.eye(3, dtype=torch.float64), "pbc": [True] * 3}
    theirs = atomic_energies(arrays, numbers, positions, cutoff=20.0, summed=True, **wide).sum()
    alone = model(AtomicBatch(numbers, positions))["energy"][0].detach()
    open_cell = AtomicBatch(numbers, positions, cell=cell, pbc=False)
    periodic = AtomicBatch(numbers, positions, cell=40 * torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(alone, theirs, rtol=1e-12, atol=0)
    for batch in (open_cell, periodic):
        torch.testing.assert_close(model(batch)["energy"][0].detach(), alone, rtol=1e-12, atol=0)


def load_with_cutoff(model, cutoff):
    other = DTNN(**{**model.config, "cutoff": cutoff}).double()
    other.load_state_dict(model.state_dict())
    return other.eval()


NAMES = ["DTNN/{}", "DTNN/{}:0", "/{}:0", "/{}", "{}:0", "{}"]


@pytest.mark.parametrize("names", NAMES)
def test_names_of_checkpoints(tmp_path, names):
    model = load(saved(tmp_path, random_arrays(names=names)))
    assert torch.equal(
        model.lin_distance.weight, torch.as_tensor(random_arrays()["model/Dense_1/W"]).T
    )


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"hidden": 1, "factors": 2, "head": 1},
        {"hidden": 8, "factors": 3, "head": 6, "elements": 12},
        {"basis": 33},
    ],
)
@pytest.mark.parametrize("passes", [1, 4])
def test_any_size(tmp_path, sizes, passes):
    arrays = random_arrays(**sizes)
    model = load(saved(tmp_path, arrays, n_interactions=passes))
    numbers, positions = torch.tensor([1, 8, 6, 1, 0]), 3 * torch.rand(5, 3, dtype=torch.float64)
    plain = atomic_energies(arrays, numbers, positions, passes=passes, cutoff=4.0, spacing=0.2)
    energy = model(AtomicBatch(numbers, positions))["energy"]
    torch.testing.assert_close(energy[0].detach(), plain.sum(), rtol=1e-12, atol=1e-12)


def test_refusals(tmp_path):
    arguments = np.array(json.dumps({"model_arguments": {"cutoff": 20.0}}))
    np.savez(tmp_path / "short.npz", hyper_json=arguments, **random_arrays())
    with pytest.raises(ValueError, match="no 'n_interactions' in model_arguments"):
        load(tmp_path / "short.npz")
    with pytest.raises(ValueError, match="per_atom=True"):
        load(saved(tmp_path, random_arrays(), per_atom=True))
    arrays = random_arrays(names="/{}:0")
    with pytest.raises(ValueError, match=r"unknown.*'global_step'"):
        load(saved(tmp_path, {**arrays, "global_step": np.zeros(1)}))
    wrong = {**arrays, "/model/Dense_3/W:0": np.zeros((4, 1))}
    with pytest.raises(ValueError, match=r"Dense_3/W has shape \[1, 4\], expected \[1, 3\]"):
        load(saved(tmp_path, wrong))
    del arrays["/model/fac2out/W:0"]
    with pytest.raises(ValueError, match="no '/model/fac2out/W:0'"):
        load(saved(tmp_path, arrays))
