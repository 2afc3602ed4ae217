"""Files of published variables that are not what they should be: refused in one line."""

import json
import pickle

import numpy as np
import pytest
import torch

from molkern.interop import dimenet, from_asparagus, load
from molkern.models import DimeNet, DimeNetPlusPlus

pytestmark = pytest.mark.unemulated  # launches no kernel that others do not


CUTOFF = 4.0


def random_arrays(shapes):
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=shape) for name, shape in shapes.items()}


def official_schnet():
    shapes = {
        "atom_embedding/embeddings/W:0": (10, 4),
        "atomref/embeddings/W:0": (10, 1),
        "Dense/W:0": (4, 2), "Dense/b:0": (2,), "Dense_1/W:0": (2, 1), "Dense_1/b:0": (1,),
        "std_per_atom:0": (1,), "mean_per_atom:0": (1,),
    }  # fmt: skip
    for name, shape in {
        "SchNetFilter/Dense": (5, 3), "SchNetFilter/Dense_1": (3, 3), "CFConv/fac2out": (3, 4),
        "Dense": (4, 4),
    }.items():  # fmt: skip
        shapes[f"interaction_0/{name}/W:0"] = shape
        shapes[f"interaction_0/{name}/b:0"] = shape[1:]
    shapes["interaction_0/CFConv/in2fac/W:0"] = (4, 3)
    return random_arrays(shapes), {"cutoff": CUTOFF, "gap": 0.5}


def schnetpack():
    block = "representation.interactions.0"
    shapes = {
        "representation.embedding.weight": (10, 4),
        "representation.cutoff_fn.cutoff": (1,),
        "representation.radial_basis.offsets": (5,),
        "representation.radial_basis.widths": (5,),
        f"{block}.in2f.weight": (3, 4),
    }
    layers = {
        f"{block}.filter_network.0": (3, 5), f"{block}.filter_network.1": (3, 3),
        f"{block}.f2out.0": (4, 3), f"{block}.f2out.1": (4, 4),
        "output_modules.0.outnet.0": (2, 4), "output_modules.0.outnet.1": (1, 2),
    }  # fmt: skip
    shapes |= {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    arrays = random_arrays(shapes)
    arrays["representation.cutoff_fn.cutoff"] = np.array([CUTOFF])
    return arrays, {"nb": 4, "nf": 3}


def mlcg():
    block = "interaction_blocks.0"
    shapes = {
        "embedding_layer.weight": (10, 4),
        "rbf_layer.means": (5,),
        "rbf_layer.betas": (5,),
        f"{block}.conv.lin1.weight": (3, 4),
        f"{block}.conv.filter_network.layers.2.weight": (3, 3),
        "output_network.layers.2.weight": (1, 2),
    }
    layers = {
        f"{block}.conv.filter_network.layers.0": (3, 5), f"{block}.conv.lin2": (4, 3),
        f"{block}.lin": (4, 4), "output_network.layers.0": (2, 4),
    }  # fmt: skip
    shapes |= {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    return random_arrays(shapes), {"cutoff_upper": CUTOFF, "activation": "tanh"}


def dtnn():
    shapes = {
        "Dense/W": (10, 4), "Dense_1/W": (8, 3), "Dense_1/b": (3,), "in2fac/W": (4, 3),
        "in2fac/b": (3,), "fac2out/W": (3, 4), "Dense_2/W": (4, 2), "Dense_2/b": (2,),
        "Dense_3/W": (2, 1), "Dense_3/b": (1,), "std": (), "mu": (), "Embedding/W": (10, 1),
    }  # fmt: skip
    arrays = {f"model/{name}": np.asarray(a) for name, a in random_arrays(shapes).items()}
    return arrays, {"model_arguments": {"n_interactions": 2, "cutoff": 4.0, "rdf_spacing": 0.5}}


def directional(kind, **options):
    def make():
        model = kind(
            4, num_blocks=1, num_spherical=3, num_radial=2, num_elements=9, num_output_layers=1,
            **options,
        )  # fmt: skip
        arrays = {}
        for name, parameter in model.named_parameters():
            matrix = name.endswith(".weight") and not name.endswith("emb.weight")
            value = parameter.detach().numpy()
            arrays[dimenet._official_name(name)] = value.T if matrix else value
        return arrays, {"cutoff": 5.0, "envelope_exponent": 5}

    return make


def official_physnet():
    shapes = {
        "embeddings": (9, 4), "rbf_layer/centers": (3,), "rbf_layer/widths": (3,),
        "Escale": (9,), "Eshift": (9,), "Qscale": (9,), "Qshift": (9,),
        "s6": (), "s8": (), "a1": (), "a2": (),
        "interaction_block0/interaction_layer/u": (4,),
        "interaction_block0/interaction_layer/k2f/W": (3, 4),
        "output_block0/dense_layer/W": (4, 2),
    }  # fmt: skip
    for name in ("dense_i", "dense_j", "dense"):
        shapes[f"interaction_block0/interaction_layer/{name}/W"] = (4, 4)
        shapes[f"interaction_block0/interaction_layer/{name}/b"] = (4,)
    for block in ("interaction_block0/interaction_layer", "interaction_block0", "output_block0"):
        for layer in ("dense", "residual"):
            shapes[f"{block}/residual_layer0/{layer}/W"] = (4, 4)
            shapes[f"{block}/residual_layer0/{layer}/b"] = (4,)
    arrays = {name: np.asarray(value) for name, value in random_arrays(shapes).items()}
    return arrays, {"sr_cut": 5.0}


FILES = {
    "SchNet 2018": official_schnet,
    "SchNetPack": schnetpack,
    "mlcg": mlcg,
    "DTNN": dtnn,
    "DimeNet": directional(DimeNet, num_bilinear=2),
    "DimeNet++": directional(DimeNetPlusPlus, int_emb_size=3, basis_emb_size=2, out_emb_size=5),
    "PhysNet": official_physnet,
}


@pytest.fixture(params=FILES)
def file(request):
    return FILES[request.param]()


def saved(folder, arrays, meta):
    np.savez(folder / "weights.npz", **arrays, meta_json=np.array(json.dumps(meta)))
    return folder / "weights.npz"


def test_the_files_as_they_should_be(tmp_path, file):
    load(saved(tmp_path, *file))


#: What says how many elements or functions there are, and may be longer.
SIZES = (
    "representation.embedding.weight",
    "embedding_layer.weight",
    "model/Dense_1/W",
    "emb_block/embeddings",
    "int_blocks/0/dense_sbf/kernel",
    "int_blocks/0/dense_sbf1/kernel",
    "model/Embedding/W",
    "interaction_0/SchNetFilter/Dense/W:0",
    "atomref/embeddings/W:0",
)


def test_every_shape_is_compared(tmp_path, file):
    """No array may be spread over what has another shape: a number for a vector of centres, say."""
    arrays, meta = file
    for name, value in arrays.items():
        single = value.size == 1  # as a number these are right in any shape
        others = {
            "number": value.reshape(-1)[0],
            "one": value.reshape(-1)[:1],
            "row": value.reshape(-1)[None],
            "empty": value.reshape(-1)[:0],
            "longer": np.concatenate([value, value]) if value.ndim else None,
            "more": value[..., None, None],
        }
        for kind, other in others.items():
            if other is None or other.shape == value.shape or (single and other.size == 1):
                continue
            if kind == "longer" and name in SIZES:
                continue
            with pytest.raises(ValueError, match=r"^\S*weights\.npz: \S[^\n]*$"):
                load(saved(tmp_path, {**arrays, name: other}, meta))


@pytest.mark.parametrize("value", ["text", None, [], {}, True, [1, 2]])
def test_every_option_is_a_number(tmp_path, file, value):
    arrays, meta = file
    for name in meta:
        with pytest.raises(ValueError, match=r"weights\.npz: \S[^\n]*$"):
            load(saved(tmp_path, arrays, {**meta, name: value}))
    if "model_arguments" in meta:
        inner = meta["model_arguments"]
        for name in inner:
            with pytest.raises(ValueError, match=rf"{name} must be a number"):
                load(saved(tmp_path, arrays, {"model_arguments": {**inner, name: value}}))


def test_unknown_options(tmp_path, file):
    arrays, meta = file
    with pytest.raises(
        ValueError, match=r"attention=4 is an option|the conversion does not know: .*attention"
    ):
        load(saved(tmp_path, arrays, {**meta, "attention": 4}))


CONTRADICTIONS = {
    "SchNet 2018": [{"n_basis": 5}, {"n_gaussians": 6}, {"intensive": True}],
    "SchNetPack": [{"cut": 5.0}, {"nr": 6}, {"ni": 2}],
    "mlcg": [{"activation": "silu"}, {"cutoff_lower": 0.5}, {"hidden": 7}],
    "DimeNet": [{"emb_size": 5}, {"num_radial": 3}, {"activation": "relu"}, {"kind": "x"}],
    "DimeNet++": [{"int_emb_size": 4}, {"num_dense_output": 3}],
    "PhysNet": [{"F": 5}, {"num_residual_output": 2}],
    "DTNN": [{"max_atomic_number": 20}, {"n_factors": 4}, {"attention": 1}],
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_options_that_the_arrays_contradict(tmp_path, name):
    arrays, meta = FILES[name]()
    for change in CONTRADICTIONS[name]:
        ((key, value),) = change.items()
        changed = {**meta, **change}
        if name == "DTNN":
            changed = {"model_arguments": {**meta["model_arguments"], **change}}
        with pytest.raises(ValueError, match=rf"{key}(=| is ){value!r}"):
            load(saved(tmp_path, arrays, changed))


@pytest.mark.parametrize("dtype", [np.float16, np.int32])
def test_types_that_no_model_has(tmp_path, file, dtype):
    arrays, meta = file
    changed = {name: value.astype(dtype) for name, value in arrays.items()}
    if "representation.cutoff_fn.cutoff" in changed:
        changed["representation.cutoff_fn.cutoff"] = np.array([CUTOFF])
    with pytest.raises(ValueError, match=r"weights\.npz: .*models are float32 or float64"):
        load(saved(tmp_path, changed, meta))


def test_random_changes(tmp_path, file):
    """A file is read or refused in one line, whatever is exchanged in it."""
    arrays, meta = file
    random = np.random.default_rng(0)
    names = list(arrays)
    for _ in range(40):
        changed = dict(arrays)
        first, second = random.choice(names, 2)
        match random.integers(4):
            case 0:
                changed[first] = arrays[second]
            case 1:
                del changed[first]
            case 2:
                changed[first] = arrays[first].reshape(-1)[:2]
            case _:
                changed[f"{first}x"] = changed.pop(first)
        said = refusal(saved(tmp_path, changed, meta))
        if said is not None:
            assert said.startswith(str(tmp_path / "weights.npz: "))
            assert "\n" not in said
            assert "it is not what it seems" not in said


def refusal(path):
    try:
        load(path)
    except ValueError as error:
        return str(error)
    return None


class Planted:
    """Code that runs when a pickle is read by itself."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


CONFIG = {"model_type": "PhysNet", "model_cutoff": 6.0}


def test_checkpoints_that_are_none(tmp_path):
    trace = tmp_path / "trace"
    bad = {
        "text.pt": b"not a checkpoint",
        "empty.pt": b"",
        "code.pt": pickle.dumps({"model_state_dict": Planted(trace)}),
        "old.pt": pickle.dumps({"a": 1}),
        "zip.pt": b"PK\x03\x04" + bytes(60),
    }
    torch.save({"model_state_dict": Planted(trace)}, tmp_path / "zipped_code.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    for name in (*bad, "zipped_code.pt", "module.pt"):
        with pytest.raises(ValueError, match=rf"^\S*{name} is not a checkpoint of [^\n]*$"):
            from_asparagus(tmp_path / name, CONFIG)
    assert not trace.exists()
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(ValueError, match=r"tensor\.pt holds a Tensor, no state of a model"):
        from_asparagus(tmp_path / "tensor.pt", CONFIG)
    torch.save({"model_state_dict": [1]}, tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt holds a list, no state of a model"):
        from_asparagus(tmp_path / "list.pt", CONFIG)
    torch.save({"input_module.atom_features.weight": 3}, tmp_path / "number.pt")
    with pytest.raises(ValueError, match=r"number\.pt: input_module.* is a int, no tensor"):
        from_asparagus(tmp_path / "number.pt", CONFIG)
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        from_asparagus(tmp_path / "absent.pt", CONFIG)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"config\.json is not a text"):
        from_asparagus({}, tmp_path / "config.json")
