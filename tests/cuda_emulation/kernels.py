"""The CUDA kernels by name: those in csrc, and those that a run of the tests has launched."""

import re
from pathlib import Path

import molkern

CSRC = Path(__file__).parents[2] / "csrc"
KERNEL = re.compile(r"__global__\s+void\s*(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\))?\s*(\w+)")


def sources() -> list[Path]:
    return [*CSRC.glob("*/*.cu"), *CSRC.glob("*/*.cuh")]


def kernels() -> list[str]:
    return sorted(name for source in sources() for name in KERNEL.findall(source.read_text()))


def launched() -> set[str]:
    """By this process; by none where nothing counts them."""
    count = getattr(molkern._C, "launched_kernels", None)
    return set(count()) if count else set()
