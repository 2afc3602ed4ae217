"""SchNet weights of other codes: where each tensor stands under their names.

A layout maps molkern's parameter names to theirs; ``{i}`` counts interactions, and ``{k}`` stands
for the numbers of all layers of the head that there are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..models import SchNet
from .audit import (
    ACTIVATION,
    EMBEDDING,
    LINEAR,
    LIST,
    SEQUENTIAL,
    Parts,
    audit,
    part,
    refuse_unused,
    tensors_of,
)
from .entries import (
    check_options,
    copy,
    count,
    network_type,
    references,
    scalar,
    shape_of,
    transposed,
)
from .graphs import check_graph
from .modules import common_activation


@dataclass(frozen=True)
class Layout:
    """Names of SchNet's tensors in another code."""

    embedding: str
    filters: tuple[str, ...]
    lin_in: str
    lin_out: tuple[str, str]
    head: tuple[str, ...]
    weight: str = ".weight"
    bias: str = ".bias"
    transposed: bool = False  # weights stored (in, out)


OFFICIAL = Layout(
    embedding="atom_embedding/embeddings/W:0",
    filters=("interaction_{i}/SchNetFilter/Dense", "interaction_{i}/SchNetFilter/Dense_1"),
    lin_in="interaction_{i}/CFConv/in2fac",
    lin_out=("interaction_{i}/CFConv/fac2out", "interaction_{i}/Dense"),
    head=("Dense", "Dense_1"),
    weight="/W:0",
    bias="/b:0",
    transposed=True,
)
PYG = Layout(
    embedding="embedding.weight",
    filters=("interactions.{i}.mlp.0", "interactions.{i}.mlp.2"),
    lin_in="interactions.{i}.conv.lin1",
    lin_out=("interactions.{i}.conv.lin2", "interactions.{i}.lin"),
    head=("lin1", "lin2"),
)
SCHNETPACK = Layout(
    embedding="representation.embedding.weight",
    filters=tuple(f"representation.interactions.{{i}}.filter_network.{k}" for k in (0, 1)),
    lin_in="representation.interactions.{i}.in2f",
    lin_out=("representation.interactions.{i}.f2out.0", "representation.interactions.{i}.f2out.1"),
    head=("output_modules.0.outnet.{k}",),
)
MLCG = Layout(
    embedding="embedding_layer.weight",
    filters=tuple(f"interaction_blocks.{{i}}.conv.filter_network.layers.{k}" for k in (0, 2)),
    lin_in="interaction_blocks.{i}.conv.lin1",
    lin_out=("interaction_blocks.{i}.conv.lin2", "interaction_blocks.{i}.lin"),
    head=("output_network.layers.{k}",),
)


def fill(model: SchNet, source: Mapping[str, Tensor], layout: Layout) -> SchNet:
    """Copies weights of ``source`` into the model, which takes their type and device."""
    embedding = source[layout.embedding]
    model.to(embedding.device, network_type(embedding, layout.embedding))
    interaction: Any
    for index, interaction in enumerate(model.interactions):
        network = interaction.filter_network.layers
        pairs = [
            (network[0], layout.filters[0]),
            (network[2], layout.filters[1]),
            (interaction.conv.lin_in, layout.lin_in),
            (interaction.conv.lin_out, layout.lin_out[0]),
            (interaction.lin, layout.lin_out[1]),
        ]
        for layer, name in pairs:
            _fill_layer(layer, source, name.format(i=index), layout)
    for layer, name in zip(list(model.head.layers)[::2], _head(source, layout), strict=True):
        _fill_layer(layer, source, name, layout)
    copy(model.embedding.weight, embedding, layout.embedding)
    return model


def _fill_layer(layer: Any, source: Mapping[str, Tensor], name: str, layout: Layout) -> None:
    weight = source[name + layout.weight]
    copy(layer.weight, transposed(weight, name) if layout.transposed else weight, name)
    if layer.bias is not None:
        copy(layer.bias, source[name + layout.bias], name)


def _head(source: Mapping[str, Tensor], layout: Layout) -> list[str]:
    """Names of the head's layers, in order."""
    if "{k}" not in layout.head[0]:
        return list(layout.head)
    before, after = layout.head[0].split("{k}")
    pattern = re.escape(before) + r"(\d+)" + re.escape(after + layout.weight)
    found = sorted(int(match[1]) for name in source if (match := re.fullmatch(pattern, name)))
    return [f"{before}{k}{after}" for k in found or [0]]


def sizes_of(source: Mapping[str, Tensor], layout: Layout) -> dict[str, Any]:
    """Sizes that every layout tells by the shapes of its tensors."""
    elements, hidden = shape_of(source[layout.embedding], 2, layout.embedding)

    def widths(name: str) -> tuple[int, ...]:
        """Outputs and inputs of a layer."""
        found = shape_of(source[name + layout.weight], 2, name + layout.weight)
        return found[::-1] if layout.transposed else found

    num_filters, num_basis = widths(layout.filters[0].format(i=0))
    return {
        "num_elements": elements,
        "hidden_channels": hidden,
        "num_filters": num_filters,
        "num_basis": num_basis,
        "num_interactions": count(source, layout.lin_in + layout.weight),
        "head_hidden": [widths(name)[0] for name in _head(source, layout)[:-1]],
    }


def take_basis(model: SchNet, centers: Tensor, widths: Tensor, *names: str) -> None:
    """Centres and widths as they are stored, also where they were trained or are frozen.

    Args:
        model: to be filled.
        centers: ``[K]``.
        widths: ``[K]``.
        names: of both, for messages.
    """
    targets = model.basis.centers, model.basis.widths
    for target, value, name in zip(targets, (centers, widths), names, strict=True):
        copy(target, value, name)


def freeze_basis(model: SchNet, centers: Tensor, widths: Tensor) -> None:
    """Trains what is trained of a basis elsewhere, by its own tensors, and no more."""
    targets = model.basis.centers, model.basis.widths
    for target, value in zip(targets, (centers, widths), strict=True):
        if isinstance(target, nn.Parameter):
            target.requires_grad_(value.requires_grad)


#: What descriptions of files have for people only.
OFFICIAL_WORDS = (
    "rbf", "cutoff_function", "activation", "filter", "interaction", "readout", "weights_layout",
    "units", "eweight_energy_model", "eweight_force_model", "training",
)  # fmt: skip
MLCG_WORDS = ("rbf", "cutoff", "filter_network", "interaction", "output", "units", "masses")


def from_official(source: Mapping[str, Tensor], meta: dict[str, Any]) -> SchNet:
    """The authors' 2018 code (TensorFlow variables)."""
    sizes, cutoff, gap = sizes_of(source, OFFICIAL), meta["cutoff"], meta["gap"]
    check_options(
        meta,
        OFFICIAL_WORDS,
        n_interactions=sizes["num_interactions"],
        n_basis=sizes["hidden_channels"],
        n_filters=sizes["num_filters"],
        n_gaussians=sizes["num_basis"],
        intensive=False,
        filter_pool_mode="sum",
    )
    model = SchNet(
        **sizes,
        cutoff=scalar(cutoff, "cutoff"),
        gaussian_coefficient=1.0 / scalar(gap, "gap"),
        cutoff_function="none",
        activation="ssp_official",
        filter_activation=True,
        scale=scalar(source["std_per_atom:0"], "std_per_atom:0"),
        mean=scalar(source["mean_per_atom:0"], "mean_per_atom:0"),
        reference=references(source["atomref/embeddings/W:0"], "atomref/embeddings/W:0"),
    )
    return fill(model, source, OFFICIAL)


def from_schnetpack_weights(source: Mapping[str, Tensor], meta: dict[str, Any]) -> SchNet:
    """SchNetPack 2: SchNet with Gaussians, cosine cutoff and an ``Atomwise`` head (SiLU).

    Mean and atomic references of an ``AddOffsets`` are those of an extensive energy, per atom.
    """
    mean, reference = _postprocessor(source, "mean"), _postprocessor(source, "atomref")
    heads = (re.fullmatch(r"(output_modules\.\d+\.outnet\.)\d+\.weight", name) for name in source)
    first = next((match[1] for match in heads if match), "output_modules.0.outnet.")
    layout = replace(SCHNETPACK, head=(first + "{k}",))
    sizes, name = sizes_of(source, layout), "representation.cutoff_fn.cutoff"
    cutoff = scalar(source[name], name)
    check_options(
        meta,
        nb=sizes["hidden_channels"],
        nf=sizes["num_filters"],
        ni=sizes["num_interactions"],
        nr=sizes["num_basis"],
        cut=cutoff,
    )
    model = SchNet(
        **sizes,
        cutoff=cutoff,
        head_activation="silu",
        mean=0.0 if mean is None else scalar(mean, "the postprocessor's mean"),
        reference=None if reference is None else references(reference, "the atomref"),
    )
    names = [f"representation.radial_basis.{kind}" for kind in ("offsets", "widths")]
    take_basis(model, source[names[0]], 0.5 / source[names[1]].double() ** 2, *names)
    return fill(model, source, layout)


def _postprocessor(source: Mapping[str, Tensor], kind: str) -> Tensor | None:
    """That tensor of the first postprocessor that has one."""
    names = [n for n in source if n.startswith("postprocessors.") and n.endswith(f".{kind}")]
    return source[names[0]] if names else None


def from_mlcg_weights(source: Mapping[str, Tensor], meta: dict[str, Any]) -> SchNet:
    """The coarse-grained SchNet of mlcg: tanh, exponential-normal basis, cosine cutoff twice."""
    sizes, cutoff = sizes_of(source, MLCG), meta["cutoff_upper"]
    check_options(
        meta,
        MLCG_WORDS,
        embedding=sizes["num_elements"],
        hidden=sizes["hidden_channels"],
        filters=sizes["num_filters"],
        n_interactions=sizes["num_interactions"],
        num_rbf=sizes["num_basis"],
        cutoff_lower=0.0,
        activation="tanh",
    )
    model = SchNet(
        **sizes,
        cutoff=scalar(cutoff, "cutoff_upper"),
        basis="exponential",
        activation="tanh",
        filter_bias=MLCG.filters[1].format(i=0) + MLCG.bias in source,
        head_bias=_head(source, MLCG)[-1] + MLCG.bias in source,
    )
    names = "rbf_layer.means", "rbf_layer.betas"
    take_basis(model, source[names[0]], source[names[1]], *names)
    return fill(model, source, MLCG)


Recipe = Callable[[Mapping[str, Tensor], dict[str, Any]], SchNet]

#: Recipes by a name that only that code's files have.
RECIPES: dict[str, Recipe] = {
    OFFICIAL.embedding: from_official,
    SCHNETPACK.embedding: from_schnetpack_weights,
    MLCG.embedding: from_mlcg_weights,
}


PACKAGE = "torch_geometric"
#: Classes of PyTorch Geometric's aggregations over atoms, and what they are called here.
PYG_READOUTS = {"SumAggregation": "sum", "MeanAggregation": "mean"}
_SUM = part(PACKAGE, "SumAggregation")
#: All that PyTorch Geometric's SchNet consists of; activations are looked at for themselves.
PYG_PARTS: Parts = {
    "": part(
        PACKAGE,
        "SchNet",
        "hidden_channels num_filters num_interactions num_gaussians cutoff interaction_graph "
        "max_num_neighbors readout dipole mean std atomref",
    ),
    "embedding": EMBEDDING,
    "sum_aggr": _SUM,
    "readout": part(PACKAGE, "SumAggregation MeanAggregation"),
    "interaction_graph": part(PACKAGE, "RadiusInteractionGraph", "cutoff max_num_neighbors"),
    "distance_expansion": part(PACKAGE, "GaussianSmearing", "start stop num_gaussians"),
    "interactions": LIST,
    "interactions.*": part(
        PACKAGE, "InteractionBlock", "hidden_channels num_gaussians num_filters cutoff"
    ),
    "interactions.*.conv": part(
        PACKAGE, "CFConv", "in_channels out_channels num_filters nn cutoff"
    ),
    **{f"interactions.*.{name}": SEQUENTIAL for name in ("mlp", "conv.nn")},
    **{f"interactions.*.{name}.{k}": LINEAR for name in ("mlp", "conv.nn") for k in (0, 2)},
    "interactions.*.conv.aggr_module": _SUM,
    **{f"interactions.*.{name}": LINEAR for name in ("conv.lin1", "conv.lin2", "lin")},
    "lin1": LINEAR,
    "lin2": LINEAR,
    "atomref": EMBEDDING,
}
#: Tensors that are read elsewhere, are there twice, or that a module may have without use.
_PYG_LEFT = (
    "initial_atomref",
    "atomref.weight",
    "atomic_mass",
    "interactions.*.conv.nn.*.weight",
    "interactions.*.conv.nn.*.bias",
    "interaction_graph.",
)
#: Where activations are.
_BENDS = "interactions.*.mlp.1", "interactions.*.conv.nn.1", "interactions.*.act", "act"


def from_pyg_schnet(module: Any) -> SchNet:
    """PyTorch Geometric's ``SchNet`` with its weights, see :func:`molkern.interop.from_pyg`."""
    readout = type(module.readout).__name__
    if readout not in PYG_READOUTS:
        raise ValueError(
            "from_pyg converts SchNet with a sum or mean over atoms, this one has readout "
            f"{readout}"
        )
    options = _pyg_activations(module)
    audit(module, {**PYG_PARTS, **dict.fromkeys(_BENDS, ACTIVATION)}, "interaction_graph")
    tensors = tensors_of(module)
    cutoff = _pyg_cutoff(module)
    check_graph(module.interaction_graph, cutoff, tensors[PYG.embedding])
    options |= _pyg_standards(module)
    offset = tensors["distance_expansion.offset"]
    model = SchNet(
        **sizes_of(tensors, PYG),
        cutoff=cutoff,
        trainable_basis=offset.requires_grad,
        trainable_reference=options["reference"] is not None,
        prediction="dipole_moment" if module.dipole else "energy",
        readout=PYG_READOUTS[readout],
        **options,
    )
    fill(model, tensors, PYG)
    model.embedding.padding_idx = module.embedding.padding_idx  # a row that is not trained
    if model.readout.layer is not None:
        copy(model.readout.layer.masses, tensors["atomic_mass"], "atomic_mass")
    if model.reference.reference is not None:
        model.reference.reference.requires_grad_(tensors["atomref.weight"].requires_grad)
    coefficient = -scalar(module.distance_expansion.coeff, "distance_expansion.coeff")
    widths = torch.full_like(model.basis.widths, coefficient).detach()
    take_basis(model, offset, widths, "distance_expansion.offset", "distance_expansion.coeff")
    model.basis.widths.requires_grad_(False)
    refuse_unused(tensors, *_PYG_LEFT)
    return model


def _pyg_activations(module: Any) -> dict[str, Any]:
    """The activations of interactions and head, each of which may be any that molkern has."""
    found = {}
    for i, block in enumerate(module.interactions):
        found[f"interactions.{i}.mlp.1"] = block.mlp[1]
        found[f"interactions.{i}.act"] = block.act
        if block.conv.nn is not block.mlp:
            raise ValueError(f"interactions.{i}.conv.nn is not interactions.{i}.mlp")
    return {
        "activation": common_activation(found) if found else "ssp_pyg",
        "head_activation": common_activation({"act": module.act}),
    }


def _pyg_cutoff(module: Any) -> float:
    """The cutoff of the filters, which must be one, and that which the module says it has."""
    cutoff = scalar(module.cutoff, "cutoff")
    for i, block in enumerate(module.interactions):
        conv, place = block.conv, f"interactions.{i}.conv"
        if scalar(conv.cutoff, f"{place}.cutoff") != cutoff:
            raise ValueError(f"cutoff is {cutoff}, but that of {place} is {conv.cutoff}")
        for name, needed in (("aggr", "add"), ("flow", "source_to_target"), ("node_dim", -2)):
            value = getattr(conv, name)
            if value != needed and not (name == "aggr" and value == "sum"):
                raise ValueError(f"{place} has {name}={value!r}, {needed!r} is needed")
    return cutoff


def _pyg_standards(module: Any) -> dict[str, Any]:
    """Scale, mean and references, as PyTorch Geometric applies them."""
    factor = 1.0 if module.scale is None else scalar(module.scale, "scale")
    if module.dipole and factor < 0:
        raise ValueError(f"from_pyg converts dipoles of a positive scale, this one has {factor}")
    scale = factor * (1.0 if module.std is None else scalar(module.std, "std"))
    mean = factor * (0.0 if module.mean is None else scalar(module.mean, "mean"))
    # It applies the two only together, and neither they nor references to a dipole
    if module.dipole or (module.mean is None) != (module.std is None):
        scale, mean = factor, 0.0
    reference = None
    if module.atomref is not None and not module.dipole:
        weight = module.atomref.weight.detach().double()
        if weight.shape != (module.embedding.num_embeddings, 1):
            raise ValueError(f"atomref has shape {list(weight.shape)}, one number for each element")
        reference = (factor * weight.flatten()).tolist()
    return {"scale": scale, "mean": mean, "reference": reference}
