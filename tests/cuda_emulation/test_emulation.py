"""The emulation catches what a GPU would not forgive: every broken kernel fails in its own way."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
SOURCES = ["broken_kernels.cu", "emulation.cpp", "fiber.cpp"]

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


def build(target: Path, *flags: str) -> Path:
    command = [COMPILER, "-std=c++20", "-ffp-contract=off", *flags, "-DMOLKERN_EMULATE_CUDA"]
    command += [f"-I{HERE}", f"-I{ROOT / 'csrc'}", "-x", "c++"]
    command += [str(HERE / name) for name in SOURCES]
    subprocess.run([*command, "-o", str(target)], check=True)
    return target


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("emulation") / "broken_kernels", "-O2")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("emulation") / "sanitized_kernels"
    try:
        return build(target, "-O1", "-g", "-fsanitize=address,undefined")
    except subprocess.CalledProcessError:
        pytest.skip("the compiler has no sanitizers")


def run(program: Path, kernel: str, seed: int = 0) -> str:
    environment = {**os.environ, "MOLKERN_EMULATION_SEED": str(seed)}
    done = subprocess.run([program, kernel], capture_output=True, text=True, env=environment)
    return done.stdout + done.stderr


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("missed_barrier", "is not reached by all threads"),
        ("two_barriers", "while another thread is at the one at line"),
        ("barrier_within_exchange", "deadlock: it waits at line"),
        ("exited_lane", "exit"),
        ("absent_lane", "names lane 16, which is absent"),
        ("own_lane_left_out", "its own lane is not in the mask"),
        ("different_exchanges", "is in another warp exchange"),
        ("no_dynamic_shared", "asks for dynamic shared memory"),
        ("too_many_threads", "a block of 2048 threads"),
        ("empty_grid", "a grid of 0 x 1 x 1 blocks"),
        ("too_much_shared", "61440 bytes of dynamic shared memory are more than 49152"),
    ],
)
def test_errors_name_the_kernel(program: Path, kernel: str, message: str, seed: int) -> None:
    answer = run(program, kernel, seed)
    assert answer.startswith(f"error: CUDA emulation: kernel {kernel}, block (")
    assert message in answer


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "kernel", ["unwritten_shared", "unwritten_dynamic_shared", "read_outside_mask"]
)
def test_what_nobody_wrote_is_not_a_number(program: Path, kernel: str, seed: int) -> None:
    assert run(program, kernel, seed).split()[0] in ("nan", "-nan")


@pytest.mark.parametrize("kernel", ["race", "arrival_order"])
def test_shuffled_order_shows_results_that_depend_on_it(program: Path, kernel: str) -> None:
    assert len({run(program, kernel, seed) for seed in range(3)}) == 3
    assert run(program, kernel, 1) == run(program, kernel, 1)


def test_a_sound_kernel_gives_one_result_in_every_order(program: Path, sanitized: Path) -> None:
    results = {run(program, "sound", seed) for seed in range(20)} | {run(sanitized, "sound")}
    # Each of the 512 threads at place k gives (0 + ... + 127) + 128.
    expected = (127 * 64 + 128) * 512 * 513 // 2
    assert results == {f"{expected}\nsound\n"}


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("beyond_shared", "heap-buffer-overflow"),
        ("beyond_global", "heap-buffer-overflow"),
        ("misaligned", "misaligned address"),
        ("exited_lane", "it exits while lane 0 waits"),
    ],
)
def test_sanitizers_see_into_kernels(sanitized: Path, kernel: str, message: str) -> None:
    assert message in run(sanitized, kernel)
