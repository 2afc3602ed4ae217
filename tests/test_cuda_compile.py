"""The CUDA side compiles without a GPU, for old ones and new: kernels, and what meets torch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import kernel_resources  # noqa: E402
from kernel_resources import CAPABILITIES, compile_kernels, sources, table  # noqa: E402

pytestmark = pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")


@pytest.fixture(scope="module")
def toolkit() -> Path:
    command = ["nvcc", "--dryrun", "-x", "cu", "-c", os.devnull]
    plan = subprocess.run(command, capture_output=True, text=True).stderr
    top = next(line for line in plan.splitlines() if line.startswith("#$ TOP="))
    return Path(top.removeprefix("#$ TOP=")).resolve()


# The oldest; the table has all, made of the same code. All would take several times as long.
COMPILED = [75]


TORCH_SIDE = [*sorted(ROOT.glob("csrc/*/*_op.cpp")), ROOT / "csrc" / "common" / "torch_utils.cpp"]


@pytest.mark.parametrize("source", sources(), ids=lambda path: path.stem)
def test_kernels_compile_without_spills(source: Path) -> None:
    rows = list(compile_kernels(source, COMPILED))
    assert {row.capability for row in rows} == set(COMPILED)
    spilling = [row for row in rows if (row.spills or row.stack) and not row.cold]
    assert spilling == []
    listed = {(row.kernel, row.capability, row.code) for row in table()}
    missing = {(row.kernel, c, row.code) for row in rows for c in CAPABILITIES} - listed
    assert not missing, "out of date: run python benchmarks/kernel_resources.py"


def test_digests_follow_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_resources, "ROOT", tmp_path)
    (tmp_path / "csrc").mkdir()
    header, source = tmp_path / "csrc" / "a.h", tmp_path / "csrc" / "a_cuda.cu"
    header.write_text("int a = 1;")
    source.write_text('#include "a.h"\n#include <vector>\nint b = a;')
    first = kernel_resources.digest(source)
    source.write_text('#include "a.h"\n#include <vector>\n\n  int b = a;  // the same')
    assert kernel_resources.digest(source) == first
    header.write_text("int a = 2;")
    assert kernel_resources.digest(source) != first


def test_no_kernel_in_the_table_spills() -> None:
    """For no capability, those included that are not compiled for here."""
    assert [row for row in table() if (row.spills or row.stack) and not row.cold] == []


@pytest.mark.parametrize("source", TORCH_SIDE, ids=lambda path: path.stem)
def test_the_torch_side_compiles_with_cuda(source: Path, toolkit: Path) -> None:
    from torch.utils import cpp_extension

    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-fsyntax-only", "-Wall", "-Werror"]
    command += ["-fopenmp", "-DMOLKERN_WITH_BASELINE", "-DMOLKERN_WITH_CUDA"]
    command += ["-DMOLKERN_HAS_CUDA_KERNELS"]
    # torch's wheel for the CPU lacks a header that its build generates.
    command += ["-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE", f"-I{ROOT / 'csrc'}"]
    command += [f"-isystem{path}" for path in cpp_extension.include_paths()]
    command += [f"-isystem{toolkit / 'include'}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
