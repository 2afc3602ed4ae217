"""Whether a module of another package is what its converter knows, in all its parts."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .entries import Entries
from .modules import is_one_of, kind

#: Types that molkern's models have.
TYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Part:
    """What may stand in a place of a module.

    Attributes:
        package: of the classes.
        names: of the classes.
        arguments: of their constructors, all that are known; None for those of torch and of
            activations.
    """

    package: str
    names: tuple[str, ...]
    arguments: frozenset[str] | None = None


def part(package: str, names: str, arguments: str | None = None) -> Part:
    """A part by names of classes and arguments that are separated by blanks."""
    known = None if arguments is None else frozenset(arguments.split())
    return Part(package, tuple(names.split()), known)


LINEAR = part("torch", "Linear")
EMBEDDING = part("torch", "Embedding")
SEQUENTIAL = part("torch", "Sequential")
LIST = part("torch", "ModuleList")

#: Any: which ones are converted is for :func:`molkern.interop.modules.activation_name`.
ACTIVATION = Part("", ())

#: By the path of a submodule, with ``*`` for a number; ``""`` is the module itself.
Parts = Mapping[str, Part]


def audit(module: nn.Module, parts: Parts, ignored: str | None = None) -> None:
    """Refuses, by name, what a conversion would lose.

    That is a submodule of another class or in another place, a hook, a parametrisation, a method
    that was replaced, an embedding that rescales, parameters of several types or on several
    devices, and an argument of a newer release that is not its default.

    Args:
        module: to be converted.
        parts: what may stand where.
        ignored: a submodule that is looked at elsewhere.

    Raises:
        ValueError: naming the place, and what is there.
    """
    patterns = [(re.compile(_pattern(path)), part) for path, part in parts.items()]
    for path, found in module.named_modules(remove_duplicate=False):
        if ignored is not None and (path == ignored or path.startswith(f"{ignored}.")):
            continue
        place = path or "the model"
        check_untouched(found, place)
        known = next((part for regex, part in patterns if regex.fullmatch(path)), None)
        if known is None:
            raise ValueError(f"{place} is a {kind(found)}, which has no counterpart")
        if known.names and not is_one_of(found, known.package, *known.names):
            raise ValueError(
                f"{place} is a {kind(found)}, which has no counterpart; converted is a "
                f"{' or '.join(known.names)} of {known.package}"
            )
        if known.arguments is not None:
            _check_arguments(found, place, known.arguments)
        if isinstance(found, nn.Embedding):
            _check_embedding(found, place)
    _check_parameters(module)


def _pattern(path: str) -> str:
    return re.escape(path).replace(r"\*", r"\d+")


def check_untouched(module: nn.Module, place: str) -> None:
    """Refuses hooks, parametrisations and methods of a module's own."""
    if nn.utils.parametrize.is_parametrized(module):
        (name, *_) = module.parametrizations  # type: ignore[union-attr, misc]
        raise ValueError(
            f"{place} has a parametrisation of its {name}, which has no counterpart: make it "
            "permanent with torch.nn.utils.parametrize.remove_parametrizations"
        )
    for name, value in vars(module).items():
        # Hooks on the state change no prediction
        if name.endswith("_hooks") and "state_dict" not in name and isinstance(value, dict):
            if value:
                hook = next(iter(value.values()))
                raise ValueError(
                    f"{place} has a hook ({kind(hook)} in {name}), which has no counterpart: "
                    "remove it, or make what it does permanent"
                )
        elif callable(value) and callable(getattr(type(module), name, None)):
            raise ValueError(
                f"{place} has a {name} of its own ({kind(value)}) in the place of its class's, "
                "which has no counterpart"
            )


def _check_arguments(module: nn.Module, place: str, known: frozenset[str]) -> None:
    """Refuses arguments of a newer release, unless they are seen to be at their defaults."""
    for name, default in unknown_arguments(type(module), known):
        value = getattr(module, name, inspect.Parameter.empty)
        if value is inspect.Parameter.empty or not _same(value, default):
            shown = "unknown" if value is inspect.Parameter.empty else repr(value)
            raise ValueError(
                f"{place} has the argument {name} (its value is {shown}), which this version of "
                "molkern does not know: update molkern"
            )


def unknown_arguments(cls: type, known: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """Arguments of a constructor that are not known, and their defaults."""
    for name, parameter in inspect.signature(cls.__init__).parameters.items():  # type: ignore[misc]
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if name != "self" and name not in known and not variable:
            yield name, parameter.default


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, Tensor) or isinstance(default, Tensor):
        return value is default
    return type(value) is type(default) and bool(value == default)


def _check_embedding(embedding: nn.Embedding, place: str) -> None:
    for name, plain in (("max_norm", None), ("scale_grad_by_freq", False), ("sparse", False)):
        if getattr(embedding, name) != plain:
            raise ValueError(
                f"{place} has {name}={getattr(embedding, name)!r}, which has no counterpart; "
                f"{plain} is needed"
            )


def _check_parameters(module: nn.Module) -> None:
    first: tuple[str, Tensor] | None = None
    for name, parameter in module.named_parameters():
        if parameter.dtype not in TYPES:
            raise ValueError(
                f"{name} is {parameter.dtype}, but models are float32 or float64: convert it with "
                ".float() first"
            )
        first = first or (name, parameter)
        for what in ("dtype", "device"):
            here, there = getattr(parameter, what), getattr(first[1], what)
            if here != there:
                raise ValueError(
                    f"{name} is {here} but {first[0]} is {there}: a model is of one type and on "
                    "one device, use .to()"
                )


def tensors_of(module: nn.Module) -> Entries:
    """The module's parameters, as such, and buffers by name; it knows which were used."""
    return Entries(module.state_dict(keep_vars=True), f"this {kind(module)}")


def refuse_unused(entries: Entries, *known: str) -> None:
    """Refuses parameters and buffers that the conversion did not use, but for the known ones.

    A known name that ends in a point stands for all that begin with it.
    """

    def is_known(name: str) -> bool:
        return any(
            name.startswith(k) if k.endswith(".") else re.fullmatch(_pattern(k), name)
            for k in known
        )

    left = [name for name in entries if name not in entries.read and not is_known(name)]
    if left:
        raise ValueError(
            f"parameters or buffers that have no counterpart: {left[:5]}"
            + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        )
