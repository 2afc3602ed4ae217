"""One comparison: molkern and its peers on the same work, timed in turns, as rows of a table."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import torch
from measure import peak_memory

import molkern

#: The package that an implementation comes from, where it has another name.
PACKAGES = {
    "PyTorch Geometric": "torch_geometric",
    "TorchMD-NET": "torchmd-net",
    "SchNetPack": "schnetpack",
    "eager torch": "torch",
    "torch.compile": "torch",
}


def version_of(implementation: str) -> str:
    """Version of an implementation's package (``"molkern, exact"`` is molkern); torch's else."""
    base = implementation.split(",")[0]
    if base == "molkern":
        return molkern.__version__
    try:
        return metadata.version(PACKAGES.get(base, base))
    except metadata.PackageNotFoundError:
        return metadata.version("torch")


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    isa = molkern.build_info()["cpu_instruction_set_in_use"]
    return f"{_processor()}, {os.cpu_count()} cores, {isa}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def compare(
    benchmark: Any,
    kernel: str,
    case: str,
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 7,
    calls: int = 1,
    warmup: int = 2,
    memory: bool = True,
    per: Mapping[str, float] | None = None,
    limit: float = 5.0,
) -> dict[str, float]:
    """Times all implementations in turns; keeps a row of each for the report.

    Where benchmarks are disabled every implementation is called once, and that is all.

    Args:
        benchmark: pytest-benchmark's fixture, which times ``runs["molkern"]`` too.
        kernel: what is compared, the table's name (``"cfconv"``, ``"SchNet"``).
        case: the work (``"3,000 atoms of water, forward"``).
        runs: by implementation, functions without arguments that do the same work, whose results
            were compared before; ``"molkern"`` is among them. Another way of molkern's own is named
            ``"molkern, exact filters"``. A floor has a name in brackets (``"[stream]"``): no
            competitor, but what the machine needs at least.
        rounds: how often each has its turn.
        calls: how often it is called in a turn.
        warmup: calls of each before.
        memory: whether the peak of memory is measured too, by torch's profiler.
        per: sizes of the work, by name (``{"atoms": 3000, "edges": 161904}``).
        limit: seconds after which there are no more rounds, once there were three.

    Returns:
        How many times as fast molkern is as each of the others; nothing where they are disabled.
    """
    if benchmark.disabled:
        for run in runs.values():
            run()
        benchmark(runs["molkern"])
        return {}
    for run in runs.values():
        warm_up(run, warmup)
    turns = in_turns(runs, rounds, calls, limit)
    medians = {name: statistics.median(seconds) for name, seconds in turns.items()}
    ours = medians["molkern"]
    rows = [
        {
            "implementation": name,
            "version": version_of(name),
            "median_s": medians[name],
            "quartiles_s": quartiles(turns[name]),
            "times_as_fast": medians[name] / ours,
            "peak_bytes": peak_memory(run) if memory else None,
        }
        for name, run in runs.items()
    ]
    record(benchmark, kernel, case, rows, torch.get_num_threads(), per or {})
    benchmark.pedantic(runs["molkern"], rounds=3, iterations=max(1, calls))
    return {name: seconds / ours for name, seconds in medians.items()}


def record(
    benchmark: Any,
    kernel: str,
    case: str,
    rows: list[dict[str, Any]],
    threads: int,
    per: Mapping[str, float],
) -> None:
    """Keeps rows for the report, with what they were measured with."""
    benchmark.extra_info.update(
        kernel=kernel,
        case=case,
        size=dict(per),
        threads=threads,
        device=device_name(),
        torch=torch.__version__,
        molkern=molkern.__version__,
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        rows=rows,
    )


def warm_up(run: Callable[[], object], calls: int) -> None:
    """Calls it so often, but no more once a second has gone by."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
        if time.perf_counter() - start > 1.0:
            break


def in_turns(
    runs: Mapping[str, Callable[[], object]], rounds: int, calls: int, limit: float
) -> dict[str, list[float]]:
    """Seconds of a call, by implementation and round."""
    turns: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    for done in range(rounds):
        if done >= 3 and time.perf_counter() - begin > limit:
            break
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(calls):
                run()
            turns[name].append((time.perf_counter() - start) / calls)
    return turns


def quartiles(seconds: list[float]) -> list[float]:
    if len(seconds) == 1:
        return seconds * 2
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return [low, high]


def peak_of(benchmark: Any, implementation: str) -> int | None:
    """Peak of memory that :func:`compare` found, in bytes; None where it did not run."""
    for row in benchmark.extra_info.get("rows", []):
        if row["implementation"] == implementation:
            return row["peak_bytes"]
    return None


def check_goal(
    benchmark: Any,
    ratios: Mapping[str, float],
    implementation: str,
    *,
    faster: float | None = None,
    memory: float | None = None,
) -> None:
    """Fails unless molkern is so many times as fast, and has at most this share of the memory.

    Nothing is checked against a peer that did not run.
    """
    if implementation not in ratios:
        return
    if faster is not None:
        found = ratios[implementation]
        assert found > faster, f"{found:.2f} times as fast as {implementation}, not {faster}"
    if memory is not None:
        ours, theirs = (peak_of(benchmark, name) for name in ("molkern", implementation))
        assert ours is not None
        assert theirs is not None
        assert ours < memory * theirs, f"{ours} bytes of {implementation}'s {theirs}"
