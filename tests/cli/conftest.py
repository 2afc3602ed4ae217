"""Structures in files, and the command in this process."""

import pytest
from typer.testing import CliRunner

from molkern.cli import app
from molkern.data import ethanol_frames


@pytest.fixture
def molkern(tmp_path, monkeypatch):
    """Runs ``molkern ARGUMENTS`` in a folder of its own, with one thread."""
    monkeypatch.chdir(tmp_path)

    def run(command, code=0, **options):
        arguments = command.split()
        if arguments[0] in ("md", "evaluate"):
            arguments += ["--model", options.get("model", "ethanol"), "--threads", "1"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == code, result.output
        if code == 1:
            lines = result.stderr.strip().splitlines()
            assert lines[-1].startswith("molkern: ")
            assert "Traceback" not in result.stderr
            return lines[-1]
        return result.stdout

    return run


@pytest.fixture
def ethanol(tmp_path):
    """Ethanol as a file of three frames."""
    from ase import Atoms
    from ase.io import write

    frames = ethanol_frames()["test"]
    path = tmp_path / "ethanol.xyz"
    write(path, [Atoms(frames.numbers.numpy(), p.numpy()) for p in frames.positions[:3]])
    return path
