"""Commands in programs that have torch in modes of their own."""

import contextlib
from pathlib import Path

import pytest
import torch

pytest.importorskip("pytorch_lightning")
from test_cli_train import TRAIN


@contextlib.contextmanager
def default_type(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


MODES = [
    torch.inference_mode(),
    torch.device("meta"),
    default_type(torch.bfloat16),
    torch.autocast("cpu", torch.bfloat16),
]
COMMANDS = {
    "train": (f"{TRAIN} --restart", ["run/best.safetensors", "run/split.npz"]),
    "test": ("test run --part validation --device cpu", ["run/validation.json"]),
    "predict": ("predict run ethanol.xyz --out p.csv --device cpu --restart", ["p.csv"]),
    "evaluate": ("evaluate ethanol.xyz --out e.csv --restart", ["e.csv"]),
    "md": ("md ethanol.xyz --steps 4 --every 2 --out t.xyz --restart", ["t.xyz", "t.csv"]),
}


@pytest.fixture
def outputs(molkern, ethanol):
    """Runs all commands, and gives what they wrote."""

    def run():
        found = {}
        for name, (command, files) in COMMANDS.items():
            molkern(command)
            found |= {f"{name}: {file}": Path(file).read_bytes() for file in files}
        return found

    return run


def test_results_do_not_depend_on_modes(outputs):
    """In all of them at once."""
    expected = outputs()

    def modes():
        inference = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        kinds = torch.get_default_dtype(), str(torch.get_default_device())
        return *inference, *kinds, torch.is_autocast_enabled("cpu")

    with contextlib.ExitStack() as stack:
        for mode in MODES:
            stack.enter_context(mode)
        before = modes()
        found = outputs()
        assert modes() == before
    assert [file for file in found if found[file] != expected[file]] == []
