"""The script of the GPU run, tried on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--skip-build", *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_kernels_and_ceilings(tmp_path):
    out = tmp_path / "figures.json"
    options = ["--only", "ceilings", "kernels", "--atoms", "60", "--out", str(out)]
    done = run("--device", "cpu", *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report["ceilings"]["memory_GB_per_s"] > 0
    names = [row["name"] for row in report["kernels"]]
    assert {"neighbor_list", "distances", "radial_double", "cfconv_backward"} <= set(names)
    assert {"spline_bins", "spline_cfconv", "spline_cfconv_double"} <= set(names)
    assert {"dtnn_message", "dtnn_message_backward"} <= set(names)
    assert {"spherical_radial", "spherical_backward", "spherical_double"} <= set(names)
    for row in report["kernels"]:
        assert row["same_bits"], row["name"]
        assert row["seconds"] > 0
        assert row.get("difference_from_cpu", 0) == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu():
    done = run()
    assert done.returncode == 1
    assert "no NVIDIA GPU was found" in done.stderr
