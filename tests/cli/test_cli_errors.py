"""Errors that nobody foresaw: one line too, and how to see more."""

import pytest

from molkern.cli import app
from molkern.md import command


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("this is wrong\nand more"), "molkern: this is wrong"),
        (RuntimeError("\n\n  torch says\n"), "molkern:   torch says"),
        (EOFError(), "molkern: EOFError:  (MOLKERN_TRACEBACK=1 tells where)"),
        (EOFError("no data"), "molkern: EOFError: no data (MOLKERN_TRACEBACK=1 tells where)"),
        (KeyError("x"), "molkern: KeyError: 'x' (MOLKERN_TRACEBACK=1 tells where)"),
        (MemoryError(), "molkern: MemoryError:  (MOLKERN_TRACEBACK=1 tells where)"),
    ],
    ids=repr,
)
def test_one_line(molkern, monkeypatch, error, text):
    def fails(model):
        raise error

    monkeypatch.setattr(command, "description", fails)
    assert molkern("info", code=1) == text


def test_the_whole_of_it(monkeypatch):
    from typer.testing import CliRunner

    monkeypatch.setenv("MOLKERN_TRACEBACK", "1")
    result = CliRunner().invoke(app, ["info", "--model", "none"])
    assert isinstance(result.exception, ValueError)


def test_a_demonstration_that_cannot_be_written(molkern, tmp_path):
    assert "no is not a folder" in molkern("demo --steps 100 --out no/x.png", code=1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("plot filters ethanol --cell -1", "periodic_cell must be an edge"),
        ("train schnet-ethanol-small --set training.seed=9223372036854775808", "training.seed"),
        ("train schnet-ethanol-small --set data.split.seed=1e30", "data.split.seed"),
        (
            "train schnet-ethanol-small --set data.format=auto --set data.path=''",
            "data.path is miss",
        ),
        (
            "train schnet-ethanol-small --set data.split.file=no.npz",
            "no.npz is not there: check its",
        ),
        ("train schnet-ethanol-small --device what", "device 'what' is unknown: use cpu, cuda"),
        ("predict none in.xyz --device what", "device 'what' is unknown: use cpu, cuda"),
        ("test none --device what", "device 'what' is unknown: use cpu, cuda"),
    ],
)
def test_arguments_out_of_range(molkern, tmp_path, line, message):
    pytest.importorskip("pytorch_lightning")
    assert message in molkern(line, code=1)
    assert list(tmp_path.iterdir()) == []
