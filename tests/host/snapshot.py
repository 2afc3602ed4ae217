"""What a process is like for its owner, as values that can be compared."""

import decimal
import faulthandler
import gc
import locale
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import warnings

import numpy as np
import torch


def works():
    """Numbers of parts of torch that allocate in ways of their own."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.rand(*shape, generator=generator)

    def filled(module):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(drawn(*parameter.shape) - 0.5)
        return module

    def run():
        half = torch.bfloat16
        linear = filled(torch.nn.Linear(16, 16))
        found = {
            "LSTM": filled(torch.nn.LSTM(16, 16))(drawn(4, 2, 16))[0],
            "product in bfloat16": drawn(64, 64).to(half) @ drawn(64, 64).to(half),
            "products in bfloat16": torch.bmm(drawn(4, 8, 8).to(half), drawn(4, 8, 8).to(half)),
            "bmm": torch.bmm(drawn(4, 8, 8), drawn(4, 8, 8)),
            "Conv2d": filled(torch.nn.Conv2d(3, 4, 3))(drawn(1, 3, 8, 8)),
            "attention": torch.nn.functional.scaled_dot_product_attention(
                drawn(1, 2, 8, 16), drawn(1, 2, 8, 16), drawn(1, 2, 8, 16)
            ),
            "denormal": torch.full((4,), 1e-40) * 1.0,
        }
        if torch.backends.quantized.engine != "none":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # this way of quantising is deprecated
                small = torch.ao.quantization.quantize_dynamic(
                    torch.nn.Sequential(linear), {torch.nn.Linear}
                )
            found["quantised Linear"] = small(drawn(4, 16))
        with torch.autocast("cpu", half):
            found["autocast"] = linear(drawn(4, 16))
        return {name: value.double().tolist() for name, value in found.items()}

    # By way of a state of its own: modules draw their first weights
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return run()


def of_torch():
    names = ["enabled", "benchmark", "deterministic", "allow_tf32"]
    found = {f"cudnn.{name}": getattr(torch.backends.cudnn, name) for name in names}
    tensor = torch.empty(1)
    with torch._C.DisableTorchFunction():
        keys = (
            torch._C._dispatch_tls_local_include_set(),
            torch._C._dispatch_tls_local_exclude_set(),
        )
    return found | {
        "threads": torch.get_num_threads(),
        "threads between operators": torch.get_num_interop_threads(),
        "default type": torch.get_default_dtype(),
        "default device": str(torch.get_default_device()),
        "type and device of a new tensor": (tensor.dtype, str(tensor.device)),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "autocast cache": torch.is_autocast_cache_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "only warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fills memory": torch.utils.deterministic.fill_uninitialized_memory,
        "float32 products": torch.get_float32_matmul_precision(),
        "TF32": torch.backends.cuda.matmul.allow_tf32,
        "oneDNN": torch.backends.mkldnn.enabled,
        "anomalies": torch.is_anomaly_enabled(),
        "profiler": torch.autograd._profiler_enabled(),
        "multithreaded backward": torch._C._is_multithreading_enabled(),
        "sparse checks": torch.sparse.check_sparse_tensor_invariants.is_enabled(),
        "dispatch keys": [str(k) for k in keys],
        "functions": torch._C._len_torch_function_stack(),
        "modes": torch._C._len_torch_dispatch_stack(),
        "print options": vars(torch._tensor_str.PRINT_OPTS).copy(),
        "sharing": torch.multiprocessing.get_sharing_strategy(),
        "safe globals": set(map(str, torch.serialization.get_safe_globals())),
        "random state": torch.get_rng_state().numpy().tobytes(),
    }  # fmt: skip


def of_logging():
    """The root's, and those that exist; others of molkern's must leave writing to their owner."""
    root = logging.getLogger()
    loggers = {k: v for k, v in root.manager.loggerDict.items() if isinstance(v, logging.Logger)}
    found = {
        name: (logger.level, [type(h) for h in logger.handlers], logger.propagate, logger.disabled)
        for name, logger in {"root": root, **loggers}.items()
    }
    return found | {
        "disabled below": root.manager.disable,
        "class": logging.getLoggerClass(),
        "captures warnings": logging._warnings_showwarning is not None,
        "loud": [k for k, v in loggers.items() if k.startswith("molkern") and v.handlers],
    }


def of_matplotlib():
    """Settings, and figures that pyplot holds."""
    matplotlib = sys.modules.get("matplotlib")
    if matplotlib is None:
        return None
    pyplot = sys.modules.get("matplotlib.pyplot")
    settings = {key: dict.__getitem__(matplotlib.rcParams, key) for key in matplotlib.rcParams}
    settings["backend"] = str(settings["backend"])  # chosen or still open
    figures = [] if pyplot is None else pyplot.get_fignums()
    return {**settings, "figures": figures}


def of_process():
    mask = os.umask(0)
    os.umask(mask)
    handlers = {int(number): signal.getsignal(number) for number in signal.valid_signals()}
    # Programs like pytest and libraries like tqdm have threads that end with the process
    lasting = [t.name for t in threading.enumerate() if not t.daemon]
    return {
        "signals": handlers,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "mask of files": mask,
        "path": list(sys.path),
        "importers": [str(type(m)) for m in sys.meta_path],
        "hooks": (sys.excepthook, sys.displayhook, sys.unraisablehook, threading.excepthook),
        "streams": (id(sys.stdin), id(sys.stdout), id(sys.stderr)),
        "faulthandler": faulthandler.is_enabled(),
        "collection": (gc.isenabled(), gc.get_threshold(), gc.get_debug(), len(gc.callbacks)),
        "recursion": sys.getrecursionlimit(),
        "switching": sys.getswitchinterval(),
        "locale": locale.setlocale(locale.LC_ALL),
        "decimals": str(decimal.getcontext()),
        "start of processes": multiprocessing.get_start_method(allow_none=True),
        "threads": lasting,
        "filters of warnings": [str(f) for f in warnings.filters],
        "shows warnings": warnings.showwarning,
        "random state": random.getstate(),
        "NumPy's random state": str(np.random.get_state(legacy=False)),  # noqa: NPY002
        "NumPy's errors": (np.geterr(), str(np.geterrcall())),
        "NumPy's printing": str(np.get_printoptions()),
    }


def snapshot():
    """Everything, by its name; of what was not there earlier, nothing is compared."""
    parts = {
        "torch": of_torch(),
        "logging": of_logging(),
        "matplotlib": of_matplotlib() or {},
        "process": of_process(),
        "torch computes": works(),
    }
    return {
        f"{part} {name}": value for part, found in parts.items() for name, value in found.items()
    }


def differences(before, after):
    """``name: old -> new`` of what is not the same."""
    found = []
    for name, old in before.items():
        new = after.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
            old, new = {k: old.get(k) for k in keys}, {k: new.get(k) for k in keys}
        elif isinstance(old, (list, set)) and isinstance(new, (list, set)):
            old, new = [x for x in old if x not in new], [x for x in new if x not in old]
        found.append(f"{name}: {str(old)[:300]} -> {str(new)[:300]}")
    return found
