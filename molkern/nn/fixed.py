"""Attributes that follow from a constructor's arguments and cannot be changed alone."""

from __future__ import annotations

from typing import Any

from torch import nn


class FixedModule(nn.Module):
    """A module that refuses to change what else was made from.

    Setting a cutoff, say, would leave the functions of a basis, tables of splines and a saved
    configuration at the old one.
    """

    #: Names of attributes that are set once, by the constructor.
    fixed: frozenset[str] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.fixed and name in self.__dict__ and self.__dict__[name] != value:
            raise AttributeError(
                f"{name} of {type(self).__name__} is {self.__dict__[name]!r} and cannot be set to "
                f"{value!r}, other parts were made with it: make a new layer with {name}={value!r}"
            )
        super().__setattr__(name, value)
