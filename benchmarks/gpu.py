"""Proves and times molkern on the GPU at hand: tests, sanitizers, ceilings, kernels and models.

    make gpu                                  # or: python benchmarks/gpu.py
    python benchmarks/gpu.py --skip-build --only kernels models
    python benchmarks/gpu.py --device cpu --atoms 300    # tries the script where there is no GPU

Uses the Python that runs it and what that has installed; needs no network. Peers and tools that are
missing are skipped by name. Writes one JSON file into benchmarks/results/.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import datetime
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
TOOLS = ["memcheck", "racecheck", "initcheck", "synccheck"]
STEPS = ["tests", "sanitizers", "ceilings", "kernels", "models"]
ATOMS = [3_000, 30_000, 300_000]


def say(text: str) -> None:
    print(text, flush=True)


def shell(command: list[str], timeout: float, **variables: str) -> tuple[int, str]:
    """Exit status and the end of the output; 124 where it took too long."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired as error:
        return 124, str(error)
    return done.returncode, (done.stdout + done.stderr)[-6000:]


def build(device: torch.device) -> None:
    """Builds the extension in place, for this GPU alone."""
    variables = {}
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        variables = {"MOLKERN_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
    start = time.perf_counter()
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    status, output = shell(command, 300, **variables)
    if status:
        sys.exit(f"the build failed:\n{output}")
    say(f"built in {time.perf_counter() - start:.0f} s")


# Proofs


def run_tests() -> dict[str, object]:
    """The whole suite; its tests take CUDA tensors where there is a GPU."""
    tests = [str(path) for path in sorted((ROOT / "tests").iterdir()) if is_tests(path)]
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-rf", *tests]
    start = time.perf_counter()
    status, output = shell(command, 400)
    return {
        "passed": status == 0,
        "summary": output.strip().splitlines()[-1] if output.strip() else "",
        "failures": re.findall(r"^(?:FAILED|ERROR) .*", output, flags=re.MULTILINE),
        "seconds": round(time.perf_counter() - start, 1),
    }


def is_tests(path: Path) -> bool:
    """Not those of the package, the build and the emulation, which need no GPU."""
    skipped = {"cuda_emulation", "reference", "test_cuda_compile.py", "test_package.py"}
    folder = path.is_dir() and any(path.glob("test_*.py"))
    return path.name not in skipped and (folder or path.name.startswith("test_"))


def run_sanitizer(tool: str) -> dict[str, object]:
    """One of compute-sanitizer's tools over small cases, without torch's cache of memory."""
    if not shutil.which("compute-sanitizer"):
        return {"skipped": "compute-sanitizer was not found"}
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable]
    command += [str(Path(__file__).resolve()), "--small-cases"]
    status, output = shell(command, 300, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    errors = re.findall(r"ERROR SUMMARY: .*|RACECHECK SUMMARY: .*", output)
    return {"passed": status == 0, "summary": errors, "output": "" if status == 0 else output}


def small_cases(device: torch.device) -> None:
    """Every operation and its derivatives, small enough for a sanitizer."""
    from gpu_cases import Water, models

    for case in [*Water(150, device).cases(), *models(device)]:
        if "1024" not in case.name:
            case.run()
    torch.cuda.synchronize()


# Times


def median_time(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: of a captured graph where the call can be captured, for kernels shorter
    than their launches; else between two events."""
    for _ in range(3):
        run()
    if device.type == "cpu":
        return statistics.median(host_time(run) for _ in range(5))
    torch.cuda.synchronize()
    replay, calls = captured(run)
    times = []
    for _ in range(15):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3 / calls)
    return statistics.median(times)


def host_time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def captured(run: Callable[[], object], calls: int = 4) -> tuple[Callable[[], object], int]:
    """A CUDA graph of a few calls, or the call itself where it cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            for _ in range(calls):
                run()
    except Exception:
        torch.cuda.synchronize()
        return run, 1
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay, calls


def measure_ceilings(device: torch.device) -> dict[str, float]:
    """Bytes read and written per second by a copy, from memory and from the L2 cache, and the rates
    of large matrix products."""
    small = device.type == "cpu"
    out: dict[str, float] = {}
    for name, megabytes in (("memory", 64 if small else 2048), ("cache", 4 if small else 16)):
        source = torch.randn(megabytes << 18, device=device)
        target = torch.empty_like(source)
        seconds = median_time(lambda t=target, s=source: t.copy_(s), device)
        out[f"{name}_GB_per_s"] = 2 * source.nbytes / seconds * 1e-9
    n = 512 if small else 8192
    a, b = (torch.randn(n, n, device=device) for _ in range(2))
    for name, tf32 in (("float32", False), ("tf32", True)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        out[f"{name}_TFLOP_per_s"] = 2 * n**3 / median_time(lambda: a @ b, device) * 1e-12
    torch.backends.cuda.matmul.allow_tf32 = False
    return out


def roofline(device: torch.device, moved: int, ceilings: dict[str, float]) -> tuple[str, float]:
    """The ceiling that holds for a working set of so many bytes, GB/s."""
    cuda = device.type == "cuda"
    cache = torch.cuda.get_device_properties(device).L2_cache_size if cuda else 0
    name = "cache" if moved <= cache else "memory"
    return name, ceilings[f"{name}_GB_per_s"]


def time_kernels(
    device: torch.device, sizes: list[int], ceilings: dict[str, float]
) -> list[dict[str, object]]:
    from gpu_cases import Water

    rows: list[dict[str, object]] = []
    cuda = device.type == "cuda"
    for atoms in sizes:
        water = Water(atoms, device)
        if cuda and water.memory() > 0.8 * torch.cuda.mem_get_info(device)[0]:
            say(f"{atoms} atoms: skipped, {water.memory() / 2**30:.0f} GiB of memory are needed")
            continue
        reference = Water(atoms, torch.device("cpu")) if atoms <= 3_000 else None
        on_cpu = {} if reference is None else cpu_results(reference)
        for case in water.cases():
            row = time_case(case, device, compiled=cuda and atoms == sizes[0])
            row = {"atoms": water.atoms, "edges": water.edges, **row}
            row["GB_per_s"] = case.bytes / float(row["seconds"]) * 1e-9
            row["roofline"], ceiling = roofline(device, case.bytes, ceilings)
            row["of_roofline"] = float(row["GB_per_s"]) / ceiling
            row["same_bits"] = same_bits(case.run)
            if case.name in on_cpu:
                row["difference_from_cpu"] = difference(case.run(), on_cpu[case.name])
            rows.append(row)
            say(describe(row))
    return rows


def cpu_results(water: object) -> dict[str, list[torch.Tensor]]:
    """Of the cases without random inputs."""
    from gpu_cases import flat

    wanted = ("neighbor_list", "distances", "radial_basis", "spherical_radial")
    return {case.name: flat(case.run()) for case in water.cases() if case.name in wanted}


def time_case(case: object, device: torch.device, compiled: bool) -> dict[str, object]:
    """``compiled``: also torch.compile's version of the peer, which takes its time to make."""
    row: dict[str, object] = {"name": case.name, "seconds": median_time(case.run, device)}
    if case.plain:
        row["torch_seconds"] = median_time(case.plain, device)
    if case.compiled and compiled:
        try:
            row["compiled_seconds"] = median_time(case.compiled, device)
        except Exception as error:
            row["compiled_seconds"] = f"skipped: {type(error).__name__}"
    return row


def same_bits(run: Callable[[], object]) -> bool:
    from gpu_cases import flat

    once, again = flat(run()), flat(run())
    return all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def difference(result: object, expected: list[torch.Tensor]) -> float:
    """Largest over all tensors of |a - b| over the norm of b."""
    from gpu_cases import flat

    found = [t.cpu().double() for t in flat(result)]
    wanted = [t.double() for t in expected]
    return max(
        float((a - b).norm() / b.norm().clamp(min=1e-30)) if a.shape == b.shape else float("inf")
        for a, b in zip(found, wanted, strict=True)
    )


def time_models(device: torch.device) -> list[dict[str, object]]:
    from gpu_cases import models

    rows = []
    for case in models(device):
        row = time_case(case, device, compiled=device.type == "cuda")
        row["peer"] = "torch_geometric" if case.plain else "skipped: torch_geometric was not found"
        if case.plain:
            row["difference_from_peer"] = difference(
                case.run(), [t.detach().cpu() for t in case.plain()]
            )
        rows.append(row)
        say(describe(row))
    return rows


def describe(row: dict[str, object]) -> str:
    text = f"{row.get('atoms', ''):>8} {row['name']:<26} {float(row['seconds']) * 1e6:12.1f} us"
    if "of_roofline" in row:
        text += f" {float(row['of_roofline']):6.0%} of {row['roofline']}"
    if "torch_seconds" in row:
        text += f" {float(row['torch_seconds']) / float(row['seconds']):7.1f} x torch"
    return text


# The run


def machine(device: torch.device) -> dict[str, object]:
    import molkern

    cuda = device.type == "cuda"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or "cpu",
        "capability": list(torch.cuda.get_device_capability(device)) if cuda else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "molkern": molkern.__version__,
        "build": molkern.build_info(),
    }


def prove(steps: list[str]) -> dict[str, object]:
    """Tests and sanitizers side by side: nothing is timed meanwhile."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        jobs = {"tests": pool.submit(run_tests)} if "tests" in steps else {}
        if "sanitizers" in steps:
            jobs.update({tool: pool.submit(run_sanitizer, tool) for tool in TOOLS})
        out = {name: job.result() for name, job in jobs.items()}
    for name, result in out.items():
        say(f"{name}: {result}")
    return out


def own_stream(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """A graph cannot be captured on the default stream, and a backward pass runs on the stream of
    its forward pass: all that is timed runs on this one."""
    if device.type == "cpu":
        return contextlib.nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))


def measure(device: torch.device, steps: list[str], atoms: list[int]) -> dict[str, object]:
    out: dict[str, object] = {}
    if "ceilings" in steps or "kernels" in steps:
        out["ceilings"] = ceilings = measure_ceilings(device)
        say(f"ceilings: { {name: round(value, 1) for name, value in ceilings.items()} }")
    if "kernels" in steps:
        out["kernels"] = time_kernels(device, atoms, ceilings)
    if "models" in steps:
        out["models"] = time_models(device)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--only", nargs="+", default=STEPS, choices=STEPS, metavar="STEP")
    parser.add_argument("--atoms", nargs="+", type=int, default=ATOMS)
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/gpu-NAME-DATE.json")
    parser.add_argument("--skip-build", action="store_true")
    parser.add_argument("--small-cases", action="store_true", help="what the sanitizers run")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no NVIDIA GPU was found (torch.cuda.is_available() is False); try --device cpu")
    device = torch.device(options.device)
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    if options.small_cases:
        return small_cases(device)
    if not options.skip_build:
        build(device)
    report: dict[str, object] = {"machine": machine(device)}
    report["proofs"] = proofs = prove(options.only)
    with own_stream(device):
        report.update(measure(device, options.only, options.atoms))
    name = re.sub(r"\W+", "-", str(report["machine"]["device"])).strip("-")
    path = options.out or RESULTS / f"gpu-{name}-{datetime.date.today()}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    say(f"written: {path}")
    if any(not result.get("passed", True) for result in proofs.values()):
        sys.exit("tests or sanitizers failed, see above")


if __name__ == "__main__":
    main()
