"""SchNetPack 2's SchNet as a module, see :func:`molkern.interop.from_schnetpack`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..models import SchNet
from .audit import (
    ACTIVATION,
    EMBEDDING,
    LIST,
    SEQUENTIAL,
    Parts,
    audit,
    part,
    refuse_unused,
    tensors_of,
)
from .entries import references, scalar
from .modules import activation_name, common_activation, is_one_of, kind, require
from .schnet import SCHNETPACK, fill, freeze_basis, sizes_of, take_basis

PACKAGE = "schnetpack"
_MODEL = "postprocessors input_dtype_str do_postprocessing"
_RBF = "n_rbf cutoff start trainable"
_DENSE = part(PACKAGE, "Dense", "in_features out_features bias activation weight_init bias_init")
_LAYERS = (
    "representation.interactions.*.in2f",
    "representation.interactions.*.f2out.*",
    "representation.interactions.*.filter_network.*",
    "output_modules.*.outnet.*",
)
#: All that a model of SchNetPack 2.1 consists of, where it is converted; what else may be there
#: has been looked at by then.
PARTS: Parts = {
    "": part(
        PACKAGE,
        "NeuralNetworkPotential AtomisticModel",
        f"{_MODEL} representation input_modules output_modules",
    ),
    "representation": part(
        PACKAGE,
        "SchNet",
        "n_atom_basis n_interactions radial_basis cutoff_fn n_filters shared_interactions "
        "activation nuclear_embedding electronic_embeddings",
    ),
    "representation.radial_basis": part(PACKAGE, "GaussianRBF GaussianRBFCentered", _RBF),
    "representation.cutoff_fn": part(PACKAGE, "CosineCutoff", "cutoff"),
    "representation.embedding": EMBEDDING,
    "representation.electronic_embeddings": LIST,
    "representation.interactions": LIST,
    "representation.interactions.*": part(
        PACKAGE, "SchNetInteraction", "n_atom_basis n_rbf n_filters activation"
    ),
    "representation.interactions.*.f2out": SEQUENTIAL,
    "representation.interactions.*.filter_network": SEQUENTIAL,
    "output_modules.*.outnet": SEQUENTIAL,
    **dict.fromkeys(_LAYERS, _DENSE),
    **{f"{layer}.activation": ACTIVATION for layer in _LAYERS},
    **dict.fromkeys(("input_modules", "output_modules", "postprocessors"), LIST),
    "input_modules.*": part(PACKAGE, "PairwiseDistances Strain", ""),
    "output_modules.*": part(
        PACKAGE,
        "Atomwise Forces",
        "n_in n_out n_hidden n_layers activation aggregation_mode output_key per_atom_output_key "
        "calc_forces calc_stress energy_key force_key stress_key",
    ),
    "postprocessors.*": part(
        PACKAGE,
        "AddOffsets CastTo32 CastTo64 CastMap",
        "property add_mean add_atomrefs is_extensive zmax atomrefs property_mean type_map",
    ),
}


def from_schnetpack_module(module: Any) -> SchNet:
    """SchNetPack's potential with its weights; what has no counterpart is refused by name."""
    version = getattr(module, "spk_version", None)
    if version is not None and not str(version).startswith("2."):
        raise ValueError(f"the model is of SchNetPack {version}, version 2 is needed")
    for inputs in module.input_modules if hasattr(module, "input_modules") else ():
        require(inputs, PACKAGE, ("PairwiseDistances", "Strain"), "an input module")
    representation = module.representation
    require(representation, PACKAGE, ("SchNet",), "the representation")
    index, atomwise = _atomwise(module.output_modules)
    scalars = _representation_options(representation) | _head_options(atomwise.outnet)
    if getattr(module, "do_postprocessing", True):
        scalars |= _offsets(module.postprocessors, atomwise.output_key)
    audit(module, PARTS)
    tensors = tensors_of(module)
    layout = replace(SCHNETPACK, head=(f"output_modules.{index}.outnet.{{k}}",))
    model = SchNet(**sizes_of(tensors, layout), **scalars)
    fill(model, tensors, layout)
    model.embedding.padding_idx = representation.embedding.padding_idx  # a row not trained
    names = [f"representation.radial_basis.{name}" for name in ("offsets", "widths")]
    offsets, widths = (tensors[name] for name in names)
    take_basis(model, offsets, 0.5 / widths.detach().double() ** 2, *names)
    freeze_basis(model, offsets, widths)
    left = ("representation.cutoff_fn.cutoff", "representation.cutoff", "postprocessors.*.mean")
    refuse_unused(tensors, *left, "postprocessors.*.atomref")
    return model


def _representation_options(representation: Any) -> dict[str, Any]:
    require(representation.embedding, "torch", ("Embedding",), "the nuclear embedding")
    for embedding in getattr(representation, "electronic_embeddings", ()):
        raise ValueError(f"an electronic embedding ({kind(embedding)}) has no counterpart")
    basis = representation.radial_basis
    require(basis, PACKAGE, ("GaussianRBF", "GaussianRBFCentered"), "the radial basis")
    require(representation.cutoff_fn, PACKAGE, ("CosineCutoff",), "the cutoff function")
    activations = {}
    for i, block in enumerate(representation.interactions):
        role = f"interaction {i}"
        require(block, PACKAGE, ("SchNetInteraction",), role)
        activations[f"{role}, filter_network.0"] = block.filter_network[0].activation
        activations[f"{role}, f2out.0"] = block.f2out[0].activation
        linear = {"in2f": block.in2f, "filter_network.1": block.filter_network[1]}
        for name, layer in (linear | {"f2out.1": block.f2out[1]}).items():
            if activation_name(layer.activation, f"{role}, {name}") is not None:
                raise ValueError(f"{role}, {name} has an activation, which has no counterpart")
    return {
        "cutoff": scalar(representation.cutoff_fn.cutoff, "cutoff_fn.cutoff"),
        "activation": common_activation(activations),
        "trainable_basis": basis.offsets.requires_grad or basis.widths.requires_grad,
    }


def _head_options(layers: Any) -> dict[str, Any]:
    names = [activation_name(layer.activation, f"outnet.{k}") for k, layer in enumerate(layers)]
    if names[-1] is not None:
        raise ValueError(f"the last layer of outnet has the activation {names[-1]!r}, not none")
    if len(set(names[:-1])) > 1 or None in names[:-1]:
        raise ValueError(f"the layers of outnet need one activation, but have {names[:-1]}")
    return {
        "head_activation": names[0] if len(names) > 1 else None,
        "head_bias": layers[-1].bias is not None,
    }


def _atomwise(output_modules: Any) -> tuple[int, Any]:
    """The one module that predicts the energy, and its place."""
    found = []
    for index, output in enumerate(output_modules):
        require(output, PACKAGE, ("Atomwise", "Forces"), f"output module {index}")
        if is_one_of(output, PACKAGE, "Atomwise"):
            found.append((index, output))
    if len(found) != 1:
        raise ValueError(f"a model with one Atomwise is needed, this one has {len(found)}")
    index, atomwise = found[0]
    if atomwise.aggregation_mode != "sum":
        raise ValueError(
            f"Atomwise with aggregation_mode {atomwise.aggregation_mode!r} is not converted; "
            "'sum' is needed"
        )
    if atomwise.n_out != 1:
        raise ValueError(f"Atomwise with {atomwise.n_out} outputs has no counterpart; 1 is needed")
    if getattr(atomwise, "per_atom_output_key", None) is not None:
        raise ValueError(
            f"Atomwise with per_atom_output_key={atomwise.per_atom_output_key!r} has no "
            "counterpart, energies of atoms are not given: set it to None"
        )
    for output in output_modules:
        if is_one_of(output, PACKAGE, "Forces") and output.energy_key != atomwise.output_key:
            raise ValueError(
                f"Forces differentiates {output.energy_key!r}, but Atomwise predicts "
                f"{atomwise.output_key!r}"
            )
    return index, atomwise


def _offsets(postprocessors: Any, key: str) -> dict[str, Any]:
    """Mean and references that postprocessors add to the energy ``key``."""
    mean = 0.0
    reference: list[float] | None = None
    for step in postprocessors:
        require(step, PACKAGE, ("AddOffsets", "CastTo32", "CastTo64", "CastMap"), "a postprocessor")
        if not is_one_of(step, PACKAGE, "AddOffsets"):
            continue  # a type, which molkern's energies have in float64 anyway
        if step._property != key:
            raise ValueError(f"AddOffsets for {step._property!r}, but the model predicts {key!r}")
        if not step.is_extensive:
            raise ValueError("AddOffsets with is_extensive=False has no counterpart")
        if step.add_mean:
            mean += scalar(step.mean, "the mean of AddOffsets")
        if step.add_atomrefs:
            added = references(step.atomref, "the atomref of AddOffsets")
            reference = added if reference is None else _sums(reference, added)
    return {"mean": mean, "reference": reference}


def _sums(first: list[float], second: list[float]) -> list[float]:
    if len(first) != len(second):
        raise ValueError(f"two AddOffsets have {len(first)} and {len(second)} references")
    return [a + b for a, b in zip(first, second, strict=True)]
