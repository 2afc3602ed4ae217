"""The arguments that a model was made with: kept for its file, and not to be changed afterwards."""

from __future__ import annotations

import copy
import inspect
from typing import Any, TypeVar

from torch import nn


class KeepsArguments(nn.Module):
    """A module that knows the arguments of its constructor, and refuses to change them alone."""

    #: Names of attributes that a made model cannot change, see :func:`arguments_are_fixed`.
    fixed: frozenset[str] = frozenset()
    _config: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments: a copy, by which a model that is made cannot be changed."""
        return FixedConfig(copy.deepcopy(self._config))

    def _fix(self, **values: Any) -> None:
        """Sets, for good, attributes that follow from the constructor's arguments."""
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "config" or (name in self.fixed and not self._may_be(name, value)):
            self._refuse(name, value)
        super().__setattr__(name, value)

    def _may_be(self, name: str, value: Any) -> bool:
        """Whether a module is set in the place of another, or nothing changes."""
        if isinstance(value, nn.Module):
            return True
        if name in self._modules:
            return value is None
        return name in self.__dict__ and bool(self.__dict__[name] == value)

    def _refuse(self, name: str, value: Any) -> None:
        kind = type(self).__name__
        if name == "config":
            raise AttributeError(f"config tells how a {kind} was made: make a new model instead")
        present = self.__dict__.get(name, self._config.get(name))
        raise AttributeError(
            f"{name} of a {kind} is {present!r} and cannot be set to {value!r}, its layers were "
            f"made with it: make a new model, {kind}(**{{**model.config, {name!r}: {value!r}}}), "
            "and train it or load the weights that fit"
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "config" in state:  # a pickle of an earlier version
            state = {**state, "_config": state["config"]}
            del state["config"]
        super().__setstate__(state)


Kind = TypeVar("Kind", bound=type[KeepsArguments])


def arguments_are_fixed(kind: Kind) -> Kind:
    """Makes a class refuse changes of the arguments that a model was made with.

    Its layers were made with them: setting ``cutoff``, say, would leave bases, filters and
    envelopes at the old one. Modules can be replaced, ``filters`` and ``spline_tolerance`` set.
    """
    arguments = frozenset(inspect.signature(kind.__init__).parameters)
    kind.fixed = kind.fixed | (arguments - {"self", "filters", "spline_tolerance"})
    return kind


class FixedConfig(dict[str, Any]):
    """A dictionary that refuses changes, which would change nothing but itself."""

    def _refuse(self, *_args: Any, **_options: Any) -> Any:
        raise TypeError(
            "a model's config tells how it was made and cannot be changed: make a new model, "
            "type(model)(**{**model.config, ...})"
        )

    __setitem__ = __delitem__ = update = setdefault = _refuse
    pop = popitem = clear = __ior__ = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return FixedConfig, (dict(self),)
