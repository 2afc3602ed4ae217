"""Models that predict a dipole moment or an electronic spatial extent in place of an energy."""

import pytest
import torch
from reference.properties import dipoles_and_extents
from torch.autograd import gradcheck, gradgradcheck

from molkern import AtomicBatch
from molkern.models import DTNN, PhysNet, SchNet, load
from molkern.models.readout import Readout

OTHERS = ["dipole_moment", "electronic_spatial_extent"]


def small(prediction, **options):
    return SchNet(8, 6, 2, 8, cutoff=3.5, prediction=prediction, **options).double().eval()


def molecules():
    numbers = torch.tensor([8, 1, 1, 6, 7, 1, 9])
    positions = 3 * torch.rand(7, 3, dtype=torch.float64)
    return AtomicBatch(numbers, positions, torch.tensor([0, 0, 0, 1, 1, 1, 1]))


def test_what_comes_out():
    batch = molecules()
    out = small("dipole_moment", scale=2.0, mean=-0.1)(batch)
    assert {name: list(value.shape) for name, value in out.items()} == {
        "dipole_moment": [2],
        "dipole": [2, 3],
        "charges": [7],
    }
    dipoles, _ = dipoles_and_extents(out["charges"], batch)
    torch.testing.assert_close(out["dipole"], dipoles)
    torch.testing.assert_close(out["dipole_moment"], dipoles.norm(dim=1))
    torch.manual_seed(1)
    model = small("electronic_spatial_extent")
    torch.manual_seed(1)
    charges = small("dipole_moment")(batch)["charges"]
    out = model(batch)
    assert list(out) == ["electronic_spatial_extent"]
    torch.testing.assert_close(
        out["electronic_spatial_extent"], dipoles_and_extents(charges, batch)[1]
    )


@pytest.mark.parametrize("name", OTHERS)
def test_forces_are_minus_its_gradient(name):
    model, batch = small(name), molecules()
    forces = model(batch, forces=True)["forces"]
    for atom, axis in [(0, 0), (5, 2)]:
        values = []
        for sign in (1, -1):
            moved = batch.positions.clone()
            moved[atom, axis] += sign * 1e-5
            values.append(model(AtomicBatch(batch.numbers, moved, batch.batch))[name].sum())
        slope = (values[0] - values[1]).detach() / 2e-5
        assert float(forces[atom, axis]) == pytest.approx(-float(slope), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", OTHERS)
def test_training_on_it_and_its_gradient(name):
    model, batch = small(name).train(), molecules()
    out = model(batch, forces=True)
    (out[name].square().sum() + out["forces"].square().sum()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key


@pytest.mark.parametrize("name", OTHERS)
def test_moves_and_turns_with_the_molecule(name):
    model, batch = small(name), molecules()
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    moved = AtomicBatch(batch.numbers, batch.positions @ turn + 7.0, batch.batch)
    out, other = model(batch, forces=True), model(moved, forces=True)
    torch.testing.assert_close(other[name], out[name], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(other["forces"], out["forces"] @ turn, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", OTHERS)
def test_save_and_load(name, tmp_path):
    model, batch = small(name).float(), molecules().to(dtype=torch.float32)
    model.save(tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert again.differentiated == name
    assert torch.equal(again(batch)[name], model(batch)[name])


@pytest.mark.parametrize("name", OTHERS)
def test_periodic_systems_are_refused(name, crystal):
    numbers, positions, cell = crystal
    model = small(name)
    with pytest.raises(ValueError, match=f"system 0 is periodic, where {name} depends"):
        model(AtomicBatch(numbers, positions, cell=cell))
    boxed = model(AtomicBatch(numbers, positions, cell=cell, pbc=False))
    assert torch.equal(boxed[name], model(AtomicBatch(numbers, positions))[name])


def test_the_energy_has_no_tensors():
    assert not Readout().state_dict()
    assert not Readout(readout="mean").state_dict()
    with pytest.raises(ValueError, match=r"one of 'energy', 'dipole_moment', .*, got 'charges'"):
        Readout("charges")
    with pytest.raises(ValueError, match="readout must be 'sum' or 'mean', got 'max'"):
        Readout(readout="max")
    with pytest.raises(ValueError, match=r"'energy', got 'dipole_moment': use readout='sum'"):
        Readout("dipole_moment", readout="mean")


def test_numbers_without_a_mass():
    model = small("dipole_moment", num_elements=130)
    batch = AtomicBatch(torch.tensor([1, 120]), torch.eye(3, dtype=torch.float64)[:2])
    with pytest.raises(
        ValueError, match="atom 1 has number 120, but there are masses for 0 to 118"
    ):
        model(batch)


def physnet(prediction):
    model = PhysNet(8, 6, 2, cutoff=3.5, charge_shift=0.3, prediction=prediction).double().eval()
    with torch.no_grad():  # the last layers start at zero
        for output in model.outputs:
            torch.nn.init.normal_(output.lin.weight)
    return model


def test_physnet_predicts_properties_of_its_charges():
    batch = molecules()
    out = physnet("dipole_moment")(batch, total_charge=torch.tensor([1.0, -1.0]))
    assert set(out) == {"dipole_moment", "dipole", "charges", "nonhierarchicality"}
    sums = torch.zeros(2, dtype=torch.float64).index_add(0, batch.batch, out["charges"])
    torch.testing.assert_close(sums, torch.tensor([1.0, -1.0], dtype=torch.float64))
    dipoles, _ = dipoles_and_extents(out["charges"], batch)
    torch.testing.assert_close(out["dipole"], dipoles)
    torch.testing.assert_close(out["dipole_moment"], dipoles.norm(dim=1))
    out = physnet("electronic_spatial_extent")(batch)
    assert set(out) == {"electronic_spatial_extent", "charges", "nonhierarchicality"}
    _, extents = dipoles_and_extents(out["charges"], batch)
    torch.testing.assert_close(out["electronic_spatial_extent"], extents)


@pytest.mark.parametrize("name", OTHERS)
def test_gradients_and_files_of_physnet(name, tmp_path):
    model, batch = physnet(name), molecules()
    out = model(batch, forces=True)
    moved = batch.positions.clone()
    moved[2, 1] += 1e-5
    step = model(AtomicBatch(batch.numbers, moved, batch.batch))[name].sum() - out[name].sum()
    torch.testing.assert_close(-step / 1e-5, out["forces"][2, 1], rtol=1e-3, atol=1e-3)
    model.save(tmp_path / "model.safetensors")
    torch.testing.assert_close(load(tmp_path / "model.safetensors")(batch)[name], out[name])


def of_kind(name, **options):
    """A small model in float64 whose layers that start at zero do not."""
    if name == "schnet":
        return small("energy", **options)
    if name == "physnet":
        model = PhysNet(8, 6, 2, cutoff=3.5, use_electrostatics=False, **options)
        for output in model.outputs:
            torch.nn.init.normal_(output.lin.weight)
        for block in model.interactions:
            torch.nn.init.normal_(block.filters.weight, std=0.2)
        return model.double().eval()
    return DTNN(6, 8, 2, 16, cutoff=4.0, zero_start=False, **options).double().eval()


KINDS = ["schnet", "dtnn", "physnet"]


def with_mean(name, **options):
    """The same model twice: of sums, and of means."""
    model = of_kind(name, **options)
    mean = type(model)(**{**model.config, "readout": "mean"}).double().eval()
    mean.load_state_dict(model.state_dict())
    return model, mean


@pytest.mark.parametrize("filters", ["exact", "spline"])
@pytest.mark.parametrize("name", KINDS)
def test_means_are_sums_over_counts(name, filters):
    shift = {"energy_shift": 1.5} if name == "physnet" else {"scale": 2.0, "mean": 1.5}
    model, mean = with_mean(name, filters=filters, **shift)
    batch = molecules()
    out, averaged = model(batch, forces=True), mean(batch, forces=True)
    counts = torch.tensor([3.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(averaged["energy"], out["energy"] / counts)
    torch.testing.assert_close(averaged["forces"], out["forces"] / counts[batch.batch, None])
    assert averaged["forces"].abs().max() > 1e-6
    assert set(averaged) == set(out)


@pytest.mark.parametrize("name", KINDS)
def test_mean_of_a_molecule_does_not_grow_with_the_batch(name):
    """Two copies, side by side and as one system far apart, and a system without atoms."""
    _, mean = with_mean(name)
    first = molecules().positions[:3]
    numbers, count = torch.tensor([8, 1, 1]), len(first)
    alone = mean(AtomicBatch(numbers, first), forces=True)
    both = torch.cat([first, first])
    beside = AtomicBatch(numbers.repeat(2), both, torch.tensor([0] * 3 + [2] * 3), num_systems=3)
    out = mean(beside, forces=True)
    energies = torch.cat([alone["energy"], torch.zeros(1), alone["energy"]])
    torch.testing.assert_close(out["energy"], energies)
    torch.testing.assert_close(out["forces"], alone["forces"].repeat(2, 1))
    if name == "dtnn":  # pairs at any distance interact
        return
    far = mean(AtomicBatch(numbers.repeat(2), torch.cat([first, first + 50.0])), forces=True)
    torch.testing.assert_close(far["energy"], alone["energy"])
    torch.testing.assert_close(far["forces"][:count], 0.5 * alone["forces"])


@pytest.mark.parametrize("name", KINDS)
def test_forces_of_means_are_derivatives(name):
    _, mean = with_mean(name)
    batch = molecules()

    def energy(positions):
        return mean(AtomicBatch(batch.numbers, positions, batch.batch))["energy"]

    moving = batch.positions.clone().requires_grad_()
    assert gradcheck(energy, moving)
    assert gradgradcheck(energy, moving, atol=1e-4)
    (gradient,) = torch.autograd.grad(energy(moving).sum(), moving)
    torch.testing.assert_close(mean(batch, forces=True)["forces"], -gradient)


@pytest.mark.parametrize("name", KINDS)
def test_training_and_saving_a_mean(name, tmp_path):
    _, mean = with_mean(name)
    batch = molecules()
    out = mean.train()(batch, forces=True)
    (out["energy"].square().sum() + out["forces"].square().sum()).backward()
    used = [p.grad for p in mean.parameters() if p.grad is not None]
    assert used
    assert all(bool(gradient.isfinite().all()) for gradient in used)
    mean.save(tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert again.config["readout"] == "mean"
    assert torch.equal(again(batch)["energy"], mean.eval()(batch)["energy"])


def test_stress_of_a_mean(crystal):
    numbers, positions, cell = crystal
    batch = AtomicBatch(numbers, positions, cell=cell)
    for name in KINDS:
        model, mean = with_mean(name)
        out, averaged = (m(batch, forces=True, stress=True) for m in (model, mean))
        for key in ("energy", "forces", "stress"):
            torch.testing.assert_close(averaged[key], out[key] / len(numbers))


@pytest.mark.parametrize("name", OTHERS)
def test_dtnn_predicts_properties_of_its_charges(name, tmp_path):
    model, batch = of_kind("dtnn", prediction=name), molecules()
    out = model(batch, forces=True)
    energies = of_kind("dtnn")
    energies.load_state_dict(model.state_dict(), strict=False)
    charges = of_kind("dtnn", prediction="dipole_moment")
    charges.load_state_dict(model.state_dict())
    charges = charges(batch)["charges"]
    sums = torch.zeros(2, dtype=torch.float64).index_add(0, batch.batch, charges)
    torch.testing.assert_close(sums, energies(batch)["energy"])
    dipoles, extents = dipoles_and_extents(charges, batch)
    expected = dipoles.norm(dim=1) if name == "dipole_moment" else extents
    torch.testing.assert_close(out[name], expected.detach())
    moved = batch.positions.clone()
    moved[2, 1] += 1e-5
    step = model(AtomicBatch(batch.numbers, moved, batch.batch))[name].sum() - out[name].sum()
    torch.testing.assert_close(-step.detach() / 1e-5, out["forces"][2, 1], rtol=1e-3, atol=1e-3)
    model.save(tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert again.differentiated == name
    assert torch.equal(again(batch)[name], out[name])


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: SchNet(**options),
        lambda **options: DTNN(**options),
        lambda **options: PhysNet(**options, use_electrostatics=False),
    ],
)
def test_wrong_readouts(make):
    with pytest.raises(ValueError, match="readout must be 'sum' or 'mean', got 'max'"):
        make(readout="max")
    with pytest.raises(ValueError, match=r"prediction='energy', got 'electronic_spatial_extent'"):
        make(readout="mean", prediction="electronic_spatial_extent")


def test_long_range_energies_have_no_mean():
    with pytest.raises(ValueError, match="pass use_electrostatics=False, got True"):
        PhysNet(readout="mean")
    with pytest.raises(ValueError, match="pass use_dispersion=False, got True"):
        PhysNet(readout="mean", use_electrostatics=False, use_dispersion=True)
