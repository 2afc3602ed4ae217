"""How the benchmarks measure what pytest-benchmark does not."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def peak_memory(function: Callable[[], object]) -> int:
    """Most bytes in use while the function runs, beyond what was before it, by torch's profiler."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    current = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak


def interleaved(
    functions: Sequence[Callable[[], object]], rounds: int, calls: int = 1
) -> list[float]:
    """Median seconds of each function, measured in turns so that a busy machine hits all alike.

    In its turn a function is called ``calls`` times, as often as it takes for short ones to find
    their own data in the caches, as they do in a run of them.
    """
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            for _ in range(calls):
                function()
            seconds.append((time.perf_counter() - start) / calls)
    return [statistics.median(seconds) for seconds in times]
