"""Whether a module is as it was: its weights, and what calling it runs."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from itertools import chain
from operator import itemgetter
from typing import Any

from torch import Tensor, nn

from ..ops._modes import is_transformed, values_of
from .plain import OWN_HOOKS, has_global_hooks

_PLAIN_VALUES = (int, float, bool, str, type(None))
#: Where modules come from whose attributes are known to be no more than settings.
_OURS = "molkern.", "torch."
#: What torch keeps for every module, of which tensors, parts and hooks are looked at otherwise.
_OF_ALL = frozenset({*nn.Module().__dict__, "forward"})

# It is asked for in every step: what runs over all modules and tensors is left to C.
_version = Tensor._version.__get__  # type: ignore[attr-defined]


class Fingerprint:
    """Tells whether what a module computes may have changed: its tensors, its parts, its hooks.

    Seen are parameters and buffers that were written or replaced, modules added, removed or
    replaced, hooks, parametrisations and replaced ``forward``, and the numbers and names that
    molkern's own layers depend on (a cutoff, say). Not seen is what is written past torch (through
    NumPy, say) or through ``weight.data``, nor what functions remember that hooks are:
    :meth:`molkern.models.Potential.forget_splines` tells a model of it.

    Args:
        module: the module.
        watched: those of its parts whose other attributes count too, where they are of a user's own
            classes: an adapter's scale, whether it is switched on.
    """

    def __init__(self, module: nn.Module, watched: Iterable[nn.Module] = ()):
        # The module holds this, perhaps: no reference back, which would keep it alive
        self._root = weakref.ref(module)
        modules = list(module.modules())
        self._below = modules[1:]
        self._below_own = [part.__dict__ for part in self._below]
        self._hooks = [getattr(part, name) for part in modules for name in OWN_HOOKS]
        named = [(place, _setting_names(part)) for place, part in enumerate(modules)]
        self._settings = [(place, itemgetter(*names)) for place, names in named if names]
        self._children = _Held([part._modules for part in modules])
        held = [(part._parameters, part._buffers) for part in modules]
        self._structure = self._called(module)
        self._tensors = _Held(list(chain.from_iterable(held)))
        tensors = [value for value in self._tensors.values if value is not None]
        # What a transform of torch.func wraps ends with it, and is not to be held
        self.lasts = not (is_transformed() and any(values_of(t) is not t for t in tensors))
        if not self.lasts:
            self._tensors, tensors = _Held([]), []
        self._placed = [tensor for tensor in tensors if _has_place(tensor)]
        self._versioned = [tensor for tensor in tensors if not tensor.is_inference()]
        self._places, self._versions = self._now()
        theirs = [part for part in watched if not type(part).__module__.startswith(_OURS)]
        self._attributes = [(part.__dict__, _attributes(part.__dict__)) for part in theirs]

    def settle(self) -> None:
        """Leaves out attributes that have changed since: those that calls themselves write."""
        self._attributes = [
            (own, {k: v for k, v in seen.items() if k in own and v == _Attribute(own[k])})
            for own, seen in self._attributes
        ]

    def holds(self) -> bool:
        """Whether everything is as it was when this was made."""
        root = self._root()
        return (
            root is not None
            and self.lasts
            and self._tensors.same()
            and self._now() == (self._places, self._versions)
            and self._children.same()
            and self._called(root) == self._structure
            and all(
                name in own and value == _Attribute(own[name])
                for own, seen in self._attributes
                for name, value in seen.items()
            )
        )

    def same_structure(self) -> bool:
        """Whether everything but the weights is as it was."""
        root = self._root()
        return root is not None and self._children.same() and self._called(root) == self._structure

    def _called(self, root: nn.Module) -> list[Any]:
        """What calls of the modules run, and what that depends on, besides tensors."""
        own = [root.__dict__, *self._below_own]
        try:
            settings = [get(own[place]) for place, get in self._settings]
        except KeyError:  # deleted
            settings = []
        return [
            type(root),
            *map(type, self._below),
            [attributes["forward"] for attributes in own if "forward" in attributes],
            list(map(tuple, filter(None, self._hooks))),
            has_global_hooks(),
            own[0].get("filter_values"),
            settings,
        ]

    def _now(self) -> tuple[list[int], list[int]]:
        """Where the tensors' values are, and how often they were written."""
        return list(map(Tensor.data_ptr, self._placed)), list(map(_version, self._versioned))


class _Held:
    """The values of dictionaries, by identity. They are held: no other can come to have theirs."""

    def __init__(self, dictionaries: list[Any]):
        self._empty = [d for d in dictionaries if not d]
        self._full = [d for d in dictionaries if d]
        self.values = list(self._now())
        self._ids = list(map(id, self.values))

    def _now(self) -> Iterator[Any]:
        return chain.from_iterable(map(dict.values, self._full))

    def same(self) -> bool:
        return list(map(id, self._now())) == self._ids and not any(self._empty)


class _Attribute:
    """A value as it was: of plain values and collections of them, a tensor's identity and version.

    Of anything else only the type counts.
    """

    def __init__(self, value: Any):
        self._held = value if isinstance(value, Tensor) else None
        self.state = _state(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Attribute) and self.state == other.state

    __hash__ = None  # type: ignore[assignment]


def _state(value: Any) -> Any:
    if type(value) in _PLAIN_VALUES:
        return type(value), value
    if isinstance(value, Tensor):
        return id(value), None if value.is_inference() else value._version
    if isinstance(value, dict):
        return [(repr(key), _state(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [_state(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    return type(value)


def _attributes(own: dict[str, Any]) -> dict[str, _Attribute]:
    """A module's attributes, but for what torch keeps for every module."""
    return {name: _Attribute(value) for name, value in own.items() if name not in _OF_ALL}


def _setting_names(module: nn.Module) -> list[str]:
    """Attributes with plain values of one of molkern's modules."""
    if not type(module).__module__.startswith("molkern."):
        return []
    return [
        name
        for name, value in module.__dict__.items()
        if type(value) in _PLAIN_VALUES and name[0] != "_" and name != "training"
    ]


def _has_place(tensor: Tensor) -> bool:
    """Whether a tensor's values are in memory of its own; some kinds of tensor have none."""
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True
