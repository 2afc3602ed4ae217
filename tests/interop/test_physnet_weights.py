"""PhysNet of its authors' code and of Asparagus, converted."""

import json
import math

import numpy as np
import pytest
import torch
from reference.physnet import coulomb, switch
from torch import nn

import molkern
from molkern import AtomicBatch
from molkern.interop import from_asparagus, load
from molkern.models import Structure


def reference_batch(data):
    system = torch.arange(len(data["N"])).repeat_interleave(torch.as_tensor(data["N"]).long())
    return AtomicBatch(torch.as_tensor(data["Z"]), torch.as_tensor(data["R"]), system)


@pytest.mark.unemulated
def test_official_code(reference):
    """14 molecules by the authors' code in float64, dispersion off: equal but for rounding."""
    data = reference("physnet_official_random_reference.npz")
    model = load(reference.path("physnet_official_random_weights.npz")).double()
    batch = reference_batch(data)
    out = model(batch, forces=True, total_charge=torch.as_tensor(data["Q_tot"]))
    structure = Structure(batch, model.neighbors(batch), batch.positions, None)
    energies, charges, _ = model.atomic_properties(structure)
    found = {
        "E": out["energy"],
        "F": out["forces"],
        "Q": out["charges"],
        "D": out["dipole"],
        "Ea": energies,
        "Qa": charges,
        "nhloss": out["nonhierarchicality"],
    }
    for name, value in found.items():
        expected = data[f"{name}_f64"]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            value.detach().numpy(), expected, rtol=0, atol=1e-13 * scale, err_msg=name
        )


@pytest.mark.unemulated
def test_official_code_in_float32(reference):
    data = reference("physnet_official_random_reference.npz")
    model = load(reference.path("physnet_official_random_weights.npz"))
    assert next(model.parameters()).dtype == torch.float32
    batch = reference_batch(data).to(dtype=torch.float32)
    out = model(batch, forces=True, total_charge=torch.as_tensor(data["Q_tot"]))
    # Energies near 130 eV; the published code's own float32 is off by 1e-5 there
    np.testing.assert_allclose(out["energy"], data["E_f64"], rtol=1e-6)
    np.testing.assert_allclose(out["forces"], data["F_f64"], atol=5e-5)


def official_arrays(reference, **hyper):
    arrays = reference("physnet_official_random_weights.npz")
    options = json.loads(str(arrays.pop("hyper_json")))
    return {**arrays, "hyper_json": np.array(json.dumps({**options, **hyper}))}


def saved(path, arrays):
    np.savez(path / "weights.npz", **arrays)
    return path / "weights.npz"


def test_official_options(tmp_path, reference):
    arrays = official_arrays(
        reference, lr_cut=12.0, kehalf=1.0, use_electrostatic=True, activation_fn="shifted_softplus"
    )
    model = load(saved(tmp_path, arrays))
    assert model.electrostatics.cutoff == 12.0
    assert model.electrostatics.coulomb_constant == 2.0
    assert model.electrostatics.switch_range == 5.0
    assert (
        load(saved(tmp_path, official_arrays(reference, use_electrostatic=False))).electrostatics
        is None
    )


def test_official_dispersion(tmp_path, reference):
    pytest.importorskip("tad_dftd3")
    arrays = official_arrays(reference, use_dispersion=True)
    names = ("s6", "s8", "a1", "a2")
    arrays |= {
        name: np.array(v, np.float32) for name, v in zip(names, (0.5, 0.9, -0.9, 2.8), strict=True)
    }
    found = load(saved(tmp_path, arrays)).dispersion.coefficients.detach()
    expected = torch.log1p(torch.exp(torch.tensor([0.5, 0.9, -0.9, 2.8])))
    torch.testing.assert_close(found, expected)
    # Those that were given, not trained, are stored as they are
    arrays["hyper_json"] = official_arrays(reference, use_dispersion=True, a2=2.8)["hyper_json"]
    expected[3] = 2.8
    torch.testing.assert_close(
        load(saved(tmp_path, arrays)).dispersion.coefficients.detach(), expected
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hyper": {"F": 64}}, "F is 64, but the variables are those of 128"),
        ({"hyper": {"num_blocks": 3}}, "num_blocks is 3, but the variables are those of 5"),
        ({"hyper": {"activation_fn": "swish"}}, "must be shifted_softplus, got 'swish'"),
        ({"hyper": {"drop": 0.1}}, r"options that the conversion does not know: \['drop'\]"),
        ({"remove": "Eshift"}, "no 'Eshift' in the file"),
        ({"remove": "output_block3/residual_layer0/dense/b"}, "no 'output_block3/residual_layer0"),
        ({"remove": "interaction_block2/interaction_layer/u"}, "no 'interaction_block2"),
        ({"remove": "hyper_json"}, "no 'sr_cut' in its meta_json"),
        ({"add": ("extra/W", np.zeros(3))}, r"unknown entries, .*\['extra/W'\]"),
        ({"add": ("embeddings", np.zeros((95, 4)))}, "F is 128, but the variables are those of 4"),
        ({"add": ("rbf_layer/widths", np.zeros(3))}, r"rbf_layer/widths has shape \[3\], exp"),
    ],
)  # fmt: skip
def test_official_refusals(tmp_path, reference, change, message):
    arrays = official_arrays(reference, **change.get("hyper", {}))
    arrays.pop(change.get("remove"), None)
    arrays.update([change["add"]] if "add" in change else [])
    with pytest.raises(ValueError, match=f"weights.npz: .*{message}"):
        load(saved(tmp_path, arrays))


# A stand-in for Asparagus' PhysNet with the names of its state, written from its formulas.

CONFIG = {
    "model_type": "PhysNet",
    "model_cutoff": 6.0,
    "model_cuton": 5.0,
    "model_switch_range": 1.0,
    "input_radial_fn": "GaussianRBF",
    "input_cutoff_fn": "Poly6",
    "graph_activation_fn": "shifted_softplus",
    "output_activation_fn": "shifted_softplus",
}


def ssp(x):
    return nn.functional.softplus(x) - torch.log(torch.tensor(2.0))  # ln 2 is rounded to float32


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.dense1, self.dense2 = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x, a):
        return x + self.dense2(a(self.dense1(a(x))))


class Interaction(nn.Module):
    def __init__(self, width, functions):
        super().__init__()
        self.interaction = nn.Module()
        part = self.interaction
        part.radial2atom = nn.Linear(functions, width, bias=False)
        part.dense_i, part.dense_j = nn.Linear(width, width), nn.Linear(width, width)
        part.residuals_ij = nn.ModuleList(Residual(width) for _ in range(3))
        part.dense_out = nn.Linear(width, width)
        part.scaling = nn.Parameter(torch.ones(width))
        self.residuals = nn.ModuleList(Residual(width) for _ in range(2))

    def forward(self, x, g, i, j, a):
        part, x = self.interaction, a(x)
        messages = part.radial2atom(g) * a(part.dense_j(x))[j]
        m = a(part.dense_i(x)).index_add(0, i, messages)
        for residual in part.residuals_ij:
            m = residual(m, a)
        x = part.scaling * x + part.dense_out(a(m))
        for residual in self.residuals:
            x = residual(x, a)
        return x


class Asparagus(nn.Module):
    def __init__(self, width=8, functions=6, blocks=2, cutoff=4.0, elements=20, activation=ssp):
        super().__init__()
        self.a, self.range = activation, cutoff
        module = self.input_module = nn.Module()
        module.atom_features = nn.Embedding(elements, width, padding_idx=0, max_norm=float(width))
        module.cutoff = nn.Module()
        module.cutoff.register_buffer("cutoff", torch.tensor([cutoff]))
        module.radial_fn = nn.Module()
        module.radial_fn.centers = nn.Parameter(torch.linspace(1.0, cutoff, functions))
        module.radial_fn.widths = nn.Parameter(torch.ones(functions))
        self.graph_module = nn.Module()
        self.graph_module.interaction_blocks = nn.ModuleList(
            Interaction(width, functions) for _ in range(blocks)
        )
        self.output_module = nn.Module()
        block = nn.Module()
        self.output_module.output_property_block = nn.ModuleDict({"atomic_energies_charges": block})
        block.residuals = nn.ModuleList(nn.ModuleList([Residual(width)]) for _ in range(blocks))
        block.output = nn.ModuleList(nn.Linear(width, 2, bias=False) for _ in range(blocks))
        block.register_buffer("n_property", torch.tensor(2))
        block.scaling = nn.Parameter(torch.tensor([0.0, 1.0]).repeat(elements, 2, 1))
        module = self.electrostatic_module = nn.Module()
        module.register_buffer("kehalf", torch.tensor([7.199822675975274], dtype=torch.float64))
        module.switch_fn = nn.Module()
        module.switch_fn.register_buffer("cutoff", torch.tensor([cutoff]))

    def add_dispersion(self, values):
        module = self.dispersion_module = nn.Module()
        for name, value in zip(("s6", "s8", "a1", "a2"), values, strict=True):
            module.register_parameter(f"d3_{name}", nn.Parameter(torch.tensor([value])))
        module.register_buffer("distances_model2Bohr", torch.tensor([1 / 0.529]).double())
        module.register_buffer("energies_Hatree2model", torch.tensor([27.2]).double())

    def forward(self, numbers, positions, total, lr_cut):
        """Energy and charges of one molecule."""
        x = self.input_module.atom_features(numbers)
        i, j = (~torch.eye(len(numbers), dtype=torch.bool)).nonzero().T
        d = (positions[i] - positions[j]).norm(dim=1)
        radial = self.input_module.radial_fn
        g = torch.exp(-0.5 * ((d[:, None] - radial.centers) / radial.widths) ** 2)
        g = switch(d / self.range)[:, None] * g
        block = self.output_module.output_property_block["atomic_energies_charges"]
        y = 0
        for k, interaction in enumerate(self.graph_module.interaction_blocks):
            x = interaction(x, g, i, j, self.a)
            h = block.residuals[k][0](x, self.a)
            y = y + self.a(block.output[k](self.a(h)))
        scaling = block.scaling[numbers]
        y = y * scaling[:, :, 1] + scaling[:, :, 0]
        q = y[:, 1] + (total - y[:, 1].sum()) / len(numbers)
        pair = q[i] * q[j] * coulomb(d, self.range, lr_cut, shift_shielded=False)
        return y[:, 0].sum() + self.electrostatic_module.kehalf * pair.sum(), q


def stand_in(**options):
    model = Asparagus(**options).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.input_module.atom_features.weight[7] *= 20.0  # beyond the embedding's max_norm
    return model


@pytest.mark.parametrize("activation", ["shifted_softplus", "swish"])
def test_asparagus(activation):
    theirs = stand_in(activation=ssp if activation == "shifted_softplus" else nn.functional.silu)
    state = {name: value.clone() for name, value in theirs.state_dict().items()}
    config = {**CONFIG, "graph_activation_fn": activation, "output_activation_fn": activation}
    model = from_asparagus(state, config)
    numbers = torch.tensor([7, 1, 8, 6, 1, 17])
    positions = (5 * torch.rand(6, 3, dtype=torch.float64)).requires_grad_()
    energy, charges = theirs(numbers, positions, 1.0, 6.0)
    (gradient,) = torch.autograd.grad(energy, positions)
    out = model(AtomicBatch(numbers, positions.detach()), forces=True, total_charge=1.0)
    torch.testing.assert_close(out["energy"], energy.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out["charges"], charges.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(out["forces"], -gradient, rtol=1e-9, atol=1e-11)


def test_asparagus_files(tmp_path):
    theirs = stand_in().float()
    state = theirs.state_dict()
    batch = AtomicBatch(torch.tensor([8, 1, 1]), 2 * torch.rand(3, 3))
    expected = from_asparagus(state, CONFIG)(batch)["energy"]
    torch.save(
        {"model_state_dict": state, "best_loss": 0.1, "epoch": 3}, tmp_path / "best_model.pt"
    )
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    found = from_asparagus(tmp_path / "best_model.pt", tmp_path / "config.json")(batch)["energy"]
    assert torch.equal(found, expected)
    arrays = {name: value.numpy() for name, value in state.items()}
    arrays["meta_json"] = np.array(json.dumps(CONFIG))
    model = load(saved(tmp_path, arrays))
    assert torch.equal(model(batch)["energy"], expected)
    model.save(tmp_path / "model.safetensors")
    again = molkern.models.load(tmp_path / "model.safetensors")
    assert torch.equal(again(batch)["energy"], expected)


def test_asparagus_frozen_basis():
    state, config = stand_in().state_dict(), {**CONFIG, "trainer_max_epochs": 3}
    assert all(p.requires_grad for p in from_asparagus(state, config).parameters())
    model = from_asparagus(state, {**config, "input_rbf_trainable": False})
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"basis.centers", "basis.widths"}


def test_asparagus_without_electrostatics():
    state = stand_in().state_dict()
    state = {n: v for n, v in state.items() if not n.startswith("electrostatic_module.")}
    model = from_asparagus(state, {})
    assert model.electrostatics is None
    assert model.cutoff == 4.0


def test_asparagus_dispersion():
    pytest.importorskip("tad_dftd3")
    theirs = stand_in()
    theirs.add_dispersion((0.9, 1.2, 0.4, 3.1))
    config = {k: v for k, v in CONFIG.items() if k != "model_cuton"}
    layer = from_asparagus(theirs.double().state_dict(), config).dispersion
    assert (layer.cutoff, layer.switch_start) == (6.0, 5.0)
    assert layer.bohr == pytest.approx(0.529, rel=1e-6)
    assert layer.hartree == pytest.approx(27.2, rel=1e-6)
    found = layer.coefficients.detach().double()
    torch.testing.assert_close(
        found, torch.tensor([0.9, 1.2, 0.4, 3.1], dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_asparagus_exponential_basis():
    theirs = stand_in()
    with torch.no_grad():
        theirs.input_module.radial_fn.centers.copy_(torch.linspace(1.0, math.exp(-4.0), 6))
        theirs.input_module.radial_fn.widths.fill_(9.0)
    config = {**CONFIG, "input_radial_fn": "GaussianRBF_PhysNet"}
    centers, widths = from_asparagus(theirs.state_dict(), config).basis.functions()
    expected = torch.linspace(1.0, math.exp(-4.0), 6).double()
    torch.testing.assert_close(centers.detach(), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(widths.detach(), torch.full_like(expected, 9.0), rtol=1e-12, atol=0)
    with torch.no_grad():
        theirs.input_module.radial_fn.centers[2] = -0.5
    with pytest.raises(ValueError, match="centers must be positive, got -0"):
        from_asparagus(theirs.state_dict(), config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"model_zbl": True}}, "model_zbl=True is an option that the conversion does"),
        ({"config": {"model_repulsion": True}}, "model_repulsion is True, but False is what is"),
        ({"config": {"model_electrostatic": False}}, "model_electrostatic is False, but True is"),
        ({"config": {"graph_n_blocks": 3}}, "graph_n_blocks is 3, but 2 is what is converted"),
        ({"config": {"input_radial_cutoff": 5.0}}, "input_radial_cutoff is 5.0, but 4.0 is what"),
        ({"config": {"output_type": "PaiNN"}}, "output_type is 'PaiNN', but 'PhysNet' is what is"),
        ({"config": {"model_cutoff": "far"}}, "model_cutoff must be a number, got 'far'"),
        ({"config": {"model_cutoff": None}}, "no 'model_cutoff' in its configuration"),
        ({"config": {"input_radial_fn": "SinusRBF"}}, "input_radial_fn 'SinusRBF' has no counter"),
        ({"config": {"graph_activation_fn": "smooth_ELU"}}, "graph_activation_fn 'smooth_ELU' has"),
        ({"config": {"input_cutoff_fn": "Poly6_range"}}, "input_cutoff_fn 'Poly6_range' has no"),
        ({"config": {"model_type": "PaiNN"}}, "model_type must be PhysNet, got 'PaiNN'"),
        ({"add": "repulsion_module.a_coefficients"}, "has a nuclear repulsion"),
        ({"add": "output_module.output_property_block.polarizability.scaling"}, "one block of .*p"),
        ({"add": "extra.weight"}, r"unknown entries, .*\['extra.weight'\]"),
        ({"remove": "output_module.output_property_block"}, "none: an older layout"),
        ({"remove": "graph_module.interaction_blocks.1.interaction.scaling"}, "no 'graph_module"),
        ({"remove": "input_module.atom_features.weight"}, "no state of Asparagus' PhysNet"),
    ],
)  # fmt: skip
def test_asparagus_refusals(change, message):
    state = dict(stand_in().state_dict())
    if "remove" in change:
        state = {n: v for n, v in state.items() if not n.startswith(change["remove"])}
    if "add" in change:
        state[change["add"]] = torch.zeros(3)
    config = {k: v for k, v in {**CONFIG, **change.get("config", {})}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        from_asparagus(state, config)
