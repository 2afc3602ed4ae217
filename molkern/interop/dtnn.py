"""DTNN weights of the authors' TensorFlow code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..models import DTNN
from .entries import check_options, copy, network_type, references, scalar, shape_of, transposed

#: How the variables are written: in the code's own scope, and as ``tf.train.Saver`` stores them.
_SCOPES = ("DTNN/model/", "/model/", "model/")
_SUFFIXES = ("", ":0")

#: A name that only this code has, in every way it is written.
SIGNATURES = tuple(f"{scope}in2fac/W{suffix}" for scope in _SCOPES for suffix in _SUFFIXES)


#: What descriptions of files have for people only.
DESCRIBED = (
    "source", "weights_rng", "constructor_arguments_stored_as_variables", "gaussians",
    "variables", "layout", "roles", "checkpoint_names", "equations", "no_cutoff", "pbc",
)  # fmt: skip


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
    if not isinstance(arguments, dict):
        raise ValueError(f"model_arguments must be a JSON object, got {arguments!r}")
    if arguments.get("per_atom"):
        raise ValueError("per_atom=True, a mean over atoms, has no counterpart in DTNN")
    passes, cutoff, spacing = (
        _argument(arguments, name) for name in ("n_interactions", "cutoff", "rdf_spacing")
    )
    elements, hidden = shape_of(read("Dense/W"), 2, "Dense/W")
    num_basis, factors = shape_of(read("Dense_1/W"), 2, "Dense_1/W")
    check_options(meta, DESCRIBED)
    check_options(
        arguments,
        ("n_interactions", "cutoff", "rdf_spacing", "per_atom", "mu", "std", "atom_ref"),
        n_basis=hidden,
        n_factors=factors,
        max_atomic_number=elements,
    )
    model = DTNN(
        hidden,
        factors,
        int(passes),
        num_basis,
        cutoff,
        num_elements=elements,
        last_center=num_basis * spacing,
        width=spacing,
        head_hidden=[shape_of(read("Dense_2/W"), 2, "Dense_2/W")[1]],
        scale=scalar(read("std"), "std"),
        mean=scalar(read("mu"), "mu"),
        reference=references(read("Embedding/W"), "Embedding/W"),
    )
    model.to(network_type(read("Dense/W"), "Dense/W"))
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
        copy(layer.weight, transposed(read(f"{name}/W"), name), f"{name}/W")  # theirs are (in, out)
        if layer.bias is not None:
            copy(layer.bias, read(f"{name}/b"), f"{name}/b")
    return model


def _argument(arguments: dict[str, Any], name: str) -> float:
    if name not in arguments:
        raise ValueError(f"no {name!r} in model_arguments")
    return scalar(arguments[name], name)
