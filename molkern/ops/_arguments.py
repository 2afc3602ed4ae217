"""Errors for arguments of a wrong kind: which one, what it must be, and how to make it."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Function = TypeVar("Function", bound=Callable[..., Any])


def explained(function: Function) -> Function:
    """Says of a call that fails which argument is of a wrong kind, if one is.

    Calls that go well cost next to nothing: annotations are looked at after an error only.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            message = complaint(function, args, kwargs)
            if message is not None:
                raise TypeError(message) from error
            if any(words in str(error) for words in _OF_INFERENCE_MODE):
                raise RuntimeError(f"{_title(function, args)}: {_INFERENCE_TENSORS}") from error
            raise

    return call  # type: ignore[return-value]


_INFERENCE_TENSORS = (
    "torch.inference_mode() forbids derivatives of tensors that were made under it, here weights "
    "or arguments: outside of it copy.deepcopy(model) and tensor.clone() make ordinary ones; or "
    "use torch.no_grad() in its place"
)
#: What torch, molkern's operators and functions within say of tensors made in inference mode.
_OF_INFERENCE_MODE = ("Inference tensor", "made under torch.inference_mode()", _INFERENCE_TENSORS)


def checked(function: Function) -> Function:
    """Refuses arguments of a wrong kind before a call, for what is not called often.

    It tells of a TypeError, for strings and such that a conversion would take.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        message = complaint(function, args, kwargs)
        if message is not None:
            raise TypeError(message)
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def number(name: str, value: Any) -> float:
    """A number as a float; of a string, which ``float`` would take, a TypeError tells."""
    if isinstance(value, str):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def complaint(function: Callable[..., Any], args: Any, kwargs: Any) -> str | None:
    """What is wrong with the kind of an argument by its annotation; None if nothing is."""
    signature, kinds = _kinds(function)
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:
        return None  # Python's own error is about names and numbers of arguments
    for name, value in given.items():
        needed = kinds.get(name)
        if needed is not None and (hint := _wrong(name, value, needed)) is not None:
            return f"{_title(function, args)}: {hint}"
    return None


def _title(function: Callable[..., Any], args: Any) -> str:
    """The name of a function or layer for messages: of a method that of the object's class."""
    owner, _, name = function.__qualname__.rpartition(".")
    if not owner:
        return name
    if args and not isinstance(args[0], type) and hasattr(type(args[0]), name):
        owner = type(args[0]).__name__
    return owner if name in ("__init__", "__call__", "forward") else f"{owner}.{name}"


@cache
def _kinds(function: Callable[..., Any]) -> tuple[inspect.Signature, dict[str, frozenset[str]]]:
    """Names of the types of each annotated argument."""
    signature = inspect.signature(function)
    kinds = {}
    for name, parameter in signature.parameters.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.annotation is parameter.empty or variadic:
            continue
        kind = parameter.annotation
        text = kind.__name__ if isinstance(kind, type) else str(kind)
        kinds[name] = frozenset(re.findall(r"(?:\w+\.)*(\w+)", text))  # without their modules
    return signature, kinds


def _wrong(name: str, value: Any, needed: frozenset[str]) -> str | None:
    """What is wrong with a value for an argument that takes these types."""
    if needed & {"Any", "object"} or (value is None and "None" in needed):
        return None
    for kind, beside, find in _RULES:
        about = kind & needed and needed <= kind | beside | {"None"}
        if about and (hint := find(name, value, needed)) is not None:
            return hint
    if value is None:
        return f"{name} must not be None"
    if isinstance(value, str) and not needed & {"str", "Path", "Literal"}:
        return f"{name} must be {_words(needed)}, got the string {value!r}"
    return None


def _words(needed: frozenset[str]) -> str:
    several = needed & {"Iterable", "Sequence"}
    words = {
        "Tensor": "a tensor",
        "float": "numbers" if several else "a number",
        "int": "integers" if several else "a number",
        "bool": "a bool",
    }
    known = [word for kind, word in words.items() if kind in needed]
    others = needed - {*words, "Iterable", "Sequence", "None"}
    return " or ".join([*(f"a {kind}" for kind in sorted(others)), *known])


def shown(value: Any) -> str:
    """A value in few words, for messages."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, (str, int, float, complex)):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "None" if value is None else type(value).__name__


def _tensor(name: str, value: Any, needed: frozenset[str]) -> str | None:
    if isinstance(value, Tensor):
        return None
    if isinstance(value, (list, tuple, np.ndarray)):
        return f"{name} must be a tensor, got {shown(value)}: use torch.as_tensor({name})"
    if needed <= {"Tensor", "None"}:
        return f"{name} must be a tensor, got {shown(value)}"
    return None


def _graph(name: str, value: Any, needed: frozenset[str]) -> str | None:
    if hasattr(value, "by_receiver"):
        return None
    hint = ""
    if isinstance(value, (Tensor, list, tuple, np.ndarray)):
        hint = ": of an edge_index make one with "
        hint += "molkern.NeighborList.from_edge_index(edge_index, num_atoms)"
    elif isinstance(value, (int, float)) or hasattr(value, "system_ptr"):
        hint = ": make one with molkern.neighbor_list(positions, cutoff) or model.neighbors(batch)"
    return f"{name} must be a molkern.NeighborList, got {shown(value)}{hint}"


def _batch(name: str, value: Any, needed: frozenset[str]) -> str | None:
    if hasattr(value, "system_ptr"):
        return None
    items = value if isinstance(value, (list, tuple)) else [value]
    if items and all(hasattr(item, "get_positions") for item in items):
        hint = "make one with molkern.AtomicBatch.from_ase(atoms)"
    elif isinstance(value, dict):
        hint = "make one of its tensors, molkern.AtomicBatch(numbers, positions, ...)"
    elif hasattr(value, "pos"):
        hint = "make one with molkern.AtomicBatch(data.z, data.pos, data.batch)"
    else:
        hint = "make one with molkern.AtomicBatch(z, pos, batch)"
    return f"{name} must be a molkern.AtomicBatch, got {shown(value)}: {hint}"


def _model(name: str, value: Any, needed: frozenset[str]) -> str | None:
    if isinstance(value, nn.Module):
        return None
    hint = ""
    if needed.isdisjoint({"Potential", "SchNet"}):
        pass  # one of another package
    elif isinstance(value, type):
        hint = f": make a model of it, {value.__name__}(...)"
    elif isinstance(value, (str, bytes, os.PathLike)):
        hint = ": load it with molkern.models.load(path)"
    return f"{name} must be a model, got {shown(value)}{hint}"


def _atoms(name: str, value: Any, needed: frozenset[str]) -> str | None:
    items = value if isinstance(value, (list, tuple)) else [value]
    for item in items:
        if isinstance(item, (str, os.PathLike)):
            return f"{name} must be ase.Atoms, got {shown(item)}: read a file with ase.io.read"
        single = "Sequence" not in needed or isinstance(item, (dict, Tensor, np.ndarray))
        if not hasattr(item, "get_positions") and (single or not hasattr(item, "__iter__")):
            return f"{name} must be ase.Atoms or a list of them, got {shown(item)}"
    return None


def _flag(name: str, value: Any, needed: frozenset[str]) -> str | None:
    if isinstance(value, (bool, np.bool_)):
        return None
    named = "; pass it by name, neighbors=" if hasattr(value, "by_receiver") else ""
    return f"{name} must be True or False, got {shown(value)}{named}"


def _number(name: str, value: Any, needed: frozenset[str]) -> str | None:
    method = "__float__" if "float" in needed else "__index__"
    array = isinstance(value, np.ndarray) and value.ndim > 0
    if hasattr(value, method) and not (array or isinstance(value, (bool, np.bool_, complex))):
        return None
    kind = "a number" if "float" in needed else "an integer"
    return f"{name} must be {kind}, got {shown(value)}"


def _path(name: str, value: Any, needed: frozenset[str]) -> str | None:
    if isinstance(value, (str, bytes, os.PathLike)):
        return None
    return f"{name} must be the path of a file, got {shown(value)}"


def _dtype(name: str, value: Any, needed: frozenset[str]) -> str | None:
    if isinstance(value, torch.dtype):
        return None
    return f"{name} must be a torch.dtype such as torch.float32, got {shown(value)}"


def _device(name: str, value: Any, needed: frozenset[str]) -> str | None:
    if not isinstance(value, torch.dtype):
        return None
    return f"{name} must be a device, got {value}: pass it by name, dtype="


#: Types that a rule is about, and which may stand beside them: of others nothing is known.
_RULES: list[tuple[set[str], set[str], Callable[[str, Any, frozenset[str]], str | None]]] = [
    ({"Graph", "NeighborList"}, set(), _graph),
    ({"AtomicBatch"}, set(), _batch),
    ({"Potential", "SchNet", "Module"}, set(), _model),
    ({"Atoms"}, {"Sequence"}, _atoms),
    ({"Path"}, {"str", "bytes"}, _path),
    ({"dtype"}, set(), _dtype),
    ({"device"}, {"str", "int"}, _device),
    ({"Tensor"}, {"float", "int", "bool", "SplineFilter"}, _tensor),
    ({"bool"}, set(), _flag),
    ({"float", "int"}, set(), _number),
]
