"""Models in files: those that are damaged, foreign or of another's making are refused in a line."""

import json
import resource
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from molkern.models import DTNN, DimeNet, DimeNetPlusPlus, PhysNet, Potential, SchNet, load

pytestmark = pytest.mark.unemulated  # launches no kernel that others do not


MODELS = {
    "SchNet": lambda: SchNet(8, 8, 1, 8, num_elements=10, trainable_basis=True),
    "references": lambda: SchNet(
        8, 8, 1, 8, reference=[0.5] * 120, trainable_reference=True, activation="ssp_pyg"
    ),
    "exponential": lambda: SchNet(8, 8, 2, 8, basis="exponential", head_hidden=[5, 6]),
    "official": lambda: SchNet.official(8, 1, cutoff=2.0),
    "DTNN": DTNN,
    "extent": lambda: DTNN(prediction="electronic_spatial_extent", reference=[1.0] * 20),
    "PhysNet": lambda: PhysNet(8, 8, 1, num_elements=10),
    "gaussian": lambda: PhysNet(8, 8, 2, basis="gaussian", energy_shift=[1.0] * 95, lr_cut=9.0),
    "dipole": lambda: PhysNet(8, 1, 1, prediction="dipole_moment"),
    "DimeNet": lambda: DimeNet(
        8, 2, num_blocks=1, readout=["sum", "mean"], reference=[[1.0, 2.0]] * 95
    ),
    "DimeNet++": lambda: DimeNetPlusPlus(8, int_emb_size=4, out_emb_size=8, num_blocks=1),
}


def described(content):
    """The tensors and the description of a model's file."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return safetensors.torch.load(content), json.loads(header["__metadata__"]["molkern"])


def made(tensors, description):
    text = description if isinstance(description, str) else json.dumps(description)
    return safetensors.torch.save(tensors, metadata={"molkern": text})


def refusal(path, content=None):
    """The error of a file, if there is one: always a ValueError of a line with its name."""
    if content is not None:
        path.write_bytes(content)
    before = time.monotonic()
    try:
        load(path)
    except ValueError as error:
        text = str(error)
        assert str(path) in text
        assert "\n" not in text
        assert len(text) < len(str(path)) + 600
        return text
    finally:
        assert time.monotonic() - before < 5
    return None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_what_was_saved_comes_back(name, dtype, tmp_path):
    model = MODELS[name]().to(dtype)
    model.save(tmp_path / "m.safetensors")
    found = load(tmp_path / "m.safetensors")
    assert not found.training
    assert found.config == model.config
    for (key, a), (other, b) in zip(
        model.state_dict().items(), found.state_dict().items(), strict=True
    ):
        assert key == other
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    trainable = [p.requires_grad for p in model.parameters()]
    assert [p.requires_grad for p in found.parameters()] == trainable
    hidden = {key: b.shape for key, b in model.named_buffers()}
    assert {key: b.shape for key, b in found.named_buffers()} == hidden


def test_shared_weights_are_written_for_each_of_their_names():
    model = SchNet(8, 8, 2, 8)
    model.interactions[1].lin = model.interactions[0].lin
    found = load(model.to_bytes())
    assert torch.equal(found.interactions[1].lin.weight, model.interactions[0].lin.weight)


def test_dispersion_comes_back():
    pytest.importorskip("tad_dftd3")
    model = PhysNet(8, 8, 1, use_dispersion=True, lr_cut=9.0, trainable_dispersion=False)
    found = load(model.to_bytes())
    for a, b in zip(model.buffers(), found.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", MODELS)
def test_the_host_neither_matters_nor_changes(name):
    content = MODELS[name]().to_bytes()
    expected = load(content).state_dict()
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    before = torch.get_default_dtype()
    try:
        torch.set_default_device("meta")
        torch.set_default_dtype(torch.float64)
        with torch.inference_mode():
            found = load(content)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)
    assert torch.equal(torch.rand(4), wanted)
    for key, value in found.state_dict().items():
        assert torch.equal(value, expected[key])
        assert value.dtype == expected[key].dtype
        assert not value.is_inference()


@pytest.mark.parametrize("name", ["SchNet", "PhysNet", "DimeNet"])
def test_bytes_that_were_changed(name, tmp_path):
    """Some hundred damaged files: a model comes of them, or an error of one line."""
    content = MODELS[name]().to_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    rng = np.random.default_rng(5)
    errors = 0
    for k in range(150):
        changed = bytearray(content)
        if k % 10 == 0:
            del changed[int(rng.integers(len(content))) :]
        else:
            for place in rng.integers(8 if k % 3 else 0, header, size=int(rng.integers(1, 4))):
                changed[place] = int(rng.integers(32, 127)) if k % 2 else int(rng.integers(256))
        errors += refusal(tmp_path / "m.safetensors", bytes(changed)) is not None
    assert errors > 100


STRANGE = (None, True, -1, 0, 10**12, 1e400, 1.5, "x", "7" * 5000, [], {}, [1, [2]], [10**12])


@pytest.mark.parametrize("name", ["SchNet", "DTNN", "PhysNet", "DimeNet++"])
def test_arguments_that_were_changed(name, tmp_path):
    tensors, description = described(MODELS[name]().to_bytes())
    path, errors = tmp_path / "m.safetensors", 0
    for key in [*description["config"], "unknown", "self"]:
        for value in STRANGE:
            config = {**description["config"], key: value}
            content = made(tensors, {**description, "config": config})
            errors += refusal(path, content) is not None
    assert errors > 100
    for value in (*STRANGE, "[" * 100_000, '{"format": 1}', '{"format": 1, "model": [1]}'):
        assert refusal(path, made(tensors, value if isinstance(value, str) else {"format": value}))
    for key in description:
        for value in (None, "x" * 5000, -1.5, [description[key]]):
            assert refusal(path, made(tensors, {**description, key: value}))
        rest = {k: v for k, v in description.items() if k != key}
        assert refusal(path, made(tensors, rest))


@pytest.mark.parametrize(
    "change",
    [
        dict(hidden_channels=60_000),
        dict(num_filters=60_000),
        dict(num_interactions=10**6),
        dict(num_basis=10**10),
        dict(num_elements=10**9),
        dict(head_hidden=[60_000, 60_000]),
        dict(num_basis=10**6),
        dict(hidden_channels=2**62),
    ],
    ids=str,
)
def test_sizes_are_compared_before_anything_is_made(change, tmp_path):
    tensors, description = described(MODELS["SchNet"]().to_bytes())
    description["config"] |= change
    load(MODELS["SchNet"]().to_bytes())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert refusal(tmp_path / "m.safetensors", made(tensors, description))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_radial_functions_are_not_searched_for_without_end(tmp_path):
    tensors, description = described(MODELS["DimeNet"]().to_bytes())
    tensors["embedding.lin_rbf.weight"] = torch.zeros(8, 200_000)
    description["config"]["num_radial"] = 200_000
    assert refusal(tmp_path / "m.safetensors", made(tensors, description))


def test_tensors_that_do_not_fit(tmp_path):
    path = tmp_path / "m.safetensors"
    tensors, description = described(MODELS["SchNet"]().to_bytes())
    weight = tensors["embedding.weight"]
    whole = tensors | {"embedding.weight": torch.zeros(10, 8, dtype=torch.int64)}
    assert refusal(path, made(whole, description))
    counts = tensors | {"head.layers.2.bias": torch.zeros(1, dtype=torch.int64)}
    assert "head.layers.2.bias is of type torch.int64" in refusal(path, made(counts, description))
    assert "has unknown tensors (more)" in refusal(
        path, made(tensors | {"more": weight.clone()}, description)
    )
    fewer = {key: value for key, value in tensors.items() if key != "reference.mean"}
    assert "lacks tensors (reference.mean)" in refusal(path, made(fewer, description))
    other = tensors | {"reference.mean": torch.zeros(3)}
    assert "reference.mean has shape [3]" in refusal(path, made(other, description))
    without = {key: value for key, value in tensors.items() if not key.startswith("embedding")}
    assert refusal(path, made(without, description))
    assert refusal(path, made({}, description))


def test_foreign_files(tmp_path):
    for name, content in (
        ("empty", b""),
        ("text", b"not a model"),
        ("zip", b"PK\x03\x04" + bytes(100)),
        ("pickle", b"\x80\x04\x95" + bytes(100)),
        ("long", (2**40).to_bytes(8, "little") + b"{" + bytes(50)),
        ("other", safetensors.torch.save({"a": torch.zeros(1)})),
        ("strange", safetensors.torch.save({"a": torch.zeros(1)}, metadata={"molkern": "1"})),
    ):
        assert refusal(tmp_path / name, content), name
    with pytest.raises(FileNotFoundError, match="none"):
        load(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        load(tmp_path)


def test_newer_formats_say_so(tmp_path):
    tensors, description = described(MODELS["DTNN"]().to_bytes())
    text = refusal(tmp_path / "m", made(tensors, {**description, "format": 99, "model": "New"}))
    assert "holds a New in format 99" in text
    assert "update molkern" in text


class Own(SchNet):
    """A model that molkern does not know, with a random tensor of its own."""

    def __init__(self, width, **config):
        super().__init__(width, width, 1, 8, num_elements=10)
        self.more = nn.Parameter(torch.rand(width))
        self.remember(width=width, **config)


def test_models_of_ones_own(tmp_path):
    path = tmp_path / "own.safetensors"
    model = Own(8)
    model.save(path)
    text = refusal(path)
    assert "holds a Own" in text
    assert "load(path, classes=[Own])" in text
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    found = load(path, classes=[Own])
    assert torch.equal(torch.rand(3), wanted)
    assert isinstance(found, Own)
    assert torch.equal(found.more, model.more)
    assert isinstance(load(SchNet(8, 8, 1, 8).to_bytes(), classes=[Own]), SchNet)
    for wrong in (Own, ["Own"], [model]):
        with pytest.raises(TypeError, match="classes must be a list of models' classes"):
            load(path, classes=wrong)


class Tied(Own):
    """One whose layers share their weights."""

    def __init__(self, width):
        super().__init__(width)
        self.again = self.head.layers[0]
        self.once_more = nn.ParameterList([self.more])
        self.remember(width=width)


def test_weights_that_are_shared_stay_so(tmp_path):
    model = Tied(8).double()
    model.filters = "spline"
    found = load(model.to_bytes(), classes=[Tied])
    assert found.filters == "spline"
    assert found.once_more[0] is found.more
    assert found.again is found.head.layers[0]
    assert found.more.dtype == torch.float64
    assert torch.equal(found.more, model.more)


class Careless(Potential):
    """One that does not keep its arguments."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, 1)


def test_what_cannot_be_saved_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"Careless does not keep .* self\.remember"):
        Careless(3).save(tmp_path / "m")
    model = Own(8)
    model.remember(width=8, table=torch.zeros(3))
    with pytest.raises(ValueError, match=r"Own .* plain JSON values: .*Tensor"):
        model.save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_types_without_kernels_are_told_what_to_do(crystal):
    import molkern

    numbers, positions, cell = crystal
    batch = molkern.AtomicBatch(numbers, positions.float(), cell=cell.float())
    model = load(MODELS["SchNet"]().bfloat16().to_bytes())
    with pytest.raises(TypeError, match=r"weights are torch\.bfloat16.*model\.float\(\)"):
        model(batch)
    with pytest.raises(TypeError, match=r"torch\.bfloat16.*model\.float\(\)"):
        model.spline_report()
    model.float()(batch)


def test_weights_that_are_no_numbers_are_named(crystal):
    model = MODELS["SchNet"]().double()
    with torch.no_grad():
        model.interactions[0].filter_network.layers[0].weight[0, 0] = torch.nan
    model.filters = "spline"
    with pytest.raises(ValueError, match=r"filters are not finite .* weights of the model are NaN"):
        model.spline_report()
