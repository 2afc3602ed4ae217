"""SchNet under the names of three codes, of any sizes, against plain torch."""

import json

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference.schnet import atomic_energies, cosine, ssp

from molkern import AtomicBatch, neighbor_list
from molkern.interop import load

CUTOFF = 4.0

SIZES = st.fixed_dictionaries(
    {
        "elements": st.integers(9, 14),
        "hidden": st.integers(1, 9),
        "filters": st.integers(1, 9),
        "basis": st.integers(2, 9),
        "blocks": st.integers(1, 4),
        "head": st.lists(st.integers(1, 7), max_size=3),
        "biases": st.booleans(),
        "seed": st.integers(0, 2**20),
    }
)


def roles(sizes, *, final_biases):
    """Matrices (out, in) and biases of a SchNet of these sizes, by what they do."""
    random = np.random.default_rng(sizes["seed"])

    def layer(inputs, outputs, bias=True):
        weight = random.normal(size=(outputs, inputs)) / inputs**0.5
        return weight, random.normal(size=outputs) if bias else None

    hidden, filters, basis = sizes["hidden"], sizes["filters"], sizes["basis"]
    widths = [hidden, *sizes["head"], 1]
    last = len(widths) - 2
    return {
        "embedding": random.normal(size=(sizes["elements"], hidden)),
        "blocks": [
            {
                "filter_1": layer(basis, filters),
                "filter_2": layer(filters, filters, final_biases),
                "in": layer(hidden, filters, bias=False),
                "out_1": layer(filters, hidden),
                "out_2": layer(hidden, hidden),
            }
            for _ in range(sizes["blocks"])
        ],
        "head": [
            layer(widths[k], widths[k + 1], final_biases or k < last) for k in range(last + 1)
        ],
    }


def named(model, names, *, weight=".weight", bias=".bias", transposed=False):
    """The same under a code's names: block by role with {i}, head by number with {k}."""
    arrays = {names["embedding"]: model["embedding"]}

    def put(name, layer):
        arrays[name + weight] = layer[0].T if transposed else layer[0]
        if layer[1] is not None:
            arrays[name + bias] = layer[1]

    for i, block in enumerate(model["blocks"]):
        for role, layer in block.items():
            put(names[role].format(i=i), layer)
    for k, layer in enumerate(model["head"]):
        put(names["head"](k), layer)
    return arrays


def plain(model, numbers, positions, *, basis, envelope, activation, **options):
    neighbors = neighbor_list(positions, CUTOFF)

    def tensors(layer):
        return tuple(None if part is None else torch.as_tensor(part) for part in layer)

    return atomic_energies(
        torch.as_tensor(model["embedding"])[numbers],
        neighbors.distances(positions),
        neighbors.edge_index,
        blocks=[{role: tensors(x) for role, x in block.items()} for block in model["blocks"]],
        head=[tensors(layer) for layer in model["head"]],
        basis=basis,
        envelope=envelope,
        activation=activation,
        **options,
    )


def molecule(seed):
    generator = torch.Generator().manual_seed(seed)
    positions = 3 * torch.rand(6, 3, generator=generator, dtype=torch.float64)
    return torch.randint(0, 9, (6,), generator=generator), positions


def check(folder, arrays, numbers, positions, energies, tolerance=1e-11):
    np.savez(folder / "weights.npz", **arrays)
    model = load(folder / "weights.npz")
    energy = model(AtomicBatch(numbers, positions))["energy"][0].detach()
    scale = max(1.0, float(energies.detach().abs().max()))
    torch.testing.assert_close(energy, energies.sum(), rtol=0, atol=tolerance * scale)


any_size = settings(max_examples=settings.default.max_examples // 6)
#: With a naive softplus these weights overflow float64.
LARGE = {
    "elements": 13,
    "hidden": 6,
    "filters": 4,
    "basis": 6,
    "blocks": 4,
    "head": [],
    "biases": False,
    "seed": 1210,
}


@any_size
@example(sizes=LARGE)
@given(sizes=SIZES)
def test_schnetpack(tmp_path, sizes):
    model = roles(sizes, final_biases=True)
    prefix = "representation.interactions.{i}."
    module = sizes["seed"] % 3  # Strain or Forces may come before the Atomwise
    names = {
        "embedding": "representation.embedding.weight",
        "filter_1": prefix + "filter_network.0",
        "filter_2": prefix + "filter_network.1",
        "in": prefix + "in2f",
        "out_1": prefix + "f2out.0",
        "out_2": prefix + "f2out.1",
        "head": lambda k: f"output_modules.{module}.outnet.{k}",
    }
    arrays = named(model, names)
    offsets = np.linspace(0, CUTOFF, sizes["basis"])
    widths = 0.3 + np.arange(sizes["basis"]) / 9
    arrays["representation.cutoff_fn.cutoff"] = np.array([CUTOFF])
    arrays["representation.radial_basis.offsets"] = offsets
    arrays["representation.radial_basis.widths"] = widths
    numbers, positions = molecule(sizes["seed"])
    energies = plain(
        model, numbers, positions,
        basis=lambda d: torch.exp(
            -0.5 * ((d[:, None] - torch.as_tensor(offsets)) / torch.as_tensor(widths)) ** 2
        ),
        envelope=lambda d: cosine(d, CUTOFF),
        activation=ssp,
        head_activation=torch.nn.functional.silu,
    )  # fmt: skip
    check(tmp_path, arrays, numbers, positions, energies, 1e-8)  # softplus is linear beyond 20


@any_size
@example(sizes=LARGE)
@given(sizes=SIZES)
def test_mlcg(tmp_path, sizes):
    model = roles(sizes, final_biases=sizes["biases"])
    prefix = "interaction_blocks.{i}."
    names = {
        "embedding": "embedding_layer.weight",
        "filter_1": prefix + "conv.filter_network.layers.0",
        "filter_2": prefix + "conv.filter_network.layers.2",
        "in": prefix + "conv.lin1",
        "out_1": prefix + "conv.lin2",
        "out_2": prefix + "lin",
        "head": lambda k: f"output_network.layers.{2 * k}",
    }
    arrays = named(model, names)
    means = np.linspace(np.exp(-CUTOFF), 1, sizes["basis"])
    betas = 1.0 + np.arange(sizes["basis"])
    arrays |= {"rbf_layer.means": means, "rbf_layer.betas": betas}
    arrays["meta_json"] = np.array(json.dumps({"cutoff_upper": CUTOFF}))
    numbers, positions = molecule(sizes["seed"])

    def basis(d):
        exponential = torch.exp(-5 / CUTOFF * d)[:, None] - torch.as_tensor(means)
        return torch.exp(-torch.as_tensor(betas) * exponential**2) * cosine(d, CUTOFF)[:, None]

    energies = plain(
        model, numbers, positions,
        basis=basis,
        envelope=lambda d: cosine(d, CUTOFF),
        activation=torch.tanh,
        head_activation=torch.tanh,
    )  # fmt: skip
    check(tmp_path, arrays, numbers, positions, energies)


@any_size
@example(sizes=LARGE)
@given(sizes=SIZES)
def test_official(tmp_path, sizes):
    sizes = {**sizes, "head": [1 + len(sizes["head"])]}  # this code has one hidden layer
    model = roles(sizes, final_biases=True)
    prefix = "interaction_{i}/"
    names = {
        "embedding": "atom_embedding/embeddings/W:0",
        "filter_1": prefix + "SchNetFilter/Dense",
        "filter_2": prefix + "SchNetFilter/Dense_1",
        "in": prefix + "CFConv/in2fac",
        "out_1": prefix + "CFConv/fac2out",
        "out_2": prefix + "Dense",
        "head": lambda k: ("Dense", "Dense_1")[k],
    }
    arrays = named(model, names, weight="/W:0", bias="/b:0", transposed=True)
    references = np.arange(sizes["elements"] + 2.0)
    arrays |= {
        "std_per_atom:0": np.array([1.5]),
        "mean_per_atom:0": np.array([-0.25]),
        "atomref/embeddings/W:0": references[:, None],
        "meta_json": np.array(json.dumps({"cutoff": CUTOFF, "gap": 0.2})),
    }
    numbers, positions = molecule(sizes["seed"])
    centers = torch.linspace(0, CUTOFF, sizes["basis"], dtype=torch.float64)
    energies = plain(
        model, numbers, positions,
        basis=lambda d: torch.exp(-((d[:, None] - centers) ** 2) / 0.2),
        envelope=torch.ones_like,
        activation=ssp,
        head_activation=ssp,
        last_filter_activation=ssp,
    )  # fmt: skip
    energies = 1.5 * energies - 0.25 + torch.as_tensor(references)[numbers]
    check(tmp_path, arrays, numbers, positions, energies, 2e-6)  # softplus is linear beyond 14
