"""PhysNet weights: the authors' code (TensorFlow variables) and Asparagus (a torch state)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..models import PhysNet
from ..nn.basis import softplus_inverse
from .entries import check_options, copy, count, network_type, scalar, shape_of, transposed

OFFICIAL = "interaction_block0/interaction_layer/k2f/W"
ASPARAGUS = "input_module.atom_features.weight"

#: molkern's layers by their names in the authors' code; ``/W`` (in, out) and ``/b`` follow.
OFFICIAL_INTERACTION = {
    "filters": "interaction_layer/k2f",
    "lin_receiver": "interaction_layer/dense_i",
    "lin_sender": "interaction_layer/dense_j",
    "lin_out": "interaction_layer/dense",
    "message_residuals.{k}.lin1": "interaction_layer/residual_layer{k}/dense",
    "message_residuals.{k}.lin2": "interaction_layer/residual_layer{k}/residual",
    "atomic_residuals.{k}.lin1": "residual_layer{k}/dense",
    "atomic_residuals.{k}.lin2": "residual_layer{k}/residual",
}
OFFICIAL_OUTPUT = {
    "lin": "dense_layer",
    "residuals.{k}.lin1": "residual_layer{k}/dense",
    "residuals.{k}.lin2": "residual_layer{k}/residual",
}
#: The same in Asparagus; ``.weight`` and ``.bias`` follow.
ASPARAGUS_INTERACTION = {
    "filters": "interaction.radial2atom",
    "lin_receiver": "interaction.dense_i",
    "lin_sender": "interaction.dense_j",
    "lin_out": "interaction.dense_out",
    "message_residuals.{k}.lin1": "interaction.residuals_ij.{k}.dense1",
    "message_residuals.{k}.lin2": "interaction.residuals_ij.{k}.dense2",
    "atomic_residuals.{k}.lin1": "residuals.{k}.dense1",
    "atomic_residuals.{k}.lin2": "residuals.{k}.dense2",
}
ASPARAGUS_OUTPUT = {
    "lin": "output.{i}",
    "residuals.{k}.lin1": "residuals.{i}.{k}.dense1",
    "residuals.{k}.lin2": "residuals.{i}.{k}.dense2",
}
#: Arguments of the authors' class that say what the variables do not; others are sizes.
OFFICIAL_SIZES = (
    "F",
    "K",
    "num_blocks",
    "num_residual_atomic",
    "num_residual_interaction",
    "num_residual_output",
)
OFFICIAL_OPTIONS = (
    *OFFICIAL_SIZES,
    "sr_cut",
    "lr_cut",
    "use_electrostatic",
    "use_dispersion",
    "kehalf",
    "activation_fn",
    "s6",
    "s8",
    "a1",
    "a2",
)
#: Asparagus' names of functions that molkern has.
ACTIVATIONS = {"shifted_softplus": "ssp_pyg", "swish": "silu", "silu": "silu"}
CUTOFF_FUNCTIONS = {"default": "physnet", "poly6": "physnet", "cosine": "cosine"}
RADIAL_FUNCTIONS = {
    "default": "gaussian",
    "gaussianrbf": "gaussian",
    "gaussianrbf_physnet": "exponential",
}
GLOBAL = "output_module.output_property_block.atomic_energies_charges"


def from_official(source: Mapping[str, Tensor], meta: dict[str, Any]) -> PhysNet:
    """The authors' code (MMunibas/PhysNet), by its variables' names without their scope.

    ``meta`` has the arguments of the class ``NeuralNetwork`` that the variables do not tell:
    ``sr_cut``, and where they differ from that class's defaults ``lr_cut``, ``use_electrostatic``,
    ``use_dispersion``, ``kehalf``, and whichever of ``s6``, ``s8``, ``a1`` and ``a2`` were fixed.
    """
    if unknown := sorted(set(meta) - set(OFFICIAL_OPTIONS)):
        raise ValueError(f"options that the conversion does not know: {unknown}")
    if meta.get("activation_fn", "shifted_softplus") != "shifted_softplus":
        raise ValueError(f"activation_fn must be shifted_softplus, got {meta['activation_fn']!r}")
    sizes = _official_sizes(source, meta)
    options: dict[str, Any] = {}
    if meta.get("kehalf") is not None:
        options["coulomb_constant"] = 2 * scalar(meta["kehalf"], "kehalf")
    model = PhysNet(
        **sizes,
        cutoff=scalar(meta["sr_cut"], "sr_cut"),
        lr_cut=None if meta.get("lr_cut") is None else scalar(meta["lr_cut"], "lr_cut"),
        use_electrostatics=meta.get("use_electrostatic", True),
        use_dispersion=meta.get("use_dispersion", True),
        activation="ssp_exact",
        **options,
    )
    embedding = source["embeddings"]
    model.to(embedding.device, network_type(embedding, "embeddings"))
    copy(model.embedding.weight, embedding, "embeddings")
    copy(model.basis.raw_centers, source["rbf_layer/centers"], "rbf_layer/centers")
    copy(model.basis.raw_widths, source["rbf_layer/widths"], "rbf_layer/widths")
    for name, target in (("scale", model.scaling.scale), ("shift", model.scaling.shift)):
        pair = [source[f"{kind}{name}"] for kind in "EQ"]
        for kind, column in zip("EQ", pair, strict=True):
            if column.shape != (len(embedding),):
                raise ValueError(
                    f"{kind}{name} has shape {list(column.shape)}, expected [{len(embedding)}]"
                )
        both = torch.stack(pair, 1)
        copy(target, both, f"E{name} and Q{name}")
    interaction: Any
    for index, interaction in enumerate(model.interactions):
        prefix = f"interaction_block{index}"
        _fill_official(interaction, OFFICIAL_INTERACTION, source, prefix)
        name = f"{prefix}/interaction_layer/u"
        copy(interaction.gate, source[name], name)
    for index, output in enumerate(model.outputs):
        _fill_official(output, OFFICIAL_OUTPUT, source, f"output_block{index}")
    _fill_official_dispersion(model, source, meta)
    return model


def _official_sizes(source: Mapping[str, Tensor], meta: dict[str, Any]) -> dict[str, Any]:
    """Sizes by the shapes and names of the variables, which have to agree with the options."""
    elements, hidden = shape_of(source["embeddings"], 2, "embeddings")
    found = {
        "F": hidden,
        "K": shape_of(source[OFFICIAL], 2, OFFICIAL)[0],
        "num_blocks": count(source, "interaction_block{i}/interaction_layer/k2f/W"),
        "num_residual_atomic": count(source, "interaction_block0/residual_layer{i}/dense/W"),
        "num_residual_interaction": count(
            source, "interaction_block0/interaction_layer/residual_layer{i}/dense/W"
        ),
        "num_residual_output": count(source, "output_block0/residual_layer{i}/dense/W"),
    }
    for name in OFFICIAL_SIZES:
        if meta.get(name, found[name]) != found[name]:
            raise ValueError(
                f"{name} is {meta[name]}, but the variables are those of {found[name]}"
            )
    return {
        "num_elements": elements,
        "hidden_channels": hidden,
        "num_basis": found["K"],
        "num_interactions": found["num_blocks"],
        **{name: found[name] for name in OFFICIAL_SIZES if name.startswith("num_residual")},
    }


def _fill_official(
    block: torch.nn.Module, names: Mapping[str, str], source: Mapping[str, Tensor], prefix: str
) -> None:
    for layer, theirs in _layers(block, names):
        name = f"{prefix}/{theirs}"
        copy(layer.weight, transposed(source[f"{name}/W"], name), name)
        if layer.bias is not None:
            copy(layer.bias, source[f"{name}/b"], name)


def _layers(
    block: torch.nn.Module, names: Mapping[str, str], index: int = 0
) -> list[tuple[Any, str]]:
    """Linear layers of a block, each with its name in another code."""
    layers = []
    for ours, theirs in names.items():
        number = 1
        if "{k}" in ours:
            number = len(block.get_submodule(ours.split(".")[0]))  # type: ignore[arg-type]
        for k in range(number):
            layer = block.get_submodule(ours.format(k=k))
            layers.append((layer, theirs.format(i=index, k=k)))
    return layers


def _fill_official_dispersion(
    model: PhysNet, source: Mapping[str, Tensor], meta: dict[str, Any]
) -> None:
    """Trained parameters are stored as the softplus takes them, fixed ones as they are."""
    raw = []
    for name in ("s6", "s8", "a1", "a2"):
        # There also where the energy has no dispersion
        value = torch.tensor(scalar(source[name], name), dtype=torch.float64)
        if meta.get(name) is not None:
            value = softplus_inverse(value)
        raw.append(value)
    if model.dispersion is not None:
        copy(model.dispersion.raw, torch.stack(raw), "s6, s8, a1 and a2")


def from_asparagus_state(source: Mapping[str, Tensor], meta: dict[str, Any]) -> PhysNet:
    """The PhysNet of Asparagus (MMunibas/Asparagus), by the names of its state.

    ``meta`` is its configuration, which has what the state does not tell: ``model_cutoff``, and
    where they are not the defaults the functions, ``model_cuton`` and ``model_switch_range``.
    """
    _refuse_foreign(source, meta)
    elements, hidden = shape_of(source[ASPARAGUS], 2, ASPARAGUS)
    prefix = "graph_module.interaction_blocks"
    has_electrostatics = any(name.startswith("electrostatic_module.") for name in source)
    has_dispersion = any(name.startswith("dispersion_module.") for name in source)
    cutoff = _number(source, "input_module.cutoff.cutoff")
    options: dict[str, Any] = {}
    if has_electrostatics:
        options["coulomb_constant"] = 2 * _number(source, "electrostatic_module.kehalf")
        options["switch_range"] = _number(source, "electrostatic_module.switch_fn.cutoff")
    if has_dispersion:
        options |= _asparagus_dispersion(source, meta)
    lr_cut = cutoff
    if has_electrostatics or has_dispersion:
        lr_cut = scalar(meta["model_cutoff"], "model_cutoff")
    block = f"{prefix}.0"
    first = f"{block}.interaction.radial2atom.weight"
    model = PhysNet.asparagus(
        hidden,
        shape_of(source[first], 2, first)[1],
        count(source, prefix + ".{i}.interaction.radial2atom.weight"),
        cutoff,
        lr_cut,
        num_elements=elements,
        num_residual_interaction=count(
            source, block + ".interaction.residuals_ij.{i}.dense1.weight"
        ),
        num_residual_atomic=count(source, block + ".residuals.{i}.dense1.weight"),
        num_residual_output=count(source, GLOBAL + ".residuals.0.{i}.dense1.weight"),
        basis=_known(meta, "input_radial_fn", "GaussianRBF", RADIAL_FUNCTIONS),
        cutoff_function=_known(meta, "input_cutoff_fn", "Poly6", CUTOFF_FUNCTIONS),
        activation=_known(meta, "graph_activation_fn", "shifted_softplus", ACTIVATIONS),
        output_activation=_known(meta, "output_activation_fn", "shifted_softplus", ACTIVATIONS),
        use_electrostatics=has_electrostatics,
        use_dispersion=has_dispersion,
        **options,
    )
    _fill_asparagus(model, source)
    _check_asparagus_options(model, meta, has_electrostatics, has_dispersion)
    if meta.get("input_rbf_trainable") is False:
        model.basis.requires_grad_(False)
    return model


#: Options of Asparagus that are in the state, or say nothing about predictions.
ASPARAGUS_WORDS = (
    "model_type", "model_calculator", "model_properties", "model_unit_properties", "model_seed",
    "model_num_threads", "model_directory", "model_path", "model_repulsion_trainable",
    "model_cutoff", "model_cuton", "model_switch_range", "model_dispersion_trainable",
    *(f"model_dispersion_d3_{name}" for name in ("s6", "s8", "a1", "a2")),
    "input_calculator", "input_radial_fn", "input_cutoff_fn", "input_rbf_trainable",
    "input_rbf_center_start", "input_rbf_center_end", "input_atom_features_range",
    "graph_calculator", "graph_activation_fn", "graph_stability_constant",
    "output_calculator", "output_activation_fn", "output_properties", "output_property_scaling",
)  # fmt: skip


def _check_asparagus_options(
    model: PhysNet, meta: Mapping[str, Any], electrostatics: bool, dispersion: bool
) -> None:
    """Refuses options of the model that are not known, or that the state contradicts.

    The configuration has those of data, training and sampling too, which are left alone.
    """
    made = model.config
    required = {
        "model_repulsion": False,
        "model_electrostatic": electrostatics,
        "model_dispersion": dispersion,
        "model_ensemble": False,
        "input_type": "PhysNet",
        "graph_type": "PhysNet",
        "output_type": "PhysNet",
        "input_n_atombasis": made["hidden_channels"],
        "input_n_radialbasis": made["num_basis"],
        "input_n_maxatom": made["num_elements"] - 1,
        "input_radial_cutoff": made["cutoff"],
        "graph_n_blocks": made["num_interactions"],
        "graph_n_residual_interaction": made["num_residual_interaction"],
        "graph_n_residual_features": made["num_residual_atomic"],
        "output_n_residual": made["num_residual_output"],
    }
    prefixes = ("model_", "input_", "graph_", "output_")
    own = {k: v for k, v in meta.items() if k.startswith(prefixes) and v is not None}
    check_options(own, ASPARAGUS_WORDS, **required)


def _number(source: Mapping[str, Tensor], name: str) -> float:
    return scalar(source[name], name)


def _refuse_foreign(source: Mapping[str, Tensor], meta: dict[str, Any]) -> None:
    """Refuses, by name, what Asparagus' PhysNet may have and molkern's has not."""
    if meta.get("model_type", "PhysNet") != "PhysNet":
        raise ValueError(f"model_type must be PhysNet, got {meta['model_type']!r}")
    if any(name.startswith("repulsion_module.") for name in source):
        raise ValueError("the model has a nuclear repulsion (model_repulsion), which PhysNet lacks")
    blocks = {
        n.split(".")[2] for n in source if n.startswith("output_module.output_property_block")
    }
    if blocks != {"atomic_energies_charges"}:
        raise ValueError(
            "the outputs must be one block of energies and charges (atomic_energies_charges), got "
            f"{sorted(blocks) or 'none: an older layout of its state'}"
        )


def _known(meta: dict[str, Any], option: str, default: str, names: Mapping[str, str]) -> str:
    """The function's name here."""
    theirs = str(meta.get(option) or default)
    if theirs.lower() not in names:
        raise ValueError(f"{option} {theirs!r} has no counterpart; known are {sorted(names)}")
    return names[theirs.lower()]


def _asparagus_dispersion(source: Mapping[str, Tensor], meta: dict[str, Any]) -> dict[str, Any]:
    cutoff, start = scalar(meta["model_cutoff"], "model_cutoff"), meta.get("model_cuton")
    if start is None:
        width = meta.get("model_switch_range")
        start = cutoff - (2.0 if width is None else scalar(width, "model_switch_range"))
    module = "dispersion_module"
    return {
        "dispersion_switch": scalar(start, "model_cuton"),
        "trainable_dispersion": meta.get("model_dispersion_trainable") is not False,
        "dispersion_parameters": [
            _number(source, f"{module}.d3_{name}") for name in ("s6", "s8", "a1", "a2")
        ],
        "bohr": 1 / _number(source, f"{module}.distances_model2Bohr"),
        "hartree": _number(source, f"{module}.energies_Hatree2model"),
    }


def _fill_asparagus(model: PhysNet, source: Mapping[str, Tensor]) -> None:
    embedding = source[ASPARAGUS]
    model.to(embedding.device, network_type(embedding, ASPARAGUS))
    # Its embedding has max_norm: longer rows are shortened when they are looked up
    largest = float(embedding.shape[1])
    length = embedding.norm(dim=1, keepdim=True)
    shortened = torch.where(length > largest, embedding * (largest / (length + 1e-7)), embedding)
    copy(model.embedding.weight, shortened, ASPARAGUS)
    centers, widths = (source[f"input_module.radial_fn.{n}"] for n in ("centers", "widths"))
    gaussian = not model.basis.positive
    model.basis.set_functions(centers, 0.5 / widths.double() ** 2 if gaussian else widths)
    interaction: Any
    for index, interaction in enumerate(model.interactions):
        prefix = f"graph_module.interaction_blocks.{index}"
        _fill_torch(interaction, ASPARAGUS_INTERACTION, source, prefix)
        name = f"{prefix}.interaction.scaling"
        copy(interaction.gate, source[name], name)
    for index, output in enumerate(model.outputs):
        _fill_torch(output, ASPARAGUS_OUTPUT, source, GLOBAL, index)
    targets = _number(source, f"{GLOBAL}.n_property")
    scaling = source[f"{GLOBAL}.scaling"]
    if targets != 2 or scaling.dim() != 3:
        raise ValueError(
            f"{GLOBAL}.scaling must have shape [{len(embedding)}, 2, 2], got {list(scaling.shape)}"
        )
    copy(model.scaling.shift, scaling[:, :, 0], f"{GLOBAL}.scaling")
    copy(model.scaling.scale, scaling[:, :, 1], f"{GLOBAL}.scaling")


def _fill_torch(
    block: torch.nn.Module,
    names: Mapping[str, str],
    source: Mapping[str, Tensor],
    prefix: str,
    index: int = 0,
) -> None:
    for layer, theirs in _layers(block, names, index):
        name = f"{prefix}.{theirs}"
        copy(layer.weight, source[f"{name}.weight"], name)
        if layer.bias is not None:
            copy(layer.bias, source[f"{name}.bias"], name)


#: Recipes by a name that only that code's files have.
RECIPES = {OFFICIAL: from_official, ASPARAGUS: from_asparagus_state}
