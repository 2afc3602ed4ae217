"""The build, the command line and the demonstration."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import molkern
from molkern.cli import app

ROOT = Path(__file__).parents[1]


def test_build_info():
    info = molkern.build_info()
    assert info["cpu_instruction_set_in_use"] in info["cpu_instruction_sets"]
    assert set(info) >= {"compiler", "torch", "cuda", "cuda_architectures", "cuda_emulation"}


@pytest.mark.parametrize("isa", molkern.build_info()["cpu_instruction_sets"])
def test_instruction_set_can_be_lowered(isa):
    code = "import molkern; print(molkern.build_info()['cpu_instruction_set_in_use'])"
    environment = {**os.environ, "MOLKERN_ISA": isa}
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    order = molkern.build_info()["cpu_instruction_sets"]
    assert order.index(out.stdout.strip()) <= order.index(isa)


@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm from binutils")
def test_wider_instruction_sets_share_no_inline_function_of_their_own():
    """An inline function must have its first copy in the baseline objects, see setup.py."""
    objects = sorted(ROOT.glob("build/objects-*/plain/shared/csrc/*/*_cpu.*.o"))
    if not objects:
        pytest.skip("no object files here: molkern was not built in this checkout")

    def weak_symbols(path):
        out = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
        return set(re.findall(r" [WVu] (\S+)", out))

    baseline = set()
    for path in objects:
        if ".baseline." in path.name:
            baseline |= weak_symbols(path)
    for path in objects:
        isa = path.name.split(".")[1]  # in the names of kernels, by template argument or namespace
        foreign = {
            s
            for s in weak_symbols(path) - baseline
            if "Isa" not in s and f"{len(isa)}{isa}" not in s
        }
        assert not foreign, f"{path.name}: {sorted(foreign)}"


def test_demo(tmp_path):
    plot = tmp_path / "demo.png"
    result = CliRunner().invoke(app, ["demo", "--steps", "100", "--out", str(plot)])
    assert result.exit_code == 0, result.output
    error = float(re.search(r"force error ([\d.]+) meV/Å", result.output)[1])
    assert error < 40
    assert "steps/s" in result.output
    assert "ns/day" in result.output
    drift = float(re.search(r"drift ([+-][\d.]+) meV/ps", result.output)[1])
    assert abs(drift) < 50
    assert plot.stat().st_size > 20_000


def test_demo_does_all_its_steps():
    """Also those that no frame is due after."""
    from molkern import demo
    from molkern.data import ethanol_frames, ethanol_model

    model = ethanol_model()
    model.filters = "spline"
    found = demo.simulate(model, ethanol_frames()["test"][:1], 25, temperature=300)
    assert found.times.tolist() == [0, 5, 10, 15, 17.5]  # ten steps to warm up


def test_demo_without_a_place_for_the_plot(tmp_path):
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "none" / "demo.png")])
    assert result.exit_code == 1
    assert "is not a folder: make it" in result.output


def test_info():
    result = CliRunner().invoke(app, ["info"])
    assert result.exit_code == 0
    assert "cpu_instruction_sets: baseline" in result.output


def test_training_script(tmp_path, monkeypatch):
    from molkern.training import ethanol

    monkeypatch.setattr(ethanol, "CHECKS", 1)
    model, results = ethanol.train(steps=30)
    first = ethanol.errors(ethanol.new_model(ethanol.ethanol_frames()["train"]),
                           ethanol.ethanol_frames()["validation"])  # fmt: skip
    assert results["validation"][1] < first[1]
    assert "| test |" in ethanol.card(results, 30, 0.0)
    model.save(tmp_path / "model.safetensors")
