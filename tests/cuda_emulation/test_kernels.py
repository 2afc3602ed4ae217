"""The operators' CUDA kernels in the emulation: all of them run, in any order of threads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_emulation.kernels import kernels, sources

import molkern

pytestmark = pytest.mark.skipif(
    not molkern.build_info()["cuda_emulation"], reason="not a build of the emulated kernels"
)


def test_every_kernel_is_found_by_name() -> None:
    """So that --every-kernel, see conftest, asks for all of them."""
    assert len(kernels()) == sum(source.read_text().count("__global__") for source in sources())


DIGEST = "from cuda_emulation.test_kernels import digest; print(digest())"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_result_depends_on_the_order_of_threads(dtype: str) -> None:
    seen = set()
    for seed in range(4):
        settings = {"MOLKERN_EMULATION_SEED": str(seed), "DTYPE": dtype}
        path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
        done = subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, **settings, "PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        seen.add(done.stdout)
    assert len(seen) == 1


def digest() -> str:
    """Of neighbor lists, of a model's energy, forces, stress and weight gradients, and of splines
    with their derivatives."""
    import hashlib

    dtype = getattr(torch, os.environ["DTYPE"])
    torch.manual_seed(0)
    positions = (torch.rand(60, 3, dtype=torch.float64) * 9).to(dtype)
    cell = (9 * torch.eye(3, dtype=torch.float64)).to(dtype) + 0.5
    batch = torch.arange(60) // 30
    found = hashlib.sha256()

    def add(*tensors: torch.Tensor | None) -> None:
        for tensor in tensors:
            if tensor is not None:
                found.update(tensor.detach().contiguous().numpy().tobytes())

    for algorithm in ("direct", "cell_list"):
        nl = molkern.neighbor_list(positions, 4.0, cell, algorithm=algorithm)
        add(nl.row_ptr, nl.senders, nl.shifts, nl.reverse)
    atoms = molkern.AtomicBatch(batch + 6, positions, batch, torch.stack([cell, 1.1 * cell]))
    for options in ({"basis": "gaussian"}, {"basis": "exponential"}):
        model = molkern.models.SchNet(40, 70, 2, 20, cutoff=4.0, **options).to(dtype)
        out = model(atoms, forces=True, stress=True)
        loss = out["forces"].square().sum() + out["stress"].square().sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        add(out["energy"], out["forces"], out["stress"], *gradients)
    distances = nl.distances(positions, cell)
    for degree in (3, 5):
        grid = molkern.ops.SplineGrid(0.5, 3.8, 20, degree)
        inputs = [torch.randn(60, 70), torch.randn(grid.rows, 70), distances]
        inputs = [value.detach().to(dtype).requires_grad_() for value in inputs]
        y = molkern.ops.spline_cfconv(*inputs, nl, grid)
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        loss = sum(value.square().sum() for value in first)
        add(y, *first, *torch.autograd.grad(loss, inputs))
    return found.hexdigest()
