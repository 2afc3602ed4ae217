"""The README's examples run as they stand."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=[str(k) for k in range(len(BLOCKS))])
def test_example(code, tmp_path, monkeypatch):
    if "torch_geometric" in code:
        pytest.importorskip("torch_geometric")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_there_are_examples():
    assert len(BLOCKS) >= 3
