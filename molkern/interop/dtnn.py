"""DTNN weights of the authors' TensorFlow code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..models import DTNN
from .entries import copy

#: How the variables are written: in the code's own scope, and as ``tf.train.Saver`` stores them.
_SCOPES = ("DTNN/model/", "/model/", "model/")
_SUFFIXES = ("", ":0")

#: A name that only this code has, in every way it is written.
SIGNATURES = tuple(f"{scope}in2fac/W{suffix}" for scope in _SCOPES for suffix in _SUFFIXES)


def from_official_dtnn(source: Mapping[str, Tensor], meta: dict[str, Any]) -> DTNN:
    """The authors' 2017 code (TensorFlow variables), see :class:`molkern.models.DTNN`.

    All passes share their weights, so that the shapes don't tell how many there are: that, the
    cutoff and the spacing of the Gaussians are ``model_arguments`` of the description.
    """
    signature = next(name for name in SIGNATURES if name in source)
    scope, _, suffix = signature.partition("in2fac/W")

    def read(name: str) -> Tensor:
        return source[f"{scope}{name}{suffix}"]

    arguments = meta["model_arguments"]
    if arguments.get("per_atom"):
        raise ValueError("per_atom=True, a mean over atoms, has no counterpart in DTNN")
    passes, cutoff, spacing = (
        _argument(arguments, name) for name in ("n_interactions", "cutoff", "rdf_spacing")
    )
    elements, hidden = read("Dense/W").shape
    num_basis, factors = read("Dense_1/W").shape
    model = DTNN(
        hidden,
        factors,
        int(passes),
        num_basis,
        cutoff,
        num_elements=elements,
        last_center=num_basis * spacing,
        width=spacing,
        head_hidden=[read("Dense_2/W").shape[1]],
        scale=float(read("std")),
        mean=float(read("mu")),
        reference=read("Embedding/W").flatten().tolist(),
    )
    model.to(read("Dense/W").dtype)
    copy(model.embedding.weight, read("Dense/W"), "Dense/W")
    first, last = model.head.layers[0], model.head.layers[2]
    layers: list[tuple[Any, str]] = [
        (model.lin_distance, "Dense_1"),
        (model.interaction.lin_in, "in2fac"),
        (model.interaction.lin_out, "fac2out"),
        (first, "Dense_2"),
        (last, "Dense_3"),
    ]
    for layer, name in layers:
        copy(layer.weight, read(f"{name}/W").T, f"{name}/W")  # theirs are (in, out)
        if layer.bias is not None:
            copy(layer.bias, read(f"{name}/b"), f"{name}/b")
    return model


def _argument(arguments: dict[str, Any], name: str) -> float:
    if name not in arguments:
        raise ValueError(f"no {name!r} in model_arguments")
    return float(arguments[name])
