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

#: What an implementation is named in tables, and the package whose version goes with it.
PACKAGES = {
    "PyTorch Geometric": "torch_geometric",
    "TorchMD-NET": "torchmd-net",
    "eager torch": "torch",
    "torch.compile": "torch",
}


def version_of(implementation: str) -> str:
    """Version of the package that an implementation comes from; torch's for plain torch."""
    name = PACKAGES.get(implementation, implementation).split(",")[0]
    try:
        return metadata.version(name)
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
) -> dict[str, float]:
    """Times all implementations in turns; keeps a row of each for the report.

    Args:
        benchmark: pytest-benchmark's fixture, which times ``runs["molkern"]`` too.
        kernel: what is compared, the table's name (``"cfconv"``, ``"SchNet"``).
        case: the work (``"3,000 atoms of water, forward"``).
        runs: by implementation, functions without arguments that do the same work, whose results
            were compared before; ``"molkern"`` is among them. A floor has a name in brackets
            (``"[stream]"``): no competitor, but what the machine needs at least.
        rounds: how often each has its turn.
        calls: how often it is called in a turn.
        warmup: calls of each before.
        memory: whether the peak of memory is measured too, by torch's profiler.
        per: sizes of the work, by name (``{"atoms": 3000, "edges": 161904}``).

    Returns:
        How many times as fast molkern is as each of the others.
    """
    for run in runs.values():
        for _ in range(warmup):
            run()
    turns: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(calls):
                run()
            turns[name].append((time.perf_counter() - start) / calls)
    medians = {name: statistics.median(seconds) for name, seconds in turns.items()}
    ours = medians["molkern"]
    rows = []
    for name, run in runs.items():
        low, _, high = statistics.quantiles(turns[name], n=4) if rounds > 1 else turns[name] * 3
        rows.append(
            {
                "implementation": name,
                "version": version_of(name),
                "median_s": medians[name],
                "quartiles_s": [low, high],
                "times_as_fast": medians[name] / ours,
                "peak_bytes": peak_memory(run) if memory else None,
            }
        )
    benchmark.extra_info.update(
        kernel=kernel,
        case=case,
        size=dict(per or {}),
        threads=torch.get_num_threads(),
        device=device_name(),
        torch=torch.__version__,
        molkern=molkern.__version__,
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        rows=rows,
    )
    benchmark.pedantic(runs["molkern"], rounds=3, iterations=max(1, calls))
    return {name: seconds / ours for name, seconds in medians.items()}
