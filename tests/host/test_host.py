"""A good guest: whatever molkern is used for, the process is afterwards as it was before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import molkern

# The host is what is tested; other tests launch the same kernels
pytestmark = pytest.mark.unemulated
USES = Path(__file__).parent / "uses.py"


@pytest.mark.parametrize("group", ["import", "models", "adapters", "commands", "ray", "training"])
def test_nothing_in_the_host_changes(group):
    """Settings, random states, and what torch computes, before and after each use of a group."""
    root = str(Path(molkern.__file__).parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-W", "ignore", str(USES), group]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    uses = [line.split("\t", 1) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"after {uses}: {done.stderr[-2000:]}"
    changed = {use: what for use, what in uses if what and not what.startswith("skipped")}
    assert not changed
    skipped = [f"{use}: {what}" for use, what in uses if what.startswith("skipped")]
    if len(skipped) == len(uses):
        pytest.skip("; ".join(skipped))
