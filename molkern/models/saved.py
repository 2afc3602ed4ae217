"""Models from files, which are not trusted: no code is run, and sizes are looked at first."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..files import in_one_line
from ..host import random_states_kept
from ..ops._arguments import checked
from ..ops._modes import ordinary_tensors
from .potential import FORMAT, Potential

OwnClasses = Sequence[type[Potential]]
#: Sizes in a configuration that are taken whatever the file's tensors are: a few megabytes.
_SMALL = 1_000_000
#: Of a header, as safetensors has it, bytes.
_LONGEST_HEADER = 100_000_000


@checked
def load(
    path: str | Path | bytes,
    device: torch.device | str = "cpu",
    *,
    classes: OwnClasses = (),
) -> Potential:
    """The model that :meth:`Potential.save` wrote, in evaluation mode.

    No code of the file's is run. Torch's random state and defaults of type and device neither
    matter nor change.

    Args:
        path: the file, or its content.
        device: where the model is to be.
        classes: models of one's own that the file may hold, by the names of their classes. They
            are made with the arguments that they remembered.

    Raises:
        ValueError: naming a file that is not molkern's, is damaged or of a newer format, or holds
            a class that is neither molkern's nor among ``classes``.
        TypeError: ``classes`` that are no list of classes.
        OSError: naming a file that cannot be read.
        ImportError: a model that needs a package that is not installed.
    """
    name = "the content" if isinstance(path, bytes) else str(path)
    content = path if isinstance(path, bytes) else read_model(path)
    return load_content(content, name, device, classes)


def load_content(
    content: bytes, name: str, device: torch.device | str = "cpu", classes: OwnClasses = ()
) -> Potential:
    """The model in a file's content, as :func:`load`; errors begin with a name for it."""
    with ordinary_tensors():
        tensors = _tensors(content, name)
        saved = _description(content, name)
        made = _class(saved, classes, name)
        with _naming(name, f"cannot be made into a {saved.model}"):
            model = _built(made, saved, tensors, own=made in classes)
            _fill(model, tensors)
        with _naming(name):
            model.elements = saved.elements
    return model.to(device).eval()


def read_model(path: str | Path) -> bytes:
    """The content of a model's file; of other files no more than their beginning is read.

    Raises:
        ValueError: a file that is not in safetensors' format.
        OSError: a file that cannot be read.
    """
    with Path(path).open("rb") as file:
        start = file.read(9)
        length = int.from_bytes(start[:8], "little")
        if start[8:] != b"{" or length > _LONGEST_HEADER:
            raise ValueError(f"{path} is not a safetensors file: it does not begin with a header")
        return start + file.read()


@dataclass(frozen=True)
class _Saved:
    """What a file says of its model.

    Attributes:
        model: name of the class.
        config: arguments of its constructor.
        elements: that it was trained on, if the file says so.
    """

    model: str
    config: dict[str, Any]
    elements: Any = None


@contextmanager
def _naming(name: str, problem: str = "") -> Iterator[None]:
    """Makes one line, with the file's name, of whatever is wrong with what it holds."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        where = f"{name} {problem}" if problem else name
        raise ValueError(f"{where}: {in_one_line(error)}") from error


def _tensors(content: bytes, name: str) -> dict[str, Tensor]:
    with _naming(name, "is not a safetensors file, or is damaged"):
        return safetensors.torch.load(content)


def _description(content: bytes, name: str) -> _Saved:
    """Of a safetensors file: it starts with the length of a header in JSON, eight bytes."""
    length = int.from_bytes(content[:8], "little")
    with _naming(name, "is damaged"):
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    if "molkern" not in metadata:
        raise ValueError(
            f"{name} holds no molkern model; for other packages' weights see molkern.interop"
        )
    with _naming(name, "is damaged: its description is no JSON"):
        found = json.loads(metadata["molkern"])
    kinds = {"format": int, "model": str, "config": dict}
    for key, kind in kinds.items():
        if not isinstance(found, dict) or type(found.get(key)) is not kind:
            raise ValueError(f"{name} is damaged: its description has no {key!r} as it should be")
    if found["format"] > FORMAT:
        raise ValueError(
            f"{name} holds a {found['model'][:80]} in format {found['format']}; this version of "
            f"molkern reads formats up to {FORMAT}: update molkern"
        )
    return _Saved(found["model"], found["config"], found.get("elements"))


def _class(saved: _Saved, own: OwnClasses, name: str) -> type[Potential]:
    """The class of a name: a name in a file never imports anything."""
    from . import MODELS

    if isinstance(own, type) or not all(isinstance(kind, type) for kind in own):
        raise TypeError(f"classes must be a list of models' classes, got {own!r}")
    known = MODELS | {kind.__name__: kind for kind in own}
    if saved.model not in known:
        shown = in_one_line(ValueError(saved.model))
        raise ValueError(
            f"{name} holds a {shown}, which is none of {', '.join(sorted(known))}: if the class is "
            f"your own, load it with molkern.models.load(path, classes=[{shown}]); else update "
            "molkern"
        )
    return known[saved.model]


#: What fills tensors with random numbers, of which those without memory have none.
_DRAWS = {
    torch.nn.init.normal_,
    torch.nn.init.uniform_,
    torch.nn.init.kaiming_uniform_,
    Tensor.normal_,
    Tensor.uniform_,
}


class _OnlyShapes(TorchFunctionMode):
    """Layers without memory, and none but those whose tensors are there.

    Args:
        shapes: of the tensors that there are, each as often as it is there.
    """

    def __init__(self, shapes: Mapping[tuple[int, ...], int]):
        super().__init__()
        self._left = Counter(shapes)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWS:
            filled = kwargs["tensor"] if "tensor" in kwargs else args[0]
            if filled.is_meta:
                return filled  # torch would load all of its compiler to draw nothing
        if func is not torch.empty or kwargs.get("device") is not None:
            return func(*args, **kwargs)
        made = func(*args, **{**kwargs, "device": "meta"})
        shape = tuple(made.shape)
        if not self._left[shape]:
            raise ValueError(f"it has not as many tensors of shape {list(shape)} as it describes")
        self._left[shape] -= 1
        return made


def _built(
    kind: type[Potential], saved: _Saved, tensors: Mapping[str, Tensor], own: bool
) -> Potential:
    """The model as it is described, whose layers have no memory yet if it is molkern's."""
    if own:
        with random_states_kept():
            return _made(kind, dict(saved.config))
    sizes = [size for tensor in tensors.values() for size in tensor.shape]
    most = max([_SMALL, len(tensors), *sizes])
    for key, value in saved.config.items():
        if isinstance(value, int) and abs(value) > most:
            raise ValueError(f"{key} is {value}, for which its tensors are too small")
    with _OnlyShapes(Counter(tuple(tensor.shape) for tensor in tensors.values())):
        return kind(**saved.config)


def _made(kind: type[Potential], config: dict[str, Any]) -> Potential:
    """A model of somebody's own class, which may leave the kind of filters to its base."""
    known = inspect.signature(kind).parameters.values()
    if any(p.name == "filters" or p.kind is p.VAR_KEYWORD for p in known):
        return kind(**config)
    filters = config.pop("filters", "exact")
    model = kind(**config)
    model.filters = filters
    return model


def _fill(model: Potential, tensors: dict[str, Tensor]) -> None:
    """Puts tensors into a model, as they are.

    Raises:
        ValueError: tensors that are missing, unknown, or of another shape or kind.
    """
    floating = {key: t for key, t in tensors.items() if t.is_floating_point()}
    largest = max(floating.values(), key=Tensor.numel, default=None)
    network = next((t for key, t in floating.items() if key.startswith("embedding")), largest)
    if network is not None:  # what is in no file takes on the type of the network
        model.to(dtype=network.dtype)
    wanted = model.state_dict()
    for what, names in (
        ("lacks", wanted.keys() - tensors.keys()),
        ("has unknown", tensors.keys() - wanted.keys()),
    ):
        if names:
            first = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
            raise ValueError(f"it {what} tensors ({first})")
    for key, value in tensors.items():
        if value.shape != wanted[key].shape:
            raise ValueError(
                f"{key} has shape {list(value.shape)}, but {list(wanted[key].shape)} is described"
            )
        if value.is_floating_point() != wanted[key].is_floating_point():
            raise ValueError(f"{key} is of type {value.dtype}, but should be {wanted[key].dtype}")
    # Copies: what safetensors gives lies in its own memory, as it comes
    copies = {key: tensors[key].clone() for key in wanted}
    # Into memory that there is, which names may share
    model.load_state_dict(copies, assign=any(tensor.is_meta for tensor in wanted.values()))
    bare = [key for key, t in [*model.named_parameters(), *model.named_buffers()] if t.is_meta]
    if bare:
        raise ValueError(f"{', '.join(bare)} is in no file")
