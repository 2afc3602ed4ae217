"""A good guest: what is changed in the process that uses molkern is put back."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import random
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from . import _C


def empty_cache() -> None:
    """Gives memory that molkern keeps on the CPU for later results back to the system.

    Operators keep blocks of results that are gone, up to 128 MiB, and the neighbor search up to
    32 MiB that it works in, for fresh memory takes longer to get than to fill. It goes back by
    itself where an allocation of molkern's fails. What tensors hold is left alone, and so is the
    memory of GPUs, which is torch's: :func:`torch.cuda.empty_cache`.
    """
    _C.drop_idle_memory()


@contextmanager
def threads_of_torch(count: int | None) -> Iterator[None]:
    """Within it torch uses so many threads; None: as many as before."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


@contextmanager
def random_states_kept() -> Iterator[None]:
    """What is drawn or seeded within it leaves the global generators as they were."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = range(torch.cuda.device_count()) if cuda else []
    numbers, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        np.random.set_state(numbers)  # noqa: NPY002
        random.setstate(python)


@contextmanager
def start_of_processes_kept() -> Iterator[None]:
    """Leaves it open how processes are started, where it was: a lock between processes chooses."""
    before = multiprocessing.get_start_method(allow_none=True)
    try:
        yield
    finally:
        if multiprocessing.get_start_method(allow_none=True) != before:
            multiprocessing.set_start_method(before, force=True)


@contextmanager
def environment_kept() -> Iterator[None]:
    """Puts back variables of the environment."""
    before = dict(os.environ)
    try:
        yield
    finally:
        if dict(os.environ) != before:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def settings_kept() -> Iterator[None]:
    """Puts back what a library changes for good: for calls of Lightning and Ray.

    Signal handlers (in the main thread, where they can be set), the one for crashes, filters of
    warnings, how processes are started, and torch's threads, grad mode, default type, deterministic
    mode and flags of cuDNN.
    """
    handlers, crashes = _signal_handlers(), faulthandler.is_enabled()
    settings = [(get, put, get()) for get, put in _TORCH]
    try:
        with warnings.catch_warnings(), threads_of_torch(None), start_of_processes_kept():
            yield
    finally:
        for get, put, value in settings:
            if get() != value:
                put(value)
        if faulthandler.is_enabled() and not crashes:
            faulthandler.disable()
        for number, handler in handlers.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)


@contextmanager
def usual_torch() -> Iterator[None]:
    """Within it torch is as it starts: results of commands do not depend on their owner's modes.

    Gradients are recorded, new tensors are float32 and on the CPU, and nothing is cast by itself.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as modes:
        for mode in (torch.inference_mode(False), torch.enable_grad()):
            modes.enter_context(mode)
        # These cost each call of torch something, where there is anything to put off
        if torch.get_default_device().type != "cpu":
            modes.enter_context(torch.device("cpu"))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False))
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


@contextmanager
def everything_kept() -> Iterator[None]:
    """Settings, environment and random states, and torch as it starts: for commands.

    They may import Lightning, which changes some.
    """
    with environment_kept(), settings_kept(), random_states_kept(), usual_torch():
        yield


def _signal_handlers() -> dict[int, Any]:
    """Those that Python can set again: none outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {int(number): signal.getsignal(number) for number in signal.valid_signals()}
    return {number: handler for number, handler in found.items() if handler is not None}


def _deterministic() -> tuple[bool, bool]:
    on = torch.are_deterministic_algorithms_enabled()
    return on, torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _cudnn() -> tuple[bool, bool]:
    return torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic


def _set_cudnn(value: tuple[bool, bool]) -> None:
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = value


#: How a setting is read, and written.
_TORCH: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (_deterministic, _set_deterministic),
    (_cudnn, _set_cudnn),
]
